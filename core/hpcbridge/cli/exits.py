"""What an error means for the user: exit codes and next steps, in one place.

The codes follow sysexits.h, timeout(1) and the shell (128 + signal).
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpcbridge.errors import HpcBridgeError
    from hpcbridge.jobs.state import JobInfo


class ExitCode(IntEnum):
    """What `hpcbridge` exits with; with `--wait` any code of the job's own may come instead."""

    OK = 0
    FAILURE = 1
    """The server or the scheduler said no, or a named thing does not exist."""
    USAGE = 2
    """The command line or a value on it is wrong; nothing was sent."""
    UNAVAILABLE = 69
    """The deployment cannot be reached or is unhealthy; repeating later is safe."""
    INTERNAL = 70
    """A defect of hpcbridge."""
    TRANSFER = 74
    """A transfer failed, or what arrived differs from what was sent."""
    TRY_AGAIN = 75
    """No outcome yet: queue time-out, lost race, or node failure; repeat (with the same key)."""
    AUTHENTICATION = 77
    """No valid login, or not allowed."""
    CONFIGURATION = 78
    """A setting is missing or wrong."""
    TIME_LIMIT = 124
    """The job ran into its time limit."""
    CANCELLED = 130
    """The job was cancelled, or the command was interrupted."""


_TABLE: dict[str, ExitCode] = {
    "AuthenticationError": ExitCode.AUTHENTICATION,
    "PermissionDenied": ExitCode.AUTHENTICATION,
    "ConfigurationError": ExitCode.CONFIGURATION,
    "InvalidRequest": ExitCode.USAGE,
    "KeyConflict": ExitCode.USAGE,
    "Unavailable": ExitCode.UNAVAILABLE,
    "AmbiguousOutcome": ExitCode.TRY_AGAIN,
    "TransferError": ExitCode.TRANSFER,
    "LostRace": ExitCode.TRY_AGAIN,
    "NodeFailure": ExitCode.TRY_AGAIN,
    "TimeLimit": ExitCode.TIME_LIMIT,
    "JobCancelled": ExitCode.CANCELLED,
}


def for_error(error: BaseException) -> ExitCode:
    """The code for an error: that of the nearest class in its family that has one, else 1.

    Of several failures it is the one they share, else 1.
    """
    codes = {for_error(failure) for failure in getattr(error, "failures", {}).values()}
    if len(codes) == 1:
        return codes.pop()
    for kind in type(error).__mro__:
        if kind.__name__ in _TABLE:
            return _TABLE[kind.__name__]
    return ExitCode.FAILURE


_NEXT_STEPS: dict[str, str] = {
    "LoginRequired": "Run `hpcbridge login`, or set FIRECREST_CLIENT_SECRET",
    "JobNotFound": "`hpcbridge status` lists your jobs",
    "PathNotFound": "`hpcbridge ls DIRECTORY` shows what is there",
    "PermissionDenied": "`hpcbridge doctor` shows who you are there",
    "Unavailable": "Check FIRECREST_URL and the network; if both are right the site is down: try again later",
    "ServerError": "Try again; if it stays, tell the site the request id",
}


def next_step(error: HpcBridgeError) -> str | None:
    """What to do about an error: what it says itself, else what its nearest class suggests."""
    names = [kind.__name__ for kind in type(error).__mro__]
    if names[0] in ("NotFound", "LoginRequired"):
        # Not found without a thing that was not found: there is no FirecREST at this URL.
        return _NEXT_STEPS.get(names[0], "Check FIRECREST_URL, its path prefix included")
    return error.hint or next((_NEXT_STEPS[name] for name in names if name in _NEXT_STEPS), None)


_SIGKILL = 9
_STATES: dict[str, int] = {
    "TIMEOUT": ExitCode.TIME_LIMIT,
    "DEADLINE": ExitCode.TIME_LIMIT,
    "CANCELLED": ExitCode.CANCELLED,
    "REVOKED": ExitCode.CANCELLED,
    "NODE_FAIL": ExitCode.TRY_AGAIN,
    "BOOT_FAIL": ExitCode.TRY_AGAIN,
    "LAUNCH_FAILED": ExitCode.TRY_AGAIN,
    "PREEMPTED": ExitCode.TRY_AGAIN,
    "OUT_OF_MEMORY": 128 + _SIGKILL,
}


def for_job(info: JobInfo) -> int:
    """The code for a job that has ended: its own, 128 + its signal, or what its state stands for; never 0 unless ok."""
    if info.ok:
        return ExitCode.OK
    state = str(info.state.value)
    if state in _STATES:
        return int(_STATES[state])
    if info.exit_code:
        return info.exit_code if 0 < info.exit_code < 256 else ExitCode.FAILURE
    if info.signal:
        return 128 + info.signal
    return ExitCode.FAILURE
