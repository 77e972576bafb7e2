"""The sandbox seen from outside of Airflow: what really ran there."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
