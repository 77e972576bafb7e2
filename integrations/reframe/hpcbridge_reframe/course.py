"""One job on its way: shipped, submitted, watched, brought back. Runs on the loop thread; ReFrame's looks at it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from reframe.core.exceptions import JobError, JobSchedulerError
from reframe.core.logging import getlogger

from hpcbridge import Job, JobInfo, JobState
from hpcbridge.errors import HpcBridgeError, JobNotFound, JobVanished, PathNotFound
from hpcbridge.jobs.submit import DEFINITE
from hpcbridge_reframe.journal import Journal
from hpcbridge_reframe.restage import FAILED_EXIT
from hpcbridge_reframe.session import Mirror, Session, StageDirectory
from hpcbridge_reframe.staging import Plan, plan_for

T = TypeVar("T")

SETTLE = 30.0
"""Seconds for which a cancelled submit may take to say what became of it."""
TAIL = 2000
"""Bytes of a job's standard error that go into a message."""


@dataclass(frozen=True)
class Request:
    """What ReFrame asks for: a script in a directory here, and the names of its output there."""

    name: str
    directory: str
    script: str
    stdout: str
    stderr: str
    is_array: bool
    directives: tuple[str, ...] = ()


class _Cancelled(Exception):
    """The job is not wanted any more."""


class Course:
    """One job from `submit` to its output in the stage directory.

    Attributes:
        job_id: the scheduler's id, None until it is known.
        info: what the scheduler said last, None before that.
        error: why it failed, None when it did not.
        queued: Unix time at which it was submitted on the cluster.
    """

    def __init__(self, session: Session, request: Request) -> None:
        """Begins at once."""
        self.session = session
        self.request = request
        self.job_id: str | None = None
        self.info: JobInfo | None = None
        self.error: Exception | None = None
        self.queued: float | None = None
        self._over = threading.Event()
        self._stop: asyncio.Event | None = None
        self._stopped = False
        self._journal: Journal | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._guard = threading.Lock()
        self.session.start(self._run())

    # -- for ReFrame's thread ------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether its output is here, or will never be."""
        return self._over.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for that; whether it came."""
        return self._over.wait(seconds)

    def cancel(self, error: Exception | None = None) -> None:
        """End it; returns at once. `error` is what the test is told."""
        with self._guard:
            if self._stopped:
                return
            self._stopped = True
            self.error = self.error or error
            loop, stop = self._loop, self._stop
        if loop is not None and stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is gone
                loop.call_soon_threadsafe(stop.set)

    @property
    def was_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._stopped

    # -- for the loop thread -------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        with self._guard:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            if self._stopped:
                self._stop.set()
        try:
            await self._go()
        except _Cancelled:
            pass
        except (JobError, JobSchedulerError) as error:
            self.error = self.error or error
        except (HpcBridgeError, OSError, ValueError) as error:
            self.error = self.error or JobError(str(error), self.job_id)
        except Exception as error:
            getlogger().debug(f"[S] firecrest: {self.request.name}: {error!r}")
            self.error = self.error or JobSchedulerError(f"an error of hpcbridge: {error!r}")
        finally:
            self._over.set()

    async def _go(self) -> None:
        mirror = await self._while_wanted(self.session.mirror())
        directory = await self._while_wanted(self.session.directory(self.request.directory))
        plan = await self._while_wanted(plan_for(self.session, mirror, directory, self.request))
        self._journal = plan.journal
        job = await self._submitted(mirror, plan)
        try:
            info = await self._while_wanted(job.wait(on_change=self._note))
            self.info = info
            await self._bring(mirror, directory, plan, info)
        except _Cancelled:
            await self._withdraw(job)
            raise
        except (JobVanished, JobNotFound):
            self._journal.forget()
            raise
        self._journal.forget()
        self._judge(info)

    async def _while_wanted(self, work: Awaitable[T]) -> T:
        """The outcome, unless the job is cancelled or the site stays away for longer than the budget."""
        assert self._stop is not None
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            while True:
                away = self.session.away
                await asyncio.wait({task, stop, *([away] if away else [])}, return_when=asyncio.FIRST_COMPLETED)
                if task.done():
                    return task.result()
                if stop.done():
                    raise _Cancelled
                if away is not None and away.done():
                    away.result()
        finally:
            stop.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=5)
                if task.done() and not task.cancelled():
                    task.exception()

    async def _submitted(self, mirror: Mirror, plan: Plan) -> Job:
        """The job; cancelled meanwhile, it is ended as soon as it is known."""
        assert self._stop is not None
        submit = asyncio.ensure_future(mirror.system.submit(plan.spec, plan.record.key))
        try:
            job = await self._while_wanted(asyncio.shield(submit))
        except _Cancelled:
            # Whether it was made is not known before the answer: a task that is cut off here would leave a job behind.
            with contextlib.suppress(HpcBridgeError, TimeoutError):
                async with asyncio.timeout(SETTLE):
                    await self._withdraw(await asyncio.shield(submit))
            raise
        except HpcBridgeError as error:
            submit.cancel()  # the core has noted what was meant: the next run looks for it
            if isinstance(error, DEFINITE):
                plan.journal.forget()
            raise
        self.job_id = job.id
        self.queued = time.time()
        await asyncio.to_thread(plan.journal.bind, plan.record, job.id)
        if self._stop.is_set():
            await self._withdraw(job)
            raise _Cancelled
        return job

    def _note(self, info: JobInfo) -> None:
        self.info = info

    async def _withdraw(self, job: Job) -> None:
        """End a job that is not wanted any more; what cannot be ended stays in the journal, for the next run."""
        try:
            self.job_id = job.id
            await job.cancel(verify=False)
        except JobNotFound:
            pass
        except HpcBridgeError as error:
            getlogger().warning(f"job {job.id} could not be cancelled: {error}")
            return
        if self._journal is not None:
            self._journal.forget()

    async def _bring(self, mirror: Mirror, directory: StageDirectory, plan: Plan, info: JobInfo) -> None:
        ran = info.started is not None
        outputs = () if self.request.is_array or not ran else (self.request.stdout, self.request.stderr)

        async def bring() -> set[str]:
            return await mirror.bringing.bring(
                directory.local, directory.remote, directory.map, directory.known, plan.marker, outputs
            )

        try:
            brought = await self._while_wanted(self.session.patiently(bring))
        except PathNotFound:
            raise JobError(f"its stage directory {directory.remote} is gone from the cluster", self.job_id) from None
        directory.left |= brought
        mirror.lend(directory)

    def _judge(self, info: JobInfo) -> None:
        """Ends that have nothing to do with the test are told as such."""
        if info.state is JobState.FAILED and info.exit_code == FAILED_EXIT:
            said = _own_words(Path(self.request.directory, self.request.stderr))
            if said:
                self.error = self.error or JobError(said, self.job_id)
        if info.state is JobState.CANCELLED and not self._stopped:
            by = f" ({info.raw_state})" if info.raw_state != str(info.state) else ""
            self.error = self.error or JobError(f"the job was cancelled by somebody else{by}", self.job_id)


def _own_words(path: Path) -> str | None:
    """What the layout or the core's guard said in a job's standard error."""
    try:
        text = path.read_bytes()[-TAIL:].decode(errors="replace")
    except OSError:
        return None
    found = re.findall(r"^hpcbridge: .*$", text, re.MULTILINE)
    return found[-1] if found else None
