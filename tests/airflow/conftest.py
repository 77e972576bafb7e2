"""A real Airflow and a sandbox per session, and an AIRFLOW_HOME that is never the user's own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_airflow import LocalAirflow

from support.airflow_cluster import EXAMPLES, Cluster, ExampleRun, connection_of, open_cluster
from support.airflow_runs import FAULTS, SCENARIOS, SYSTEMS, UNTIL_TOLD, Run, Scenario, lines
from support.postgres import postgres_programs, start_postgres
from support.programs import give_up
from support.sandbox import SandboxProcess, start_sandbox

SLURM = "firecrest_slurm"
"""Airflow's connection to the sandbox with a real Slurm."""

# Read when airflow is first imported, which no module above does.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="hpcbridge-airflow-unit-")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"


def pytest_sessionfinish() -> None:
    shutil.rmtree(os.environ["AIRFLOW_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    systems = [flag for name in SYSTEMS for flag in ("--system", name)]
    flags = ("--accounting-lag", "1", "--ingress-look", "2")
    with start_sandbox(*flags, *systems) as process, open_cluster(process) as opened:
        yield opened


@pytest.fixture(scope="session")
def database() -> Iterator[dict[str, str]]:
    """Airflow's setting for a PostgreSQL, as a service would have it; where none is installed, for its own SQLite.

    All scenarios run at once, and SQLite has one writer at a time: on a slow machine it keeps them all waiting.
    """
    programs = postgres_programs()
    if programs is None:
        if os.environ.get("CI") == "true":
            give_up("Airflow's database needs PostgreSQL: apt-get install postgresql")
        yield {}
        return
    with start_postgres(programs) as url:
        yield {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url}


@pytest.fixture(scope="session")
def airflow(
    cluster: Cluster, database: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalAirflow]:
    home = tmp_path_factory.mktemp("airflow")
    dags = home / "dags"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(__file__).parent / "dags", dags, ignore=ignore)
    shutil.copytree(EXAMPLES, dags, ignore=ignore, dirs_exist_ok=True)
    (dags / "rock_salt_slurm.py").write_text(_on_slurm((EXAMPLES / "rock_salt.py").read_text()))
    settings = database | {
        "AIRFLOW_CONN_FIRECREST_DEFAULT": json.dumps(connection_of(cluster.process)),
        "AIRFLOW_CONN_FS_DEFAULT": "fs://",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "8",
        "AIRFLOW__CORE__PARALLELISM": "8",
        "AIRFLOW__CORE__MAX_ACTIVE_RUNS_PER_DAG": "32",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG",
    }
    with LocalAirflow(home / "airflow", dags, settings) as running:
        for dag in ("one_job", "rock_salt", "rock_salt_slurm"):
            running.wait_for_dag(dag)
        yield running


def _on_slurm(source: str) -> str:
    """The example with another name and another connection."""
    for old, new in (
        ('dag_id="rock_salt"', 'dag_id="rock_salt_slurm"'),
        ("default_args={", f'default_args={{"firecrest_conn_id": "{SLURM}", '),
        ("FirecRESTHook()", f'FirecRESTHook("{SLURM}")'),
    ):
        assert source.count(old) == 1
        source = source.replace(old, new)
    return source


@pytest.fixture(scope="session")
def example(airflow: LocalAirflow, tmp_path_factory: pytest.TempPathFactory) -> ExampleRun:
    """The example DAG, under way."""
    return ExampleRun.start(airflow, "rock_salt", tmp_path_factory.mktemp("local") / "inbox")


@pytest.fixture(scope="session")
def runs(
    request: pytest.FixtureRequest, airflow: LocalAirflow, cluster: Cluster, example: ExampleRun
) -> dict[str, Run]:
    """Every scenario, all started at once: they wait for each other no longer than the slowest takes."""
    on_slurm = any(item.get_closest_marker("slurm") for item in request.session.items)
    # Where there is no Slurm, the tests that ask for it say so. It starts while nothing else does.
    with contextlib.suppress(pytest.skip.Exception, pytest.fail.Exception):
        if on_slurm:
            request.getfixturevalue("real_slurm")
    for dag in {scenario.dag for scenario in SCENARIOS.values()}:
        airflow.wait_for_dag(dag)
    cluster.process.post("/faults", FAULTS)
    started = {name: Run.start(airflow, cluster, scenario) for name, scenario in SCENARIOS.items()}
    example.deliver(airflow)
    with contextlib.suppress(pytest.skip.Exception, pytest.fail.Exception):
        if on_slurm:
            request.getfixturevalue("slurm_runs")
    return started


@pytest.fixture(scope="session")
def slurm_cluster(airflow: LocalAirflow, real_slurm: SandboxProcess) -> Iterator[Cluster]:
    airflow.call("POST", "/connections", json={"connection_id": SLURM, **connection_of(real_slurm)})
    with open_cluster(real_slurm) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def slurm_example(
    airflow: LocalAirflow, slurm_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> ExampleRun:
    return ExampleRun.start(airflow, "rock_salt_slurm", tmp_path_factory.mktemp("slurm") / "inbox")


@pytest.fixture(scope="session")
def slurm_runs(airflow: LocalAirflow, slurm_cluster: Cluster, slurm_example: ExampleRun) -> dict[str, Run]:
    """One of the submits, whichever comes first, loses its answer."""
    lost = {"method": "POST", "path": "/compute/*/jobs", "kind": "drop_after", "count": 1}
    slurm_cluster.process.post("/faults", [lost])
    conf = {"conn": SLURM}
    scenarios = {"marked": Scenario("one_job", UNTIL_TOLD, conf), "lost": Scenario("one_job", lines(), conf)}
    started = {name: Run.start(airflow, slurm_cluster, scenario) for name, scenario in scenarios.items()}
    slurm_example.deliver(airflow)
    return started


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A failed test shows what Airflow's parts said."""
    report = yield
    running = getattr(item, "funcargs", {}).get("airflow")
    if report.failed and isinstance(running, LocalAirflow):
        for name in ("scheduler", "triggerer", "api-server"):
            report.sections.append((f"airflow {name}", running.log_tail(name, 25)))
    return report
