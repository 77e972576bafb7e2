"""What the commands for files on the cluster share: patterns expanded, failures collected, changes told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hpcbridge.cli import output
from hpcbridge.cli.context import State, choose_system, connect
from hpcbridge.cli.progress import Display

if TYPE_CHECKING:
    from hpcbridge.staging.context import Transfer
    from hpcbridge.staging.remote.globs import Found
    from hpcbridge.staging.remote.operations import Failures


@dataclass
class Call:
    """One command at work on one system; what fails of its paths is collected, and told at the end."""

    t: Transfer
    display: Display
    failures: Failures = field(default_factory=dict)

    @property
    def system(self) -> str:
        """The system's name."""
        return self.t.name

    async def expand(self, patterns: Sequence[str], *, missing_ok: bool = False) -> list[Found]:
        """What the patterns match; one that matches nothing is a failure unless `missing_ok`."""
        from hpcbridge.errors import NotFound
        from hpcbridge.staging.remote import globs
        from hpcbridge.staging.remote.operations import ABOUT_PATHS

        async def one(pattern: str) -> list[Found]:
            try:
                return await globs.expand(self.t, pattern)
            except NotFound as error:
                if not missing_ok:
                    self.failures[pattern] = error
            except ABOUT_PATHS as error:
                self.failures[pattern] = error
            return []

        return [found for part in await asyncio.gather(*map(one, patterns)) for found in part]

    async def paths(self, patterns: Sequence[str], *, missing_ok: bool = False) -> list[str]:
        """Like `expand`, the paths alone, each once."""
        return list(dict.fromkeys(found.path for found in await self.expand(patterns, missing_ok=missing_ok)))

    async def each(self, paths: Sequence[str], work: Callable[[str], Awaitable[Any]]) -> dict[str, Any]:
        """Path -> what `work` gave, side by side; failures about a path are collected."""
        from hpcbridge.staging.remote.operations import ABOUT_PATHS

        async def one(path: str) -> tuple[str, Any]:
            try:
                return path, await work(path)
            except ABOUT_PATHS as error:
                self.failures[path] = error
                return path, None

        results = await asyncio.gather(*map(one, paths))
        return {path: result for path, result in results if path not in self.failures}

    def raise_failures(self) -> None:
        """Raise what has failed."""
        from hpcbridge.errors import SomeFailed

        if len(self.failures) == 1:
            raise next(iter(self.failures.values()))
        if self.failures:
            raise SomeFailed("", failures=self.failures)


@asynccontextmanager
async def call_on(
    state: State, system: str | None, label: str, *, account: str | None = None, quiet: bool = False
) -> AsyncIterator[Call]:
    """One command on the system that its paths name, else the options; what its jobs wait for is shown."""
    from hpcbridge.staging.remote import jobs

    async with connect(state) as hpc:
        chosen = choose_system(hpc, state, system)
        await chosen.resolve()
        with Display(label, quiet=quiet, state=state) as display:
            yield Call(await jobs.context(chosen, account=account, progress=display.show), display)


def goes_on(state: State, text: str) -> None:
    """What to say after an interrupt: a job of ours is not ended with the command."""
    state.interrupt_note = f"{text}\nA job of it goes on: hpcbridge status {{job}}    End it: hpcbridge cancel {{job}}"


def print_changes(
    call: Call, verb: str, paths: Sequence[str], *, as_json: bool, dry_run: bool, destination: str | None = None
) -> None:
    """What was done (or, in a dry run, would be) as JSON or lines; nothing where a real one is told to people."""
    done = [path for path in paths if path not in call.failures]
    if as_json:
        value: dict[str, Any] = {"system": call.system, "dry_run": dry_run}
        if destination is not None:
            value["destination"] = destination
        value["done"] = done
        value["failed"] = [{"path": path, "error": str(error)} for path, error in call.failures.items()]
        output.print_json(value)
    elif dry_run:
        for path in done:
            output.print_line(f"would {verb} {path}" + (f" -> {destination}" if destination is not None else ""))
