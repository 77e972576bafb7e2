"""The fault matrix, of single servers: no live server dropped, no job left behind, none doubled, a truthful page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.jupyterhub_fleet import LATE, LATE_SECONDS, Fleet, launch
from support.jupyterhub_hub import cancel, job_state, wait_for
from support.sandbox import SandboxProcess

STATES = ("pending", "running")


@pytest.fixture(scope="module")
def fleet(cluster: SandboxProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with launch(cluster, tmp_path_factory.mktemp("faults"), 10) as fleet:
        yield fleet


@pytest.fixture(autouse=True)
def back_to_normal(fleet: Fleet) -> Iterator[None]:
    yield
    fleet.back_to_normal()


@pytest.mark.parametrize("state", STATES)
def test_answer_of_the_submit_lost(fleet: Fleet, state: str) -> None:
    rule = {"method": "POST", "path": "/compute/*/jobs", "kind": "drop_after", "count": 1}
    fleet.cluster.post("/faults", [rule])
    name = f"lost-{state}"
    blocker = fleet.start_in(state, name)
    fleet.hub.wait_state("alice", name, "job_id")
    if blocker:
        cancel(fleet.cluster, blocker)
    fleet.hub.wait_ready("alice", name)
    assert fleet.one_job(name)["jobId"] == fleet.hub.state("alice", name)["job_id"]


@pytest.mark.parametrize("state", STATES)
def test_cancelled_outside(fleet: Fleet, state: str) -> None:
    name = f"outside-{state}"
    fleet.start_in(state, name)
    job = fleet.wait_in(state, name)
    cancel(fleet.cluster, job, "alice")
    fleet.hub.wait_gone("alice", name)
    if state == "pending":
        page = fleet.page(name)
        assert "CANCELLED" in page
        assert job in page
    assert fleet.one_job(name)["jobId"] == job


def test_vanished_while_it_runs(fleet: Fleet) -> None:
    """Accounting has lost two jobs. The server that answers is kept; the other is gone after confirmation."""
    jobs = {}
    for name in ("vanished-running", "vanished-answers"):
        fleet.start_in("running", name)
        jobs[name] = fleet.wait_in("running", name)
    kept = jobs["vanished-answers"]
    fleet.lose(*jobs.values())
    with fleet.deaf("vanished-running"):
        fleet.hub.wait_gone("alice", "vanished-running", 90)
    said = f"job {kept} is unknown to the scheduler, but its server answers"
    wait_for(lambda: fleet.hub.said(said), 90, "the hub to look at the server that answers")
    assert fleet.answers("vanished-answers")
    assert fleet.hub.server("alice", "vanished-answers")
    fleet.back_to_normal()
    wait_for(
        lambda: job_state(fleet.cluster, jobs["vanished-running"]) == "CANCELLED", 60, "the job's end all the same"
    )
    assert job_state(fleet.cluster, kept) == "RUNNING"


def test_vanished_while_it_waits(fleet: Fleet) -> None:
    fleet.start_in("pending", "vanished-pending")
    job = fleet.wait_in("pending", "vanished-pending")
    fleet.lose(job)
    fleet.hub.wait_gone("alice", "vanished-pending", 90)
    assert "Neither the queue nor accounting knows the job" in fleet.page("vanished-pending")
    fleet.back_to_normal()
    wait_for(lambda: job_state(fleet.cluster, job) == "CANCELLED", 60, "the job's end, should it turn up again")


@pytest.mark.parametrize("state", STATES)
def test_start_time_out_cancels_the_job(fleet: Fleet, state: str) -> None:
    """RUNNING: the job has begun, and its server does not."""
    name = f"{LATE}-{state}"
    fleet.start(name, fleet.queue()[0] if state == "pending" else "silent")
    job = fleet.hub.wait_state("alice", name, "job_id")
    fleet.hub.wait_gone("alice", name)
    page = fleet.page(name)
    assert f"did not start within {LATE_SECONDS} seconds" in page
    assert f"The job {job} " in page
    wait_for(lambda: job_state(fleet.cluster, job) == "CANCELLED", 30, "the job to be cancelled")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("fate", ["hold", "late"])
def test_delete_during_the_submit_leaves_no_job(fleet: Fleet, state: str, fate: str) -> None:
    """The answer does not come; or the connection breaks and the job is made some seconds later."""
    name = f"delete-{state}-{fate}"
    fleet.gate.rates, fleet.gate.late_by = {fate: 1.0}, 4.0
    before = fleet.gate.fates[fate]
    fleet.start(name, f"gated-{fleet.queue()[0]}" if state == "pending" else "gated")
    wait_for(lambda: fleet.gate.fates[fate] > before, 30, "the submit to be under way")
    fleet.hub.stop_server("alice", name)
    fleet.hub.wait_gone("alice", name)
    wait_for(lambda: fleet.jobs(name), 30, "the job that nobody wants any more")
    wait_for(lambda: fleet.all_cancelled(name), 60, "the job to be cancelled")


# The hub is killed once, with servers in every state; what the next process makes of each is a test.


@pytest.fixture(scope="module")
def killed(fleet: Fleet) -> dict[str, str]:
    """Job ids as they were before; of `killed-pending` also the job that it waits for (`blocker`)."""
    fleet.back_to_normal()
    hub, before = fleet.hub, {"blocker": fleet.start_in("pending", "killed-pending")}
    fleet.start_in("running", "killed-running")
    fleet.start("killed-stopped", "uncancellable")
    hub.wait_ready("alice", "killed-stopped")
    for state in STATES:
        before[f"killed-{state}"] = fleet.wait_in(state, f"killed-{state}")
    before["killed-stopped"] = hub.state("alice", "killed-stopped")["job_id"]
    # Stopped by its user, and it cannot be cancelled.
    fleet.cutter.rates = {"undelivered": 1.0}
    hub.stop_server("alice", "killed-stopped")
    hub.wait_gone("alice", "killed-stopped")
    assert "hpcbridge_orphans 1.0" in hub.metrics()
    # Delivered, and the answers do not come.
    fleet.gate.rates, sent = {"hold": 1.0}, fleet.gate.delivered
    system, before["submit-blocker"] = fleet.queue()
    fleet.start("killed-submit-pending", f"gated-{system}")
    fleet.start("killed-submit-running", "gated")
    wait_for(lambda: fleet.gate.delivered >= sent + 2, 60, "the submits to be under way")
    # Meant, and not sent.
    fleet.gate.rates, sent = {"undelivered": 1.0}, fleet.gate.fates["undelivered"]
    fleet.start("killed-before", "gated")
    wait_for(lambda: fleet.gate.fates["undelivered"] > sent, 60, "the submit to be tried")
    hub.kill()
    fleet.back_to_normal()
    hub.start()
    return before


@pytest.mark.parametrize("state", STATES)
def test_hub_killed(fleet: Fleet, killed: dict[str, str], state: str) -> None:
    name = f"killed-{state}"
    if state == "pending":
        assert fleet.hub.server("alice", name)
        cancel(fleet.cluster, killed["blocker"])
    fleet.hub.wait_ready("alice", name)
    wait_for(lambda: fleet.answers(name), 30, "the adopted server to answer through the proxy")
    assert fleet.hub.state("alice", name)["job_id"] == killed[name]
    assert fleet.one_job(name)["jobId"] == killed[name]


@pytest.mark.parametrize("state", STATES)
def test_hub_killed_in_the_submit(fleet: Fleet, killed: dict[str, str], state: str) -> None:
    """The answer to the POST never came; the next process finds the job by its name."""
    name = f"killed-submit-{state}"
    if state == "pending":
        fleet.hub.wait_state("alice", name, "job_id")
        cancel(fleet.cluster, killed["submit-blocker"])
    fleet.hub.wait_ready("alice", name, 120)
    wait_for(lambda: fleet.answers(name), 30)
    assert fleet.one_job(name)["jobId"] == fleet.hub.state("alice", name)["job_id"]


@pytest.mark.usefixtures("killed")
def test_hub_killed_before_the_submit(fleet: Fleet) -> None:
    """The intention was known, and nothing was sent: the hub has no such server, nor is there a job."""
    fleet.hub.wait_gone("alice", "killed-before", 120)
    assert not fleet.jobs("killed-before")


def test_hub_killed_with_an_orphan_in_the_ledger(fleet: Fleet, killed: dict[str, str]) -> None:
    job = killed["killed-stopped"]
    wait_for(lambda: job_state(fleet.cluster, job) == "CANCELLED", 90, "the orphan to be ended")


def test_stopped_in_an_outage_is_ended_after_it(fleet: Fleet) -> None:
    fleet.start_in("running", "orphan")
    job = fleet.wait_in("running", "orphan")
    fleet.cluster.post("/outage", {"kind": "refused", "seconds": 60})
    fleet.hub.stop_server("alice", "orphan")
    fleet.hub.wait_gone("alice", "orphan")
    assert "hpcbridge_orphans 1.0" in fleet.hub.metrics()
    fleet.back_to_normal()
    wait_for(lambda: job_state(fleet.cluster, job) == "CANCELLED", 90, "the orphan to be ended")


def test_no_job_is_left_behind(fleet: Fleet) -> None:
    fleet.check_nothing_is_left()


def test_no_secret_is_seen(fleet: Fleet) -> None:
    fleet.start_in("running", "shown")
    fleet.wait_in("running", "shown")
    fleet.check_no_secret_is_seen()
