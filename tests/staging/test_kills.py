"""kill -9 in the middle of a transfer: the next run goes on, sends little twice, and nothing is left behind.

Every killed process is a real one. Times are spread over the whole transfer; the moments that chance would rarely meet
(a request without its answer, the completion of an object, the publication) have tests of their own.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hpcbridge.staging.cut_download import WORKERS
from hpcbridge.staging.pieces import SENDERS
from hpcbridge.staging.plan import PIECE, RANGE, READERS, download_limit
from support.sandbox import SandboxProcess, start_sandbox
from support.scale import PROVE
from support.staging import clear_leftovers, leftovers, random_file, sha256

SIZE = 100_000_000 if PROVE else 26_000_000
KILLS = 20 if PROVE else 2
PART = 5 << 20
"""Bytes of a part of the object store's: small, so that there are many of them."""
PROBES = 65536
"""Bytes of answers to looks for an object that is not there yet, at most."""
TESTS = Path(__file__).parents[1]
AT_ONCE = {
    ("up", "chunked"): SENDERS * PIECE,
    ("down", "chunked"): WORKERS * download_limit(5 << 20),
    ("up", "s3"): READERS * PART,
    ("down", "s3"): READERS * RANGE,
}
"""(direction, route) -> bytes that are in flight, which a kill loses."""
ROUTES = [pytest.param(*one, marks=pytest.mark.needs("curl") if one[1] == "s3" else ()) for one in AT_ONCE]


@pytest.fixture(scope="module")
def slow() -> Iterator[SandboxProcess]:
    """Each request takes a while, so that kills fall between all of them."""
    with start_sandbox("--ingress-look", "0.5", "--accounting-lag", "0.5", "--s3-part-size", str(PART)) as started:
        started.post("/latency", {"seconds": 0.02})
        started.post("/s3-faults", {"part_delay": 0.1, "get_delay": 0.1})
        yield started


@dataclass
class Transfer:
    """One transfer that may be run several times, each in a process of its own."""

    sandbox: SandboxProcess
    folder: Path
    direction: str
    route: str
    verify: str = "auto"
    reports: list[dict[str, Any]] = field(default_factory=list)
    first: float = 0.0
    """When the first report came: a process takes its time to start."""

    def __post_init__(self) -> None:
        self.remote = f"/home/alice/{self.folder.name}"
        self.there = self.sandbox.host_path(self.remote)
        self.local = self.folder / "file"
        (self.folder / "data").mkdir(parents=True)
        self.local = self.folder / "data" / "file"
        self.origin = random_file(self.local if self.direction == "up" else self.there, SIZE)
        if self.direction == "down":
            os.chown(self.there, *_owner(self.there.parent))
        self.sandbox.delete("/requests")
        self.sandbox.delete("/s3-requests")

    def start(self) -> subprocess.Popen[str]:
        self.reports, self.first = [], 0.0
        words = [self.direction, str(self.local), self.remote, self.route, self.verify]
        path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
        state = {"HPCBRIDGE_STATE_DIR": str(self.folder / "state"), "PYTHONPATH": path}
        child = subprocess.Popen(
            [sys.executable, "-m", "support.transfer_child", *words],
            env=os.environ | self.sandbox.client_env() | state,
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._listen, args=(child,), daemon=True).start()
        return child

    def _listen(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            if line.endswith("\n"):
                self.first = self.first or time.monotonic()
                self.reports.append(json.loads(line))

    def run(self) -> list[dict[str, Any]]:
        """To its end; returns what it told."""
        child = self.start()
        assert child.wait(120) == 0
        time.sleep(0.1)
        return self.reports

    def kill(self, when: Callable[[], bool], timeout: float = 30, delay: float = 0.0) -> bool:
        """Start it and kill it `delay` seconds after `when` is true; False when it ended before."""
        child, end = self.start(), time.monotonic() + timeout
        while child.poll() is None and not when():
            assert time.monotonic() < end
            time.sleep(0.005)
        time.sleep(delay)
        if child.poll() is not None:
            assert child.returncode == 0
        else:
            child.kill()
            child.wait()
        time.sleep(0.1)
        return child.returncode != 0

    def after(self, seconds: float) -> Callable[[], bool]:
        """Whether so much time has passed since the first report."""
        return lambda: self.first > 0 and time.monotonic() > self.first + seconds

    def seen(self, phase: str, part: float = 0.0) -> Callable[[], bool]:
        """Whether a phase has been reported, with this share of the bytes."""
        return lambda: any(each.get("phase") == phase and each["done"] >= part * SIZE for each in list(self.reports))

    def moved(self) -> int:
        """Most bytes that this run has told of."""
        return max((each.get("done", 0) for each in self.reports), default=0)

    def begun_at(self) -> int:
        """Bytes that this run did not have to move any more."""
        moving = {"up": "uploading", "down": "downloading"}[self.direction]
        return next((each["done"] for each in self.reports if each.get("phase") == moving), SIZE)

    def is_over(self) -> bool:
        """Whether the killed process had done everything: then the next run is another transfer."""
        equal = self.local.exists() and self.there.exists() and sha256(self.local) == sha256(self.there)
        state = self.folder / "state" / "transfers"
        return equal and leftovers(self.sandbox) == [] and not (state.exists() and any(state.iterdir()))

    def check(self) -> None:
        """Both ends are equal, and nothing else is left anywhere."""
        assert sha256(self.there) == sha256(self.local)
        assert [path.name for path in (self.folder / "data").iterdir()] == ["file"]
        assert leftovers(self.sandbox) == []
        assert [path for path in (self.there.parent / "tmp").rglob("*") if path.is_file()] == []
        state = self.folder / "state" / "transfers"
        assert list(state.glob("*")) == [] if state.exists() else True
        end = time.monotonic() + 20
        while live := live_jobs(self.sandbox):
            assert time.monotonic() < end, live
            time.sleep(0.2)
        self.there.unlink()


def _owner(path: Path) -> tuple[int, int]:
    return path.stat().st_uid, path.stat().st_gid


def live_jobs(sandbox: SandboxProcess) -> list[str]:
    with sandbox.client() as client:
        rows = client.get(f"/compute/{sandbox.system}/jobs").raise_for_status().json()["jobs"] or []
    return [f"{row['jobId']} {row['name']}" for row in rows if row["status"]["state"] in ("PENDING", "RUNNING")]


def moved_twice(transfer: Transfer) -> int:
    """Bytes beyond the file's own that crossed the wire, by the server's own count.

    Of pieces down only requests are counted, and those for answers and logs are among them: 0.
    """
    if transfer.route == "s3":
        rows = [row for row in transfer.sandbox.get("/s3-requests") if row["agent"] != "curl"]
        return sum(row["received"] + row["sent"] for row in rows) - SIZE
    counts = transfer.sandbox.get("/requests")["counts"]
    if transfer.direction == "up":
        sent = sum(n for name, n in counts.items() if name.startswith("POST") and name.endswith("/ops/upload"))
        return (sent - -(-SIZE // PIECE)) * PIECE
    return 0


@pytest.mark.parametrize(("direction", "route"), ROUTES)
def test_random_kills(slow: SandboxProcess, tmp_path: Path, direction: str, route: str) -> None:
    clear_leftovers(slow)
    length, twice, phases = 1.5, [], Counter[str]()
    if PROVE:
        whole = Transfer(slow, tmp_path / f"{direction}-{route}", direction, route)
        whole.run()
        length = time.monotonic() - whole.first
        assert moved_twice(whole) <= PROBES
        whole.check()
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    for attempt in itertools.count():
        if len(twice) == KILLS:
            break
        transfer = Transfer(slow, tmp_path / f"{direction}-{route}-{attempt}", direction, route)
        # Spread over the whole transfer: one kill in each of as many parts of it.
        wait = (len(twice) + chance.random()) / KILLS * length
        was_killed = transfer.kill(transfer.after(wait))
        if was_killed and not transfer.is_over():
            told = transfer.moved()
            phases[transfer.reports[-1]["phase"]] += 1
            transfer.run()
            assert told - transfer.begun_at() <= AT_ONCE[direction, route], (seed, attempt)
            twice.append(moved_twice(transfer))
            assert twice[-1] <= AT_ONCE[direction, route] + PROBES, (seed, attempt)
        else:
            # It was quicker than the first one.
            length = max(0.5, 0.9 * min(length, wait))
        transfer.check()
    print(f"{direction} {route}: {KILLS} kills in {dict(phases)} within {length:.1f} s, bytes twice: {twice} ({seed=})")


def posted(transfer: Transfer, path: str) -> Callable[[], bool]:
    """Whether a request of this path has arrived."""
    return lambda: any(
        name.startswith("POST") and name.endswith(path) for name in transfer.sandbox.get("/requests")["counts"]
    )


def completing(transfer: Transfer) -> Callable[[], bool]:
    """Whether the object store has been asked to make the object."""
    return lambda: any(row["method"] == "POST" for row in transfer.sandbox.get("/s3-requests"))


MOMENTS: dict[str, Callable[[Transfer], Callable[[], bool]]] = {
    "up-s3-asked": lambda t: posted(t, "/transfer/upload"),
    "up-s3-parts": lambda t: t.seen("uploading", 0.4),
    "up-s3-completing": completing,
    "up-s3-staging": lambda t: t.seen("staging"),
    "up-s3-verifying": lambda t: t.seen("verifying"),
    "down-s3-asked": lambda t: posted(t, "/transfer/download"),
    "down-s3-staging": lambda t: t.seen("staging"),
    "down-s3-ranges": lambda t: t.seen("downloading", 0.3),
    "down-s3-verifying": lambda t: t.seen("verifying"),
    "up-chunked-submitting": lambda t: posted(t, "/jobs"),
    "up-chunked-publishing": lambda t: t.there.exists,
    "down-chunked-mkdir": lambda t: posted(t, "/ops/mkdir"),
    "down-chunked-submitting": lambda t: posted(t, "/jobs"),
    "down-chunked-verifying": lambda t: t.seen("verifying"),
}
RARE = {name for name in MOMENTS if name.endswith(("-asked", "-completing", "-submitting", "-publishing"))}
RARE |= {"down-chunked-verifying", "down-s3-verifying"}


@pytest.mark.needs("curl")
@pytest.mark.parametrize("moment", sorted(MOMENTS if PROVE else RARE))
def test_the_next_run_goes_on_from_any_moment(slow: SandboxProcess, tmp_path: Path, moment: str) -> None:
    clear_leftovers(slow)
    direction, route, when = moment.split("-")
    transfer = Transfer(slow, tmp_path / moment, direction, route)
    # The server does the work, and its answer is lost: the client is killed before it has asked again.
    paths = ["*/transfer/*load", "*/jobs"] if when in ("asked", "submitting") else []
    slow.post("/faults", [{"method": "POST", "path": path, "kind": "drop_after", "count": 1} for path in paths])
    assert transfer.kill(MOMENTS[moment](transfer), delay=0.1 if paths else 0.0)
    slow.delete("/faults")
    told = transfer.moved()
    assert not transfer.is_over()
    transfer.run()
    assert told - transfer.begun_at() <= AT_ONCE[direction, route]
    if (direction, when) == ("down", "verifying"):
        assert transfer.begun_at() == SIZE
    assert moved_twice(transfer) <= AT_ONCE[direction, route] + PROBES
    transfer.check()
