"""One batch job per intended attempt: never two, never one left behind, never a healthy one killed."""

from __future__ import annotations

import signal
import time
from types import SimpleNamespace
from typing import Any

import pytest
from local_airflow import LocalAirflow

from support.airflow_cluster import Cluster
from support.airflow_runs import Run, wait_for, wait_state
from support.sandbox import SandboxProcess

# Taken away: the job is cancelled


@pytest.fixture(scope="module")
def taken_away(airflow: LocalAirflow, runs: dict[str, Run]) -> dict[str, str]:
    """What a user does, all at once, to tasks whose jobs run (or have ended): the ids of the jobs they had."""
    names = ("marked failed", "marked success", "run failed", "cleared")
    jobs = {name: runs[name].watched_job() for name in names}
    assert runs["cleared later"].end() == "success"
    (jobs["cleared later"],) = runs["cleared later"].executions()
    runs["marked failed"].mark("failed")
    runs["marked success"].mark("success")
    airflow.set_run_state("one_job", runs["run failed"].id, "failed")
    runs["cleared"].clear()
    runs["cleared later"].clear()
    return jobs


@pytest.mark.parametrize("name", ["marked failed", "marked success", "run failed"])
def test_taken_away_while_deferred_cancels_the_job(cluster: Cluster, taken_away: dict[str, str], name: str) -> None:
    """One through an outage of the cancel, one with a DELETE of 4 s: the runner cancels on_kill again on every tick."""
    wait_state(cluster, taken_away[name], "CANCELLED", 90)


def test_marked_while_the_worker_submits_cancels_the_job(cluster: Cluster, runs: dict[str, Run]) -> None:
    run = runs["marked while submitting"]
    assert run.end() == "failed"
    wait_for(run.ids, 30)
    (job,) = run.ids()
    wait_state(cluster, job, "CANCELLED", 30)


def test_killed_while_a_worker_waits(cluster: Cluster, runs: dict[str, Run]) -> None:
    run = runs["killed here"]
    wait_for(run.executions, 90)
    (job,) = run.executions()
    run.mark("failed")
    wait_state(cluster, job, "CANCELLED", 45)


def test_clear_cancels_the_job_and_makes_a_new_one(
    cluster: Cluster, runs: dict[str, Run], taken_away: dict[str, str]
) -> None:
    run, first = runs["cleared"], taken_away["cleared"]
    wait_for(lambda: len(run.executions()) == 2, 90)
    run.let_end()
    assert run.end() == "success"
    second = run.result()["job_id"]
    assert run.ids().keys() == {first, second}
    wait_state(cluster, first, "CANCELLED", 1)
    wait_state(cluster, second, "COMPLETED", 1)


def test_clear_after_success_runs_again(runs: dict[str, Run], taken_away: dict[str, str]) -> None:
    run = runs["cleared later"]
    wait_for(lambda: len(run.executions()) == 2, 90)
    assert run.end() == "success"
    assert len(run.ids()) == 2
    assert taken_away["cleared later"] in run.ids()


@pytest.mark.parametrize("name", ["deadline", "deadline here"])
def test_past_the_deadline_the_job_is_cancelled(cluster: Cluster, runs: dict[str, Run], name: str) -> None:
    """In the worker Airflow's own clock rings a moment after ours: it must not cut off the cancel."""
    run = runs[name]
    assert run.end() == "failed"
    (job,) = run.ids()
    wait_state(cluster, job, "CANCELLED", 15)
    assert [line for line in run.log() if line.startswith("AirflowTaskTimeout: ")]


# Attempts lost: one job


def test_retry_after_a_failed_job_is_a_new_job(runs: dict[str, Run]) -> None:
    run = runs["retry"]
    assert run.end() == "success"
    assert len(run.ids()) == 2
    assert len(run.executions()) == 2


@pytest.mark.parametrize("point", ["before_bind", "after_bind", "before_defer", "before_post"])
def test_worker_killed_between_intention_and_deferral(runs: dict[str, Run], point: str) -> None:
    run = runs[point]
    assert run.end() == "success"
    assert run.task()["try_number"] == 2
    assert len(run.ids()) == 1
    assert len(run.executions()) == 1


def test_answer_of_the_submit_lost(runs: dict[str, Run]) -> None:
    run = runs["answer lost"]
    assert run.end() == "success"
    assert len(run.ids()) == 1
    assert len(run.executions()) == 1


async def test_retry_before_accounting_knows_the_job_attaches_to_it(sandbox: SandboxProcess) -> None:
    """A worker killed behind the submit; the retry comes while the scheduler still calls the job's id unknown."""
    import logging

    from hpcbridge import JobSpec, connect
    from hpcbridge_airflow import submitting

    env = sandbox.client_env("alice")
    state: dict[str, Any] = {}
    store = SimpleNamespace(get=state.get, set=lambda key, value, retention: state.update({key: value}))
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=-1)
    run = SimpleNamespace(start_date=None, clear_number=0)
    context: Any = {"ti": ti, "dag_run": run, "task_state_store": store}
    spec = JobSpec(name="late", script="#!/bin/bash\nsleep 20\n")
    log: Any = logging.getLogger("late")

    def hpc() -> Any:
        return connect(
            url=env["FIRECREST_URL"],
            token_url=env["AUTH_TOKEN_URL"],
            client_id=env["FIRECREST_CLIENT_ID"],
            client_secret=env["FIRECREST_CLIENT_SECRET"],
        )

    system = env["FIRECREST_SYSTEM"]
    first = await submitting.launch(hpc(), system, spec, None, context, log)
    unknown = {"method": "GET", "path": f"/compute/*/jobs/{first.job_id}", "kind": "status", "status": 404, "count": 2}
    sandbox.post("/faults", [unknown])
    again = await submitting.launch(hpc(), system, spec, None, context, log)
    assert again.job_id == first.job_id
    sandbox.post("/faults", [unknown])
    run.clear_number = 1
    await submitting.launch(hpc(), system, spec, None, context, log)
    async with hpc() as client:
        assert str((await client.system(system).job(first.job_id).wait(check=False)).state) == "CANCELLED"


# Processes lost: one job, and it lives


def test_triggerer_killed_and_restarted(airflow: LocalAirflow, cluster: Cluster, runs: dict[str, Run]) -> None:
    run = runs["killed triggerer"]
    job = run.watched_job()
    wait_for(lambda: "tick 3." in run.log(), 30)
    airflow.kill_component("triggerer")
    time.sleep(3)
    wait_state(cluster, job, "RUNNING", 0)
    airflow.start_component("triggerer")
    before = len(run.log())
    wait_for(lambda: len(run.log()) > before + 2, 60)
    run.let_end()
    assert run.end() == "success"
    assert run.executions() == [job]
    ticks = [line for line in run.log() if line.startswith("tick")]
    assert len(ticks) > 3
    assert ticks == [f"tick {i}." for i in range(1, len(ticks) + 1)]


def test_stalled_triggerer_does_not_kill_what_another_took_over(
    airflow: LocalAirflow, cluster: Cluster, runs: dict[str, Run]
) -> None:
    run = runs["stalled triggerer"]
    job = run.watched_job()
    airflow.signal_component("triggerer", signal.SIGSTOP)
    try:
        mine = triggerer_of(run)
        airflow.start_component("triggerer", called="triggerer-2")
        wait_for(lambda: triggerer_of(run) not in (None, mine), 60)
    finally:
        airflow.signal_component("triggerer", signal.SIGCONT)
    try:
        wait_for(lambda: f"Job {job} is kept" in run.log_files(), 30)
        wait_state(cluster, job, "RUNNING", 0)
        run.let_end()
        assert run.end() == "success"
        assert run.executions() == [job]
    finally:
        airflow.stop_component("triggerer-2")


def triggerer_of(run: Run) -> object:
    return (run.task()["triggerer_job"] or {}).get("id")
