"""A job of the local queue: what was asked, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from hpcbridge_sandbox.scheduling.local.directives import Options
from hpcbridge_sandbox.scheduling.local.values import array_label

TERMINAL = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
        *("REVOKED", "SPECIAL_EXIT", "TIMEOUT"),
    }
)
"""States in which Slurm will not touch a job again."""

FIRST_PRIORITY = 4294901760
"""Slurm's priority of the first job of a fresh cluster (priority/basic); each submit gets one less."""


@dataclass(frozen=True)
class Simulation:
    """A job without a process: it waits, runs, and takes a state; all times in seconds."""

    duration: float = 1.0
    queued: float = 0.0
    state: str = "COMPLETED"
    exit_code: int = 0
    signal: int = 0
    reason: str = "None"

    @classmethod
    def parse(cls, text: str) -> Simulation:
        """Read ``duration=3,state=OUT_OF_MEMORY,exit=0,signal=9,reason=…``. Raises ValueError."""
        values = dict(piece.split("=", 1) for piece in text.split(",") if piece)
        known = {"duration", "queued", "state", "exit", "exit_code", "signal", "reason"}
        if not values.keys() <= known:
            raise ValueError(f"unknown simulation keys: {sorted(values.keys() - known)}")
        return cls(
            duration=float(values.get("duration", 1)),
            queued=float(values.get("queued", 0)),
            state=values.get("state", "COMPLETED"),
            exit_code=int(values.get("exit", values.get("exit_code", 0))),
            signal=int(values.get("signal", 0)),
            reason=values.get("reason", "None"),
        )


@dataclass(frozen=True)
class Request:
    """One submit, shared by every task of an array. Times in seconds; paths are the cluster's."""

    user: str
    uid: int
    group: str
    account: str
    partition: str
    workdir: str
    options: Options = field(default_factory=Options)
    script: str = ""
    env: dict[str, str] = field(default_factory=dict)
    stdin: str = "/dev/null"
    stdout: str | None = None
    stderr: str | None = None
    limit: int | None = 3600
    nodes: int = 1
    tasks: int = 1
    cpus: int = 1
    simulation: Simulation | None = None
    rest: bool = False
    """It came by slurmrestd, which carries no environment over."""


@dataclass
class Step:
    """A job step besides the batch script (what ``srun`` or attach ran)."""

    number: int
    name: str
    start: float
    end: float | None = None
    exit_code: int = 0
    signal: int = 0


@dataclass(slots=True)
class Job:
    """One record of the controller: a job, a task of an array, or the tasks of an array that still wait.

    Times are Unix seconds. `pending` holds the indices that wait when the record stands for an array.
    """

    job_id: int
    request: Request
    name: str
    priority: int
    submitted: float
    array_id: int | None = None
    task: int | None = None
    pending: list[int] | None = None
    state: str = "PENDING"
    reason: str = "None"
    begin: float = 0.0
    start: float | None = None
    end: float | None = None
    exit_code: int = 0
    signal: int = 0
    batch_signal: int = 0
    cancelled_by: int | None = None
    killed: bool = False
    restarts: int = 0
    suspended: int = 0
    steps: list[Step] = field(default_factory=list)
    rendered: bytes | None = None

    @property
    def terminal(self) -> bool:
        """True when the job's state cannot change any more."""
        return self.state in TERMINAL

    @property
    def master(self) -> int:
        """The id that the user was given."""
        return self.array_id if self.array_id is not None else self.job_id

    @property
    def accounting_id(self) -> str:
        """The id in accounting: ``112``, ``144_0`` or ``144_[2-4%2]``."""
        if self.array_id is None:
            return str(self.job_id)
        if self.task is not None:
            return f"{self.array_id}_{self.task}"
        array = self.request.options.array
        return array_label(self.array_id, self.pending or [], array.limit if array else 0)

    @property
    def shown_state(self) -> str:
        """The state as accounting words it."""
        return f"CANCELLED by {self.cancelled_by}" if self.cancelled_by is not None else self.state

    def elapsed(self, now: float) -> int:
        """Whole seconds the job has run, suspension left out."""
        if self.start is None:
            return 0
        return max(0, int(self.end if self.end is not None else now) - int(self.start) - self.suspended)


REQUESTS = TypeAdapter(Request)
_STEPS = TypeAdapter(list[Step])
_PLAIN = (
    *("job_id", "name", "priority", "submitted", "array_id", "task", "pending", "state", "reason", "begin", "start"),
    *("end", "exit_code", "signal", "batch_signal", "cancelled_by", "killed", "restarts", "suspended"),
)


def dump_job(job: Job) -> dict[str, Any]:
    """Return the record without its request, ready for JSON."""
    record = {name: getattr(job, name) for name in _PLAIN}
    if job.steps:
        record["steps"] = _STEPS.dump_python(job.steps)
    return record


def load_job(record: dict[str, Any], request: Request) -> Job:
    """Return the job that `dump_job` wrote."""
    values = {**record, "steps": _STEPS.validate_python(record.get("steps", []))}
    return Job(request=request, **values)
