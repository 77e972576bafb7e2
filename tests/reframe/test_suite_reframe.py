"""One suite that uses all that ReFrame has, on the local queue, in both policies; and the documentation's example."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.reframe_runs import SUITE, check, run
from support.sandbox import SandboxProcess
from support.scale import PROVE

EXAMPLE = Path(__file__).parents[2] / "examples" / "reframe"
pytestmark = pytest.mark.needs("gcc", "make")


def test_the_walk_through(sandbox: SandboxProcess, folder: Path) -> None:
    """The example, as the documentation says; measured on the cluster with its own compiler."""
    shutil.copy(EXAMPLE / "settings.py", folder)
    outcome = run(folder, EXAMPLE / "checks", sandbox.client_env(), "--performance-report")
    assert [case["result"] for case in outcome.cases] == ["pass"] * 2, outcome.output[-4000:]
    assert all(case["perfvalues"]["cluster:normal:bandwidth"][0] > 0 for case in outcome.cases)
    assert "bandwidth" in outcome.output


def test_a_relative_prefix(sandbox: SandboxProcess, folder: Path) -> None:
    """As without any: ReFrame's own default is the directory that it is started in."""
    ours = run(folder, SUITE, sandbox.client_env(), "-n", "UsesFixtures", "--prefix=.")
    assert {case["result"] for case in ours.cases} == {"pass"}, ours.output[-4000:]
    assert {path.name for path in folder.iterdir()} >= {"stage", "output"}
    assert not list((folder / "stage").rglob("stage"))


def test_on_the_local_queue(sandbox: SandboxProcess, folder: Path) -> None:
    ours = run(folder, SUITE, sandbox.client_env())
    check(ours)
    assert "maximum" not in ours.output
    performance = ours.case("Performance")
    assert performance["perfvalues"]["cluster:normal:bandwidth"][0] == 42.5
    kept = {path.name for path in (folder / "rfm/output/cluster/normal/gnu/Performance").rglob("*")}
    assert {"figures.txt", "rfm_job.out", "rfm_job.err", "rfm_job.sh"} <= kept
    assert (folder / "rfm/output/cluster/normal/gnu/BuiltThere/hello").stat().st_mode & 0o111


SOME = ("-n", "Hello", "-n", "BuiltThere", "-n", "UsesFixtures", "-n", "^Wrong", "-n", "Links", "-n", "ArrayJob")


def test_serial_policy(sandbox: SandboxProcess, folder: Path) -> None:
    check(run(folder, SUITE, sandbox.client_env(), *(() if PROVE else SOME), policy="serial", timeout=600))
