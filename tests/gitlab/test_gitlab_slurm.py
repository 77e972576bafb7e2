"""The contract on a real Slurm: in the quick run the cases in which the scheduler has a part."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator

import pytest

from support.gitlab_bench import Bench
from support.gitlab_cases import CASES
from support.gitlab_scripts import FORMS, Recipe
from support.gitlab_table import Ran, check, ids, run_all
from support.scale import PROVE

pytestmark = pytest.mark.slurm

SCHEDULERS = ("success", "cancel in script")
ON_SLURM = [(case, FORMS[1]) for case in CASES if PROVE or case.name in SCHEDULERS]


@pytest.fixture(scope="module")
def ran_on_slurm(slurm_bench: Bench, request: pytest.FixtureRequest) -> Iterator[Ran]:
    yield from run_all(slurm_bench, request)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("case", "form"), ON_SLURM, ids=ids(ON_SLURM))
def test_a_case_of_the_contract_on_real_slurm(slurm_bench, ran_on_slurm, case, form, record_property):
    check(slurm_bench, ran_on_slurm, case, form, record_property)


@pytest.mark.timeout(1200)
def test_artifacts_of_every_task_arrive_from_real_slurm(slurm_bench):
    """USE_MPI: the script runs once per task, in one allocation."""
    variables = {"USE_MPI": "YES", "SLURM_NTASKS": "2"}
    script = ["mkdir -p out; echo $SLURM_JOB_ID > out/$SLURM_PROCID"]
    runner = slurm_bench.runner(Recipe(script, variables=variables, artifacts=[{"paths": ["out"]}])).run()
    archive = slurm_bench.job(runner).artifact()
    assert archive is not None, runner.log
    content = zipfile.ZipFile(io.BytesIO(archive.data))
    (row,) = slurm_bench.rows(runner)
    assert {content.read(f"out/{task}").decode().strip() for task in (0, 1)} == {row["jobId"]}
