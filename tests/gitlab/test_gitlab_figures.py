"""Figures, measured by `make prove-gitlab` on a quiet machine: what a stage and the driver's start cost in time."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from support.gitlab_scripts import Recipe


def test_a_stage_adds_less_than_one_and_a_half_seconds(host):
    host.sandbox.post("/latency", {"seconds": 0.05})
    runners = [host.runner(Recipe(["true"], ["true"]), driver={"tick": 1}).run() for _ in range(3)]
    took = [s.seconds for r in runners for s in r.stages if s.name in ("prepare_script", "after_script")]
    print(f"stages: {sorted(round(t, 2) for t in took)}")
    assert statistics.median(took) < 1.5


def test_the_drivers_start_takes_less_than_600_ms():
    code = (
        "import sys; sys.modules['httpx._main'] = None\n"
        "import hpcbridge_gitlab.cli, hpcbridge_gitlab.running, hpcbridge.firecrest.client, hpcbridge._registry\n"
    )
    took = []
    for _ in range(7):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", code], check=True)
        took.append(time.monotonic() - began)
    print(f"start: {sorted(round(t, 2) for t in took)}")
    assert min(took) < 0.6
