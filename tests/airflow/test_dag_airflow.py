"""The example DAG end to end, and one job at a time: results, failures, logs, links, secrets."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from local_airflow import LocalAirflow

from support.airflow_cluster import EXAMPLES, Cluster

COUNTING = """#!/bin/bash
echo "$SLURM_JOB_ID" >> executions
for i in $(seq 1 {lines}); do echo "line $i of the output"; sleep {pause}; done
echo "one line of errors" >&2
exit {code}
"""


def script(lines: int = 3, pause: float = 0.1, code: int = 0) -> str:
    return COUNTING.format(lines=lines, pause=pause, code=code)


def test_the_example_runs_end_to_end(airflow: LocalAirflow, cluster: Cluster, tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    shutil.copy(EXAMPLES / "potential.dat", inbox)
    run = airflow.trigger("rock_salt", {"inbox": str(inbox)})
    airflow.wait_task("rock_salt", run, "wait_for_structure", ["deferred"])
    shutil.copy(EXAMPLES / "structure.dat", inbox)
    assert airflow.wait_run("rock_salt", run) == "success"

    job = airflow.xcom("rock_salt", run, "relax")
    assert (job["state"], job["exit_code"]) == ("COMPLETED", 0)
    found = airflow.xcom("rock_salt", run, "check_result")
    assert found["lattice_constant"] == pytest.approx(5.6278, abs=2e-3)
    assert found["energy"] == pytest.approx(-7.92264, abs=2e-4)
    assert not (inbox / "structure.dat").exists()
    assert job["workdir"].rpartition("/")[2] not in {e.name for e in cluster.system.ls(f"{cluster.home}/rock-salt")}


def test_every_line_of_output_is_in_the_log_once(airflow: LocalAirflow, cluster: Cluster) -> None:
    workdir = cluster.workdir()
    run = airflow.trigger("one_job", {"script": script(lines=40, pause=0.1), "workdir": workdir})
    assert airflow.wait_run("one_job", run) == "success"
    log = airflow.task_log("one_job", run, "job")
    assert [line for line in log if line.startswith("line ")] == [f"line {i} of the output" for i in range(1, 41)]
    assert log.count("one line of errors") == 1
    assert len(cluster.executions(workdir)) == 1


def test_output_is_in_the_log_while_the_job_runs(airflow: LocalAirflow, cluster: Cluster) -> None:
    run = airflow.trigger("one_job", {"script": script(lines=20, pause=1), "workdir": cluster.workdir()})
    airflow.wait_task("one_job", run, "job", ["deferred"])
    airflow._wait(lambda: "line 3 of the output" in airflow.task_log("one_job", run, "job"), {True}, 30)
    assert airflow.task_state("one_job", run, "job") == "deferred"
    assert airflow.wait_run("one_job", run) == "success"


@pytest.mark.parametrize("dag", ["one_job", "one_job_here"])
def test_a_failed_job_fails_its_task_with_a_post_mortem(airflow: LocalAirflow, cluster: Cluster, dag: str) -> None:
    run = airflow.trigger(dag, {"script": script(code=3), "workdir": cluster.workdir()})
    assert airflow.wait_run(dag, run) == "failed"
    entries = json.dumps(raw_log(airflow, dag, run, "job"))
    assert "JobFailed" in entries
    assert "exit code 3" in entries
    assert "one line of errors" in entries


def test_without_deferral_the_worker_waits(airflow: LocalAirflow, cluster: Cluster) -> None:
    workdir = cluster.workdir()
    run = airflow.trigger("one_job_here", {"script": script(), "workdir": workdir})
    assert airflow.wait_run("one_job_here", run) == "success"
    log = airflow.task_log("one_job_here", run, "job")
    assert [line for line in log if line.startswith("line ")] == [f"line {i} of the output" for i in (1, 2, 3)]
    assert airflow.xcom("one_job_here", run, "job")["workdir"] == workdir


def test_a_refused_script_fails_in_the_schedulers_words(airflow: LocalAirflow, cluster: Cluster) -> None:
    refused = "#!/bin/bash\n#SBATCH --partition=no-such-partition\ntrue"
    run = airflow.trigger("one_job", {"script": refused, "workdir": cluster.workdir()})
    assert airflow.wait_run("one_job", run) == "failed"
    assert "SubmitRejected" in json.dumps(raw_log(airflow, "one_job", run, "job"))


def test_mapped_tasks_are_jobs_of_their_own(airflow: LocalAirflow, cluster: Cluster) -> None:
    workdir = cluster.workdir()
    text = "#!/bin/bash\necho $INDEX >> executions\n"
    run = airflow.trigger("mapped_jobs", {"script": text, "workdir": workdir})
    assert airflow.wait_run("mapped_jobs", run) == "success"
    assert sorted(cluster.executions(workdir)) == ["0", "1", "2"]
    assert len(cluster.ids(workdir)) == 3


def test_the_link_leads_to_the_job(airflow: LocalAirflow, cluster: Cluster) -> None:
    run = airflow.trigger("one_job", {"script": script(), "workdir": cluster.workdir()})
    assert airflow.wait_run("one_job", run) == "success"
    links = airflow.call("GET", f"/dags/one_job/dagRuns/{run}/taskInstances/job/links")["extra_links"]
    job_id = airflow.xcom("one_job", run, "job")["job_id"]
    assert links["Job"] == f"https://portal.example.org/{cluster.system.name}/{job_id}"


def test_no_secret_is_anywhere(airflow: LocalAirflow, cluster: Cluster) -> None:
    """Client secret, tokens and environment values: not in logs, database, XCom, trigger arguments, script or argv."""
    workdir = cluster.workdir()
    text = '#!/bin/bash\n[ "$(printf %s "$SECRET_VALUE" | wc -c)" -gt 8 ] && echo "it arrived"\nsleep 4\n'
    run = airflow.trigger("one_job", {"script": text, "workdir": workdir})
    airflow.wait_task("one_job", run, "job", ["deferred"])
    arguments = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert airflow.wait_run("one_job", run) == "success"
    assert "it arrived" in airflow.task_log("one_job", run, "job")

    secret = cluster.process.users["alice"].encode()
    # Every token of this issuer begins with the same header; Airflow's own tokens have another.
    header = cluster.process.token().partition(".")[0].encode()
    assert secret.decode() not in arguments
    for path in airflow.home.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert secret not in content, path
            assert header not in content, f"{path} holds a token"


def raw_log(airflow: LocalAirflow, dag: str, run: str, task: str, attempt: int = 1) -> Any:
    path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}/logs/{attempt}"
    return airflow.call("GET", path, full_content=True)["content"]
