"""Many live servers watched by one service credential: flat in requests, quick in the loop, adopted after a restart."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from support.jupyterhub_hub import HUB_USER, Hub, wait_for
from support.jupyterhub_thousand import MEASURE, everybodys_server, fill_database
from support.sandbox import SandboxProcess, start_sandbox

MANY, FEW = 1000, 10
WINDOW = 60
"""Seconds over which requests are counted."""
HELD = 0.05
"""Seconds of processor time that one step may hold the hub's loop."""


def ready(hub: Hub) -> int:
    """How many servers the hub calls ready."""
    return len(hub.api("GET", "users", params={"state": "ready", "limit": 2000}))


def requests(sandbox: SandboxProcess) -> int:
    return sum(sandbox.get("/requests")["counts"].values())


def watched(folder: Path, sandbox: SandboxProcess, port: int, count: int) -> float:
    """REST requests per minute with `count` live servers; what the hub did is checked on the way."""
    folder.mkdir()
    jobs = sandbox.post("/jobs", {"user": "alice", "count": count, "duration": 100_000})["job_ids"]
    fill_database(folder / "jupyterhub.sqlite", jobs, "cluster", port)
    with Hub(folder, sandbox, traits={"Spawner": {"poll_interval": 10}}, extra=MEASURE) as hub:
        wait_for(lambda: ready(hub) == count, 180, f"{count} servers to be adopted")
        hub.restart()
        wait_for(lambda: ready(hub) == count, 180, f"{count} servers to be adopted again")
        time.sleep(20)  # the watcher's ticks have grown to their longest
        before, began = requests(sandbox), time.monotonic()
        time.sleep(WINDOW)
        rate = (requests(sandbox) - before) * 60 / (time.monotonic() - began)
        assert ready(hub) == count
        polls = re.search(r'hpcbridge_polls_total{source="server"} (\S+)', hub.metrics())
        assert polls is not None
        assert float(polls[1]) >= count
    return rate


@pytest.mark.timeout(900)
def test_requests_do_not_grow_with_the_servers(tmp_path: Path) -> None:
    users = ("--user", "alice", "--user", HUB_USER)
    with everybodys_server() as port:
        rates = {}
        for count in (FEW, MANY):
            with start_sandbox("--accounting-lag", "1", *users) as sandbox:
                rates[count] = watched(tmp_path / str(count), sandbox, port, count)
    print(f"REST requests per minute: {rates}")
    assert rates[MANY] <= max(rates[FEW] * 1.5, 8)
    assert 0 < rates[MANY] <= 15
    steps = (tmp_path / str(MANY) / "held.log").read_text().splitlines()
    held = [step for step in steps if "hpcbridge" in step or "poll_and_notify" in step]
    worst = max((float(line.split()[0]) for line in held), default=0.0)
    print(f"longest step of ours in the hub's loop, with {MANY} servers: {worst * 1000:.0f} ms (below 20 ms: 0)")
    assert worst < HELD, max(held)
