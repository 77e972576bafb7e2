"""Job states in Slurm's own names, and `JobInfo`: what is known of a job.

The state strings are those of `sacct` and `squeue` (Slurm 20.11 to 25.05); FirecREST passes them through, `CANCELLED
by 2001` included.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from hpcbridge import errors

if TYPE_CHECKING:
    from hpcbridge.firecrest.models import JobRow

LOST_RACE_EXIT = 75
"""Exit code (EX_TEMPFAIL) of a job that found the lock of its key held by another job."""


class JobState(enum.StrEnum):
    """Slurm's job states; a word we do not know is UNKNOWN, which is never an end."""

    BOOT_FAIL = "BOOT_FAIL"
    CANCELLED = "CANCELLED"
    COMPLETED = "COMPLETED"
    COMPLETING = "COMPLETING"
    CONFIGURING = "CONFIGURING"
    DEADLINE = "DEADLINE"
    EXPEDITING = "EXPEDITING"
    FAILED = "FAILED"
    LAUNCH_FAILED = "LAUNCH_FAILED"
    NODE_FAIL = "NODE_FAIL"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    PENDING = "PENDING"
    POWER_UP_NODE = "POWER_UP_NODE"
    PREEMPTED = "PREEMPTED"
    RECONFIG_FAIL = "RECONFIG_FAIL"
    REQUEUED = "REQUEUED"
    REQUEUE_FED = "REQUEUE_FED"
    REQUEUE_HOLD = "REQUEUE_HOLD"
    RESIZING = "RESIZING"
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    REVOKED = "REVOKED"
    RUNNING = "RUNNING"
    SIGNALING = "SIGNALING"
    SPECIAL_EXIT = "SPECIAL_EXIT"
    STAGE_OUT = "STAGE_OUT"
    STOPPED = "STOPPED"
    SUSPENDED = "SUSPENDED"
    TIMEOUT = "TIMEOUT"
    UPDATE_DB = "UPDATE_DB"
    UNKNOWN = "UNKNOWN"

    @property
    def is_terminal(self) -> bool:
        """Whether a job in this state has ended and does not come back by itself."""
        return self in _TERMINAL

    @property
    def is_queued(self) -> bool:
        """Whether the job waits for resources."""
        return self in _QUEUED

    @classmethod
    def parse(cls, text: str) -> JobState:
        """The state behind the scheduler's words.

        `CANCELLED by 2001`, `CANCELLED+`, slurmrestd's `PENDING REQUEUED`.
        """
        states = [state for word in text.upper().replace(",", " ").split() if (state := _word(word)) is not None]
        if not states:
            return cls.UNKNOWN
        # slurmrestd gives a base state followed by flags; a flag such as COMPLETING or REQUEUED says that it is not
        # over yet.
        return next((state for state in states if not state.is_terminal and state not in _RESTING), states[0])


_TERMINAL = frozenset(
    {
        JobState.BOOT_FAIL,
        JobState.CANCELLED,
        JobState.COMPLETED,
        JobState.DEADLINE,
        JobState.FAILED,
        JobState.LAUNCH_FAILED,
        JobState.NODE_FAIL,
        JobState.OUT_OF_MEMORY,
        JobState.PREEMPTED,
        JobState.REVOKED,
        JobState.TIMEOUT,
    }
)
_RESTING = frozenset({JobState.PENDING, JobState.RUNNING, JobState.SUSPENDED, JobState.UNKNOWN})
_QUEUED = frozenset(
    {
        JobState.PENDING,
        JobState.CONFIGURING,
        JobState.REQUEUED,
        JobState.REQUEUE_FED,
        JobState.REQUEUE_HOLD,
        JobState.RESV_DEL_HOLD,
        JobState.SPECIAL_EXIT,
        JobState.POWER_UP_NODE,
    }
)
_SHORT = {"REQUEUE": JobState.REQUEUED}

REQUEUEABLE = frozenset({JobState.NODE_FAIL, JobState.PREEMPTED, JobState.BOOT_FAIL, JobState.LAUNCH_FAILED})
"""Ends after which Slurm may put the job back into the queue under the same id."""


def _word(word: str) -> JobState | None:
    word = word.rstrip("+")
    return _SHORT.get(word) or JobState.__members__.get(word)


@dataclass(frozen=True, slots=True)
class JobInfo:
    """What is known of a job.

    Attributes:
        job_id: the scheduler's id (of an array: the array's id).
        name: job name as the scheduler has it, "" where it does not say.
        state: Slurm's state; of an array the state of the whole.
        exit_code: exit code of the batch script, 0 to 255; None before the end.
        signal: the signal that ended it, 0 for none; None before the end.
        reason: the scheduler's reason (`Resources`, `NonZeroExitCode` …). An ended job always has one: accounting
            often says "None", then it is what Slurm's controller says of such an end, and "None" for a good one.
        submitted, started, ended: aware datetimes, None where the scheduler does not say.
        nodes: node list in Slurm's short form (`nid[001-004]`), None before the start.
        tasks: of an array one JobInfo per task seen, sorted by index; else empty.
        raw_state: the scheduler's own words.
        workdir: working directory, None where the row has none.
    """

    job_id: str
    name: str
    state: JobState
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    submitted: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None
    nodes: str | None = None
    tasks: tuple[JobInfo, ...] = ()
    raw_state: str = ""
    workdir: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the job has ended well: COMPLETED with exit code 0 and no signal."""
        return self.state is JobState.COMPLETED and not self.exit_code and not self.signal

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended."""
        return self.state.is_terminal

    @classmethod
    def from_row(cls, row: JobRow, *, name: str | None = None, submitted: datetime | None = None) -> JobInfo:
        """The row in our terms. `name` and `submitted` are what the submitter knows, for what the row does not say."""
        state = JobState.parse(row.state)
        terminal = state.is_terminal
        return cls(
            job_id=row.job_id,
            name=(name or row.name) if row.is_placeholder else row.name,
            state=state,
            # A job cancelled while it was queued has null here, where Slurm itself prints 0:0. Accounting prints 0:0
            # for running ones too.
            exit_code=(row.exit_code or 0) if terminal else None,
            signal=(row.signal or 0) if terminal else None,
            reason=row.reason or (_reason(state, row) if terminal else None),
            submitted=row.submitted or submitted,
            started=row.started,
            ended=row.ended if terminal else None,
            nodes=row.nodes,
            raw_state=row.state,
            workdir=row.working_directory,
        )

    def with_id(self, job_id: str) -> JobInfo:
        """The same under another id."""
        return replace(self, job_id=job_id)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: times as ISO 8601 with offset; `tasks` only for arrays."""
        data: dict[str, Any] = {
            "job_id": self.job_id,
            "name": self.name,
            "state": str(self.state),
            "exit_code": self.exit_code,
            "signal": self.signal,
            "reason": self.reason,
            "submitted": _iso(self.submitted),
            "started": _iso(self.started),
            "ended": _iso(self.ended),
            "nodes": self.nodes,
        }
        if self.tasks:
            data["tasks"] = [task.to_json() for task in self.tasks]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JobInfo:
        """The reverse of `to_json`; unknown fields are ignored, so that a newer version's record can be read."""
        return cls(
            job_id=str(data["job_id"]),
            name=str(data.get("name") or ""),
            state=JobState.parse(str(data.get("state") or "")),
            exit_code=data.get("exit_code"),
            signal=data.get("signal"),
            reason=data.get("reason"),
            submitted=_time(data.get("submitted")),
            started=_time(data.get("started")),
            ended=_time(data.get("ended")),
            nodes=data.get("nodes"),
            tasks=tuple(cls.from_json(task) for task in data.get("tasks") or ()),
            raw_state=str(data.get("state") or ""),
        )

    def failure(self, tail: str | None = None, **context: Any) -> errors.JobFailed | None:
        """The error that says how this job ended, or None while it runs and when it ended well.

        `tail` is the last lines it wrote; `context` goes to the error (site, system, hint).
        """
        if not self.is_terminal or self.ok:
            return None
        kind = _FAILURES.get(self.state, errors.JobFailed)
        return kind(self.describe(), info=self, tail=tail, job_id=self.job_id, **context)

    def describe(self) -> str:
        """One line: name, state, exit code or signal, reason."""
        parts = [f"Job {self.name or self.job_id} ended as {self.raw_state or self.state}"]
        if self.signal:
            parts.append(f"killed by signal {self.signal}")
        elif self.exit_code:
            parts.append(f"exit code {self.exit_code}")
        if self.reason and self.reason not in ("None", self.raw_state, str(self.state)):
            parts.append(f"reason {self.reason}")
        failed = [task for task in self.tasks if not task.ok]
        if failed:
            parts.append(f"{len(failed)} of {len(self.tasks)} tasks failed")
        return ", ".join(parts)


_FAILURES: dict[JobState, type[errors.JobFailed]] = {
    JobState.OUT_OF_MEMORY: errors.OutOfMemory,
    JobState.TIMEOUT: errors.TimeLimit,
    JobState.DEADLINE: errors.TimeLimit,
    JobState.NODE_FAIL: errors.NodeFailure,
    JobState.BOOT_FAIL: errors.NodeFailure,
    JobState.CANCELLED: errors.JobCancelled,
}


_REASONS = {
    JobState.COMPLETED: "None",
    JobState.TIMEOUT: "TimeLimit",
    JobState.DEADLINE: "DeadLine",
    JobState.OUT_OF_MEMORY: "OutOfMemory",
    JobState.NODE_FAIL: "NodeDown",
    JobState.BOOT_FAIL: "BootFailed",
    JobState.PREEMPTED: "Preempted",
}


def _reason(state: JobState, row: JobRow) -> str:
    """The controller's word for an end of which accounting gives no reason."""
    if state is JobState.FAILED:
        return f"RaisedSignal:{row.signal}" if row.signal else "NonZeroExitCode"
    return _REASONS.get(state) or row.state


def _iso(value: datetime | None) -> str | None:
    return value.isoformat() if value else None


def _time(value: str | None) -> datetime | None:
    return datetime.fromisoformat(value) if value else None


_BY_GRAVITY = (
    JobState.NODE_FAIL,
    JobState.BOOT_FAIL,
    JobState.OUT_OF_MEMORY,
    JobState.TIMEOUT,
    JobState.DEADLINE,
    JobState.FAILED,
    JobState.LAUNCH_FAILED,
    JobState.PREEMPTED,
    JobState.REVOKED,
    JobState.CANCELLED,
)


def combine(job_id: str, tasks: Iterable[JobInfo], *, complete: bool) -> JobInfo:
    """One JobInfo for an array from its tasks.

    While it runs: PENDING when every task is queued, else RUNNING. Complete: COMPLETED when every task is, else the
    gravest end, with that task's exit code, signal and reason.
    """
    tasks = tuple(sorted(tasks, key=_index))
    first = tasks[0]
    if not complete:
        waiting = all(task.state.is_queued for task in tasks)
        leading = next((task for task in tasks if task.state.is_queued == waiting and not task.is_terminal), first)
        state, raw = (JobState.PENDING, "PENDING") if waiting else (JobState.RUNNING, "RUNNING")
    else:
        bad = [task for task in tasks if not task.ok]
        leading = min(bad, key=lambda task: _rank(task.state)) if bad else first
        state, raw = leading.state, leading.raw_state
    starts = [task.started for task in tasks if task.started]
    ends = [task.ended for task in tasks if task.ended]
    return replace(
        leading,
        job_id=job_id,
        state=state,
        raw_state=raw,
        exit_code=leading.exit_code if complete else None,
        signal=leading.signal if complete else None,
        started=min(starts, default=None),
        ended=max(ends, default=None) if complete else None,
        tasks=tasks,
    )


def _rank(state: JobState) -> int:
    return _BY_GRAVITY.index(state) if state in _BY_GRAVITY else len(_BY_GRAVITY)


def _index(task: JobInfo) -> tuple[int, str]:
    index = task.job_id.rpartition("_")[2]
    return (int(index), "") if index.isdigit() else (1 << 62, index)
