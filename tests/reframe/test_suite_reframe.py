"""One suite, no test changed: the same results here as with ReFrame's own `slurm` scheduler on the cluster."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.reframe_native import run_native
from support.reframe_runs import SUITE, Outcome, check, configuration, run
from support.sandbox import SandboxProcess
from support.scale import PROVE

QUICK = () if PROVE else ("-T", "slow")
"""Slurm enforces time limits late: a limit of seconds is over after one to two minutes."""


EXAMPLE = Path(__file__).parents[2] / "examples" / "reframe"
pytestmark = pytest.mark.needs("gcc", "make")


def outputs(outcome: Outcome, prefix: str) -> dict[str, str]:
    """What tests have left in the output directory, by path, without the names of directories above."""
    root = outcome.folder / "rfm" / "output"
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix in (".out", ".err", ".txt"):
            found[str(path.relative_to(root))] = path.read_text().replace(prefix, "PREFIX")
    return found


@pytest.mark.slurm
@pytest.mark.parametrize("policy", ["async", "serial"] if PROVE else ["async"])
def test_same_results_as_the_slurm_scheduler(login_node: SandboxProcess, folder: Path, policy: str) -> None:
    with ThreadPoolExecutor() as pool:
        native = pool.submit(run_native, login_node, SUITE, *QUICK, policy=policy)
        ours = run(folder, SUITE, login_node.client_env(), *QUICK, policy=policy, timeout=900)
        theirs = native.result()
    assert theirs.cases, theirs.output[-4000:]
    assert ours.results() == theirs.results(), ours.output[-6000:]
    check(ours)
    for case, other in zip(ours.cases, theirs.cases, strict=True):
        assert (case["perfvalues"], case["job_exitcode"]) == (other["perfvalues"], other["job_exitcode"])
        # Of an array, how many tasks ReFrame saw on a node depends on when it looked.
        assert set(case["job_nodelist"] or ()) == set(other["job_nodelist"] or ())
    here = outputs(ours, str(folder / "rfm"))
    there = outputs(theirs, "/scratch/alice/native/rfm")
    assert here.keys() == there.keys()
    differing = {name for name in here if _plain(here[name]) != _plain(there[name])}
    assert not differing, {name: (here[name], there[name]) for name in differing}


def test_the_walk_through(sandbox: SandboxProcess, folder: Path) -> None:
    """The example, as the documentation says; measured on the cluster with its own compiler."""
    shutil.copy(EXAMPLE / "settings.py", folder)
    outcome = run(folder, EXAMPLE / "checks", sandbox.client_env(), "--performance-report")
    assert [case["result"] for case in outcome.cases] == ["pass"] * 2, outcome.output[-4000:]
    assert all(case["perfvalues"]["cluster:normal:bandwidth"][0] > 0 for case in outcome.cases)
    assert "bandwidth" in outcome.output


def test_the_same_stage_directory_again(sandbox: SandboxProcess, folder: Path) -> None:
    """Runs again in what the run before has left, here and there: the output is that of the last."""
    (folder / "settings.py").write_text(configuration(general={"clean_stagedir": False}))
    chosen = ("-n", "Hello", "-n", "ArrayJob", "--keep-stage-files")
    check(run(folder, SUITE, sandbox.client_env(), *chosen, "--reruns=1"))
    again = run(folder, SUITE, sandbox.client_env(), *chosen)
    check(again)
    assert (folder / "rfm/output/cluster/normal/gnu/Hello/rfm_job.out").read_text().count("hello world") == 1


def _plain(text: str) -> str:
    """Without what differs from run to run: the order of lines of array tasks, and Slurm's own words with a time."""
    lines = [re.sub(r"\d{4}-\d\d-\d\dT[\d:]+|JOB \d+", "…", line) for line in text.splitlines()]
    return "\n".join(sorted(lines))


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


def test_what_stays_on_the_cluster(sandbox: SandboxProcess, folder: Path) -> None:
    """Stage directories of tests that failed, and the store; nothing of this machine is named in it."""
    (folder / "settings.py").write_text(configuration(options={"firecrest_stage_name": "what-stays"}))
    outcome = run(folder, SUITE, sandbox.client_env(), "-n", "^Wrong", "-n", "^Hello", "-n", "First")
    assert [case["result"] for case in outcome.cases].count("fail") == 1
    root = sandbox.host_path("/home/alice/reframe")
    stage = root / "what-stays"
    left = {path.name for path in stage.glob("*/*/*/*")}
    assert left == {"Wrong"}
    assert not list(root.glob(".hpcbridge-*"))
    assert not list((folder / "rfm/stage").glob(".hpcbridge-*"))
    for path in (stage / "cluster/normal/gnu/Wrong").iterdir():
        assert not path.is_file() or str(folder) not in path.read_text()
    # The next run, in which it passes (here: is not run), and a test whose remains are there starts from nothing.
    (stage / "cluster/normal/gnu/Wrong/old").write_text("of an earlier run")
    again = run(folder, SUITE, sandbox.client_env(), "-n", "^Wrong")
    assert again.case("Wrong")["result"] == "fail"
    assert not (stage / "cluster/normal/gnu/Wrong/old").exists()
