"""One suite, no test changed: the same results here as with ReFrame's own `slurm` scheduler on the cluster."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import reframe.core.runtime as runtime
from reframe.frontend import autodetect

from support.reframe_inside import partition
from support.reframe_native import PACKAGES, PYTHON, run_native
from support.reframe_runs import SUITE, Outcome, check, run
from support.sandbox import SandboxProcess
from support.scale import PROVE

pytestmark = pytest.mark.needs("gcc", "make")

QUICK = () if PROVE else ("-T", "slow")
"""Slurm enforces time limits late: a limit of seconds is over after one to two minutes."""


def outputs(outcome: Outcome, prefix: str) -> dict[str, str]:
    """What tests have left in the output directory, by path, without the names of directories above."""
    root = outcome.folder / "rfm" / "output"
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix in (".out", ".err", ".txt"):
            found[str(path.relative_to(root))] = path.read_text().replace(prefix, "PREFIX")
    return found


def _plain(text: str) -> str:
    """Without what differs from run to run: the order of lines of array tasks, and Slurm's own words with a time."""
    lines = [re.sub(r"\d{4}-\d\d-\d\dT[\d:]+|JOB \d+", "…", line) for line in text.splitlines()]
    return "\n".join(sorted(lines))


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


@pytest.mark.slurm
def test_remote_detection_of_the_topology(login_node: SandboxProcess, tmp_path: Path) -> None:
    """ReFrame's own job, whose directory is no stage directory; on a cluster without a network."""
    general = {
        "remote_detect": True,
        "remote_install": [
            f"reframe() {{ PYTHONPATH={PACKAGES} {PYTHON}/bin/python3 -c "
            "'from reframe.frontend.cli import main; main()' \"$@\"; }"
        ],
        "topology_prefix": str(tmp_path / "topology"),
    }
    with partition(tmp_path, login_node.client_env(), general=general):
        autodetect.detect_topology()
        (part,) = runtime.runtime().system.partitions
        assert part.processor.num_cpus >= 1
        found = json.loads((tmp_path / "topology/cluster-normal/processor.json").read_text())
    assert found["num_cpus"] == part.processor.num_cpus
