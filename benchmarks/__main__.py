"""`make bench`: every figure of the documentation, from one run.

    python -m benchmarks [--quick] [--only startup,trees,files,streamer,watch] [--repeats N] [--out FILE]

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

from benchmarks import files, goals, startup, trees, watch_lateness  # noqa: E402
from benchmarks.goals import Goal  # noqa: E402
from support.sandbox import start_sandbox  # noqa: E402

MB = 1_000_000
console = Console(width=None if sys.stdout.isatty() else 140)


@dataclass(frozen=True)
class Scale:
    """Bytes of each file; of the streamer's; files in the tree, and in the loop's sample; repeats; seconds."""

    sizes: tuple[int, ...]
    streamed: int
    files: int
    sample: int
    repeats: int
    look: float
    durations: tuple[float, ...]
    starts: int


FULL = Scale((1 * MB, 5 * MB, 50 * MB, 200 * MB, 2000 * MB), 200 * MB, 10_000, 200, 3, 60, (5, 20, 60, 130), 15)
QUICK = Scale((1 * MB, 20 * MB), 10 * MB, 200, 20, 1, 2, (3,), 3)


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """One table."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def said(what: str) -> None:
    """Where a long run is."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def bench_files(scale: Scale, work: Path) -> tuple[Any, list[Goal]]:
    """Files up and down, beside pyfirecrest, curl and dd: one table."""
    with start_sandbox("--ingress-look", str(scale.look)) as sandbox:
        found = files.measure(sandbox, work, scale.sizes, scale.repeats, said)
    title = f"Files (medians of {scale.repeats}; the server looks for uploaded objects every {scale.look:.0f} s)"
    show(title, files.COLUMNS, files.lines(found))
    if small := files.warm_lines(found):
        show(f"Small files again and again in one process (medians of {files.WARM - 1})", files.WARM_COLUMNS, small)
    if after := files.after_job_lines(found):
        show("Down: from the end of the server's job to the last byte", files.AFTER_COLUMNS, after)
    return files.figures(found), goals.of_files(found)


def bench_streamer(scale: Scale, work: Path) -> tuple[Any, list[Goal]]:
    """The same where a site offers the streamer."""
    with start_sandbox("--transfer", "streamer") as sandbox:
        found = files.measure_streamer(sandbox, work, scale.streamed, scale.repeats)
    show(f"Over the streamer (medians of {scale.repeats})", files.COLUMNS, files.lines(found))
    return files.figures(found), goals.of_streamer(found)


def bench_trees(scale: Scale, work: Path) -> tuple[Any, list[Goal]]:
    """A directory of many small files beside a loop, on the loopback and at some distance."""
    figures, found = {}, {}
    for distance in (0.0, trees.AWAY):
        with trees.place_in_memory(work) as place, start_sandbox(state=place / "cluster") as sandbox:
            sandbox.post("/latency", {"seconds": distance})
            found = trees.measure(sandbox, place, scale.files, scale.sample, scale.repeats, said)
        where = f"{distance * 1000:.0f} ms away" if distance else "on the loopback"
        title = f"Trees: {scale.files} files of 1 kB, {where} (medians of {scale.repeats}; * from {scale.sample} files)"
        show(title, trees.COLUMNS, trees.lines(found))
        figures[where] = trees.figures(found)
    return figures, goals.of_trees(found)


def bench_startup(scale: Scale, work: Path) -> tuple[Any, list[Goal]]:  # noqa: ARG001
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


def bench_watch(scale: Scale, work: Path) -> tuple[Any, list[Goal]]:  # noqa: ARG001
    """How late a job's end is noticed."""
    with start_sandbox() as sandbox:
        rows = asyncio.run(watch_lateness.measure(sandbox, scale.durations))
    show(
        "Watch: seconds between a job's end and its being noticed",
        ["job (s)", "hpcbridge", "pyfirecrest"],
        [[f"{row['duration']:.0f}", f"{row['hpcbridge']:.1f}", f"{row['pyfirecrest']:.1f}"] for row in rows],
    )
    return rows, []


PARTS: dict[str, Callable[[Scale, Path], tuple[Any, list[Goal]]]] = {
    "startup": bench_startup,
    "trees": bench_trees,
    "files": bench_files,
    "streamer": bench_streamer,
    "watch": bench_watch,
}


def run(parts: list[str], scale: Scale, out: Path) -> bool:
    """Measure, show, write; True when every goal is met."""
    results: dict[str, Any] = {
        "machine": {"python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count()},
        "scale": vars(scale),
    }
    found: list[Goal] = []
    with tempfile.TemporaryDirectory() as work:
        for name in [each for each in PARTS if each in parts]:
            said(name)
            results[name], more = PARTS[name](scale, Path(work))
            found += more
    results["goals"] = [{**vars(goal), "met": goal.met} for goal in found]
    rows = [[goal.what, f"{goal.value:.3f}", f"{goal.limit:.3f}", "yes" if goal.met else "NO"] for goal in found]
    show("Goals", ["what", "this run", "at most", "met"], rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1))
    console.print(f"Written to {out}")
    return all(goal.met for goal in found)


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
