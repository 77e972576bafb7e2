"""Files of several sizes up and down: hpcbridge beside pyfirecrest, and both beside the raw limit."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import raw
from benchmarks.transfers import HOME, JobEnd, Row, mid, random_file, remove, run_worker, sha256
from support.sandbox import SandboxProcess

MB = 1_000_000
WARM = 10
"""Times that a small file is sent by one process, to see what a transfer costs without the start."""
SMALL = 2 * MB
LATE = 4.0
"""Seconds after which a file that is not there will not come."""
CLIENTS = ("hpcbridge", "pyfirecrest")
UNCHECKED = "hpcbridge, nothing compared"
"""Down, ours asks the system for the SHA-256 as well, unless told otherwise; the others compare nothing."""
Table = dict[tuple[str, int], dict[str, list[Row]]]
"""(direction, bytes) -> who -> one row per repeat."""


def measure(
    sandbox: SandboxProcess, work: Path, sizes: tuple[int, ...], repeats: int, said: Callable[[str], None]
) -> Table:
    """Everyone in turn, so that what the machine does meanwhile hits all of them."""
    found: Table = {}
    for size in sizes:
        local = random_file(work / "local", size)
        for direction in ("up", "down"):
            found[direction, size] = {name: [] for name in _who(direction, size)}
        for repeat in range(repeats):
            said(f"{size / MB:.0f} MB, {repeat + 1} of {repeats}")
            up, down = found["up", size], found["down", size]
            for client in CLIENTS:
                up[client].append(_up(sandbox, work, client, local))
            run_worker(sandbox, work, "hpcbridge", "up", str(local), f"{HOME}/there")
            for client in CLIENTS:
                down[client].append(_down(sandbox, work, client, local))
            if UNCHECKED in down:
                down[UNCHECKED].append(_down(sandbox, work, "hpcbridge", local, "--unchecked"))
            up["curl"].append(raw.curl_up(sandbox, local, work))
            down["curl"].append(raw.curl_down(sandbox, f"{HOME}/there", size, work))
            for rows in (up, down):
                rows["dd"].append(raw.dd(local, work))
            remove(sandbox.host_path(f"{HOME}/there"))
            clear_store(sandbox)
        remove(local)
    return found


def _who(direction: str, size: int) -> tuple[str, ...]:
    """In the table's order. Of small files the requests are compared by `_again`."""
    return ("hpcbridge", *([UNCHECKED] if direction == "down" and size > SMALL else []), "pyfirecrest", "curl", "dd")


def like(rows: dict[str, list[Row]]) -> list[Row]:
    """Our rows that do what the others do."""
    return rows.get(UNCHECKED) or rows["hpcbridge"]


def _up(sandbox: SandboxProcess, work: Path, client: str, local: Path, *options: str) -> Row:
    remote = f"{HOME}/up-{client}"
    row = run_worker(sandbox, work, client, "up", str(local), remote, *options)
    judge(row, sandbox.host_path(remote), local)
    if local.stat().st_size <= SMALL:
        _again(row, sandbox, work, client, "up", str(local), remote)
    remove(sandbox.host_path(remote))
    return row


def _again(row: Row, sandbox: SandboxProcess, work: Path, *transfer: str) -> None:
    """The same, repeated in one process; pyfirecrest never compares anything."""
    again = ("--times", str(WARM))
    row["warm"] = run_worker(sandbox, work, *transfer, *again)["warm"]
    row["unchecked"] = run_worker(sandbox, work, *transfer, *again, "--unchecked")["warm"]


def judge(row: Row, arrived: Path, local: Path) -> None:
    """Whether there is a file (over the streamer pyfirecrest can return without or before it), and the right one."""
    end = time.monotonic() + LATE
    while not arrived.exists() and time.monotonic() < end:
        time.sleep(0.1)
    row["there"] = arrived.exists()
    row["intact"] = row["there"] and sha256(arrived) == sha256(local)


def _down(sandbox: SandboxProcess, work: Path, client: str, local: Path, *options: str) -> Row:
    out = work / "out"
    with JobEnd(sandbox).watching() as job:
        row = run_worker(sandbox, work, client, "down", str(out), f"{HOME}/there", *options)
    judge(row, out, local)
    if job.time is not None:
        row["after_job"] = row.get("phases", {}).get("verifying", row["ended"]) - job.time
    if local.stat().st_size <= SMALL:
        _again(row, sandbox, work, client, "down", str(out), f"{HOME}/there")
    remove(out)
    return row


def clear_store(sandbox: SandboxProcess) -> None:
    """Nobody removes the objects of a transfer (sites let them expire), and the disk of this machine is small."""
    for objects in sandbox.state.glob("s3/devices/*/objects*"):
        shutil.rmtree(objects)


def measure_streamer(sandbox: SandboxProcess, work: Path, size: int, repeats: int) -> Table:
    """The same over the streamer, which a site offers instead of an object store."""
    local = random_file(work / "local", size)
    found: Table = {(way, size): {name: [] for name in CLIENTS} for way in ("up", "down")}
    run_worker(sandbox, work, "hpcbridge", "up", str(local), f"{HOME}/there")
    for _ in range(repeats):
        for client in CLIENTS:
            found["up", size][client].append(_up(sandbox, work, client, local, "--route", "streamer"))
            found["down", size][client].append(_down(sandbox, work, client, local, "--route", "streamer"))
    remove(sandbox.host_path(f"{HOME}/there"))
    remove(local)
    return found


def lines(found: Table) -> list[list[str]]:
    """The rows of the table: medians, and the ratios of their times."""
    shown = []
    for (direction, size), clients in found.items():
        base = mid(clients["pyfirecrest"], "seconds") if delivered(clients["pyfirecrest"]) else None
        limit = mid(clients["curl"], "seconds") if clients.get("curl") else None
        for name, rows in clients.items():
            seconds = mid(rows, "seconds")
            shown.append(
                [
                    f"{direction} {size / MB:g} MB",
                    name + (f" ({rows[0]['route']})" if rows[0].get("route") else ""),
                    f"{seconds:.2f}",
                    f"{seconds / base:.3f}" if base else "-",
                    f"{seconds / limit:.1f}" if limit else "-",
                    f"{mid(rows, 'cpu'):.2f}",
                    f"{mid(rows, 'rss') / MB:.0f}" if "rss" in rows[0] else "-",
                    f"{mid(rows, 'calls'):.0f}" if "calls" in rows[0] else "-",
                    f"{mid(rows, 'commands'):.0f}" if "calls" in rows[0] else "-",
                    _verdict(rows),
                ]
            )
    return shown


def delivered(rows: list[Row]) -> bool:
    """Whether each transfer left a file: the time of one that did not says nothing."""
    return all(row["there"] for row in rows)


def _verdict(rows: list[Row]) -> str:
    if "intact" not in rows[0]:
        return "-"
    if not delivered(rows):
        return f"{sum(not row['there'] for row in rows)} of {len(rows)} MISSING"
    return "yes" if all(row["intact"] for row in rows) else "NO"


def warm_lines(found: Table) -> list[list[str]]:
    """Small files repeated in one process."""
    return [
        [
            f"{direction} {size / MB:g} MB",
            *(
                f"{mid(clients[name], what) * 1000:.1f}"
                for name, what in (("hpcbridge", "warm"), ("hpcbridge", "unchecked"), ("pyfirecrest", "warm"))
            ),
        ]
        for (direction, size), clients in found.items()
        if "warm" in clients["hpcbridge"][0]
    ]


def after_job(rows: list[Row]) -> float | None:
    """The median of those whose job was seen to end (a log may be gone before it is looked at); None: of none."""
    seen = [row for row in rows if "after_job" in row]
    return mid(seen, "after_job") if seen else None


def after_job_lines(found: Table) -> list[list[str]]:
    """From the end of the server's egress job on."""
    shown = []
    for (direction, size), clients in found.items():
        ours, theirs = after_job(like(clients)), after_job(clients["pyfirecrest"])
        if direction == "down" and ours is not None and theirs is not None:
            curl = mid(clients["curl"], "seconds")
            shown.append([f"{size / MB:g} MB", *(f"{each:.2f}" for each in (ours, theirs, curl)), f"{ours / curl:.2f}"])
    return shown


WARM_COLUMNS = ["file", "hpcbridge (ms)", "hpcbridge, nothing compared (ms)", "pyfirecrest (ms)"]
AFTER_COLUMNS = ["file", "hpcbridge, nothing compared (s)", "pyfirecrest (s)", "curl (s)", "hpcbridge / curl"]
COLUMNS = [
    "file",
    "by",
    "wall (s)",
    "/pyfirecrest",
    "/curl",
    "CPU (s)",
    "peak MB",
    "calls",
    "commands",
    "SHA-256 equal",
]


def figures(found: Table) -> list[dict[str, Any]]:
    """For the JSON file: every row."""
    return [
        {"direction": direction, "size": size, "by": name, "runs": rows}
        for (direction, size), clients in found.items()
        for name, rows in clients.items()
    ]
