"""The same against a real Slurm: the example end to end, a cancel, a lost answer."""

from __future__ import annotations

import pytest
from local_airflow import LocalAirflow

from support.airflow_cluster import Cluster, ExampleRun
from support.airflow_runs import Run, wait_state

pytestmark = pytest.mark.slurm


def test_marked_failed_cancels_the_job(slurm_cluster: Cluster, slurm_runs: dict[str, Run]) -> None:
    job = slurm_runs["marked"].watched_job()
    slurm_runs["marked"].mark("failed")
    wait_state(slurm_cluster, job, "CANCELLED", 60)


def test_answer_of_a_submit_lost(slurm_cluster: Cluster, slurm_runs: dict[str, Run]) -> None:
    assert slurm_runs["lost"].end() == "success"
    assert any(rule["count"] == 0 for rule in slurm_cluster.process.get("/faults"))
    for run in slurm_runs.values():
        assert len(run.ids()) == 1
        assert len(run.executions()) == 1


def test_the_example_runs_end_to_end(airflow: LocalAirflow, slurm_cluster: Cluster, slurm_example: ExampleRun) -> None:
    slurm_example.check(airflow, slurm_cluster)
