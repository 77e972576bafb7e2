"""Which exit code stands for what: one table for ends of jobs, one for errors."""

from __future__ import annotations

import pytest

from hpcbridge import JobInfo, JobState, errors
from hpcbridge.cli.exits import ExitCode, for_error, for_job, next_step

ENDS = [
    ("COMPLETED", 0, 0, 0),
    ("FAILED", 1, 0, 1),
    ("FAILED", 42, 0, 42),
    ("FAILED", 75, 0, 75),
    ("FAILED", 0, 11, 139),
    ("FAILED", 0, 0, 1),
    ("FAILED", 256, 0, 1),
    ("COMPLETED", 3, 0, 3),
    ("TIMEOUT", 0, 15, 124),
    ("DEADLINE", 0, 0, 124),
    ("CANCELLED", 0, 15, 130),
    ("REVOKED", 0, 0, 130),
    ("OUT_OF_MEMORY", 0, 125, 137),
    ("NODE_FAIL", 0, 0, 75),
    ("BOOT_FAIL", 0, 0, 75),
    ("PREEMPTED", 0, 0, 75),
]


@pytest.mark.parametrize(("state", "exit_code", "signal", "code"), ENDS)
def test_how_a_job_ended(state: str, exit_code: int, signal: int, code: int) -> None:
    info = JobInfo(job_id="1", name="x", state=JobState(state), exit_code=exit_code, signal=signal)
    assert for_job(info) == code


@pytest.mark.parametrize("state", [state for state in JobState if state.is_terminal])
def test_only_a_job_that_ended_well_gives_0(state: JobState) -> None:
    info = JobInfo(job_id="1", name="x", state=state, exit_code=0, signal=0)
    assert (for_job(info) == 0) == info.ok


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigurationError, 78),
        (errors.AuthenticationError, 77),
        (errors.LoginRequired, 77),
        (errors.PermissionDenied, 77),
        (errors.InvalidRequest, 2),
        (errors.InvalidName, 2),
        (errors.KeyConflict, 2),
        (errors.SystemNotFound, 1),
        (errors.PathNotFound, 1),
        (errors.AlreadyExists, 1),
        (errors.TooLarge, 1),
        (errors.SubmitRejected, 1),
        (errors.Unavailable, 69),
        (errors.NotSent, 69),
        (errors.RateLimited, 69),
        (errors.AmbiguousOutcome, 75),
        (errors.ServerError, 1),
        (errors.JobFailed, 1),
        (errors.TimeLimit, 124),
        (errors.JobCancelled, 130),
        (errors.LostRace, 75),
        (errors.TransferError, 74),
        (errors.IntegrityError, 74),
        (errors.BlockingInsideLoop, 1),
    ],
)
def test_what_went_wrong(error: type[errors.HpcBridgeError], code: int) -> None:
    assert for_error(error("it happened")) == code


def test_every_code_is_in_the_documentation() -> None:
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs/cli.md").read_text()
    assert {code for code in ExitCode if f"| {code.value} |" not in page} == set()


def test_a_hint_of_its_own_wins_over_the_general_one() -> None:
    assert next_step(errors.PathNotFound("no", hint="look there")) == "look there"
    assert "hpcbridge ls" in (next_step(errors.PathNotFound("no")) or "")
    assert "FIRECREST_URL" in (next_step(errors.NotFound("Not Found")) or "")
    assert next_step(errors.HpcBridgeError("no")) is None
