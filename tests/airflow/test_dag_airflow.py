"""The example DAG end to end, and one job at a time: results, failures, logs, links, secrets."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
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


REFUSED = "#!/bin/bash\n#SBATCH --partition=no-such-partition\ntrue"
SECRETIVE = '#!/bin/bash\n[ "$(printf %s "$SECRET_VALUE" | wc -c)" -gt 8 ] && echo "it arrived"\nsleep 4\n'


@dataclass(frozen=True)
class Run:
    """One run of a DAG of one task, `job`."""

    airflow: LocalAirflow
    dag: str
    id: str
    workdir: str

    def end(self) -> str:
        return self.airflow.wait_run(self.dag, self.id)

    def log(self) -> list[str]:
        return self.airflow.task_log(self.dag, self.id, "job")

    def result(self) -> Any:
        return self.airflow.xcom(self.dag, self.id, "job")


@pytest.fixture(scope="module")
def runs(airflow: LocalAirflow, cluster: Cluster) -> dict[str, Run]:
    """All started at once: they wait for each other's output no longer than the slowest takes."""
    scripts = {
        "lines": ("one_job", script(lines=40)),
        "live": ("one_job", script(lines=30, pause=1)),
        "failed": ("one_job", script(code=3)),
        "failed here": ("one_job_here", script(code=3)),
        "here": ("one_job_here", script()),
        "refused": ("one_job", REFUSED),
        "mapped": ("mapped_jobs", "#!/bin/bash\necho $INDEX >> executions\n"),
        "secret": ("one_job", SECRETIVE),
    }
    started = {}
    for name, (dag, text) in scripts.items():
        workdir = cluster.workdir()
        started[name] = Run(airflow, dag, airflow.trigger(dag, {"script": text, "workdir": workdir}), workdir)
    return started


def test_output_is_in_the_log_while_the_job_runs(airflow: LocalAirflow, runs: dict[str, Run]) -> None:
    run = runs["live"]
    airflow.wait_task("one_job", run.id, "job", ["deferred"])
    airflow._wait(lambda: "line 3 of the output" in run.log(), {True}, 60)
    assert airflow.task_state("one_job", run.id, "job") == "deferred"


def test_no_secret_is_in_a_command_line(airflow: LocalAirflow, cluster: Cluster, runs: dict[str, Run]) -> None:
    airflow.wait_task("one_job", runs["secret"].id, "job", ["deferred", "success"])
    arguments = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert cluster.process.users["alice"] not in arguments


def test_every_line_of_output_is_in_the_log_once(cluster: Cluster, runs: dict[str, Run]) -> None:
    run = runs["lines"]
    assert run.end() == "success"
    assert [line for line in run.log() if line.startswith("line ")] == [f"line {i} of the output" for i in range(1, 41)]
    assert run.log().count("one line of errors") == 1
    assert len(cluster.executions(run.workdir)) == 1


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


def test_a_refused_script_fails_in_the_schedulers_words(cluster: Cluster, runs: dict[str, Run]) -> None:
    assert runs["refused"].end() == "failed"
    assert [line for line in runs["refused"].log() if line.startswith("SubmitRejected: ")]
    assert not cluster.ids(runs["refused"].workdir)


def test_mapped_tasks_are_jobs_of_their_own(cluster: Cluster, runs: dict[str, Run]) -> None:
    run = runs["mapped"]
    assert run.end() == "success"
    assert sorted(cluster.executions(run.workdir)) == ["0", "1", "2"]
    assert len(cluster.ids(run.workdir)) == 3


def test_the_link_leads_to_the_job(airflow: LocalAirflow, cluster: Cluster, runs: dict[str, Run]) -> None:
    run = runs["lines"]
    assert run.end() == "success"
    links = airflow.call("GET", f"/dags/one_job/dagRuns/{run.id}/taskInstances/job/links")["extra_links"]
    assert links["Job"] == f"https://portal.example.org/{cluster.system.name}/{run.result()['job_id']}"


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
    for path in airflow.home.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert secret not in content, path
            assert header not in content, f"{path} holds a token"
