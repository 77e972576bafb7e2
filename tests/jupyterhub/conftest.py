"""A sandbox with the cluster's software, and hubs before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.jupyterhub_hub import EXPOSE, HUB_USER, Hub, needs_programs
from support.sandbox import SandboxProcess, start_sandbox
from support.scale import PROVE

# Figures, and what a quick run has no time for.
collect_ignore = [] if PROVE else ["test_scale_jupyterhub.py", "test_smoke55_jupyterhub.py"]
USERS = ("alice", "bob", "carol", "dave", HUB_USER)
LONGEST_FIRST = ("test_suite", "test_life", "test_faults", "test_outages")
"""Files that take minutes, in which order workers side by side should begin them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""

    def turn(item: pytest.Item) -> int:
        starts = [number for number, name in enumerate(LONGEST_FIRST) if item.path.name.startswith(name)]
        return starts[0] if starts else len(LONGEST_FIRST)

    items.sort(key=turn)


@pytest.fixture(scope="session")
def cluster() -> Iterator[SandboxProcess]:
    """A sandbox whose jobs find JupyterLab at /opt/software."""
    needs_programs()
    flags = [flag for user in USERS for flag in ("--user", user)]
    with start_sandbox("--accounting-lag", "1", *EXPOSE, *flags) as started:
        yield started


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A failed test shows what its hub said."""
    report = yield
    for name, value in getattr(item, "funcargs", {}).items():
        hub = getattr(value, "hub", value)
        if report.failed and isinstance(hub, Hub):
            report.sections.append((f"log of the hub of {name}", hub.tail()))
    return report
