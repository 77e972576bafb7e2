"""The checks of `hpcbridge doctor`, from the configuration to a file written and read back."""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from hpcbridge.cli import output, route_table
from hpcbridge.cli.context import State, choose_system, connect
from hpcbridge.cli.exits import ExitCode, for_error, next_step
from hpcbridge.errors import HpcBridgeError, Unavailable
from hpcbridge.hpc import Hpc, System
from hpcbridge.staging.plan import Direction
from hpcbridge.staging.routes import CLOSED, QueueState, queue_state

ROUND_TRIPS = 5
SLOW = 1.0
"""Seconds of round trip from which the doctor advises."""


@dataclass
class Finding:
    """What one check found; `hint` is the next step when it is not `ok`."""

    check: str
    ok: bool
    detail: str
    hint: str | None = None


class Stop(Exception):
    """The remaining checks would fail for the same reason."""


class Checkup:
    """Runs the checks in order, showing each as it is done; the first failure gives the exit code."""

    def __init__(
        self, state: State, *, size: int | None = None, directions: Sequence[Direction] = (), quiet: bool = False
    ) -> None:
        """With `size` only what moving so many bytes depends on; with `quiet` nothing is printed: read `summary`."""
        self.state = state
        self.size = size
        self.directions = directions or tuple(Direction)
        self.quiet = quiet
        self.findings: list[Finding] = []
        self.exit_code: int = ExitCode.OK
        self._queue: QueueState | None = None
        self._routes: dict[str, Any] = {}

    @property
    def summary(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"ok": self.exit_code == 0, "checks": [vars(each) for each in self.findings], **self._routes}

    async def run(self) -> None:
        """Run all checks that make sense."""
        try:
            hpc = await self._configuration()
            async with hpc:
                await self._check("token", lambda: self._token(hpc), fatal=True)
                await self._check("server", lambda: self._server(hpc), fatal=True)
                system = choose_system(hpc, self.state)
                await self._check("system", lambda: self._system(system), fatal=True)
                await self._check("limits", lambda: self._limits(system))
                if self.size is None:
                    await self._check("user", lambda: self._user(system))
                    await self._check("files", lambda: self._files(system))
                await self._check("queue", lambda: self._queue_state(system))
                await self._show_routes(system)
        except Stop:
            pass
        if not self.quiet and self.size is None:
            good = self.exit_code == ExitCode.OK
            output.note("Everything is in order." if good else "Not ready yet: see the first line marked ✗.")

    async def _check(self, name: str, work: Callable[[], Awaitable[str]], *, fatal: bool = False) -> None:
        """Run one check; an error of ours is a finding, not a crash."""
        try:
            self._add(Finding(name, True, await work()))
        except HpcBridgeError as error:
            self._fail(name, error)
            if fatal:
                raise Stop from None

    def _fail(self, name: str, error: HpcBridgeError) -> None:
        self.exit_code = self.exit_code or for_error(error)
        hint, error.hint = next_step(error), None
        self._add(Finding(name, False, str(error), hint))

    def _add(self, finding: Finding) -> None:
        self.findings.append(finding)
        if self.quiet:
            return
        mark = "✓" if finding.ok else "✗"
        print(output.printable(f"{mark} {finding.check:14}{finding.detail}"), flush=True)  # noqa: T201
        if finding.hint and not finding.ok:
            print(output.printable(f"  next: {finding.hint}"), flush=True)  # noqa: T201

    async def _configuration(self) -> Hpc:
        try:
            hpc = connect(self.state)
        except HpcBridgeError as error:
            self._fail("configuration", error)
            raise Stop from None
        site = hpc.site
        self._add(
            Finding(
                "configuration", True, f"{site.url}, client {site.client_id or 'none'}, token from {site.token_url}"
            )
        )
        return hpc

    async def _token(self, hpc: Hpc) -> str:
        start = time.perf_counter()
        await hpc.credential.access_token()
        return f"received in {_milliseconds(time.perf_counter() - start)}"

    async def _server(self, hpc: Hpc) -> str:
        times = []
        for _ in range(ROUND_TRIPS):
            start = time.perf_counter()
            await hpc.client.systems(fresh=True, patience=0)
            times.append(time.perf_counter() - start)
        trip = statistics.median(times)
        slow = ": slow, expect small operations to take long" if trip > SLOW else ""
        return f"FirecREST {hpc.client.server_version or 'of unknown version'}, round trip {_milliseconds(trip)}{slow}"

    async def _system(self, system: System) -> str:
        info = await system.info()
        sick = [service for service in info.services if not service.healthy]
        if sick:
            facts = "; ".join(f"{service.service}: {service.message or 'unhealthy'}" for service in sick)
            raise Unavailable(
                f"the server says that it is not healthy ({facts})",
                system=info.name,
                hint="Wait for the site to repair it, or choose another system: hpcbridge systems",
            )
        scheduler = info.scheduler
        return f"{info.name} is healthy, {scheduler.kind} {scheduler.version} over {scheduler.mode}"

    async def _limits(self, system: System) -> str:
        info = await system.info()
        large = f"larger ones by {info.transfer}" if info.transfer else "no transfer service for larger ones"
        return f"direct transfers up to {output.size(info.max_ops_file_size)}, {large}"

    async def _queue_state(self, system: System) -> str:
        self._queue = found = await queue_state(system.client, await system.info())
        if found is None:
            return "transfer jobs go where the scheduler puts them"
        if not found.starts_jobs:
            raise Unavailable(
                f"transfer jobs go to the partition {found.partition}, which is {found.state}",
                system=system.name,
                hint="Files up to the direct limit move all the same; larger ones wait until the site opens it",
            )
        return f"transfer jobs go to the partition {found.partition}, which is {found.state}"

    async def _show_routes(self, system: System) -> None:
        limits, figures = await route_table.figures_of(system)
        if self._queue is not None and not self._queue.starts_jobs:
            figures = replace(figures, queue=max(figures.queue, CLOSED))
        sizes = route_table.SIZES if self.size is None else (self.size,)
        found = route_table.choices(limits, figures, sizes, self.directions)
        self._routes = route_table.summary(found, figures, self._queue)
        if self.quiet:
            return
        if self.size is None:
            route_table.show_overview(found)
        else:
            route_table.show_details(found)

    async def _user(self, system: System) -> str:
        user = await system.client.userinfo(system.name)
        return f"{user.name} (uid {user.uid}), groups {', '.join(user.groups) or 'none'}"

    async def _files(self, system: System) -> str:
        home = await system.home()
        async with _scratch_file(system, home) as (path, content):
            if await system.read_bytes(path) != content:
                raise HpcBridgeError("a file read back differs from what was written", path=path, system=system.name)
        return f"{home} is writable, a file came back unchanged"


@asynccontextmanager
async def _scratch_file(system: System, home: str) -> AsyncIterator[tuple[str, bytes]]:
    name, content = f".hpcbridge-doctor-{secrets.token_hex(6)}", secrets.token_bytes(64)
    try:
        await system.client.upload(system.name, home, name, content)
    except HpcBridgeError as error:
        error.hint = error.hint or f"Make {home} writable for your user, or ask the site about your quota"
        raise
    try:
        yield f"{home}/{name}", content
    finally:
        await system.rm(f"{home}/{name}")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
