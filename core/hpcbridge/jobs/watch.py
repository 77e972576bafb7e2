"""One JobWatcher per registry entry and system, whatever the number of jobs.

Each tick is one listing and at most one by-id read; what their answers mean is decided in `ledger`. A tick that fails
says nothing about any job: outages are not answers. Where listings fail but by-id reads work (a listing past the
server's limit, another job's bad name), the jobs are read one by one, as fast as the site's polling rate allows.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from hpcbridge.errors import (
    AuthenticationError,
    ConfigurationError,
    HpcBridgeError,
    JobNotFound,
    JobVanished,
    NotFound,
    NotSent,
    PermissionDenied,
    TooLarge,
    Unavailable,
)
from hpcbridge.firecrest.client import LONGEST_NAME_FILTER
from hpcbridge.http.session import at_site
from hpcbridge.jobs.finder import WINDOWS, window_for
from hpcbridge.jobs.ledger import Change, Ledger, Watched, WatchPolicy
from hpcbridge.jobs.races import Races
from hpcbridge.jobs.spec import expand_indices
from hpcbridge.jobs.state import JobInfo

if TYPE_CHECKING:
    from hpcbridge.firecrest import FirecrestClient
    from hpcbridge.firecrest.models import JobRow

__all__ = ["JobWatcher", "WatchCounters", "WatchPolicy"]

log = logging.getLogger(__name__)

SLICE = 100
"""Jobs of a listing that are looked at before the event loop gets its turn: some milliseconds."""

OnChange = Callable[[JobInfo], None]

_REFUSALS = (AuthenticationError, ConfigurationError, PermissionDenied, NotFound)
"""Answers that waiting does not mend."""

_LONG = 1800.0
"""Seconds without a listing after which the usual window of an hour is not trusted to hold all ends."""

_ABSENT = re.compile(r"job not found|does not know the job", re.IGNORECASE)
"""FirecREST's own words for an unknown job."""


@dataclass(slots=True)
class WatchCounters:
    """What the watching has cost: ticks begun, listings and by-id reads sent, and those of each that failed."""

    ticks: int = 0
    listings: int = 0
    reads: int = 0
    failed_listings: int = 0
    failed_reads: int = 0


@dataclass(eq=False, slots=True)
class _Waiter:
    """One `wait` call."""

    done: asyncio.Future[JobInfo]
    on_change: OnChange | None


@dataclass(slots=True)
class _Tick:
    """How a tick went: seconds its listing took (None: it failed), whether anything changed, what refused it."""

    duration: float | None = None
    changed: bool = False
    refusal: HpcBridgeError | None = None
    read_worked: bool = False


@dataclass(slots=True)
class _Scope:
    """Whose jobs the listing shows."""

    all_users: bool = False
    account: str | None = None


class JobWatcher:
    """Watches any number of jobs of one system with one listing and at most one by-id read per tick.

    Attributes:
        counters: what it has cost so far.
    """

    def __init__(
        self,
        client: FirecrestClient,
        system: str,
        *,
        policy: WatchPolicy | None = None,
        all_users: bool = False,
        account: str | None = None,
    ) -> None:
        """Nothing is sent before the first `wait`.

        With `all_users` one service credential watches for many users, where the site lets it see their jobs. `account`
        narrows the listing, and so do the jobs' names while the server's filter holds them all (about five of ours).
        """
        self.client = client
        self.system = system
        self.policy = policy or WatchPolicy()
        self.counters = WatchCounters()
        self._scope = _Scope(all_users, account)
        self._ledger = Ledger(self.policy)
        self._waiters: dict[str, list[_Waiter]] = {}
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._refused = 0
        self._refused_since = 0.0
        self._heard: float | None = None
        self._races = Races(client, system, self.policy, self.info)

    def __repr__(self) -> str:
        return f"JobWatcher({self.system}, {len(self._ledger)} jobs)"

    @property
    def watched(self) -> int:
        """Number of jobs that are watched now."""
        return len(self._ledger)

    async def wait(
        self,
        job_id: str,
        *,
        name: str | None = None,
        submitted_at: datetime | None = None,
        array: str | Iterable[int] | None = None,
        on_change: OnChange | None = None,
    ) -> JobInfo:
        """Until the job has ended; an array has ended when every task has.

        A job that lost its key's lock to another (exit code 75) is not the end: the owner is followed, and its
        JobInfo is returned.

        Args:
            job_id: the scheduler's id; of one task of an array `120_1`.
            name: its name, where known.
            submitted_at: aware time of the submit; saves early by-id reads.
            array: of an array its expression or indices, where known; saves a by-id read at its end.
            on_change: called with every new state, in this event loop; what it raises ends this wait.

        Raises:
            JobVanished: absent from listings and by-id reads past the accounting lag.
            AuthenticationError, PermissionDenied, SystemNotFound, ConfigurationError: the server refuses us, several
            ticks in a row.
        """
        if "_" in job_id:
            return await self._task_ended(job_id, on_change, name=name, submitted=submitted_at)
        indices = expand_indices(array) if isinstance(array, str) else tuple(array) if array is not None else None
        info = await self._ended(job_id, on_change, name=name, submitted=submitted_at, expected=indices)
        owner = await self._races.owner(info)
        if owner is None:
            return info
        log.warning("job %s on %s lost to job %s, which holds the lock of its key", job_id, self.system, owner)
        return await self._ended(owner, on_change, name=info.name, submitted=submitted_at, expected=indices)

    async def info(self, job_id: str, *, name: str | None = None) -> JobInfo:
        """The job (or the task `120_1`) now, by one by-id read. Raises JobNotFound."""
        ledger, asked_for = Ledger(self.policy), job_id
        job_id = job_id.partition("_")[0]
        job = ledger.watch(job_id, 0.0, name=name)
        # An end is an end here, whether or not a requeue may follow it.
        job.ended_since = -self.policy.grace
        change = ledger.on_answer(job_id, await self.client.job(self.system, job_id), 0.0)
        assert change is not None
        assert change.info is not None
        if asked_for == job_id:
            return change.info
        task = _task(change.info, asked_for)
        if task is None:
            raise JobNotFound("The array has no such task", system=self.system, job_id=asked_for)
        return task

    async def aclose(self) -> None:
        """End the watching; whoever waits gets a CancelledError."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.done.cancel()
        self._waiters.clear()

    # -- waiting -------------------------------------------------------------------------------------------------------

    async def _ended(
        self,
        job_id: str,
        on_change: OnChange | None,
        *,
        name: str | None,
        submitted: datetime | None,
        expected: tuple[int, ...] | None,
    ) -> JobInfo:
        waiter = _Waiter(asyncio.get_running_loop().create_future(), on_change)
        job = self._ledger.watch(job_id, time.monotonic(), name=name, submitted=submitted, expected=expected)
        self._waiters.setdefault(job_id, []).append(waiter)
        try:
            self._tell(waiter, job)
            self._news.set()
            if self._task is None or self._task.done():
                # A context of its own: what it logs belongs to no single waiter (hosts route logs by context).
                self._task = asyncio.create_task(
                    self._run(), name=f"hpcbridge-watch-{self.system}", context=contextvars.Context()
                )
            return await waiter.done
        finally:
            self._leave(job_id, waiter)

    async def _task_ended(
        self, task_id: str, on_change: OnChange | None, *, name: str | None, submitted: datetime | None
    ) -> JobInfo:
        """Until one task of an array has ended, whatever the others do."""
        ended: asyncio.Future[JobInfo] = asyncio.get_running_loop().create_future()
        last: list[JobInfo] = []

        def look(array: JobInfo) -> None:
            task = _task(array, task_id)
            if task is None or task in last or ended.done():
                return
            last[:] = [task]
            if on_change is not None:
                on_change(task)
            if task.is_terminal:
                ended.set_result(task)

        array_id = task_id.partition("_")[0]
        whole = asyncio.ensure_future(self._ended(array_id, look, name=name, submitted=submitted, expected=None))
        try:
            await asyncio.wait({ended, whole}, return_when=asyncio.FIRST_COMPLETED)
            task = ended.result() if ended.done() else _task(await whole, task_id)
        finally:
            whole.cancel()
        if task is None:
            raise JobVanished("The array has ended without such a task", system=self.system, job_id=task_id)
        return task

    def _leave(self, job_id: str, waiter: _Waiter) -> None:
        waiters = self._waiters.get(job_id, [])
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters:
            self._waiters.pop(job_id, None)
            self._ledger.forget(job_id)
            if not self._ledger.jobs:
                self._news.set()

    @staticmethod
    def _tell(waiter: _Waiter, job: Watched) -> None:
        """A later waiter hears at once what is known."""
        if waiter.on_change is not None and job.info is not None:
            waiter.on_change(job.info)

    # -- ticking -------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._ticks()
        except Exception as error:
            # A fault of ours must not leave anybody waiting for ever.
            log.exception("watching jobs on %s ended", self.system)
            self._fail_all(error)

    async def _ticks(self) -> None:
        tick, self._heard = self.policy.first_tick, None
        durations: deque[float] = deque(maxlen=3)
        while self._ledger.jobs:
            self._news.clear()
            began = time.monotonic()
            went = await self._tick()
            self._judge(went)
            if went.duration is None and went.read_worked:
                await self._read_all(began + max(tick, self.policy.first_tick))
            tick = self.policy.first_tick if went.changed else min(tick * self.policy.growth, self.policy.max_tick)
            if went.duration is not None:
                durations.append(went.duration)
            # One listing that hung says nothing about what listings cost, nor does the very first; three in a row do.
            rest = self.policy.load * min(durations, default=0.0)
            known = len(durations) == durations.maxlen
            least = max(self.policy.first_tick, rest if known else min(rest, self.policy.max_tick))
            if await self._pause(began, least, max(tick, least)):
                tick = self.policy.first_tick

    async def _pause(self, began: float, least: float, tick: float) -> bool:
        """Sleep until `began + tick`; a new job ends that, but never before `began + least`. True if one did."""
        await asyncio.sleep(max(0.0, began + least - time.monotonic()))
        left = began + tick - time.monotonic()
        if left > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._news.wait()
        return self._news.is_set()

    async def _tick(self) -> _Tick:
        self.counters.ticks += 1
        went = _Tick()
        began, heard = time.monotonic(), time.time()
        try:
            rows = await self._listing()
        except HpcBridgeError as error:
            self._note(went, error)
            self.counters.failed_listings += 1
            if isinstance(error, Unavailable):
                self._ledger.interrupted()
            else:
                self._heard = None  # perhaps it was too much to list
            if isinstance(error, NotSent) or went.refusal is not None:
                return went
            # Is it the listing alone? The job that has been unheard of for longest tells.
            await self._read(next(iter(self._ledger.all_by_age()), None), went)
            return went
        # Its wait for a turn here, and our own event loop's business, are no load of the site's.
        went.duration = at_site.get()
        self._heard = heard
        for number, change in enumerate(self._ledger.take_listing(rows, began), 1):
            if change is not None:
                self._report(change, went)
            if number % SLICE == 0:
                await asyncio.sleep(0)  # a host's other work goes on meanwhile
        del rows
        await self._read(self._ledger.question(), went)
        return went

    async def _listing(self) -> list[JobRow]:
        self.counters.listings += 1
        # After an outage of hours one listing shows all that has ended in them, instead of a by-id read for each.
        away = time.time() - self._heard if self._heard is not None else 0.0
        window = window_for(away) if away > _LONG else WINDOWS[0]
        scope = self._scope
        return await self.client.jobs(
            self.system,
            names=self._few_names(),
            time_window=window,
            all_users=scope.all_users,
            account=scope.account,
            patience=0,
        )

    def _few_names(self) -> set[str] | None:
        """The names of all watched jobs, where a listing of everybody's jobs can be narrowed to them; else None."""
        if not self._scope.all_users or not self.client.has_name_filter or len(self._ledger) > LONGEST_NAME_FILTER:
            return None
        names = {job.name for job in self._ledger.jobs.values()}
        fit = all(name and "," not in name for name in names) and len(",".join(map(str, names))) <= LONGEST_NAME_FILTER
        return {str(name) for name in names} if fit else None

    async def _read(self, job_id: str | None, went: _Tick) -> None:
        if job_id is None:
            return
        self.counters.reads += 1
        began = time.monotonic()
        try:
            rows: list[JobRow] = await self.client.job(self.system, job_id, patience=0)
        except JobNotFound as error:
            if went.duration is None and not _ABSENT.search(error.message):
                # While listings fail too, a bare 404 may be that of a gateway with nothing behind it.
                self._ledger.asked(job_id, began)
                return
            rows = []
        except HpcBridgeError as error:
            self.counters.failed_reads += 1
            self._ledger.asked(job_id, began)
            self._note(went, error)
            return
        went.read_worked = True
        went.refusal = None
        if (change := self._ledger.on_answer(job_id, rows, began)) is not None:
            self._report(change, went)

    async def _read_all(self, until: float) -> None:
        """Listings do not work: ask for job after job, each once, until the next listing is due.

        The site's polling rate sets the pace.
        """
        went = _Tick()
        for job_id in self._ledger.all_by_age():
            if time.monotonic() >= until:
                return
            if job_id in self._ledger.jobs:
                await self._read(job_id, went)

    @staticmethod
    def _note(went: _Tick, error: HpcBridgeError) -> None:
        log.debug("watch: %s", error)
        if isinstance(error, _REFUSALS) and not isinstance(error, JobNotFound | TooLarge):
            went.refusal = error

    def _judge(self, went: _Tick) -> None:
        """Tell everybody about a refusal that has stood for several ticks: waiting longer does not mend it."""
        if went.refusal is None:
            self._refused = 0
            return
        now = time.monotonic()
        if self._refused == 0:
            self._refused_since = now
        self._refused += 1
        stood = went.refusal.status is None or now - self._refused_since >= self.policy.refused_for
        if self._refused >= self.policy.refusals and stood:
            self._refused = 0
            self._fail_all(went.refusal)

    def _fail_all(self, error: Exception) -> None:
        for job_id, waiters in list(self._waiters.items()):
            self._ledger.forget(job_id)
            for waiter in waiters:
                if not waiter.done.done():
                    waiter.done.set_exception(error)

    def _report(self, change: Change, went: _Tick) -> None:
        went.changed = True
        for waiter in list(self._waiters.get(change.job_id, ())):
            if waiter.done.done():
                continue
            if change.gone:
                waiter.done.set_exception(self._vanished(change))
                continue
            assert change.info is not None
            try:
                if waiter.on_change is not None:
                    waiter.on_change(change.info)
            except Exception as error:  # it belongs to that waiter, not to the others
                waiter.done.set_exception(error)
                continue
            if change.ended:
                waiter.done.set_result(change.info)
        if change.info is not None and not change.ended:
            self._races.withdraw_if_lost(change.info)

    def _vanished(self, change: Change) -> JobVanished:
        last = f"; last seen as {change.info.state}" if change.info else ""
        return JobVanished(
            f"Neither the queue nor accounting knows the job{last}",
            info=change.info,
            site=self.client.session.site.name,
            system=self.system,
            job_id=change.job_id,
            hint="Look at its output: it may have run and been forgotten",
        )


def _task(array: JobInfo, task_id: str) -> JobInfo | None:
    return next((task for task in array.tasks if task.job_id == task_id), None)
