"""What schedulers do to jobs: the right exit code, the reason in the report, never done early, never polled for ever.

All of it with an accounting that is late (by 20 s in the proof) and listings that leave jobs out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.aiida_computers import credential_file, installed_code, make_ours
from support.aiida_profile import AiidaProfile, wait_until
from support.aiida_runs import ended_well, planned, report, scheduler_ids, wait
from support.sandbox import SandboxProcess, start_sandbox
from support.scale import PROVE

LAG = 20 if PROVE else 4
MISSING = 0.05 if PROVE else 0.3
RUNS_FOR = 6 if PROVE else 2
MUST = {"must": ["end.txt"], "retrieve": ["end.txt"]}

ENDS = {
    "OUT_OF_MEMORY": (110, "signal=9"),
    "TIMEOUT": (120, "signal=15"),
    "DEADLINE": (120, ""),
    "NODE_FAIL": (140, "reason=NodeDown"),
    "BOOT_FAIL": (140, ""),
    # No exit codes of AiiDA's: the parser misses its file, and the report says why.
    "REVOKED": (300, ""),
    "PREEMPTED": (300, ""),
    "FAILED": (300, "exit=7"),
}
"""State of Slurm's -> exit status of AiiDA's, and what else the scheduler says."""
SOME = ("OUT_OF_MEMORY", "NODE_FAIL", "FAILED")
"""Those of the quick run."""


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    """A sandbox whose accounting is late."""
    with start_sandbox("--accounting-lag", str(LAG), "--user", "alice") as started:
        started.post("/scheduler-faults", {"missing_fraction": MISSING})
        yield started


@pytest.fixture(scope="module")
def code(daemon: AiidaProfile, late: SandboxProcess, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Bash there."""
    return installed_code(
        make_ours("late", late, credential_file(late, tmp_path_factory.mktemp("secret") / "alice.toml")), "bash-late"
    )


def simulated(state: str, words: str) -> str:
    """The directive by which the local queue ends a job as no machine would in a test."""
    return f"#SBATCH --comment=simulate:duration=1,state={state}{',' + words if words else ''}"


@pytest.fixture(scope="module")
def nodes(daemon: AiidaProfile, code: Any) -> dict[str, Any]:
    """Every fate at once."""
    started = {
        state: planned(code, "true", MUST, custom_scheduler_commands=simulated(state, words))
        for state, (_, words) in ENDS.items()
        if PROVE or state in SOME
    }
    started["cancelled"] = planned(code, "sleep 600", MUST)
    started["account"] = planned(code, "true", MUST, account="nobody")
    started["directive"] = planned(code, "true", MUST, custom_scheduler_commands="#SBATCH --no-such-option=1")
    # Whoever retrieves before the end misses the file.
    script = f"echo run >> runs.txt; sleep {RUNS_FOR}; echo end > end.txt"
    for number in range(10 if PROVE else 2):
        started[f"well {number}"] = planned(code, script, {**MUST, "retrieve": ["end.txt", "runs.txt"]})
    return started


@pytest.mark.parametrize("state", ENDS if PROVE else SOME)
def test_the_end_is_an_exit_code_with_its_reason(daemon: AiidaProfile, nodes: dict[str, Any], state: str) -> None:
    node = nodes[state]
    wait([node], daemon)
    status, words = ENDS[state]
    assert node.is_finished
    assert node.exit_status == status, report(node)
    assert state in report(node)
    for said in ("NodeDown", "exit=7", "signal=9"):
        if said in words:
            assert said.rpartition("=")[2] in report(node)
    if status != 300:
        assert state in node.exit_message


def test_cancelled_outside(daemon: AiidaProfile, late: SandboxProcess, nodes: dict[str, Any]) -> None:
    node = nodes["cancelled"]
    wait_until(lambda: node.get_job_id() or node.is_terminated, 60, "the job is submitted")
    with late.client() as client:
        client.delete(f"/compute/{late.system}/jobs/{node.get_job_id()}").raise_for_status()
    wait([node], daemon)
    assert node.exit_status == 300, report(node)
    assert "CANCELLED" in report(node)


def test_an_invalid_account(daemon: AiidaProfile, nodes: dict[str, Any]) -> None:
    """Permanent: said at once, tried once."""
    node = nodes["account"]
    wait([node], daemon)
    assert node.exit_status == 131, report(node)
    assert "account" in f"{node.exit_message}{report(node)}".lower()
    assert "retrying after" not in report(node)


def test_a_directive_that_the_scheduler_refuses(daemon: AiidaProfile, nodes: dict[str, Any]) -> None:
    node = nodes["directive"]
    wait([node], daemon)
    assert node.is_finished
    assert node.exit_status != 0
    assert "no-such-option" in f"{node.exit_message}{report(node)}"
    assert "retrying after" not in report(node)


def test_late_and_incomplete_answers_end_nothing_early(
    daemon: AiidaProfile, late: SandboxProcess, nodes: dict[str, Any]
) -> None:
    """Done is done: every file is there, and every job was submitted once and ran once."""
    for name, node in nodes.items():
        if not name.startswith("well"):
            continue
        seen = ended_well(node, daemon).outputs.seen["retrieved"]
        assert (seen["end.txt"], seen["runs.txt"]) == ("end\n", "run\n")
        runs_file = late.host_path(f"{node.get_remote_workdir()}/runs.txt")
        assert runs_file.read_text() == "run\n"
    late.post("/scheduler-faults", {"missing_fraction": 0})
    ids = {name: scheduler_ids(late, node.get_remote_workdir()) for name, node in nodes.items() if "well" in name}
    assert [name for name, found in ids.items() if len(found) != 1] == []


@pytest.mark.prove
def test_a_job_that_vanishes(daemon: AiidaProfile, quiet: SandboxProcess, quiet_secret: Path) -> None:
    """Neither the queue nor accounting knows it any more: its end is said, not waited for."""
    code = installed_code(make_ours("forgetful", quiet, quiet_secret, "/scratch/{username}/forgetful"), "bash-forget")
    node = planned(code, "sleep 600", MUST)
    wait_until(lambda: node.get_job_id() or node.is_terminated, 60, "the job is submitted")
    by_id = {"method": "GET", "path": f"/compute/*/jobs/{node.get_job_id()}", "kind": "status", "status": 404}
    quiet.post("/faults", [by_id])
    quiet.post("/scheduler-faults", {"missing_fraction": 1})
    try:
        wait([node], daemon)
    finally:
        quiet.reset()
    assert node.exit_status == 300, report(node)
    assert "VANISHED" in report(node)


@pytest.mark.prove
def test_a_site_that_fails_now_and_then(daemon: AiidaProfile, quiet: SandboxProcess, quiet_secret: Path) -> None:
    """Refusals, lost answers, expired tokens, an outage: the engine hears of none of it, and nothing runs twice."""
    code = installed_code(make_ours("shaky", quiet, quiet_secret, "/scratch/{username}/shaky"), "bash-shaky")
    failures = len(daemon.failures())
    script = "echo run >> runs.txt; echo end > end.txt"
    nodes = [planned(code, script, {**MUST, "retrieve": ["end.txt", "runs.txt"]}) for _ in range(5)]
    busy = {"status": 429, "headers": {"Retry-After": "1"}}
    quiet.post(
        "/faults",
        [
            {"method": "POST", "path": "/compute/*/jobs", "kind": "drop_after", "count": 1},
            {"method": "POST", "path": "/compute/*/jobs", "kind": "status_after", "status": 408, "count": 1},
            {"path": "/filesystem/*", "kind": "status", "status": 424, "probability": 0.1},
            {"path": "/filesystem/*", "kind": "status", "probability": 0.1, **busy},
            {"method": "GET", "path": "/compute/*", "kind": "status", "status": 503, "probability": 0.2},
        ],
    )
    try:
        wait_until(lambda: any(node.get_job_id() for node in nodes), 120, "a job is submitted")
        quiet.post("/expire-tokens")
        quiet.post("/outage", {"kind": "refused", "seconds": 5})
        for node in nodes:
            seen = ended_well(node, daemon, seconds=240).outputs.seen["retrieved"]
            assert (seen["end.txt"], seen["runs.txt"]) == ("end\n", "run\n"), report(node)
    finally:
        quiet.reset()
    assert [len(scheduler_ids(quiet, node.get_remote_workdir())) for node in nodes] == [1] * len(nodes)
    assert daemon.failures()[failures:] == []
