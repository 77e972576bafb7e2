"""A GitLab (the coordinator stub), a project, and this host's configuration of the driver for one sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.gitlab_bench import Bench, bench
from support.sandbox import SandboxProcess
from support.scale import PROVE

collect_ignore = [] if PROVE else ["test_gitlab_figures.py"]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The contract as a table; the reports come from the processes that ran the tests."""
    rows = [
        f"{'ok' if outcome == 'passed' else 'FAIL':5}{value}"
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        for name, value in report.user_properties
        if name == "contract" and report.when == "call"
    ]
    if rows:
        terminalreporter.section("contract with gitlab-runner")
        for row in rows:
            terminalreporter.write_line(row)


@pytest.fixture(scope="module")
def local_bench(local_queue: SandboxProcess) -> Iterator[Bench]:
    with bench(local_queue) as opened:
        yield opened


@pytest.fixture(scope="module")
def slurm_bench(real_slurm: SandboxProcess) -> Iterator[Bench]:
    with bench(real_slurm, "slurm") as opened:
        yield opened


@pytest.fixture
def host(local_bench: Bench) -> Iterator[Bench]:
    """A runner's host beside the local queue."""
    yield local_bench
    local_bench.sandbox.reset()


@pytest.fixture
def slurm_host(slurm_bench: Bench) -> Iterator[Bench]:
    """A runner's host beside a real Slurm."""
    yield slurm_bench
    slurm_bench.sandbox.reset()


@pytest.fixture(params=["local", *([pytest.param("slurm", marks=pytest.mark.slurm)] if PROVE else [])])
def any_host(request: pytest.FixtureRequest) -> Bench:
    """Each in turn; the quick run starts a Slurm for test_gitlab_slurm.py alone."""
    opened: Bench = request.getfixturevalue("host" if request.param == "local" else "slurm_host")
    return opened
