"""What the watcher knows and what it should ask next: a state machine without any I/O.

It is told what listings and by-id reads answered, and when (seconds of a monotonic clock). It says which jobs have
changed or ended, and which id to ask for. Facts behind the rules (Slurm's accounting behind FirecREST):

- a job may be missing from a listing though it exists, and listings flicker: absence from listings proves nothing;
- for some seconds accounting may show a placeholder named `allocation`; only a by-id read sees through it;
- the tasks of an array appear as `144_0`, `144_[2-4%2]`, `144`, and in by-id reads also under their raw ids;
- some ends (NODE_FAIL, PREEMPTED) may be followed by a requeue under the same id.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING

from hpcbridge.jobs.spec import expand_indices
from hpcbridge.jobs.state import REQUEUEABLE, JobInfo, JobState, combine

if TYPE_CHECKING:
    from hpcbridge.firecrest.models import JobRow


@dataclass(frozen=True, slots=True)
class WatchPolicy:
    """Time constants, in seconds.

    Attributes:
        first_tick, max_tick: the pause between two listings starts at the first and grows to the second while nothing
        changes.
        growth: factor of that.
        load: a tick is never shorter than so many times the listing's own duration, the shortest of the last three;
            until there have been three it need not be longer than `max_tick`.
        lag: how late accounting may know of a job; only an absence confirmed past it counts.
        misses: listings without a job before it is asked for by id.
        grace: how long an end that Slurm may follow by a requeue must stand before it is believed.
        refusals: ticks in a row that are refused (401, 403, 404, no login) before the waiters hear of it.
        refused_for: how long a refusal that is the server's answer must have stood: gateways say 404 or 403 of a
            server that is just being replaced, and a server 401 while it cannot reach the issuer.
    """

    first_tick: float = 1.0
    max_tick: float = 15.0
    growth: float = 1.5
    load: float = 10.0
    lag: float = 30.0
    misses: int = 3
    grace: float = 10.0
    refusals: int = 3
    refused_for: float = 30.0


@dataclass(slots=True)
class Watched:
    """One job in the ledger. Times are seconds of the caller's monotonic clock."""

    job_id: str
    since: float
    name: str | None = None
    submitted: datetime | None = None
    expected: frozenset[int] | None = None
    info: JobInfo | None = None
    seen: float | None = None
    asked: float = float("-inf")
    misses: int = 0
    urgent: float | None = None
    absent_since: float | None = None
    absences: int = 0
    ended_since: float | None = None
    short_since: float | None = None
    tasks: dict[int, JobInfo] = field(default_factory=dict)

    @property
    def waiting_since(self) -> float:
        """Since when no answer has told the truth about it; the smallest is asked for first."""
        absent = self.since if self.seen is None else self.seen
        return max(absent if self.urgent is None else min(self.urgent, absent), self.asked)


@dataclass(frozen=True, slots=True)
class Change:
    """What an answer has brought: a new state, an end, or (`gone`) the confirmed absence of a job."""

    job_id: str
    info: JobInfo | None
    ended: bool = False
    gone: bool = False


class Ledger:
    """The watched jobs of one system."""

    def __init__(self, policy: WatchPolicy | None = None) -> None:
        self.policy = policy or WatchPolicy()
        self.jobs: dict[str, Watched] = {}

    def __len__(self) -> int:
        return len(self.jobs)

    def watch(
        self,
        job_id: str,
        now: float,
        *,
        name: str | None = None,
        submitted: datetime | None = None,
        expected: Iterable[int] | None = None,
    ) -> Watched:
        """Add a job, or add to what is known of one.

        `expected`: the indices of an array's tasks, where the caller knows them.
        """
        job = self.jobs.get(job_id)
        if job is None:
            job = self.jobs[job_id] = Watched(job_id, now)
        job.name = name or job.name
        job.submitted = submitted or job.submitted
        job.expected = frozenset(expected) if expected is not None else job.expected
        return job

    def forget(self, job_id: str) -> None:
        """Stop watching."""
        self.jobs.pop(job_id, None)

    def on_listing(self, rows: Iterable[JobRow], now: float) -> list[Change]:
        """Take a successful listing that was begun at `now`."""
        return [change for change in self.take_listing(rows, now) if change is not None]

    def take_listing(self, rows: Iterable[JobRow], now: float) -> Iterator[Change | None]:
        """The same job by job, so that a long listing can be taken in slices; jobs may come and go between them."""
        found: dict[str, list[JobRow]] = {}
        for row in rows:
            job_id = row.array_job_id or row.job_id
            if job_id in self.jobs:
                found.setdefault(job_id, []).append(row)
        for job in list(self.jobs.values()):
            if self.jobs.get(job.job_id) is job:
                yield self._listed(job, found.get(job.job_id, ()), now)

    def _listed(self, job: Watched, rows: Sequence[JobRow], now: float) -> Change | None:
        true_rows = [row for row in rows if not self._is_placeholder(job, row)]
        if len(true_rows) < len(rows):
            job.urgent = now if job.urgent is None else job.urgent
            job.absent_since, job.absences = None, 0
        if true_rows:
            return self._absorb(job, true_rows, now, by_id=False)
        if job.since < now:  # else it was added while the listing was under way
            job.misses += 1
        return None

    def on_answer(self, job_id: str, rows: Sequence[JobRow], now: float) -> Change | None:
        """Take a successful by-id read that was begun at `now`.

        No rows (or 404) means that the scheduler does not know the job.
        """
        job = self.jobs.get(job_id)
        if job is None:
            return None
        job.asked = now
        if rows:
            job.absent_since, job.absences = None, 0
            return self._absorb(job, rows, now, by_id=True)
        job.absences += 1
        if job.absent_since is None:
            job.absent_since = now
        known = job.since if job.seen is None else job.seen
        if job.absences < 2 or now - job.absent_since < self.policy.lag / 3 or now - known <= self.policy.lag:
            return None
        self.forget(job_id)
        return Change(job_id, job.info, gone=True)

    def question(self) -> str | None:
        """The id worth a by-id read now, or None.

        What an answer left open, then whatever is missing, longest absent first.
        """
        open_jobs = (job for job in self.jobs.values() if job.urgent is not None or self._is_missing(job))
        chosen = min(open_jobs, key=lambda job: job.waiting_since, default=None)
        return chosen.job_id if chosen else None

    def all_by_age(self) -> list[str]:
        """Every watched id, the one with the oldest answer first: for when listings do not work."""
        return [job.job_id for job in sorted(self.jobs.values(), key=lambda job: max(job.seen or job.since, job.asked))]

    def interrupted(self) -> None:
        """The server was out of reach: what was absent before has to be found absent anew."""
        for job in self.jobs.values():
            job.absent_since, job.absences = None, 0

    def asked(self, job_id: str, now: float) -> None:
        """A by-id read failed: others are asked for first."""
        if job := self.jobs.get(job_id):
            job.asked = now

    def _is_missing(self, job: Watched) -> bool:
        # A job of unknown age may have ended before the listing's window: it need not be missed three times first.
        misses = 1 if job.seen is None and job.submitted is None else self.policy.misses
        return job.misses >= misses

    @staticmethod
    def _is_placeholder(job: Watched, row: JobRow) -> bool:
        return row.is_placeholder and job.name != row.name

    def _absorb(self, job: Watched, rows: Sequence[JobRow], now: float, *, by_id: bool) -> Change | None:
        """Rows that tell of the job: the new state if it differs, or the end."""
        job.seen, job.misses, job.urgent = now, 0, None
        before = job.info
        if len(rows) == 1 and not job.tasks and before is not None and _says_the_same(rows[0], before):
            return None
        info, complete = self._single_or_array(job, rows, by_id=by_id)
        if not complete:
            job.ended_since = None
        elif not self._stands(job, info, now):
            complete, info = False, replace(info, state=JobState.REQUEUED, exit_code=None, signal=None, ended=None)
            job.urgent = now
        if not complete:
            job.info = info
            return Change(job.job_id, info) if _differs(before, info) else None
        job.info = info
        self.forget(job.job_id)
        return Change(job.job_id, info, ended=True)

    def _stands(self, job: Watched, info: JobInfo, now: float) -> bool:
        """Whether the end is one that no requeue can follow, or has stood for the grace time."""
        if not any(each.state in REQUEUEABLE for each in (info, *info.tasks)):
            job.ended_since = None
            return True
        if job.ended_since is None:
            job.ended_since = now
        return now - job.ended_since >= self.policy.grace

    def _single_or_array(self, job: Watched, rows: Sequence[JobRow], *, by_id: bool) -> tuple[JobInfo, bool]:
        array_rows = [row for row in rows if row.array_job_id is not None]
        plain = [row for row in rows if row.array_job_id is None]
        own = next((row for row in plain if row.job_id == job.job_id), None)
        if not array_rows and not job.tasks and job.expected is None:
            info = JobInfo.from_row(own or rows[0], name=job.name, submitted=job.submitted).with_id(job.job_id)
            return info, info.is_terminal
        cut = self._note_tasks(job, array_rows)
        # The row `144` stands for the tasks that still wait, raw ids for running ones; both vanish with the last of
        # them.
        going = [info for row in plain if not (info := JobInfo.from_row(row, name=job.name)).is_terminal]
        over = bool(job.tasks) and not cut and not going and all(task.is_terminal for task in job.tasks.values())
        complete = over and self._all_shown(job, array_rows, by_id=by_id)
        if over and not complete:
            job.urgent = job.seen  # it may be over: a by-id read shows every task, sooner or later
        info = combine(job.job_id, list(job.tasks.values()) or going or [_started(job, rows)], complete=complete)
        if going and not complete and any(each.state is JobState.RUNNING for each in going):
            info = replace(info, state=JobState.RUNNING, raw_state="RUNNING")
        return info, complete

    def _all_shown(self, job: Watched, rows: Iterable[JobRow], *, by_id: bool) -> bool:
        """Whether there are no tasks beyond those that were seen, all of which have ended.

        Accounting is late with single tasks, too (seen under load): a by-id read without some that must be there is
        believed only after the lag.
        """
        if job.expected is None:
            return by_id
        if job.expected <= job.tasks.keys():
            return True
        if any("..." in row.job_id for row in rows):
            return by_id  # cancelled in the queue: the list of their indices stays cut
        if not by_id or job.seen is None:
            return False
        if job.short_since is None:
            job.short_since = job.seen
        return job.seen - job.short_since >= self.policy.lag

    @staticmethod
    def _note_tasks(job: Watched, rows: Iterable[JobRow]) -> bool:
        """Take the rows of an array's tasks.

        True when a list of indices was cut (`0-9,...`), so that not all are known.
        """
        cut = False
        for row in rows:
            index = row.job_id.rpartition("_")[2]
            if index.isdigit():
                task = job.tasks.get(int(index))
                if task is None or task.raw_state != row.state or not task.is_terminal:
                    job.tasks[int(index)] = JobInfo.from_row(row, name=job.name, submitted=job.submitted)
                continue
            expression = index.strip("[]")
            waiting = JobInfo.from_row(row, name=job.name, submitted=job.submitted)
            # Tasks that were cancelled in the queue stay cut for good; those not named have ended with the named ones.
            cut = cut or ("..." in expression and not waiting.is_terminal)
            for number in expand_indices(expression):
                task = job.tasks.get(number)
                if task is None or task.state.is_queued:
                    job.tasks[number] = waiting.with_id(f"{job.job_id}_{number}")
        return cut


def _started(job: Watched, rows: Sequence[JobRow]) -> JobInfo:
    """An array of which only the row `144` was seen, and that ended before any task began (or was shown)."""
    return JobInfo.from_row(rows[0], name=job.name, submitted=job.submitted).with_id(job.job_id)


def _says_the_same(row: JobRow, info: JobInfo) -> bool:
    """The cheap test for the usual case: one row, nothing new, not over."""
    return (
        row.state == info.raw_state
        and row.reason == info.reason
        and not info.is_terminal
        and row.started == info.started
        and row.nodes == info.nodes
        and row.array_job_id is None
        and info.state is not JobState.REQUEUED
    )


def _differs(before: JobInfo | None, info: JobInfo) -> bool:
    if before is None:
        return True
    return (before.state, before.reason, before.started, before.nodes, _counts(before)) != (
        info.state,
        info.reason,
        info.started,
        info.nodes,
        _counts(info),
    )


def _counts(info: JobInfo) -> tuple[JobState, ...]:
    return tuple(task.state for task in info.tasks)
