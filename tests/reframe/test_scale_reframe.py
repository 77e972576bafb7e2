"""Many tests at a time: nobody waits for the network, little is asked and shipped, about as quick as Slurm's own."""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from support.reframe_native import run_native
from support.reframe_runs import SCALE, Outcome, configuration, run
from support.sandbox import SandboxProcess
from support.scale import PROVE

COUNT = 200 if PROVE else 24
ROUND_TRIP = 0.1
TIMED = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import timings"


@dataclass
class Cost:
    """Of a run: seconds of the clock, of CPU of ReFrame and what it started, and of CPU of the sandbox's server."""

    wall: float = 0.0
    cpu: float = 0.0
    server: float = 0.0

    def __str__(self) -> str:
        return f"{self.wall:.1f} s (CPU {self.cpu:.1f} s; of the server, on the same cores, {self.server:.1f} s)"


@contextmanager
def measured(sandbox: SandboxProcess) -> Iterator[Cost]:
    """What the block costs; of the server its own process counts, not Slurm's."""

    def now() -> tuple[float, float, float]:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        server = psutil.Process(sandbox.process.pid).cpu_times()
        return time.monotonic(), children.ru_utime + children.ru_stime, server.user + server.system

    cost, before = Cost(), now()
    yield cost
    cost.wall, cost.cpu, cost.server = (after - begun for after, begun in zip(now(), before, strict=True))


def many(folder: Path, sandbox: SandboxProcess) -> Outcome:
    outcome = run(folder, SCALE, sandbox.client_env() | {"MANY_TESTS": str(COUNT)}, timeout=900)
    assert len(outcome.cases) == COUNT, outcome.output[-3000:]
    assert {case["result"] for case in outcome.cases} == {"pass"}, outcome.output[-3000:]
    return outcome


def check_times(folder: Path) -> dict[str, float]:
    """No call waits for the network, not even once. (Beside other tests, others have the processor in between.)"""
    took = json.loads((folder / "timings.json").read_text())
    assert len(took["submit"]) == COUNT
    figures = {f"{name} (median)": statistics.median(values) for name, values in took.items()}
    longest = {f"{name} (longest)": max(values) for name, values in took.items()}
    assert max((longest if PROVE else figures).values()) < 0.05, (figures, longest)
    return figures | longest


def check_requests(sandbox: SandboxProcess, folder: Path) -> dict[str, int]:
    counts = sandbox.get("/requests")["counts"]
    polls = len(json.loads((folder / "timings.json").read_text())["poll"])
    watching = counts["GET /compute/{}/jobs"] + counts.get("GET /compute/{}/jobs/{}", 0)
    assert watching <= 2 * polls + 4
    assert counts["POST /compute/{}/jobs"] == COUNT
    assert sum(counts.values()) < 5 * COUNT + 60, counts
    return counts


def test_many_at_a_time(sandbox: SandboxProcess, folder: Path) -> None:
    (folder / "settings.py").write_text(configuration(imports=TIMED, max_jobs=COUNT))
    sandbox.post("/latency", {"seconds": ROUND_TRIP})
    sandbox.delete("/requests")
    first = many(folder, sandbox)
    check_times(folder)
    check_requests(sandbox, folder)
    contents, sent = first.shipped()
    # One script each, and what all of them share.
    assert contents <= COUNT + 3
    again, resent = many(folder, sandbox).shipped()
    assert again == 0
    assert resent < sent


@pytest.mark.slurm
def test_about_as_quick_as_slurms_own_scheduler(
    login_node: SandboxProcess, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANY_TESTS", str(COUNT))
    (folder / "settings.py").write_text(configuration(imports=TIMED, max_jobs=COUNT))
    with measured(login_node) as theirs:
        native = run_native(login_node, SCALE, max_jobs=COUNT, timeout=1200)
    assert {case["result"] for case in native.cases} == {"pass"}
    login_node.post("/latency", {"seconds": ROUND_TRIP})
    login_node.delete("/requests")
    try:
        with measured(login_node) as ours:
            many(folder, login_node)
        print(check_times(folder), check_requests(login_node, folder))
    finally:
        login_node.post("/latency", {"seconds": 0})
    print(f"slurm {theirs}, firecrest {ours}, ratio {ours.wall / theirs.wall:.2f}")
    if PROVE:  # a figure: the short form is too short for one
        assert ours.wall <= 1.3 * theirs.wall
