"""Many small files: hpcbridge's trees beside a loop over pyfirecrest's calls for one file."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import raw
from benchmarks.transfers import HOME, Row, besides_polling, mid, run_worker
from support.sandbox import SandboxProcess

SIZE = 1000
"""Bytes per file: random, so that nothing is gained by compressing them."""
TOGETHER = 100
"""Files per directory."""
AWAY = 0.02
"""Seconds that a site's answers take besides its work, as from another town.

Here on the loopback the sandbox answers in 4-6 ms, a real server over SSH in 6-10 ms; nobody uses one on the loopback.
"""
WORKERS = (1, 8)
"""Files that the loop moves at a time: one after the other as in pyfirecrest's documentation, and as many as fit."""


@contextmanager
def place_in_memory(work: Path) -> Iterator[Path]:
    """A new directory for both sides of a run, in memory where there is room for it, else in `work`.

    What is compared is what clients do: to create 10,000 files takes ext4 between a tenth of a second and ten,
    depending on what was removed there before (`tar x` in the table is the same work without any client).
    """
    memory = Path("/dev/shm")
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2 << 30
    with tempfile.TemporaryDirectory(dir=memory if roomy else work, prefix="hpcbridge-bench-") as place:
        Path(place).chmod(0o755)
        yield Path(place)


def make_tree(root: Path, files: int) -> Path:
    """`files` files, in directories of 100."""
    for index in range(files):
        folder = root / f"d{index // TOGETHER:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"f{index:05d}").write_bytes(os.urandom(SIZE))
    return root


def digest(root: Path) -> str:
    """SHA-256 over the names and contents of all files below `root`."""
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            whole.update(str(path.relative_to(root)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def measure(
    sandbox: SandboxProcess, work: Path, files: int, sample: int, repeats: int, said: Callable[[str], None]
) -> dict[str, list[Row]]:
    """What was done -> one row per repeat; the loop's are of `sample` files, `whole` is the time of all of them.

    `work` is a new directory.
    """
    local, few = make_tree(work / "tree", files), make_tree(work / "sample", sample)
    found: dict[str, list[Row]] = {}

    def keep(name: str, row: Row) -> None:
        found.setdefault(name, []).append(row)

    # Nothing is removed before the end: where many files were just removed, a disk creates others far more slowly.
    for repeat in range(repeats):
        said(f"{files} files, {repeat + 1} of {repeats}")
        remote, back = f"{HOME}/tree-{repeat}", work / f"back-{repeat}"
        for way in ("tree-up", "tree-down"):
            target = local if way == "tree-up" else back
            row = run_worker(sandbox, work, "hpcbridge", way, str(target), remote)
            there = sandbox.host_path(remote) if way == "tree-up" else back
            keep(way, row | {"intact": digest(there) == digest(local), "files": files, "whole": row["seconds"]})
        row = raw.tar(local, work, work / f"raw-{repeat}")
        keep("tar x in the same place", row | {"whole": row["seconds"]})
        _sync(sandbox, work, local, f"{HOME}/synced-{repeat}", keep)
        for workers in WORKERS:
            _loop(sandbox, work, few, files, (workers, repeat), keep)
    return found


def _sync(sandbox: SandboxProcess, work: Path, local: Path, remote: str, keep: Callable[[str, Row], None]) -> None:
    """All of it, nothing, one changed file."""
    for name in ("sync, all new", "sync, nothing changed", "sync, one file changed"):
        if name.endswith("one file changed"):
            next(path for path in sorted(local.rglob("*")) if path.is_file()).write_bytes(os.urandom(SIZE))
        row = run_worker(sandbox, work, "hpcbridge", "sync", str(local), remote)
        keep(name, row | {"intact": digest(sandbox.host_path(remote)) == digest(local), "whole": row["seconds"]})


def _loop(
    sandbox: SandboxProcess,
    work: Path,
    few: Path,
    files: int,
    which: tuple[int, int],
    keep: Callable[[str, Row], None],
) -> None:
    """The loop's own time grows with its files; its process starts once. `which`: files at a time, and repeat."""
    workers, name = which[0], "loop-{}-{}".format(*which)
    count = sum(path.is_file() for path in few.rglob("*"))
    remote, back = f"{HOME}/{name}", work / name
    for way in ("tree-up", "tree-down"):
        target, like = (few, few) if way == "tree-up" else (back, few)
        back.mkdir(exist_ok=True)
        options = ("--workers", str(workers), "--like", str(like))
        row = run_worker(sandbox, work, "pyfirecrest", way, str(target), remote, *options)
        there = sandbox.host_path(remote) if way == "tree-up" else back
        whole = {what: row[what] * files // count for what in ("calls", "commands")}
        whole["whole"] = row["seconds"] + row["loop"] * (files / count - 1)
        keep(f"{way}, loop of {workers}", row | whole | {"intact": digest(there) == digest(few)})


COLUMNS = ["tree", "wall (s)", "/loop of 1", "CPU (s)", "peak MB", "calls", "besides polling", "commands", "equal"]


def lines(found: dict[str, list[Row]]) -> list[list[str]]:
    """The rows of the table, medians; extrapolated ones are marked."""
    shown = []
    for name, rows in found.items():
        base = found[f"{'tree-down' if name.startswith(('tree-down', 'tar')) else 'tree-up'}, loop of 1"]
        loop = "loop" in name
        shown.append(
            [
                name + (" at a time *" if loop else ""),
                f"{mid(rows, 'whole'):.2f}",
                f"{mid(rows, 'whole') / mid(base, 'whole'):.4f}",
                "-" if loop else f"{mid(rows, 'cpu'):.2f}",
                *_cost(rows, loop=loop),
            ]
        )
    return shown


def _cost(rows: list[Row], *, loop: bool) -> list[str]:
    if "calls" not in rows[0]:
        return ["-"] * 5
    return [
        f"{mid(rows, 'rss') / 1e6:.0f}",
        f"{mid(rows, 'calls'):.0f}",
        "-" if loop else f"{max(map(besides_polling, rows))}",
        f"{mid(rows, 'commands'):.0f}",
        "yes" if all(row["intact"] for row in rows) else "NO",
    ]


def figures(found: dict[str, list[Row]]) -> list[dict[str, Any]]:
    """For the JSON file: every row."""
    return [{"what": name, "runs": rows} for name, rows in found.items()]
