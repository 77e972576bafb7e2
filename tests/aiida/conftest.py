"""A throwaway AiiDA with its daemon, the computers it knows, and one transport contract for all of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.aiida_computers import (
    TRANSPORT,
    auth_params,
    credential_file,
    installed_code,
    make_local,
    make_ours,
)
from support.aiida_profile import AiidaProfile
from support.aiida_sides import Side, open_side
from support.aiida_slurm import write_commands
from support.sandbox import SandboxProcess, start_sandbox
from support.scale import PROVE

HOME = Path(tempfile.mkdtemp(prefix="hpcbridge-aiida-"))
PROFILE = AiidaProfile(HOME)
# Read when aiida is first imported, which no module above does: the user's own profiles stay out of this.
os.environ.update(PROFILE.env)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what is marked `prove` to `make prove-aiida`."""
    left = [item for item in items if not PROVE and item.get_closest_marker("prove")]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A failed test shows what AiiDA's daemon said."""
    report = yield
    daemon = getattr(item, "funcargs", {}).get("daemon")
    if report.failed and isinstance(daemon, AiidaProfile):
        report.sections.append(("AiiDA's daemon", daemon.log()))
    return report


@pytest.fixture
def say(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Print a figure, now and at the end of the run, whoever ran the test."""

    def say(text: str) -> None:
        print(text, flush=True)
        record_property("figure", text)

    return say


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The figures that tests have said."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    figures = [text for report in reports for name, text in report.user_properties if name == "figure"]
    if figures:
        terminalreporter.section("figures")
        for text in figures:
            terminalreporter.write_line(text)


def pytest_sessionfinish() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def profile() -> Iterator[AiidaProfile]:
    """A profile, loaded into this process too; nothing works for it yet (`daemon` does)."""
    PROFILE.create()
    yield PROFILE
    PROFILE.stop()


@pytest.fixture(scope="session")
def credential(local_queue: SandboxProcess) -> Path:
    """Where alice's secret is, outside of every database."""
    return credential_file(local_queue, HOME / "alice.toml")


@pytest.fixture(scope="session")
def quiet() -> Iterator[SandboxProcess]:
    """A sandbox that serves one test at a time."""
    with start_sandbox("--accounting-lag", "1", "--user", "alice") as started:
        yield started


@pytest.fixture(scope="session")
def quiet_secret(quiet: SandboxProcess) -> Path:
    """Where its alice's secret is."""
    return credential_file(quiet, HOME / "quiet.toml")


@pytest.fixture(scope="session")
def daemon(profile: AiidaProfile) -> AiidaProfile:
    """The same profile, with its daemon running."""
    profile.start()
    return profile


@pytest.fixture(scope="session")
def ours(profile: AiidaProfile, local_queue: SandboxProcess, credential: Path) -> Any:
    """Bash on the sandbox's local queue, by our plugins."""
    return installed_code(make_ours("ours", local_queue, credential), "bash-ours")


@pytest.fixture(scope="session")
def slurm(profile: AiidaProfile, real_slurm: SandboxProcess) -> Any:
    """Bash on a real Slurm, by our plugins."""
    secret = credential_file(real_slurm, HOME / "slurm.toml")
    return installed_code(make_ours("slurm", real_slurm, secret), "bash-slurm")


@pytest.fixture(scope="session")
def native_slurm(profile: AiidaProfile, real_slurm: SandboxProcess) -> Any:
    """Bash on the same real Slurm, by aiida-core's plugins."""
    workdir = write_commands(real_slurm, profile.commands)
    return installed_code(make_local("native-slurm", workdir, "core.slurm"), "bash-native-slurm")


@pytest.fixture(scope="session")
def native(profile: AiidaProfile) -> Any:
    """Bash on this machine, by aiida-core's plugins."""
    return installed_code(make_local("native", HOME / "native"), "bash-native")


@pytest.fixture(params=["core.local", pytest.param(TRANSPORT, id="ours")])
def side(request: pytest.FixtureRequest, profile: AiidaProfile, tmp_path: Path) -> Iterator[Side]:
    """The contract's subject: each transport in turn, with a directory of the test's own on either side."""
    local = tmp_path / "here"
    local.mkdir()
    plugin: str = request.param
    if plugin == "core.local":
        remote = tmp_path / "there"
        remote.mkdir()
        options = {"machine": "localhost", "safe_interval": 0, "use_login_shell": False}
        with open_side(plugin, options, str(remote), remote, local) as opened:
            yield opened
        return
    process: SandboxProcess = request.getfixturevalue("sandbox")
    options = {"machine": process.system, **auth_params(process, request.getfixturevalue("credential"))}
    scratch = process.host_path("/scratch/alice")
    with open_side(plugin, options, "/scratch/alice", scratch, local, scratch.stat().st_uid) as opened:
        yield opened
