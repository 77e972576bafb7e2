"""The driver's end of the agent's box: hand a script over, follow what it prints, push and pull archives.

An idle look is one request (`state`). Outages are not answers: they are waited out as long as the allocation's lease
lasts, and only the scheduler is believed about an allocation's end.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from hpcbridge.errors import HpcBridgeError, JobNotFound, NotFound
from hpcbridge_gitlab import verdicts
from hpcbridge_gitlab.agent import State
from hpcbridge_gitlab.output import runner_is_gone
from hpcbridge_gitlab.patience import PASSING, REFUSALS, REFUSED_FOR, outlast
from hpcbridge_gitlab.verdicts import Cause, Stop

if TYPE_CHECKING:
    from hpcbridge.firecrest import FirecrestClient
    from hpcbridge.jobs.state import JobInfo
    from hpcbridge_gitlab.records import Attempt
    from hpcbridge_gitlab.settings import Driver

_T = TypeVar("_T")
Sink = Callable[[bytes], object]

_AHEAD = 4
"""Pieces of output, or of an archive, that are on their way at once."""

_LONG_QUIET = 60.0
_SLOWER = 2.5


class Box:
    """The box of one attempt."""

    def __init__(self, client: FirecrestClient, attempt: Attempt, driver: Driver) -> None:
        """Nothing is sent yet."""
        self._client, self._attempt, self._driver = client, attempt, driver
        self._renewed = 0.0

    @property
    def node(self) -> str:
        """Where the agent runs, for messages."""
        return self._attempt.node or self._attempt.system

    # -- handing over ------------------------------------------------------------------------------------------------

    async def post(self, kind: str, stage: str, script: bytes, parts: AsyncIterator[bytes] | None = None) -> int:
        """Give the agent a script, committed after the `parts` that it reads; returns its number."""
        attempt = self._attempt
        seq = attempt.seq = attempt.seq + 1
        attempt.save()
        if parts is not None:
            script = await self._upload_parts(seq, parts) + script
        await self._put(f"{seq:04d}", script)
        digest = hashlib.sha256(script).hexdigest()
        await self._put(f"{seq:04d}.ready", f"{kind} {len(script)} {digest} {stage}\nend\n".encode())
        self._renewed = time.monotonic()
        return seq

    async def _upload_parts(self, seq: int, parts: AsyncIterator[bytes]) -> bytes:
        """Send pieces as NNNN.p0, NNNN.p1 …; the head of a script that checks them and names them in order."""
        digest, total = hashlib.sha256(), 0
        names: list[str] = []
        under_way: set[asyncio.Task[None]] = set()
        async for piece in parts:
            digest.update(piece)
            total += len(piece)
            names.append(f"{seq:04d}.p{len(names)}")
            if len(under_way) >= _AHEAD:
                done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            under_way.add(asyncio.create_task(self._put(names[-1], piece)))
        await asyncio.gather(*under_way)
        head = (
            f"umask 077\ncd {shlex.quote(self._attempt.box)} || exit 66\nparts=({' '.join(names)})\n"
            f'[ "$(cat -- "${{parts[@]}}" | wc -c)" -eq {total} ] && '
            f'[ "$(cat -- "${{parts[@]}}" | sha256sum | cut -d " " -f 1)" = {digest.hexdigest()} ] || exit 65\n'
        )
        return head.encode()

    async def _put(self, name: str, data: bytes) -> None:
        await self.outlast(lambda: self._client.upload(self._attempt.system, self._attempt.box, name, data))

    async def renew(self) -> None:
        """Renew the lease when a quarter of it has passed; what is handed over renews it, too.

        Raises Stop when there is no runner any more that wants the allocation.
        """
        if runner_is_gone():
            raise Stop(Cause.LOST, "the runner is gone; the lease ends the allocation", hint="")
        if time.monotonic() - self._renewed > self._driver.lease / 4:
            await self.touch()

    async def touch(self) -> None:
        """Renew the lease now. An outage is no reason to stop: the next tick tries again."""
        os.utime(self._attempt.path)  # for gc on this host
        try:
            await self._client.upload(self._attempt.system, self._attempt.box, "lease", b"renewed\n", patience=0)
        except PASSING:
            return
        self._renewed = time.monotonic()

    async def cancel(self, seq: int) -> None:
        """Have the agent kill stage `seq`; the allocation stays."""
        name = f"{seq:04d}.cancel"
        await self._client.upload(self._attempt.system, self._attempt.box, name, b"cancel\n", patience=5)

    async def outlast(self, request: Callable[[], Awaitable[_T]]) -> _T:
        """Repeat a request through an outage."""
        return await outlast(request, self._driver.patience)

    # -- following ---------------------------------------------------------------------------------------------------

    async def state(self, patience: float | None = None) -> State | None:
        """What the agent says now; None as long as there is no agent."""
        try:
            path = f"{self._attempt.box}/state"
            data = await self._client.download(self._attempt.system, path, patience=patience, polling=True)
        except NotFound:
            return None
        return State.parse(data)

    async def follow(self, seq: int, sink: Sink, *, until: float | None = None) -> State:
        """Until stage `seq` has ended, giving `sink` every byte that it prints, once and in order.

        Raises Stop when the allocation has ended, or the site stays away for longer than its patience. With `until`
        (monotonic seconds) it gives up then: TimeoutError.
        """
        watch = _Watch(self, seq, sink)
        pause = 0.1
        while True:
            state = await watch.look()
            if state is not None:
                return state
            if until is not None and time.monotonic() > until:
                raise TimeoutError
            # Short at first: most stages of ours, and many scripts, are over at once.
            pause = min(
                pause * 1.6, max(_SLOWER, self._driver.tick) if watch.quiet > _LONG_QUIET else self._driver.tick
            )
            await asyncio.sleep(pause)

    async def fetch(self, seq: int, first: int, last: int, sink: Sink) -> None:
        """Closed pieces of output, a few at a time, in order."""
        for begin in range(first, last + 1, _AHEAD):
            numbers = range(begin, min(begin + _AHEAD, last + 1))
            for data in await asyncio.gather(*(self._piece(seq, number) for number in numbers)):
                sink(data)

    async def _piece(self, seq: int, number: int) -> bytes:
        path = f"{self._attempt.box}/{seq:04d}.{number}"
        for _ in range(5):
            try:
                return await self.outlast(lambda: self._client.download(self._attempt.system, path))
            except NotFound:
                await asyncio.sleep(1)  # closed over there, and not yet seen by the node that serves files
        return await self._client.download(self._attempt.system, path)

    async def allocation(self) -> JobInfo | None:
        """What the scheduler says of the allocation; None when it does not say."""
        from hpcbridge.jobs.state import JobInfo

        try:
            rows = await self._client.job(self._attempt.system, self._attempt.job_id, patience=0)
        except JobNotFound:
            return None
        row = next((row for row in rows if not row.is_placeholder), None)
        return JobInfo.from_row(row, name=self._attempt.name) if row else None

    # -- archives ----------------------------------------------------------------------------------------------------

    async def run(self, stage: str, script: str, sink: Sink, parts: AsyncIterator[bytes] | None = None) -> int:
        """A script of our own in the allocation; what it prints goes to `sink`. Returns its exit code."""
        script = f"exec 2>{shlex.quote(self._attempt.box)}/errors\nexport LC_ALL=C\n{script}"
        seq = await self.post("after", stage, script.encode(), parts)
        state = await self.follow(seq, sink)
        if state.reason == "damaged":
            raise Stop(Cause.LOST, "what was sent to the node did not arrive as it was")
        return state.code

    async def complaint(self) -> str:
        """What the last script of our own wrote to its standard error."""
        try:
            data = await self._client.download(self._attempt.system, f"{self._attempt.box}/errors")
        except HpcBridgeError:
            return ""
        return data[:600].decode("utf-8", "replace").strip()


class _Watch:
    """One stage being followed."""

    def __init__(self, box: Box, seq: int, sink: Sink) -> None:
        self._box, self._seq, self._sink = box, seq, sink
        self._driver = box._driver
        self._got = 0
        self._beat: tuple[int, int, int, str] | None = None
        now = time.monotonic()
        self._alive = self._heard = self._asked = self._spoke = now
        self._refused: float | None = None

    @property
    def quiet(self) -> float:
        """Seconds since the stage printed anything."""
        return time.monotonic() - self._spoke

    async def look(self) -> State | None:
        """One look; the state when the stage has ended."""
        try:
            state = await self._box.state(patience=0)
        except (*PASSING, *REFUSALS) as error:
            await self._outage(error)
            return None
        now = self._heard = time.monotonic()
        self._refused = None
        if state is not None:
            sign = (state.beat, state.seq, state.chunks, state.status)
            if sign != self._beat:
                self._beat, self._alive = sign, now
            if state.seq == self._seq:
                await self._take(state)
                if state.over:
                    return state
        if state is not None and state.status == "ended":
            await self._ended(state)
        elif now - self._alive > self._driver.stale and now - self._asked > self._driver.stale / 2:
            self._asked = now
            return await self._ask()
        await self._box.renew()
        return None

    async def _take(self, state: State) -> None:
        if state.chunks > self._got:
            await self._box.fetch(self._seq, self._got + 1, state.chunks, self._sink)
            self._got = state.chunks
            self._spoke = time.monotonic()

    async def _outage(self, error: HpcBridgeError) -> None:
        now = time.monotonic()
        if isinstance(error, REFUSALS):
            self._refused = self._refused or now
            if now - self._refused > min(REFUSED_FOR, self._driver.patience):
                raise error
        elif now - self._heard > max(self._driver.patience, self._driver.lease):
            raise error
        await asyncio.sleep(min(getattr(error, "retry_after", None) or 0.5, 10.0))

    async def _ask(self) -> State | None:
        """The agent is silent: ask the scheduler whether there still is an allocation."""
        try:
            info = await self._box.allocation()
        except (*PASSING, *REFUSALS):
            return None
        if info is None or not info.is_terminal:
            return None
        # The last words may have been written after our last look.
        state = await self._box.state()
        if state is not None and state.seq == self._seq:
            await self._take(state)
            if state.status == "done":
                return state
        raise verdicts.of_allocation(info)

    async def _ended(self, state: State) -> None:
        """The agent has left. Why, the scheduler knows; it may take a while to say so."""
        for _ in range(20):
            try:
                info = await self._box.allocation()
            except (*PASSING, *REFUSALS):
                info = None
            if info is not None and info.is_terminal:
                raise verdicts.of_allocation(info)
            await asyncio.sleep(1)
        raise Stop(Cause.LOST, f"the agent has left ({state.reason})")
