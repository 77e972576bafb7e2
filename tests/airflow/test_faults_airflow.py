"""One batch job per intended attempt: never two, never one left behind, never a healthy one killed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from local_airflow import LocalAirflow

from support.airflow_cluster import Cluster

LONG = '#!/bin/bash\necho "$SLURM_JOB_ID" >> executions\necho started\nsleep {seconds}\necho finished\n'


def long_job(seconds: float = 60) -> str:
    return LONG.format(seconds=seconds)


def start(airflow: LocalAirflow, dag: str, workdir: str, text: str, **conf: str) -> str:
    return airflow.trigger(dag, {"script": text, "workdir": workdir, **conf})


def running_job(airflow: LocalAirflow, cluster: Cluster, dag: str, run: str, workdir: str) -> str:
    """The id of the job, once it has begun and the triggerer watches it."""
    airflow.wait_task(dag, run, "job", ["deferred"])
    wait_for(lambda: cluster.executions(workdir), 30)
    wait_for(lambda: "started" in airflow.task_log(dag, run, "job"), 60)
    return str(airflow.xcom(dag, run, "job", "firecrest_job")["job_id"])


def wait_for(what: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.3)


def state_of(cluster: Cluster, job_id: str) -> str:
    return str(cluster.system.job(job_id).info().state)


# Taken away: the job is cancelled


def mark_failed(airflow: LocalAirflow, run: str) -> None:
    airflow.set_task_state("one_job", run, "job", "failed")


def mark_success(airflow: LocalAirflow, run: str) -> None:
    airflow.set_task_state("one_job", run, "job", "success")


def fail_the_run(airflow: LocalAirflow, run: str) -> None:
    airflow.set_run_state("one_job", run, "failed")


def test_taken_away_while_deferred_cancels_the_job(airflow: LocalAirflow, cluster: Cluster) -> None:
    ways = {cluster.workdir(): way for way in (mark_failed, mark_success, fail_the_run)}
    runs = {workdir: start(airflow, "one_job", workdir, long_job()) for workdir in ways}
    jobs = {workdir: running_job(airflow, cluster, "one_job", run, workdir) for workdir, run in runs.items()}
    for workdir, take_away in ways.items():
        take_away(airflow, runs[workdir])
    wait_for(lambda: {state_of(cluster, job) for job in jobs.values()} == {"CANCELLED"}, 60)


def test_cancel_that_takes_longer_than_the_triggerers_patience(airflow: LocalAirflow, cluster: Cluster) -> None:
    """The runner cancels on_kill again on every tick, about 1 s: a DELETE of 4 s must still arrive."""
    workdir = cluster.workdir()
    run = start(airflow, "one_job", workdir, long_job())
    job = running_job(airflow, cluster, "one_job", run, workdir)
    slow = {"method": "DELETE", "path": "/compute/*/jobs/*", "kind": "latency", "seconds": 4}
    cluster.process.post("/faults", [slow])
    try:
        mark_failed(airflow, run)
        wait_for(lambda: state_of(cluster, job) == "CANCELLED", 40)
    finally:
        cluster.process.delete("/faults")


@dataclass(frozen=True)
class Run:
    """One run of a DAG of one task, `job`."""

    dag: str
    id: str
    workdir: str


COUNTS_TO_TWO = '#!/bin/bash\necho "$SLURM_JOB_ID" >> executions\n[ "$(wc -l < executions)" -ge 2 ]\n'


@pytest.fixture(scope="module")
def runs(airflow: LocalAirflow, cluster: Cluster) -> dict[str, Run]:
    """Those that need nobody's help at the start, all at once."""
    points = ("before_post", "before_bind", "after_bind", "before_defer")
    wanted = {point: ("one_job_killed", long_job(3), {"kill_at": point}) for point in points}
    wanted |= {
        "deadline": ("one_job_deadline", long_job(300), {}),
        "retry": ("one_job_retried", COUNTS_TO_TWO, {}),
        "cleared": ("one_job", long_job(20), {}),
        "cleared later": ("one_job", long_job(0), {}),
    }
    started = {}
    for name, (dag, text, conf) in wanted.items():
        workdir = cluster.workdir()
        started[name] = Run(dag, start(airflow, dag, workdir, text, **conf), workdir)
    return started


def test_clear_cancels_the_job_and_makes_a_new_one(
    airflow: LocalAirflow, cluster: Cluster, runs: dict[str, Run]
) -> None:
    run = runs["cleared"]
    first = running_job(airflow, cluster, "one_job", run.id, run.workdir)
    airflow.clear_task("one_job", run.id, "job")
    assert airflow.wait_run("one_job", run.id) == "success"
    second = airflow.xcom("one_job", run.id, "job")["job_id"]
    assert cluster.ids(run.workdir).keys() == {first, second}
    assert state_of(cluster, first) == "CANCELLED"
    assert state_of(cluster, second) == "COMPLETED"


def test_clear_after_success_runs_again(airflow: LocalAirflow, cluster: Cluster, runs: dict[str, Run]) -> None:
    run = runs["cleared later"]
    assert airflow.wait_run("one_job", run.id) == "success"
    airflow.clear_task("one_job", run.id, "job")
    wait_for(lambda: len(cluster.executions(run.workdir)) == 2, 60)
    assert airflow.wait_run("one_job", run.id) == "success"
    assert len(cluster.ids(run.workdir)) == 2


def test_past_the_deadline_the_job_is_cancelled(airflow: LocalAirflow, cluster: Cluster, runs: dict[str, Run]) -> None:
    run = runs["deadline"]
    assert airflow.wait_run("one_job_deadline", run.id) == "failed"
    ids = cluster.ids(run.workdir)
    assert len(ids) == 1
    assert state_of(cluster, *ids) == "CANCELLED"
    log = airflow.task_log("one_job_deadline", run.id, "job")
    assert [line for line in log if line.startswith("AirflowTaskTimeout: The deadline")]


def test_retry_after_a_failed_job_is_a_new_job(airflow: LocalAirflow, cluster: Cluster, runs: dict[str, Run]) -> None:
    run = runs["retry"]
    assert airflow.wait_run("one_job_retried", run.id) == "success"
    assert len(cluster.ids(run.workdir)) == 2
    assert len(cluster.executions(run.workdir)) == 2


@pytest.mark.parametrize("point", ["before_bind", "after_bind", "before_defer", "before_post"])
def test_worker_killed_between_intention_and_deferral(
    airflow: LocalAirflow, cluster: Cluster, runs: dict[str, Run], point: str
) -> None:
    run = runs[point]
    assert airflow.wait_run("one_job_killed", run.id) == "success"
    assert airflow.tasks("one_job_killed", run.id)["job"]["try_number"] == 2
    assert len(cluster.ids(run.workdir)) == 1
    assert len(cluster.executions(run.workdir)) == 1


def test_killed_while_a_worker_waits(airflow: LocalAirflow, cluster: Cluster) -> None:
    workdir = cluster.workdir()
    run = start(airflow, "one_job_here", workdir, long_job())
    wait_for(lambda: cluster.executions(workdir), 60)
    (job,) = cluster.executions(workdir)
    airflow.set_task_state("one_job_here", run, "job", "failed")
    wait_for(lambda: state_of(cluster, job) == "CANCELLED", 45)


# Processes lost: one job, and it lives


def test_triggerer_killed_and_restarted(airflow: LocalAirflow, cluster: Cluster) -> None:
    workdir = cluster.workdir()
    ticking = 'echo started\nfor i in $(seq 1 25); do echo "tick $i."; sleep 1; done\n'
    text = f'#!/bin/bash\necho "$SLURM_JOB_ID" >> executions\n{ticking}'
    run = start(airflow, "one_job", workdir, text)
    job = running_job(airflow, cluster, "one_job", run, workdir)
    wait_for(lambda: "tick 3." in airflow.task_log("one_job", run, "job"), 30)
    airflow.kill_component("triggerer")
    time.sleep(3)
    assert state_of(cluster, job) == "RUNNING"
    airflow.start_component("triggerer")
    assert airflow.wait_run("one_job", run) == "success"
    assert cluster.executions(workdir) == [job]
    ticks = [line for line in airflow.task_log("one_job", run, "job") if line.startswith("tick")]
    assert ticks == [f"tick {i}." for i in range(1, 26)]


def test_stalled_triggerer_does_not_kill_what_another_took_over(airflow: LocalAirflow, cluster: Cluster) -> None:
    workdir = cluster.workdir()
    run = start(airflow, "one_job", workdir, long_job(45))
    job = running_job(airflow, cluster, "one_job", run, workdir)
    airflow.signal_component("triggerer", signal.SIGSTOP)
    try:
        airflow.start_component("triggerer", called="triggerer-2")
        mine = triggerer_of(airflow, run)
        wait_for(lambda: triggerer_of(airflow, run) not in (None, mine), 60)
    finally:
        airflow.signal_component("triggerer", signal.SIGCONT)
    try:
        kept = f"Job {job} is kept"
        wait_for(lambda: kept in logs_of(airflow, run), 30)
        assert state_of(cluster, job) == "RUNNING"
        assert airflow.wait_run("one_job", run) == "success"
        assert cluster.executions(workdir) == [job]
    finally:
        airflow.stop_component("triggerer-2")


def triggerer_of(airflow: LocalAirflow, run: str) -> object:
    task = airflow.tasks("one_job", run)["job"]
    return (task["triggerer_job"] or {}).get("id")


def logs_of(airflow: LocalAirflow, run: str) -> str:
    files = Path(airflow.home, "logs", "dag_id=one_job", f"run_id={run}").rglob("*.log*")
    return "".join(path.read_text(errors="replace") for path in files)


def test_answer_of_the_submit_lost(airflow: LocalAirflow, cluster: Cluster) -> None:
    workdir = cluster.workdir()
    lost = {"method": "POST", "path": "/compute/*/jobs", "kind": "drop_after", "count": 1}
    cluster.process.post("/faults", [lost])
    try:
        run = start(airflow, "one_job", workdir, long_job(2))
        assert airflow.wait_run("one_job", run) == "success"
    finally:
        cluster.process.delete("/faults")
    assert len(cluster.ids(workdir)) == 1
    assert len(cluster.executions(workdir)) == 1


def test_outage_while_deferred_is_no_failure(airflow: LocalAirflow, cluster: Cluster) -> None:
    workdir = cluster.workdir()
    run = start(airflow, "one_job", workdir, long_job(10))
    running_job(airflow, cluster, "one_job", run, workdir)
    cluster.process.post("/outage", {"kind": "refused", "seconds": 10})
    assert airflow.wait_run("one_job", run) == "success"
    assert len(cluster.executions(workdir)) == 1
