"""A real Airflow and a sandbox per session, and an AIRFLOW_HOME that is never the user's own."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_airflow import LocalAirflow

from support.airflow_cluster import EXAMPLES, Cluster
from support.sandbox import start_sandbox

# Read when airflow is first imported, which no module above does.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="hpcbridge-airflow-unit-")
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"


def pytest_sessionfinish() -> None:
    shutil.rmtree(os.environ["AIRFLOW_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    from hpcbridge import blocking

    with start_sandbox("--accounting-lag", "1", "--ingress-look", "2") as process:
        env = process.client_env("alice")
        settings = {
            "url": env["FIRECREST_URL"],
            "token_url": env["AUTH_TOKEN_URL"],
            "client_id": env["FIRECREST_CLIENT_ID"],
            "client_secret": env["FIRECREST_CLIENT_SECRET"],
            "system": env["FIRECREST_SYSTEM"],
        }
        with blocking.connect(**settings) as hpc:
            yield Cluster(process, hpc)


@pytest.fixture(scope="session")
def airflow(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAirflow]:
    home = tmp_path_factory.mktemp("airflow")
    dags = home / "dags"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(__file__).parent / "dags", dags, ignore=ignore)
    shutil.copytree(EXAMPLES, dags, ignore=ignore, dirs_exist_ok=True)
    env = cluster.process.client_env("alice")
    connection = {
        "conn_type": "firecrest",
        "host": env["FIRECREST_URL"],
        "login": env["FIRECREST_CLIENT_ID"],
        "password": env["FIRECREST_CLIENT_SECRET"],
        "extra": {
            "token_url": env["AUTH_TOKEN_URL"],
            "system": env["FIRECREST_SYSTEM"],
            "job_url": "https://portal.example.org/{system}/{job_id}",
        },
    }
    settings = {
        "AIRFLOW_CONN_FIRECREST_DEFAULT": json.dumps(connection),
        "AIRFLOW_CONN_FS_DEFAULT": "fs://",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
        "AIRFLOW__CORE__PARALLELISM": "8",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG",
    }
    with LocalAirflow(home / "airflow", dags, settings) as running:
        for dag in ("one_job", "rock_salt"):
            running.wait_for_dag(dag)
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A failed test shows what Airflow's parts said."""
    report = yield
    running = getattr(item, "funcargs", {}).get("airflow")
    if report.failed and isinstance(running, LocalAirflow):
        for name in ("scheduler", "triggerer", "api-server"):
            report.sections.append((f"airflow {name}", running.log_tail(name, 25)))
    return report
