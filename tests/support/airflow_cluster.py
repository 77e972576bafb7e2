"""The sandbox seen from outside of Airflow: what really ran there."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from local_airflow import LocalAirflow

from support.sandbox import SandboxProcess

EXAMPLES = Path(__file__).parents[2] / "examples" / "airflow"


@dataclass
class Cluster:
    """A sandbox, and a client of its first user that shares nothing with Airflow's."""

    process: SandboxProcess
    hpc: Any
    home: str = ""
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.system = self.hpc.system()
        self.home = self.system.home()

    def workdir(self) -> str:
        """A directory of a test's own."""
        return f"{self.home}/test-{next(self._numbers)}"

    def ids(self, workdir: str) -> dict[str, str]:
        """State of every job that was ever made for a work directory, by job id."""
        rows = self.system.jobs()
        return {row.job_id: row.state for row in rows if row.working_directory == workdir}

    def executions(self, workdir: str) -> list[str]:
        """What the scripts wrote down when they ran, past every answer of the server."""
        path = self.process.host_path(f"{workdir}/executions")
        return path.read_text().split() if path.exists() else []


def connection_of(process: SandboxProcess) -> dict[str, Any]:
    """The Airflow connection of a sandbox's first user."""
    env = process.client_env("alice")
    return {
        "conn_type": "firecrest",
        "host": env["FIRECREST_URL"],
        "login": env["FIRECREST_CLIENT_ID"],
        "password": env["FIRECREST_CLIENT_SECRET"],
        "extra": json.dumps(
            {
                "token_url": env["AUTH_TOKEN_URL"],
                "system": env["FIRECREST_SYSTEM"],
                "job_url": "https://portal.example.org/{system}/{job_id}",
            }
        ),
    }


@contextlib.contextmanager
def open_cluster(process: SandboxProcess) -> Iterator[Cluster]:
    """A view of a sandbox that shares nothing with Airflow's."""
    from hpcbridge import blocking

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


@dataclass(frozen=True)
class ExampleRun:
    """A run of the example DAG, begun before its input is there."""

    dag: str
    id: str
    inbox: Path

    @classmethod
    def start(cls, airflow: LocalAirflow, dag: str, inbox: Path) -> ExampleRun:
        """Trigger it; the structure arrives with `deliver`."""
        inbox.mkdir()
        potential, cells = re.subn(r"(?m)^cells +\d+", "cells 8", (EXAMPLES / "potential.dat").read_text())
        assert cells == 1, "a smaller sum, which is right to the same digits"
        (inbox / "potential.dat").write_text(potential)
        return cls(dag, airflow.trigger(dag, {"inbox": str(inbox)}), inbox)

    def deliver(self, airflow: LocalAirflow) -> None:
        """The structure arrives while the sensor waits for it without a worker."""
        airflow.wait_task(self.dag, self.id, "wait_for_structure", ["deferred"])
        shutil.copy(EXAMPLES / "structure.dat", self.inbox)

    def check(self, airflow: LocalAirflow, cluster: Cluster) -> None:
        """It ends well, its result is right, and it leaves nothing behind."""
        assert airflow.wait_run(self.dag, self.id) == "success"
        job = airflow.xcom(self.dag, self.id, "relax")
        assert (job["state"], job["exit_code"]) == ("COMPLETED", 0)
        found = airflow.xcom(self.dag, self.id, "check_result")
        assert found["lattice_constant"] == pytest.approx(5.6278, abs=2e-3)
        assert found["energy"] == pytest.approx(-7.92264, abs=2e-4)
        assert not (self.inbox / "structure.dat").exists()
        assert job["workdir"].rpartition("/")[2] not in {e.name for e in cluster.system.ls(f"{cluster.home}/rock-salt")}
