"""How jobs end on a real Slurm: the same exit codes and words as on the local queue, made by Slurm itself.

Not among them: OUT_OF_MEMORY, for which Slurm needs the cgroups that the sandbox's has not, and a job that vanishes,
which takes Slurm's accounting longer than a test.
"""

from __future__ import annotations

from typing import Any

import pytest

from support.aiida_profile import AiidaProfile, wait_until
from support.aiida_runs import planned, report, wait
from support.aiida_slurm import as_operator
from support.sandbox import SandboxProcess

pytestmark = [pytest.mark.slurm, pytest.mark.prove]

MUST = {"must": ["end.txt"], "retrieve": ["end.txt"]}
NEVER_REQUEUED = "#SBATCH --no-requeue"


@pytest.fixture(scope="module")
def nodes(daemon: AiidaProfile, slurm: Any) -> dict[str, Any]:
    """Every fate at once."""
    return {
        "FAILED": planned(slurm, "exit 7", MUST),
        "TIMEOUT": planned(slurm, "sleep 600", MUST, max_wallclock_seconds=60),
        "CANCELLED": planned(slurm, "sleep 600", MUST),
        "account": planned(slurm, "true", MUST, account="nobody"),
        "directive": planned(slurm, "true", MUST, custom_scheduler_commands="#SBATCH --no-such-option=1"),
    }


def test_an_invalid_account(daemon: AiidaProfile, nodes: dict[str, Any]) -> None:
    """Permanent: said at once, tried once."""
    node = nodes["account"]
    wait([node], daemon)
    assert node.exit_status == 131, report(node)
    assert "invalid account" in node.exit_message.lower()
    assert "retrying after" not in report(node)


def test_a_directive_that_slurm_refuses(daemon: AiidaProfile, nodes: dict[str, Any]) -> None:
    node = nodes["directive"]
    wait([node], daemon)
    assert node.exit_status == 130, report(node)
    assert "no-such-option" in node.exit_message
    assert "retrying after" not in report(node)


def test_cancelled_outside(daemon: AiidaProfile, real_slurm: SandboxProcess, nodes: dict[str, Any]) -> None:
    node = nodes["CANCELLED"]
    wait_until(lambda: node.get_job_id() or node.is_terminated, 120, "the job is submitted")
    as_operator(real_slurm, "scancel", node.get_job_id())
    wait([node], daemon)
    assert node.exit_status == 300, report(node)
    assert "CANCELLED" in report(node)


def test_a_program_that_fails(daemon: AiidaProfile, nodes: dict[str, Any]) -> None:
    """No exit code of AiiDA's: the parser misses its file."""
    node = nodes["FAILED"]
    wait([node], daemon)
    assert node.exit_status == 300, report(node)
    assert "FAILED" in report(node)
    assert "exit code 7" in report(node)


def test_over_the_time_limit(daemon: AiidaProfile, nodes: dict[str, Any]) -> None:
    node = nodes["TIMEOUT"]
    wait([node], daemon, seconds=300)
    assert node.exit_status == 120, report(node)
    assert "TIMEOUT" in node.exit_message


def test_a_node_that_fails(daemon: AiidaProfile, real_slurm: SandboxProcess, slurm: Any) -> None:
    node = planned(slurm, "sleep 600", MUST, custom_scheduler_commands=NEVER_REQUEUED)
    wait_until(lambda: node.get_job_id() or node.is_terminated, 120, "the job is submitted")
    job = node.get_job_id()
    wait_until(lambda: "RUNNING" in as_operator(real_slurm, "squeue", "-h", "-j", job, "-o", "%T"), 60, "it runs")
    name = as_operator(real_slurm, "squeue", "-h", "-j", job, "-o", "%N").strip()
    as_operator(real_slurm, "scontrol", "update", f"nodename={name}", "state=DOWN", "reason=broken")
    try:
        wait([node], daemon)
    finally:
        # A node that has registered again meanwhile is in service already, and cannot be resumed.
        if "down" in as_operator(real_slurm, "sinfo", "-h", "-n", name, "-o", "%T"):
            as_operator(real_slurm, "scontrol", "update", f"nodename={name}", "state=RESUME")
    assert node.exit_status == 140, report(node)
    assert "NODE_FAIL" in node.exit_message
