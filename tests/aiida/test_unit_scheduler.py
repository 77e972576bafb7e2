"""What accounting says, in AiiDA's terms."""

from __future__ import annotations

from typing import Any

import pytest
from aiida.engine import CalcJob
from aiida.schedulers.datastructures import JobState

from hpcbridge.errors import SubmitRejected
from hpcbridge.jobs.state import JobInfo
from hpcbridge.jobs.state import JobState as SlurmState
from hpcbridge_aiida import scheduler
from hpcbridge_aiida.scheduler import FIELDS, HpcbridgeSlurmScheduler


def _detailed(**values: str) -> dict[str, Any]:
    line = "|".join(values.get(name, "") for name in FIELDS)
    return {"retval": 0, "stderr": "", "stdout": f"{'|'.join(FIELDS)}\n{line}\n"}


@pytest.mark.parametrize(
    ("state", "status"),
    [("OUT_OF_MEMORY", 110), ("TIMEOUT", 120), ("DEADLINE", 120), ("NODE_FAIL", 140), ("BOOT_FAIL", 140)],
)
def test_ends_that_aiida_has_an_exit_code_for(state: str, status: int) -> None:
    detailed = _detailed(JobID="7", State=state, Reason="Because", ExitCode="0")
    code = HpcbridgeSlurmScheduler().parse_output(detailed, "", "")
    assert code is not None
    assert code.status == status
    assert f"Job 7 ended as {state}, reason Because." in str(code.message)
    assert code.invalidates_cache


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CANCELLED", "VANISHED", "SOMETHING_NEW"])
def test_other_ends_are_the_parser_s(state: str) -> None:
    assert HpcbridgeSlurmScheduler().parse_output(_detailed(State=state), "", "") is None


def test_messages_in_the_job_s_own_error_output_count_too() -> None:
    code = HpcbridgeSlurmScheduler().parse_output(None, "", "slurmstepd: error: Exceeded job memory limit")
    assert code == CalcJob.exit_codes.ERROR_SCHEDULER_OUT_OF_MEMORY


@pytest.mark.parametrize("stdout", ["", "State\n", "State|Reason\nFAILED\n"])
def test_what_is_no_accounting_is_an_error(stdout: str) -> None:
    with pytest.raises(ValueError, match="detailed_job_info"):
        HpcbridgeSlurmScheduler().parse_output({"stdout": stdout}, "", "")


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        ("PENDING", "Priority", JobState.QUEUED),
        ("PENDING", "Dependency", JobState.QUEUED_HELD),
        ("CONFIGURING", None, JobState.QUEUED),
        ("REQUEUED", None, JobState.QUEUED),
        ("RUNNING", None, JobState.RUNNING),
        ("COMPLETING", None, JobState.RUNNING),
        ("STAGE_OUT", None, JobState.RUNNING),
        ("SUSPENDED", None, JobState.SUSPENDED),
        ("UNKNOWN", None, JobState.UNDETERMINED),
        *((each.value, None, JobState.DONE) for each in SlurmState if each.is_terminal),
    ],
)
def test_states(state: str, reason: str | None, expected: JobState) -> None:
    info = JobInfo("7", "aiida-1", SlurmState(state), reason=reason, raw_state=state)
    assert scheduler._job_info("7", info).job_state is expected


def test_a_job_that_nothing_is_known_of_yet_is_not_done() -> None:
    assert scheduler._job_info("7", None).job_state is JobState.UNDETERMINED


@pytest.mark.parametrize(
    ("line", "label"),
    [
        ('#SBATCH --job-name="aiida-42"', "aiida-42"),
        ('#SBATCH --job-name="42, a | b"', "aiida42ab"),
        ('#SBATCH --job-name="' + "x" * 80 + '"', "x" * 40),
        ("", "aiida"),
    ],
)
def test_the_name_in_the_script_becomes_the_label(line: str, label: str) -> None:
    assert scheduler._label(f"#!/bin/bash\n{line}\necho\n") == label


def test_final_refusals() -> None:
    account = scheduler._refusal(SubmitRejected("sbatch: error: Invalid account or account/partition combination"))
    assert account.status == CalcJob.exit_codes.ERROR_SCHEDULER_INVALID_ACCOUNT.status
    other = scheduler._refusal(SubmitRejected("sbatch: error: invalid partition specified: x", request_id="r-1"))
    assert other.status == scheduler.REFUSED
    assert "invalid partition specified: x" in str(other.message)
    assert "r-1" in str(other.message)


@pytest.mark.parametrize(
    ("lines", "account"),
    [("", None), ("#SBATCH --account=proj1\n", "proj1"), ("#SBATCH --account=a\n#SBATCH -A b\n", "b")],
)
def test_the_account_in_the_script_is_not_overridden(lines: str, account: str | None) -> None:
    assert scheduler._account(f"#!/bin/bash\n{lines}echo\n") == account
