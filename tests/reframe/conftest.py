"""A directory for a run, the shared sandboxes, and one with a real Slurm on whose login node ReFrame runs too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.reframe_native import exposed
from support.reframe_runs import Running, configuration
from support.sandbox import SandboxProcess, start_sandbox
from support.scale import PROVE

collect_ignore = [] if PROVE else ["test_scale_reframe.py"]  # figures


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A directory of a user of ReFrame, with a site configuration."""
    (tmp_path / "settings.py").write_text(configuration())
    yield tmp_path
    Running.end_all()


@pytest.fixture(scope="session")
def login_node(slurm_installed: None) -> Iterator[SandboxProcess]:
    """A sandbox with a real Slurm, whose cluster has ReFrame and the suites."""
    with start_sandbox("--accounting-lag", "1", "--scheduler", "slurm", *exposed(), timeout=180) as started:
        yield started
