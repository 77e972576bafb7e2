"""Every staging test has a state directory of its own: what one transfer has shown must not choose another's route."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcbridge.staging.progress import Reporter


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that XDG_STATE_HOME names, also for the processes that a test starts."""
    state = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    return state


@pytest.fixture
def every_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is told of every block: a test that stops at some byte does so, however fast all of them go."""
    monkeypatch.setattr(Reporter, "INTERVAL", 0.001)
