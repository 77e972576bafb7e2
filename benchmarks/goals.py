"""What a run has to show."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.files import SMALL, Table, after_job, delivered, like
from benchmarks.transfers import Row, besides_polling, mid

MB = 1_000_000
PEAK = 150
"""MB that a transfer of any size may take."""
FLAT = 1.25
"""Peak memory of the largest file beside that of the smallest one that does not fit into one request."""
QUICKER = 1 / 8
"""Time up beside pyfirecrest where that waits for the server's look."""
SAME_REQUESTS = 1.25
"""Time beside pyfirecrest's where both send the whole file in one request.

From a fresh process that is the time to load the libraries, and again and again in one process the request: without the
SHA-256 that ours compares by default, which is a request of its own; pyfirecrest compares nothing.
"""
BESIDE_CURL = 1.3


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


def of_files(found: Table) -> list[Goal]:
    """Time never worse than pyfirecrest's for the same work, flat memory, equal bytes."""
    goals = []
    for (direction, size), rows in found.items():
        name = f"{direction} {size / MB:g} MB"
        mine, theirs = rows["hpcbridge"], rows["pyfirecrest"]
        # From 1 MiB on pyfirecrest uploads through the object store.
        quicker = QUICKER if direction == "up" and size <= 200 * MB else 1
        limit = SAME_REQUESTS if size <= SMALL else quicker
        goals.append(Goal(f"{name}: time / pyfirecrest", mid(like(rows), "seconds") / mid(theirs, "seconds"), limit))
        if "warm" in mine[0]:
            ratio = mid(mine, "unchecked") / mid(theirs, "warm")
            goals.append(Goal(f"{name}: time / pyfirecrest, repeated, nothing compared", ratio, SAME_REQUESTS))
    for direction in ("up", "down"):
        rows = {size: clients["hpcbridge"] for (way, size), clients in found.items() if way == direction}
        peaks = {size: max(row["rss"] for row in each) / MB for size, each in rows.items()}
        goals.append(Goal(f"{direction}: peak memory (MB)", max(peaks.values()), PEAK))
        large = [size for size in peaks if size >= 20 * MB]
        if len(large) > 1:
            ratio = peaks[max(large)] / peaks[min(large)]
            goals.append(Goal(f"{direction}: memory of {max(large) / MB:g} / {min(large) / MB:g} MB", ratio, FLAT))
        goals.append(
            Goal(f"{direction}: files damaged", sum(not row["intact"] for each in rows.values() for row in each), 0)
        )
    goals += _after_job(found)
    return goals


def _after_job(found: Table) -> list[Goal]:
    """Of files around 200 MB: smaller ones are over before curl has started."""
    return [
        Goal(
            f"down {size / MB:g} MB: from the job's end to the last byte / curl",
            after / mid(rows["curl"], "seconds"),
            BESIDE_CURL,
        )
        for (direction, size), rows in found.items()
        if direction == "down" and size == 200 * MB and (after := after_job(like(rows))) is not None
    ]


def of_streamer(found: Table) -> list[Goal]:
    """Time and bytes."""
    goals = []
    for (direction, size), rows in found.items():
        name = f"streamer {direction} {size / MB:g} MB"
        if delivered(rows["pyfirecrest"]):
            ratio = mid(rows["hpcbridge"], "seconds") / mid(rows["pyfirecrest"], "seconds")
            goals.append(Goal(f"{name}: time / pyfirecrest", ratio, 1))
        goals.append(Goal(f"{name}: files damaged", sum(not row["intact"] for row in rows["hpcbridge"]), 0))
    return goals


def of_trees(found: dict[str, list[Row]]) -> list[Goal]:
    """Some 20 ms away, a hundred times a loop's speed, in at most 12 calls; 4 for one changed file."""
    goals = []
    for way in ("tree-up", "tree-down"):
        ratio = mid(found[way], "whole") / mid(found[f"{way}, loop of 1"], "whole")
        goals.append(Goal(f"{way}: time / pyfirecrest's loop", ratio, 0.01))
        goals.append(Goal(f"{way}: calls besides polling", max(map(besides_polling, found[way])), 12))
    changed = found["sync, one file changed"]
    goals.append(Goal("one file changed: calls besides polling", max(map(besides_polling, changed)), 4))
    ours = [row for name, rows in found.items() if "loop" not in name for row in rows if "intact" in row]
    damaged = sum(not row["intact"] for row in ours)
    goals.append(Goal("trees damaged", damaged, 0))
    return goals
