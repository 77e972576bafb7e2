"""A job from the queue to its last byte: its state told, its output written as it comes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from hpcbridge.cli import output
from hpcbridge.cli.running.masking import Masker
from hpcbridge.cli.running.reporting import Reporter
from hpcbridge.cli.running.telling import duration
from hpcbridge.errors import AmbiguousOutcome, HpcBridgeError, InvalidRequest, JobNotFound, ServerError, Unavailable
from hpcbridge.jobs.guard import directives_in, options_in
from hpcbridge.staging.context import given_up, in_thread

if TYPE_CHECKING:
    from hpcbridge._output_paths import Stream
    from hpcbridge.job import Job
    from hpcbridge.jobs.state import JobInfo

PASSING = (Unavailable, AmbiguousOutcome, ServerError, JobNotFound)
"""What may be otherwise a moment later: outages, and accounting that does not know the job yet."""
PAUSE = 2.0
"""Seconds between two attempts after one of those."""
LAST_WORDS = 900.0
"""Seconds after the job's end for which an outage is waited out to read the rest of its output."""


class QueueTimeout(Exception):
    """The job had not started in time, and was cancelled."""

    def __init__(self, info: JobInfo) -> None:
        super().__init__()
        self.info = info


@dataclass
class Sink:
    """Where a stream goes, byte for byte but for the secrets."""

    file: IO[bytes]
    masker: Masker
    reporter: Reporter
    written: int = 0

    async def write(self, data: bytes) -> None:
        """Write and flush, without blocking the loop."""
        await self._put(self.masker.feed(data))

    async def finish(self) -> None:
        """Write what was kept back."""
        await self._put(self.masker.end())

    async def _put(self, data: bytes) -> None:
        if data:
            await in_thread(self._write, data)
            self.reporter.line_is_open = not data.endswith(b"\n")

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.file.flush()


class Follower:
    """Waits for one job."""

    def __init__(self, job: Job, reporter: Reporter, *, queue_timeout: float | None, waited: float = 0.0) -> None:
        """`queue_timeout` in seconds from the submit on, of which `waited` have passed."""
        self.job = job
        self.reporter = reporter
        self.info: JobInfo | None = None
        self._queue_timeout = None if queue_timeout is None else max(0.0, queue_timeout - waited)
        self._started = asyncio.Event()
        self._has_queued = False
        self._waiting: asyncio.Future[JobInfo]
        self._show: Callable[[JobInfo], None] | None = None

    async def to_the_end(self, out: IO[bytes], err: IO[bytes]) -> JobInfo:
        """The job's end. Its output goes to `out`, its errors to `err` where they have a file of their own.

        Raises QueueTimeout.
        """
        self._waiting = waiting = asyncio.ensure_future(self.job.wait(on_change=self._changed))
        reading: asyncio.Future[None] | None = None
        try:
            await self._start(waiting)
            if self.info is None or self.info.is_terminal:
                self.info = await waiting
            elif self.info.started:
                self._tell_start(self.info)
            if has_run(self.info):
                reading = asyncio.ensure_future(self._read(out, err))
                await _first_of(waiting, reading)
                if reading.done():
                    reading.result()  # our own output may be closed: nobody listens any more
            self.info = info = await waiting
            if reading is not None:
                await self._last_words(reading)
            if info.job_id != self.job.id:
                await self._read_owner(info, out)
            return info
        finally:
            await given_up(reading)
            await given_up(waiting)

    def _changed(self, info: JobInfo) -> None:
        if self._started.is_set() and info.state.is_queued and not (self.info and self.info.state.is_queued):
            self.reporter.note(f"Job {info.job_id} is back in the queue ({info.raw_state}).")
        self.info = info
        if self._show is not None:
            self._show(info)
        if not info.state.is_queued:
            self._started.set()

    async def _start(self, waiting: asyncio.Future[JobInfo]) -> None:
        """Until the job has started or ended; a wait in the queue is told, with its reasons."""
        starting = asyncio.ensure_future(self._started.wait())
        with contextlib.ExitStack() as shown:
            if output.stderr_is_terminal():
                self._show = shown.enter_context(output.job_progress(self.reporter.quiet))
            else:
                self._show = partial(self._tell_queued, shown)
            try:
                await _first_of(waiting, starting, timeout=self._queue_timeout)
                while not waiting.done() and not self._started.is_set():
                    await self._give_up_queueing()
            finally:
                self._show = None
                starting.cancel()

    def _tell_queued(self, shown: contextlib.ExitStack, info: JobInfo) -> None:
        if info.state.is_queued:
            if not self._has_queued:
                self._has_queued = True
                title = f"Job {info.job_id} waits in the queue of {self.job.system.name}"
                shown.enter_context(self.reporter.section("queue", title))
            self.reporter.note(f"{output.describe(info)}.")

    async def _give_up_queueing(self) -> None:
        """Cancel the job unless it has started by now; an outage leaves it to the next attempt."""
        from hpcbridge.jobs.state import JobState

        try:
            info = await self.job.info()
            if info.state.is_queued:
                info = await self.job.cancel()
                if info.state is JobState.CANCELLED:
                    raise QueueTimeout(info)
            self._changed(info)
        except PASSING:
            await asyncio.sleep(PAUSE)

    def _tell_start(self, info: JobInfo) -> None:
        nodes = f" on {info.nodes}" if info.nodes else ""
        queued = (
            f" after {duration((info.started - info.submitted).total_seconds())} in the queue"
            if (info.submitted and info.started)
            else ""
        )
        self.reporter.note(f"Job {info.job_id} runs{nodes}{queued}.")

    async def _read(self, out: IO[bytes], err: IO[bytes]) -> None:
        streams: list[tuple[Stream, IO[bytes]]] = [("stdout", out)]
        if await self._has_errors_apart():
            streams.append(("stderr", err))
        await asyncio.gather(*(self._stream(stream, file) for stream, file in streams))

    async def _has_errors_apart(self) -> bool:
        spec = self.job.spec
        if spec is not None and spec.script is not None:
            lines = (*directives_in(spec.script), *spec.directives)
            own = [value for option, value in options_in(lines) if option in ("-e", "--error")]
            return (spec.error or next(reversed(own), None)) not in (None, spec.output, "/dev/null")
        while True:
            try:
                paths = [await self.job.output_path("stdout"), await self.job.output_path("stderr")]
            except PASSING:
                await asyncio.sleep(PAUSE)
            except HpcBridgeError:
                return False
            else:
                return paths[0] != paths[1] and paths[1] != "/dev/null"

    async def _stream(self, stream: Stream, file: IO[bytes], *, follow: bool = True, job: Job | None = None) -> None:
        sink = Sink(file, self.reporter.masker.fresh(), self.reporter)
        offset = 0
        try:
            while True:
                try:
                    logs = (job or self.job).logs(follow, stream=stream, offset=offset, exact=True)
                    async with contextlib.aclosing(logs) as chunks:
                        async for chunk in chunks:
                            offset += len(chunk)
                            await sink.write(chunk)
                except PASSING:
                    await asyncio.sleep(PAUSE)
                except InvalidRequest:
                    if not follow:
                        raise
                    # An array has one log per task: there is no order among them while they run.
                    await asyncio.wait({self._waiting})
                    follow = False
                else:
                    return
        except HpcBridgeError as error:
            self.reporter.warning(f"the job's output cannot be read: {error}")
        finally:
            await sink.finish()

    async def _last_words(self, reading: asyncio.Future[None]) -> None:
        await asyncio.wait({reading}, timeout=LAST_WORDS)
        if reading.done():
            reading.result()
        else:
            self.reporter.warning(f"the rest of the output cannot be read now; later: hpcbridge logs {self.job.id}")

    async def _read_owner(self, info: JobInfo, out: IO[bytes]) -> None:
        """The job lost to another one of the same key: what that one wrote is what was asked for."""
        self.reporter.note(f"Job {info.job_id} of the same key was first; this is its output:")
        await self._stream("stdout", out, follow=False, job=self.job.system.job(info.job_id, info.name))


async def _first_of(*futures: asyncio.Future[Any], timeout: float | None = None) -> None:
    await asyncio.wait(futures, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


def has_run(info: JobInfo) -> bool:
    """Whether the job has started: one that was cancelled in the queue has neither output nor results."""
    if info.state.is_queued:
        return False
    return not info.is_terminal or info.ok or (info.started is not None and info.nodes is not None)
