"""`make bench`: every figure of the documentation, from one run.

    python -m benchmarks [--quick] [--only up,down,memory,startup,watch] [--out FILE]

Prints tables, writes JSON, and exits 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks import startup, transfers, watch_lateness  # noqa: E402
from support.sandbox import SandboxProcess, start_sandbox  # noqa: E402

MB = 1_000_000
PARTS = ("startup", "up", "down", "memory", "watch")
console = Console(width=None if sys.stdout.isatty() else 110)


@dataclass(frozen=True)
class Scale:
    """Sizes in bytes, seconds, repeats."""

    size: int
    large: int
    repeats: int
    look: float
    durations: tuple[float, ...]
    starts: int


FULL = Scale(200 * MB, 2000 * MB, 5, 60, (5, 20, 60, 130), 15)
QUICK = Scale(20 * MB, 60 * MB, 1, 2, (3,), 3)


@dataclass(frozen=True)
class Goal:
    """One promise and whether this run keeps it."""

    what: str
    value: float
    limit: float

    @property
    def met(self) -> bool:
        """Whether the value is within the limit."""
        return self.value <= self.limit


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """One table."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def bench_up(sandbox: SandboxProcess, work: Path, scale: Scale) -> tuple[Any, list[Goal]]:
    """Upload beside pyfirecrest."""
    rows = transfers.upload_rows(sandbox, transfers.random_file(work / "up", scale.size), work, scale.repeats)
    ratio = transfers.mid(rows["hpcbridge"], "seconds") / transfers.mid(rows["pyfirecrest"], "seconds")
    size, look = f"{scale.size / MB:.0f} MB", f"the server looks for objects every {scale.look:.0f} s"
    title = f"Up: {size}, {look} (medians of {scale.repeats})"
    show(title, ["client", "seconds", "ratio", "peak memory (MB)", "SHA-256 equal"], _lines(rows))
    return rows, [Goal("up: time beside pyfirecrest", ratio, 1 / 8), *_memory_goal("up", rows["hpcbridge"])]


def bench_down(sandbox: SandboxProcess, work: Path, scale: Scale) -> tuple[Any, list[Goal]]:
    """Download beside pyfirecrest and parallel curl."""
    rows = transfers.download_rows(sandbox, transfers.random_file(work / "down", scale.size), work, scale.repeats)
    mine, theirs, curl = (transfers.mid(rows[name], "seconds") for name in ("hpcbridge", "pyfirecrest", "curl"))
    after, late = (transfers.mid(rows[name], "after_job") for name in ("hpcbridge", "pyfirecrest"))
    show(
        f"Down: {scale.size / MB:.0f} MB (medians of {scale.repeats})",
        ["client", "seconds", "ratio", "peak memory (MB)", "SHA-256 equal"],
        _lines({name: rows[name] for name in ("hpcbridge", "pyfirecrest")}),
    )
    show(
        "From the end of the server's job to the last byte",
        ["client", "seconds", "ratio"],
        [
            ["hpcbridge", f"{after:.2f}", f"{after / curl:.2f}"],
            ["pyfirecrest", f"{late:.2f}", f"{late / curl:.2f}"],
            [f"curl, {transfers.CURLS} in parallel", f"{curl:.2f}", "1"],
        ],
    )
    return rows, [
        Goal("down: time beside pyfirecrest", mine / theirs, 1),
        Goal("down: from the job's end to the last byte, beside parallel curl", after / curl, 1.3),
        *_memory_goal("down", rows["hpcbridge"]),
    ]


def bench_memory(sandbox: SandboxProcess, work: Path, scale: Scale) -> tuple[Any, list[Goal]]:
    """Memory of a large file by every route."""
    rows = transfers.memory_rows(sandbox, work, scale.large)
    show(
        f"Memory: {scale.large / MB:.0f} MB",
        ["route", "seconds", "MB/s", "peak memory (MB)", "SHA-256 equal"],
        [
            [
                f"{row['direction']}, {row['route']}",
                f"{row['seconds']:.1f}",
                f"{row['bytes'] / row['seconds'] / MB:.0f}",
                f"{row['rss'] / MB:.0f}",
                "yes" if row["intact"] else "NO",
            ]
            for row in rows
        ],
    )
    return rows, _memory_goal("large file", rows)


def bench_startup(scale: Scale) -> tuple[Any, list[Goal]]:
    """Import and help."""
    found = {
        "import httpx": startup.import_seconds("httpx", scale.starts),
        "import hpcbridge": startup.import_seconds("hpcbridge", scale.starts),
        "import firecrest.v2": startup.import_seconds("firecrest.v2", scale.starts),
        "hpcbridge --help": startup.help_seconds(scale.starts),
    }
    show(f"Start (medians of {scale.starts})", ["what", "ms"], [[k, f"{v * 1000:.0f}"] for k, v in found.items()])
    return found, [
        Goal("import beyond httpx's (s)", found["import hpcbridge"] - found["import httpx"], 0.06),
        Goal("hpcbridge --help (s)", found["hpcbridge --help"], 0.5),
    ]


def bench_watch(scale: Scale) -> tuple[Any, list[Goal]]:
    """How late a job's end is noticed."""
    with start_sandbox() as sandbox:
        rows = asyncio.run(watch_lateness.measure(sandbox, scale.durations))
    show(
        "Watch: seconds between a job's end and its being noticed",
        ["job (s)", "hpcbridge", "pyfirecrest"],
        [[f"{row['duration']:.0f}", f"{row['hpcbridge']:.1f}", f"{row['pyfirecrest']:.1f}"] for row in rows],
    )
    return rows, []


def _lines(rows: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    base = transfers.mid(rows["pyfirecrest"], "seconds")
    return [
        [
            name,
            f"{transfers.mid(found, 'seconds'):.2f}",
            f"{transfers.mid(found, 'seconds') / base:.3f}",
            f"{transfers.mid(found, 'rss') / MB:.0f}",
            "yes" if all(row["intact"] for row in found) else "NO",
        ]
        for name, found in rows.items()
    ]


def _memory_goal(what: str, rows: list[dict[str, Any]]) -> list[Goal]:
    peak = max(row["rss"] for row in rows) / MB
    damaged = sum(not row["intact"] for row in rows)
    return [Goal(f"{what}: peak memory (MB)", peak, 150), Goal(f"{what}: files damaged", damaged, 0)]


def run(parts: list[str], scale: Scale, out: Path) -> bool:
    """Measure, show, write; True when every goal is met."""
    results: dict[str, Any] = {
        "machine": {"python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count()},
        "scale": vars(scale),
    }
    goals: list[Goal] = []
    moving: dict[str, Callable[..., tuple[Any, list[Goal]]]] = {
        "up": bench_up,
        "down": bench_down,
        "memory": bench_memory,
    }
    if "startup" in parts:
        results["startup"], found = bench_startup(scale)
        goals += found
    if moving.keys() & set(parts):
        with start_sandbox("--ingress-look", str(scale.look)) as sandbox, tempfile.TemporaryDirectory() as work:
            for name in [each for each in moving if each in parts]:
                results[name], found = moving[name](sandbox, Path(work), scale)
                goals += found
    if "watch" in parts:
        results["watch"], found = bench_watch(scale)
        goals += found
    results["goals"] = [
        {"what": goal.what, "value": goal.value, "limit": goal.limit, "met": goal.met} for goal in goals
    ]
    lines = [[goal.what, f"{goal.value:.3f}", f"{goal.limit:.3f}", "yes" if goal.met else "NO"] for goal in goals]
    show("Goals", ["what", "this run", "at most", "met"], lines)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1))
    console.print(f"Written to {out}")
    return all(goal.met for goal in goals)


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="small files, one run each: shows that it works, proves nothing"
    )
    parser.add_argument("--only", default=",".join(PARTS), help="some of " + ",".join(PARTS))
    parser.add_argument("--repeats", type=int, help="runs of each transfer")
    parser.add_argument("--out", type=Path, default=ROOT / "artefacts" / f"bench-{time.strftime('%Y%m%d-%H%M%S')}.json")
    arguments = parser.parse_args()
    parts = [part for part in arguments.only.split(",") if part]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    scale = QUICK if arguments.quick else FULL
    if arguments.repeats:
        scale = Scale(**{**vars(scale), "repeats": arguments.repeats})
    met = run(parts, scale, arguments.out)
    # A quick run is too small for ratios to mean anything.
    sys.exit(0 if met or arguments.quick else 1)


if __name__ == "__main__":
    main()
