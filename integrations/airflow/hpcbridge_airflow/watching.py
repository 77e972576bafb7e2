"""Attend a job until it has ended: states and output into the task's log, an end at the deadline.

The same coroutine runs in the triggerer (deferred) and in the worker (not deferred).
"""

from __future__ import annotations

import asyncio
import codecs
import contextvars
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from hpcbridge.errors import AmbiguousOutcome, HpcBridgeError, JobVanished, NotFound, ServerError, Unavailable
from hpcbridge.jobs.logs import follow, post_mortem

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

    from hpcbridge import JobInfo, System

LINE_MAX = 64 * 1024
"""Bytes after which a line is cut: a progress bar that never breaks its line must not fill the memory."""


ABSENT_AFTER = 45.0
"""Seconds after its POST within which a job is known to everybody: the server's SSH time-outs (15 s) and 30 s of
accounting lag."""

CANCEL_PATIENCE = 3600.0
"""Seconds of outage that a cancel outlasts: longer than that no triggerer should be counted upon."""


class Positions(Protocol):
    """How far each file of a job has been copied into the task's log, where a restarted triggerer finds it."""

    async def load(self) -> dict[str, int]:
        """Bytes already logged, by path."""

    async def save(self, positions: dict[str, int]) -> None:
        """Remember them."""


class NoPositions:
    """For a worker, which does not hand its log on to another process."""

    async def load(self) -> dict[str, int]:
        """Nothing was logged before."""
        return {}

    async def save(self, positions: dict[str, int]) -> None:
        """Nobody asks."""


class LogPump:
    """Copies files of a job into a logger line by line, each byte once.

    The position is saved behind every batch of whole lines and compared before the next: a restarted triggerer goes on
    where the last one stopped, and one that was stalled while another took over does not repeat it.
    """

    def __init__(self, system: System, log: Logger, files: dict[str, str], positions: Positions) -> None:
        """`files` maps a prefix for the log ("" or "stderr: ") to a path on the system."""
        self._system = system
        self._log = log
        self._files = files
        self._positions = positions
        self._done: dict[str, int] = {}
        self._lock = asyncio.Lock()

    async def run(self, ended: asyncio.Event) -> None:
        """Until `ended` is set and every file has been read to its end."""
        self._done = await self._positions.load()
        async with asyncio.TaskGroup() as group:
            for prefix, path in self._files.items():
                group.create_task(self._copy(prefix, path, ended))

    async def _copy(self, prefix: str, path: str, ended: asyncio.Event) -> None:
        start = self._done.get(path, 0)
        pending = b""
        async for chunk in follow(self._system.client, self._system.name, path, until=ended, offset=start):
            pending += chunk
            cut = pending.rfind(b"\n") + 1 or (len(pending) if len(pending) > LINE_MAX else 0)
            if cut:
                await self._emit(prefix, path, start, pending[:cut])
                start, pending = start + cut, pending[cut:]
        if pending:
            await self._emit(prefix, path, start, pending)

    async def _emit(self, prefix: str, path: str, start: int, data: bytes) -> None:
        async with self._lock:
            known = (await self._positions.load()).get(path, 0)
            fresh = data[max(0, known - start) :]
            for line in codecs.decode(fresh, "utf-8", "replace").splitlines():
                self._log.info("%s%s", prefix, line)
            self._done[path] = max(known, start + len(data))
            if fresh:
                await self._positions.save(self._done)


@dataclass(frozen=True)
class Outcome:
    """How attending a job ended: with the job's own end, or because the deadline passed and it was cancelled."""

    info: JobInfo
    tail: str | None = None
    deadline_passed: bool = False


async def attend(
    system: System,
    job_id: str,
    name: str | None,
    log: Logger,
    *,
    submitted_at: datetime | None = None,
    array: str | None = None,
    output: str | None = None,
    private: str | None = None,
    pump: LogPump | None = None,
    deadline: datetime | None = None,
) -> Outcome:
    """Wait for the end of a job; past `deadline` it is cancelled, verified, and its last state reported.

    Outages are waited out. Raises HpcBridgeError for what no waiting helps against (authentication, permission).
    """
    await system.resolve()
    ended = asyncio.Event()
    copying = asyncio.create_task(pump.run(ended)) if pump is not None else None
    try:
        info, late = await _wait_until(
            deadline,
            lambda: system.watcher.wait(
                job_id, name=name, submitted_at=submitted_at, array=array, on_change=_announcer(log, job_id)
            ),
            system,
            job_id,
            log,
        )
        ended.set()
        if copying is not None:
            await _drain(copying, log)
    finally:
        if copying is not None:
            copying.cancel()
            with suppress(asyncio.CancelledError, ExceptionGroup, HpcBridgeError):
                await copying
    await _remove(system, private, log)
    failure = await post_mortem(system.client, system.name, info, output=output) if not info.ok else None
    return Outcome(info, tail=failure.tail if failure else None, deadline_passed=late)


async def _wait_until(
    deadline: datetime | None, wait: Callable[[], Awaitable[JobInfo]], system: System, job_id: str, log: Logger
) -> tuple[JobInfo, bool]:
    seconds = None if deadline is None else (deadline - datetime.now(UTC)).total_seconds()
    try:
        # A triggerer that comes back after the deadline still finds out first whether the job has ended by itself.
        async with asyncio.timeout(None if seconds is None else max(seconds, 5.0)):
            return await wait(), False
    except TimeoutError:
        log.error("The deadline has passed: cancelling job %s", job_id)
        await cancel(system, job_id, log)
        return await wait(), True


async def _drain(copying: asyncio.Task[None], log: Logger, patience: float = 120.0) -> None:
    """The rest of the output; a log that cannot be read does not make a job fail that did not."""
    try:
        async with asyncio.timeout(patience):
            await copying
    except (TimeoutError, ExceptionGroup) as error:
        causes = error.exceptions if isinstance(error, ExceptionGroup) else (error,)
        log.warning("The job's output could not be copied to its end: %s", "; ".join(map(str, causes)))


def _announcer(log: Logger, job_id: str) -> Callable[[JobInfo], None]:
    """Says each new state.

    The watcher calls it from a task of its own, which all jobs share; in a triggerer the context decides which task's
    log a line goes to. So it is said in the context of whoever asks for the announcer.
    """
    seen: set[tuple[str, str | None]] = set()
    context = contextvars.copy_context()

    def announce(info: JobInfo) -> None:
        key = (str(info.state), info.nodes)
        if key not in seen:
            seen.add(key)
            where = f" on {info.nodes}" if info.nodes else ""
            why = f" ({info.reason})" if info.reason and info.reason != "None" and not info.is_terminal else ""
            context.run(log.info, "Job %s is %s%s%s", job_id, info.raw_state or info.state, where, why)

    return announce


async def cancel(system: System, job_id: str, log: Logger, *, private: str | None = None) -> None:
    """Cancel a job and see it end, also when an outage is on: asking again does no harm.

    A job that has ended already, or that nobody knows past the accounting lag, is no error. Raises HpcBridgeError for
    a refusal, and for an outage that outlasts CANCEL_PATIENCE.
    """
    began, pause = time.monotonic(), 1.0
    while True:
        try:
            info = await system.job(job_id).cancel(verify=True)
            break
        except (NotFound, JobVanished):
            # The id is the scheduler's own: until accounting has caught up, not knowing it proves nothing.
            if time.monotonic() - began > ABSENT_AFTER:
                log.info("Job %s is not known to the scheduler any more: nothing to cancel", job_id)
                return
        except (Unavailable, AmbiguousOutcome, ServerError) as error:
            if time.monotonic() - began > CANCEL_PATIENCE:
                raise
            log.warning("Job %s is not cancelled yet, asking again: %s", job_id, error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, 30.0)
    log.info("Job %s is %s", job_id, info.raw_state or info.state)
    await _remove(system, private, log)


async def _remove(system: System, private: str | None, log: Logger) -> None:
    """The job's environment file; it stays (mode 0600) when that fails."""
    if private is None:
        return
    try:
        await system.rm(private)
    except NotFound:
        return
    except HpcBridgeError as error:
        log.warning("The environment file of the job stays on the system: %s", error)
