"""Sandboxes that the whole session shares, and one fixture over both schedulers."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from support.programs import give_up, require
from support.sandbox import SandboxProcess, start_sandbox
from support.staging import clear_leftovers

QUICK = ("--ingress-look", "2", "--accounting-lag", "1")
# mallory's listings may be broken by a test for good: no other test asks for them.
USERS = ("--user", "alice", "--user", "bob", "--user", "mallory")


LOG_TAIL = 8000
# Files of minutes, begun first: a worker that begins one last keeps the others waiting.
LONGEST = [
    "test_run_docs.py",
    "test_cli_docs.py",
    "test_run_faults.py",
    "test_submit_once.py",
    "test_run_handles.py",
    "test_run_slurm.py",
    "test_cli_jobs.py",
    "test_staging_bench.py",
    "test_tree_copy.py",
    "test_tree_sync_jobs.py",
    "test_tree_sync_states.py",
    "test_kills.py",
    "test_s3_faults.py",
    "test_outage_staging.py",
    "test_tree_sync_faults.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the order within a file stays."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Programs that a test is marked to need (`needs("curl")`)."""
    for mark in item.iter_markers("needs"):
        require(*mark.args)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Show the end of the sandbox's log beside every failure of a test that used one."""
    report = yield
    for name, value in getattr(item, "funcargs", {}).items():
        # At the end of the last test the sandbox may be gone already.
        if report.failed and isinstance(value, SandboxProcess) and value.log.exists():
            report.sections.append((f"log of the fixture {name}", value.log.read_text(errors="replace")[-LOG_TAIL:]))
    return report


@pytest.fixture(scope="session")
def local_queue() -> Iterator[SandboxProcess]:
    """A sandbox with the local queue; use `sandbox`, which also takes faults back after each test."""
    with start_sandbox(*QUICK, *USERS) as started:
        yield started


@pytest.fixture(scope="session")
def slurm_installed() -> None:
    """Skip, by name, where a real Slurm is not installed; an error in CI."""
    require("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", purpose="real Slurm")
    if os.geteuid() != 0:
        give_up("real Slurm needs root")


@pytest.fixture(scope="session")
def real_slurm(slurm_installed: None) -> Iterator[SandboxProcess]:
    """A sandbox with a real Slurm; skipped by name where it is not installed, an error in CI."""
    with start_sandbox(*QUICK, *USERS, "--scheduler", "slurm", timeout=180) as started:
        yield started


def _lent(started: SandboxProcess) -> Iterator[SandboxProcess]:
    """A shared sandbox without what another file's tests have left in alice's home, and afterwards without faults."""
    clear_leftovers(started)
    yield started
    started.reset()


@pytest.fixture
def sandbox(local_queue: SandboxProcess) -> Iterator[SandboxProcess]:
    """The shared sandbox with the local queue."""
    yield from _lent(local_queue)


@pytest.fixture
def slurm_sandbox(real_slurm: SandboxProcess) -> Iterator[SandboxProcess]:
    """The shared sandbox with a real Slurm."""
    yield from _lent(real_slurm)


@pytest.fixture(params=["local", pytest.param("slurm", marks=pytest.mark.slurm)])
def any_sandbox(request: pytest.FixtureRequest) -> Iterator[SandboxProcess]:
    """Each shared sandbox in turn: one contract, both schedulers."""
    yield from _lent(request.getfixturevalue("local_queue" if request.param == "local" else "real_slurm"))
