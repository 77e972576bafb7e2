"""What an end means to GitLab: whose fault it is, and the exit code that says so. The one place that maps them.

The runner knows three ends of an executable: 0; a failure of the job, which `retry:when: script_failure` and
`retry:exit_codes` see; and a failure of the system (`runner_system_failure`), which prepare repeats three times.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcbridge.errors import HpcBridgeError

if TYPE_CHECKING:
    from hpcbridge.jobs.state import JobInfo


class Cause(Enum):
    """Why a CI job ended: (exit code for GitLab, whether the job itself is to blame, what to do about it)."""

    SCRIPT = (1, True, "")
    CANCELLED = (130, True, "")
    TIMEOUT = (124, True, "Ask for more time (SLURM_TIMELIMIT, `timeout:`), or do less")
    OUT_OF_MEMORY = (137, True, "Ask for more memory (SLURM_MEM, SLURM_MEM_PER_CPU)")
    QOS = (1, True, "The scheduler will never start a job like this: ask for less, or for another partition or QOS")
    REJECTED = (1, True, "Correct what the job asks for; the message is the scheduler's own")
    POLICY = (1, True, "Ask the runner's administrator: `hpcbridge-gitlab explain` shows the rules")
    SERVICES = (1, True, "Remove `services:`; there is nowhere on an HPC node to start them")
    ARTIFACTS = (1, True, "Correct `artifacts:paths`, or make the script write these files")
    NODE_FAIL = (2, False, "Retry the job (`retry:when: runner_system_failure`)")
    PREEMPTED = (2, False, "Retry the job, or use a partition or QOS that is not preempted")
    REVOKED = (2, False, "Someone ended the allocation from outside; retry the job")
    QUEUE_TIMEOUT = (2, False, "Retry later, or in another partition")
    UNAVAILABLE = (2, False, "Retry later; if it stays, tell the site the request id")
    AUTHENTICATION = (2, False, "The runner's administrator should run `hpcbridge-gitlab doctor`")
    CONFIGURATION = (2, False, "`hpcbridge-gitlab doctor` shows the runner's administrator what is wrong")
    LOST = (2, False, "Retry the job")
    INTERNAL = (2, False, "This is a defect of hpcbridge; the runner's log has the traceback")

    @property
    def code(self) -> int:
        """The exit code that the CI job shows, where it is the job's own failure."""
        return self.value[0]

    @property
    def is_the_jobs(self) -> bool:
        """Whether the job is to blame; else the site or the runner."""
        return self.value[1]

    @property
    def hint(self) -> str:
        """What to do next."""
        return self.value[2]


class Stop(Exception):
    """Ends a command: why, in words, and with which exit code of the job's own (None: that of the cause)."""

    def __init__(self, cause: Cause, message: str, *, code: int | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.cause, self.message = cause, message
        self.code = cause.code if code is None else code
        self.hint = cause.hint if hint is None else hint

    def lines(self) -> list[str]:
        """The message for the job's log."""
        where = "the job" if self.cause.is_the_jobs else "the site or the runner"
        kind = f"{self.cause.name} ({where})"
        return [f"{kind}: {self.message}", *([self.hint] if self.hint else [])]

    def to_json(self) -> dict[str, Any]:
        """For the verdict that is remembered."""
        return {"cause": self.cause.name, "message": self.message, "code": self.code, "hint": self.hint}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Stop:
        """The reverse of `to_json`."""
        return cls(Cause[data["cause"]], data["message"], code=data["code"], hint=data["hint"])


def leave(stop: Stop) -> int:
    """The exit code for the runner; a failure of the job also writes its code to BUILD_EXIT_CODE_FILE (17.9)."""
    if not stop.cause.is_the_jobs:
        return int(os.environ.get("SYSTEM_FAILURE_EXIT_CODE") or 2)
    if path := os.environ.get("BUILD_EXIT_CODE_FILE"):
        Path(path).write_text(str(stop.code), encoding="ascii")
    return int(os.environ.get("BUILD_FAILURE_EXIT_CODE") or 1)


_STATES: dict[str, Cause] = {
    "TIMEOUT": Cause.TIMEOUT,
    "DEADLINE": Cause.TIMEOUT,
    "OUT_OF_MEMORY": Cause.OUT_OF_MEMORY,
    "NODE_FAIL": Cause.NODE_FAIL,
    "BOOT_FAIL": Cause.NODE_FAIL,
    "LAUNCH_FAILED": Cause.NODE_FAIL,
    "PREEMPTED": Cause.PREEMPTED,
    "CANCELLED": Cause.REVOKED,
    "REVOKED": Cause.REVOKED,
}


def of_allocation(info: JobInfo) -> Stop:
    """Why the allocation ended, although nobody here wanted it to."""
    return Stop(_STATES.get(str(info.state.value), Cause.LOST), f"the allocation is gone: {info.describe()}")


NEVER = frozenset(
    {
        "AssocMaxWallDurationPerJobLimit",
        "BadConstraints",
        "InvalidAccount",
        "InvalidQOS",
        "PartitionNodeLimit",
        "PartitionTimeLimit",
        "QOSMaxCpuPerJobLimit",
        "QOSMaxNodePerJobLimit",
        "QOSMaxWallDurationPerJobLimit",
        "ReservationDeleted",
    }
)
"""Reasons with which a job stays in the queue for good; the REST interface accepts such jobs."""

_ERRORS: dict[str, Cause] = {
    "ConfigurationError": Cause.CONFIGURATION,
    "AuthenticationError": Cause.AUTHENTICATION,
    "PermissionDenied": Cause.AUTHENTICATION,
    "SystemNotFound": Cause.CONFIGURATION,
    "SubmitRejected": Cause.REJECTED,
    "InvalidSpec": Cause.REJECTED,
    "Unavailable": Cause.UNAVAILABLE,
    "AmbiguousOutcome": Cause.UNAVAILABLE,
    "ServerError": Cause.UNAVAILABLE,
}


def of_error(error: HpcBridgeError) -> Stop:
    """Why a command could not do its work."""
    for kind in type(error).__mro__:
        if kind.__name__ in _ERRORS:
            return Stop(_ERRORS[kind.__name__], str(error), hint="" if error.hint else None)
    return Stop(Cause.LOST, str(error))
