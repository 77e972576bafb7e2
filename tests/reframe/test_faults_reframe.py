"""Whatever the site does meanwhile: the same results, or one test that failed and says why; never a stopped session."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.reframe_runs import SUITE, check, configuration, run
from support.reframe_sleepers import Sleepers
from support.sandbox import SandboxProcess, start_sandbox
from support.scale import PROVE

SOME = ("-n", "Hello", "-n", "BuiltThere", "-n", "UsesFixtures", "-n", "Links", "-n", "ManyFiles")


@pytest.fixture(scope="module")
def own_queue() -> Iterator[SandboxProcess]:
    """A sandbox whose outages disturb nobody else."""
    with start_sandbox("--accounting-lag", "1") as started:
        yield started


@pytest.fixture
def queue(own_queue: SandboxProcess) -> Iterator[SandboxProcess]:
    yield own_queue
    own_queue.reset()


PLACES = ["queue-async", "queue-serial", pytest.param("login_node-async", marks=pytest.mark.slurm)]


@pytest.mark.needs("gcc", "make")
@pytest.mark.parametrize("place", PLACES if PROVE else PLACES[:1])
def test_every_third_get_fails(request: pytest.FixtureRequest, folder: Path, place: str) -> None:
    where, policy = place.split("-")
    sandbox: SandboxProcess = request.getfixturevalue(where)
    sandbox.delete("/requests")
    sandbox.post("/faults", [{"method": "GET", "path": "*", "kind": "status", "status": 502, "every": 3}])
    try:
        check(run(folder, SUITE, sandbox.client_env(), *(() if PROVE else SOME), policy=policy, timeout=2000))
        assert sum(n for name, n in sandbox.get("/requests")["counts"].items() if name.startswith("GET")) > 15
    finally:
        sandbox.reset()


def test_an_outage_is_waited_out(queue: SandboxProcess, folder: Path) -> None:
    sleepers = Sleepers(queue, folder, seconds=4)
    running = sleepers.start()
    sleepers.wait_running(running)
    queue.post("/outage", {"kind": "refused", "seconds": 60 if PROVE else 10})
    outcome = running.end()
    assert [case["result"] for case in outcome.cases] == ["pass"] * 3, outcome.output[-4000:]
    assert all(len(jobs) == 1 for jobs in sleepers.executions().values())


def test_an_outage_over_the_budget_fails_the_tests_not_the_session(queue: SandboxProcess, folder: Path) -> None:
    (folder / "settings.py").write_text(configuration(options={"firecrest_outage_budget": 5}))
    sleepers = Sleepers(queue, folder, seconds=30)
    running = sleepers.start()
    first = sleepers.wait_running(running)
    queue.post("/outage", {"kind": "503", "seconds": 45})
    outcome = running.end()
    assert [case["result"] for case in outcome.cases] == ["fail"] * 3
    assert "has not answered for" in outcome.output
    assert "goes on with them" in outcome.output
    queue.delete("/outage")
    # The jobs ran on; the next run takes them.
    again = sleepers.run()
    assert [case["result"] for case in again.cases] == ["pass"] * 3, again.output[-4000:]
    assert sleepers.executions() == first


def test_tokens_expire_in_the_middle(queue: SandboxProcess, folder: Path) -> None:
    queue.post("/token", {"lifetime": 35})
    try:
        sleepers = Sleepers(queue, folder, seconds=6)
        running = sleepers.start()
        sleepers.wait_running(running)
        queue.post("/expire-tokens")
        outcome = running.end()
    finally:
        queue.post("/token", {"lifetime": 300})
    assert [case["result"] for case in outcome.cases] == ["pass"] * 3, outcome.output[-4000:]


def test_a_job_that_somebody_else_cancels(queue: SandboxProcess, folder: Path) -> None:
    sleepers = Sleepers(queue, folder, seconds=8)
    running = sleepers.start()
    jobs = sleepers.wait_running(running)
    with queue.client() as client:
        assert client.delete(f"/compute/{queue.system}/jobs/{jobs[1][0]}").status_code < 300
    outcome = running.end()
    assert sorted(case["result"] for case in outcome.cases) == ["fail", "pass", "pass"], outcome.output[-4000:]
    assert "the job was cancelled by somebody else" in outcome.output
    assert f"[jobid={jobs[1][0]}]" in outcome.output


def test_a_stage_directory_that_vanishes(queue: SandboxProcess, folder: Path) -> None:
    (folder / "settings.py").write_text(configuration(options={"firecrest_stage_name": "vanishes"}))
    sleepers = Sleepers(queue, folder, seconds=8)
    running = sleepers.start()
    sleepers.wait_running(running)
    root = queue.host_path("/home/alice/reframe/vanishes/cluster/normal/gnu")
    shutil.rmtree(next(root.iterdir()))
    outcome = running.end()
    assert sorted(case["result"] for case in outcome.cases) == ["fail", "pass", "pass"], outcome.output[-4000:]
    assert "is gone from the cluster" in outcome.output


def test_a_job_that_vanishes(queue: SandboxProcess, folder: Path) -> None:
    """Neither the queue nor accounting knows it any more; that is believed past the accounting lag of 30 s."""
    sleepers = Sleepers(queue, folder, seconds=3000, count=1)
    running = sleepers.start()
    job = sleepers.wait_running(running)[0][0]
    answer = {"method": "GET", "kind": "status", "status": 404, "message": "Job not found"}
    queue.post("/faults", [{**answer, "path": f"/compute/{queue.system}/jobs/{job}"}])
    queue.post("/scheduler-faults", {"missing_fraction": 1.0})
    outcome = running.end()
    assert [case["result"] for case in outcome.cases] == ["fail"]
    assert "Neither the queue nor accounting knows the job" in outcome.output


def test_an_answer_to_a_submit_is_lost(queue: SandboxProcess, folder: Path) -> None:
    queue.post("/faults", [{"method": "POST", "path": "/compute/*/jobs", "kind": "drop_after", "count": 2}])
    sleepers = Sleepers(queue, folder, seconds=1)
    outcome = sleepers.run()
    assert [case["result"] for case in outcome.cases] == ["pass"] * 3, outcome.output[-4000:]
    assert all(len(jobs) == 1 for jobs in sleepers.executions().values())


def test_nothing_but_a_wrong_secret(queue: SandboxProcess, folder: Path) -> None:
    client = {**queue.client_env(), "FIRECREST_CLIENT_SECRET": "not-the-secret-at-all"}
    begun = time.monotonic()
    outcome = run(folder, SUITE, client, "-n", "Hello", "-n", "^Wrong")
    assert {case["result"] for case in outcome.cases} == {"fail"}
    assert "not-the-secret-at-all" not in outcome.output + outcome.log
    assert "Traceback" not in outcome.output
    assert time.monotonic() - begun < 400


def test_waiting_in_the_queue_for_too_long(queue: SandboxProcess, folder: Path) -> None:
    """Said with the queue's own reason, and the job is cancelled."""
    later = {"OPTIONS": "--begin=now+1hour", "PENDING": "3s"}
    sleepers = Sleepers(queue, folder, count=1, more=later)
    running = sleepers.start()
    outcome = running.end()
    assert [case["result"] for case in outcome.cases] == ["fail"]
    assert "maximum pending time exceeded" in outcome.output, outcome.output[-3000:]
    with queue.client() as client:
        rows = client.get(f"/compute/{queue.system}/jobs").json()["jobs"]
    assert not [row for row in rows if row["status"]["state"] == "PENDING"]
