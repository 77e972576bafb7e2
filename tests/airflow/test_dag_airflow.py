"""The example DAG end to end, and one job at a time: results, failures, logs, links, secrets."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest
import sqlalchemy
from local_airflow import LocalAirflow

from support.airflow_cluster import Cluster, ExampleRun
from support.airflow_runs import Run, wait_for


def test_output_is_in_the_log_while_the_job_runs(runs: dict[str, Run]) -> None:
    run = runs["live"]
    job = run.watched_job()
    wait_for(lambda: "tick 3." in run.log(), 60)
    assert run.task()["state"] == "deferred"
    assert run.executions() == [job]


def test_no_secret_is_in_a_command_line(airflow: LocalAirflow, cluster: Cluster, runs: dict[str, Run]) -> None:
    airflow.wait_task("one_job", runs["secret"].id, "job", ["deferred", "success"])
    arguments = "\n".join(" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"]))
    assert cluster.process.users["alice"] not in arguments


def test_an_outage_while_deferred_is_no_failure(cluster: Cluster, runs: dict[str, Run]) -> None:
    """All of the runs are in it; this one sees both ends of it."""
    run = runs["live"]
    run.watched_job()
    # A worker that is killed has five seconds for its cancel, which an outage can fill: let that one be over.
    assert runs["marked while submitting"].end() == "failed"
    cluster.process.post("/outage", {"kind": "refused", "seconds": 6})
    seen = len(run.log())
    run.let_end()
    assert run.end() == "success"
    assert len(run.log()) > seen
    ticks = [line for line in run.log() if line.startswith("tick")]
    assert ticks == [f"tick {i}." for i in range(1, len(ticks) + 1)]
    assert run.log().count("finished") == 1
    assert len(run.executions()) == 1


def test_every_line_of_output_is_in_the_log_once(runs: dict[str, Run]) -> None:
    run = runs["lines"]
    assert run.end() == "success"
    assert [line for line in run.log() if line.startswith("line ")] == [f"line {i} of the output" for i in range(1, 41)]
    assert run.log().count("one line of errors") == 1
    (job,) = run.executions()
    told = [line.split()[1] for line in run.log() if re.match(r"Job \d+ is [A-Z]+", line)]
    assert set(told) == {job}, "the states of this job, and of no other that is watched beside it"


@pytest.mark.parametrize("name", ["failed", "failed here"])
def test_a_failed_job_fails_its_task_with_a_post_mortem(runs: dict[str, Run], name: str) -> None:
    assert runs[name].end() == "failed"
    errors = [line for line in runs[name].log() if line.startswith("JobFailed: ")]
    assert len(errors) == 1
    assert "exit code 3" in errors[0]
    assert "one line of errors" in errors[0]


def test_without_deferral_the_worker_waits(runs: dict[str, Run]) -> None:
    run = runs["here"]
    assert run.end() == "success"
    assert [line for line in run.log() if line.startswith("line ")] == [f"line {i} of the output" for i in (1, 2, 3)]
    assert run.result()["workdir"] == run.workdir


def test_a_refused_script_fails_in_the_schedulers_words(runs: dict[str, Run]) -> None:
    assert runs["refused"].end() == "failed"
    assert [line for line in runs["refused"].log() if line.startswith("SubmitRejected: ")]
    assert not runs["refused"].ids()


def test_mapped_tasks_are_jobs_of_their_own(runs: dict[str, Run]) -> None:
    run = runs["mapped"]
    assert run.end() == "success"
    assert sorted(run.executions()) == ["0", "1", "2"]
    assert len(run.ids()) == 3


def test_the_link_leads_to_the_job(airflow: LocalAirflow, cluster: Cluster, runs: dict[str, Run]) -> None:
    run = runs["lines"]
    assert run.end() == "success"
    links = airflow.call("GET", f"/dags/one_job/dagRuns/{run.id}/taskInstances/job/links")["extra_links"]
    assert links["Job"] == f"https://portal.example.org/{cluster.system.name}/{run.result()['job_id']}"


def test_the_example_runs_end_to_end(
    airflow: LocalAirflow, cluster: Cluster, runs: dict[str, Run], example: ExampleRun
) -> None:
    assert runs, "and everything else at the same time"
    example.check(airflow, cluster)


def test_no_secret_is_anywhere(airflow: LocalAirflow, cluster: Cluster, runs: dict[str, Run]) -> None:
    """Client secret, tokens and environment values: not in logs, database, XCom, trigger arguments or script."""
    run = runs["secret"]
    assert run.end() == "success"
    assert "it arrived" in run.log()
    left = cluster.process.host_path(f"{run.workdir}/.hpcbridge").rglob("env")
    assert not list(left), "the environment file is removed with the job"

    secret = cluster.process.users["alice"].encode()
    # Every token of this issuer begins with the same header; Airflow's own tokens have another.
    header = cluster.process.token().partition(".")[0].encode()
    files = {str(path): path.read_bytes() for path in Path(airflow.home).rglob("*") if path.is_file()}
    tables = tables_of(airflow.environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"])
    assert run.id.encode() in tables["task_instance"]
    for place, content in {**files, **tables}.items():
        assert secret not in content, place
        assert header not in content, f"{place} holds a token"


def tables_of(url: str) -> dict[str, bytes]:
    """All that is in a database, by table."""
    engine = sqlalchemy.create_engine(url)
    metadata = sqlalchemy.MetaData()
    metadata.reflect(engine)
    with engine.connect() as connection:
        rows = {name: connection.execute(sqlalchemy.select(table)) for name, table in metadata.tables.items()}
        return {name: repr([tuple(row) for row in each]).encode() for name, each in rows.items()}
