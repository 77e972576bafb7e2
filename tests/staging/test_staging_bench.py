"""`make bench` runs; what it measures in its quick form proves nothing, but every part of it works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmarks_run_and_write_their_figures(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "startup,up,down,memory", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Goals" in done.stdout
    found = json.loads(out.read_text())
    assert {row["client"] if "client" in row else row["direction"] for row in found["memory"]} == {"up", "down"}
    goals = {goal["what"]: goal for goal in found["goals"]}
    assert all(goals[f"{what}: files damaged"]["met"] for what in ("up", "down", "large file"))
    assert all(goals[f"{what}: peak memory (MB)"]["met"] for what in ("up", "down", "large file"))
