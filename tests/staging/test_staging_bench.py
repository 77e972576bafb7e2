"""`make bench` runs; what it measures in its quick form proves nothing, but every part of it works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import files, goals, trees  # noqa: E402
from benchmarks.transfers import besides_polling  # noqa: E402

from support.scale import PROVE  # noqa: E402


def run(part: str, tmp_path: Path) -> Any:
    """The figures of one part, quickly."""
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", part, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Goals" in done.stdout
    return json.loads(out.read_text())


@pytest.mark.needs("curl")
def test_files_beside_pyfirecrest_and_the_raw_limit(tmp_path: Path) -> None:
    found = run("files", tmp_path)
    assert {row["by"] for row in found["files"]} == {"hpcbridge", files.UNCHECKED, "pyfirecrest", "curl", "dd"}
    runs = {(row["direction"], row["size"], row["by"]): row["runs"][0] for row in found["files"]}
    up = runs["up", 1_000_000, "hpcbridge"]
    assert up["counts"] == {
        "GET /status/systems": 1,
        "POST /filesystem/{}/ops/upload": 1,
        "GET /filesystem/{}/ops/checksum": 1,
    }
    # Nothing is asked twice: what it is, what is in it, what its sum is.
    assert runs["down", 1_000_000, "hpcbridge"]["calls"] == 4
    assert all(run["cpu"] > 0 for run in runs.values())
    kept = {goal["what"]: goal["met"] for goal in found["goals"]}
    assert all(kept[f"{way}: {what}"] for way in ("up", "down") for what in ("files damaged", "peak memory (MB)"))


if PROVE:  # a minute each

    def test_trees_beside_a_loop(tmp_path: Path) -> None:
        found = run("trees", tmp_path)
        kept = {goal["what"]: goal["met"] for goal in found["goals"]}
        assert kept["trees damaged"]
        assert all(met for what, met in kept.items() if "calls" in what)

    def test_the_streamer_beside_pyfirecrests(tmp_path: Path) -> None:
        kept = {goal["what"]: goal["met"] for goal in run("streamer", tmp_path)["goals"]}
        assert all(met for what, met in kept.items() if "damaged" in what)


def test_a_missed_goal_is_a_failure() -> None:
    """The verdict over rows that are slower, larger or wrong."""
    good = {"seconds": 1.0, "cpu": 1.0, "rss": 50e6, "there": True, "intact": True, "calls": 3, "commands": 3}
    slow, large, wrong = good | {"seconds": 2.0}, good | {"rss": 400e6}, good | {"intact": False}
    for mine, missed in ((good, 0), (slow, 1), (large, 1), (wrong, 1)):
        table: files.Table = {("down", 50_000_000): {"hpcbridge": [mine], "pyfirecrest": [good], "curl": [], "dd": []}}
        table["up", 50_000_000] = {name: [good] for name in ("hpcbridge", "curl", "dd")}
        table["up", 50_000_000]["pyfirecrest"] = [good | {"seconds": 60.0}]
        assert sum(not goal.met for goal in goals.of_files(table)) == missed


def test_jobs_that_were_not_seen_to_end_are_left_out() -> None:
    curl = {"seconds": 0.5}
    table: files.Table = {("down", 200_000_000): {files.UNCHECKED: [{"after_job": 1.0}, {}], "curl": [curl]}}
    table["down", 200_000_000]["pyfirecrest"] = [{"after_job": 2.0}]
    assert files.after_job_lines(table) == [["200 MB", "1.00", "2.00", "0.50", "2.00"]]
    table["down", 200_000_000][files.UNCHECKED] = [{}]
    assert files.after_job_lines(table) == []


def test_polling_does_not_count_but_each_answer_does() -> None:
    counts = {"GET /status/systems": 1, "POST /compute/{}/jobs": 1, "GET /compute/{}/jobs": 7}
    counts["GET /filesystem/{}/ops/download"] = 4
    row = {"calls": sum(counts.values()), "counts": counts, "polling": 11}
    assert besides_polling(row) == 2


def test_the_sample_of_a_loop_has_the_trees_share_of_directories(tmp_path: Path) -> None:
    root = trees.make_tree(tmp_path / "tree", 250)
    assert [len(list(folder.iterdir())) for folder in sorted(root.iterdir())] == [100, 100, 50]
