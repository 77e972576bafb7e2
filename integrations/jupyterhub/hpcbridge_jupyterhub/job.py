"""The job behind one server: submit it once, find it again, hear where it listens, judge whether it lives."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from hpcbridge.errors import (
    HpcBridgeError,
    JobFailed,
    JobNotFound,
    JobVanished,
    PathNotFound,
    PermissionDenied,
)
from hpcbridge.jobs.finder import finder, window_for
from hpcbridge.jobs.intents import Intent
from hpcbridge.jobs.logs import post_mortem
from hpcbridge.jobs.state import JobInfo, JobState

if TYPE_CHECKING:
    from hpcbridge import Hpc, JobSpec, System
    from hpcbridge_jupyterhub.clusters import Cluster
    from hpcbridge_jupyterhub.state import ServerState

log = logging.getLogger(__name__)

CONFIRMATIONS = 3
"""By-id reads that do not know a job, over at least the lag, before it counts as gone."""
_ABSENT = re.compile(r"job not found|does not know the job", re.IGNORECASE)
"""FirecREST's and our own words for an unknown job; a gateway's bare 404 has others."""
_PLACE_MAX = 4096

SaveState = Callable[["ServerState"], None]


async def _silence() -> bool:
    return False


@dataclass
class ServerJob:
    """One start of one server on one system.

    Attributes:
        state: what is remembered; each change goes to `save`.
        hpc: the deployment as the user.
        service: the watching service's handle, where there is one.
        lag: seconds by which accounting may be late.
        info: the job as last heard of.
        on_change: called with every news of the job.
        on_lost: called when the scheduler has lost the job: it may still live.
        answers: whether the job's server answers.
    """

    cluster: Cluster
    hpc: Hpc
    service: Any
    state: ServerState
    save: SaveState
    lag: float = 30.0
    on_change: Callable[[JobInfo], None] = lambda _info: None
    on_lost: Callable[[ServerState], None] = lambda _state: None
    answers: Callable[[], Awaitable[bool]] = _silence
    info: JobInfo | None = None
    ended: HpcBridgeError | JobInfo | None = None
    _watch: asyncio.Task[None] | None = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _absences: list[float] = field(default_factory=list)

    def remember(self, **changes: Any) -> None:
        """Change the state and save it."""
        self.state = self.state.with_(**changes)
        self.save(self.state)

    @asynccontextmanager
    async def _system(self) -> AsyncIterator[System]:
        async with self.hpc:
            system = self.hpc.system(self.cluster.system)
            await system.resolve()
            yield system

    # -- submit ------------------------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Find out where the job works. Raises what the questions raise."""
        async with self._system() as system:
            if self.cluster.workdir is None:
                workdir = await system.home()
            elif "{username}" in self.cluster.workdir:
                workdir = self.cluster.workdir.replace("{username}", await system.user())
            else:
                workdir = self.cluster.workdir
            self.remember(workdir=workdir)

    async def submit(self, spec: JobSpec) -> None:
        """Submit once; the intention is in the hub's database before the POST. Raises what System.submit raises."""
        async with self._system() as system:
            job = await system.submit(spec, key=self.state.key, store=_Intents(self))
            self.remember(name=job.name, job_id=job.id)

    async def find(self) -> bool:
        """Look for the job of a submit in which the hub was killed. False: there is none, for certain."""
        if self.state.job_id is not None:
            return True
        if self.state.name is None:
            return False
        horizon: float | None = None
        absences, pause, born = 0, 0.5, time.monotonic()
        while absences < 2:
            began = time.monotonic()
            try:
                async with self._system() as system:
                    if horizon is None:
                        horizon = born + (await system.info()).ssh.total + self.lag
                    window = window_for((datetime.now(UTC) - self.state.submitted).total_seconds())
                    rows = await finder(system.client, system.name).rows(self.state.name, window)
                if rows:
                    self.remember(job_id=rows[0].array_job_id or rows[0].job_id)
                    return True
                absences += began > horizon
            except HpcBridgeError as error:
                log.debug("looking for %s: %s", self.state.name, error)
            pause = min(pause * 1.5, 5.0)
            await asyncio.sleep(pause)
        return False

    # -- watch -------------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Hear of the job's states until it ends or `unwatch`."""
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._attend(), name=f"hpcbridge-server-{self.state.job_id}")

    def unwatch(self) -> None:
        """Nobody needs to know any more."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def _attend(self) -> None:
        assert self.state.job_id is not None
        arguments: dict[str, Any] = {
            "name": self.state.name,
            "submitted_at": self.state.submitted,
            "on_change": self._heard,
        }
        while self.ended is None:
            try:
                if self.service is not None:
                    watcher = await self.service.watcher()
                    self._end(await watcher.wait(self.state.job_id, **arguments))
                else:
                    async with self._system() as system:
                        self._end(await system.watcher.wait(self.state.job_id, **arguments))
            except JobVanished as error:
                if self.service is None:
                    self._end(error)
                else:
                    await self._confirm()
            except HpcBridgeError as error:
                log.info("watching job %s: %s", self.state.job_id, error)
            if self.ended is None:
                await asyncio.sleep(5)

    async def _confirm(self) -> None:
        """What the service does not see may be hidden from it: the server, then the user's own looks decide."""
        while self.state.host is None or not await self.answers():
            if await self.judge() is not None or not self._absences:
                return
            await asyncio.sleep(max(0.5, self.lag / CONFIRMATIONS / 2))
        self.answered()
        log.warning("job %s is unknown to the scheduler, but its server answers: it is kept", self.state.job_id)

    def _heard(self, info: JobInfo) -> None:
        self.info = info
        self._absences.clear()
        self.on_change(info)
        self._news.set()

    def _end(self, end: JobInfo | HpcBridgeError) -> None:
        self.ended = end
        if isinstance(end, JobInfo):
            self._heard(end)
        else:
            self.on_lost(self.state)
        self.remember(code=exit_code(end))
        self._news.set()

    # -- the server's place ------------------------------------------------------------------------------------------

    async def place(self) -> tuple[str, int]:
        """Wait for the job to start and say where its server listens.

        Raises JobFailed with the log's last lines when it ends before that, ConfigurationError for a place that is not
        allowed.
        """
        self.watch()
        pause = 1.0
        while self.state.host is None:
            if self.ended is not None:
                raise await self.failure()
            if self.info is not None and not self.info.state.is_queued and (word := await self._word()) is not None:
                host, port = self.cluster.check_host(word.get("host"), word.get("port"))
                started = self.info.started or datetime.now(UTC)
                ends = started + timedelta(minutes=self.state.minutes or self.cluster.time)
                self.remember(host=host, port=port, ends=ends.isoformat())
                break
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._news.wait()
            running = self.info is not None and not self.info.state.is_queued
            pause = min(pause * 1.3, 5.0) if running else 1.0
        assert self.state.host is not None
        assert self.state.port is not None
        if self.service is None:
            self.unwatch()  # each user's own listing would cost as much as the user's server: its HTTP answers instead
        return self.state.host, self.state.port

    async def _word(self) -> dict[str, Any] | None:
        """What the rendezvous file says, None when it is not there, not ours, or cannot be read now."""
        try:
            async with self._system() as system:
                data = await system.client.download(system.name, self.state.rendezvous, patience=0, polling=True)
            word = json.loads(data[:_PLACE_MAX])
        except PathNotFound:
            return None
        except (HpcBridgeError, ValueError) as error:
            log.info("the server's address cannot be read yet: %s", error)
            return None
        return word if isinstance(word, dict) and word.get("key") == self.state.key else None

    async def failure(self) -> JobFailed:
        """Why the job ended, with the last lines of its log."""
        end = self.ended
        if isinstance(end, JobVanished):
            return end
        assert isinstance(end, JobInfo)
        failed: JobFailed | None = None
        with contextlib.suppress(HpcBridgeError, TimeoutError):
            async with asyncio.timeout(10), self._system() as system:
                failed = await post_mortem(system.client, system.name, end, output=self.state.output)
        return (
            failed
            or end.failure()
            or JobFailed(f"Job {end.job_id} has ended before the server listened", info=end, job_id=end.job_id)
        )

    # -- alive? ------------------------------------------------------------------------------------------------------

    async def judge(self, last_activity: datetime | None = None) -> int | None:
        """What the scheduler says: None while the job lives or nobody can tell, else an exit status.

        An unknown job is gone only after several reads that say so, past accounting's lag, without a sign of life
        (`last_activity`, aware) of the server since the first of them.
        """
        if self.ended is not None:
            return exit_code(self.ended)
        for hpc in (self.hpc, *((self.service.hpc,) if self.service is not None else ())):
            try:
                async with hpc:
                    info = await hpc.system(self.cluster.system).job(str(self.state.job_id), self.state.name).info()
            except JobNotFound as error:
                return self._absent(last_activity) if _ABSENT.search(error.message) else None
            except PermissionDenied:
                continue
            except HpcBridgeError as error:
                log.info("job %s: nobody can tell: %s", self.state.job_id, error)
                continue
            self._heard(info)
            if info.is_terminal:
                self._end(info)
                return exit_code(info)
            return None
        return None

    def answered(self) -> None:
        """The server answers, so whatever the scheduler did not know of it counts no more."""
        self._absences.clear()

    def _absent(self, last_activity: datetime | None) -> int | None:
        now = time.monotonic()
        since_submit = (datetime.now(UTC) - self.state.submitted).total_seconds()
        self._absences.append(now)
        first = now - self._absences[0]
        if len(self._absences) < CONFIRMATIONS or first < self.lag or since_submit < self.lag:
            return None
        if last_activity is not None and last_activity > datetime.now(UTC) - timedelta(seconds=first):
            return None
        self._end(JobVanished("Neither the queue nor accounting knows the job", job_id=self.state.job_id))
        return exit_code(self.ended)


class _Intents:
    """Intents in the hub's database, in the server's own state; see `hpcbridge.jobs.intents.IntentStore`."""

    def __init__(self, job: ServerJob) -> None:
        self._job = job

    async def begin(self, key: str, spec_hash: str) -> Intent:
        state = self._job.state
        if state.name is not None:
            return Intent(False, state.submitted, state.job_id)
        self._job.remember(name=key, spec=spec_hash)
        return Intent(True, state.submitted)

    async def bind(self, key: str, job_id: str) -> None:  # noqa: ARG002
        self._job.remember(job_id=job_id)

    async def abandon(self, key: str) -> None:  # noqa: ARG002
        self._job.remember(name=None, spec=None)


def exit_code(end: JobInfo | HpcBridgeError | None) -> int:
    """The status that the hub logs: 0 for a good end, the script's own or 128 + signal, else 1."""
    if not isinstance(end, JobInfo):
        return 1
    if end.ok:
        return 0
    return end.exit_code or (128 + end.signal if end.signal else 1)


def queue_line(info: JobInfo) -> str:
    """The job's state in words for the person who waits for it."""
    if not info.state.is_queued:
        return f"The job {info.job_id} is {info.state.value.lower()}" + (f" on {info.nodes}" if info.nodes else "")
    line = f"The job {info.job_id} waits in the queue"
    if info.reason:
        line += f" ({info.reason})"
    if info.state is JobState.PENDING and info.started is not None and info.started > datetime.now(UTC):
        line += f"; it is expected to start about {info.started:%Y-%m-%d %H:%M} UTC"
    return line
