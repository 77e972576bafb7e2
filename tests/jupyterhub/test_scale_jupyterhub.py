"""Many live servers watched by one service credential: flat in requests, quick in the loop, adopted after a restart."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.jupyterhub_hub import HUB_USER, LIGHT, Hub, blockers, wait_for
from support.jupyterhub_thousand import MEASURE, everybodys_server, fill_database
from support.sandbox import SandboxProcess, start_sandbox

MANY, FEW = 1000, 100
WINDOW = 60
"""Seconds over which requests are counted: four ticks of the watcher at their longest."""
GROWTH = 50
"""Seconds without news until the watcher's ticks are at their longest."""
OURS = (" hpcbridge-", "poll_and_notify", "check_spawner")
"""In the names of the tasks that poll servers or watch jobs."""
HELD = 0.05
"""Seconds of processor time that one step may hold the hub's loop."""


def rate_of(sandbox: SandboxProcess, what: str = "") -> float:
    """REST requests per minute, once the watchers' ticks have grown; `what` counts only those with it in their name."""
    time.sleep(GROWTH)
    before, began = _requests(sandbox, what), time.monotonic()
    time.sleep(WINDOW)
    return (_requests(sandbox, what) - before) * 60 / (time.monotonic() - began)


def _requests(sandbox: SandboxProcess, what: str) -> int:
    return sum(count for name, count in sandbox.get("/requests")["counts"].items() if what in name)


def adopted(hub: Hub, count: int) -> float:
    """Seconds until the hub has said of `count` servers that they still run."""
    began, patience = time.monotonic(), 120 + count
    while (found := hub.said(" still running")) < count:
        assert time.monotonic() - began < patience, f"{found} of {count} servers were adopted in {patience} s"
        time.sleep(2)
    return time.monotonic() - began


def watched(folder: Path, sandbox: SandboxProcess, port: int, count: int) -> float:
    """REST requests per minute with `count` live servers; what the hub did is checked on the way."""
    folder.mkdir()
    jobs = sandbox.post("/jobs", {"user": "alice", "count": count, "duration": 100_000})["job_ids"]
    fill_database(folder / "jupyterhub.sqlite", jobs, "cluster", port)
    traits = {"Spawner": {"poll_interval": 30}, "JupyterHub": {"api_page_max_limit": 2 * MANY}}
    with Hub(folder, sandbox, traits=traits, extra=MEASURE) as hub:
        print(f"{count} servers adopted in {adopted(hub, count):.0f} s")
        hub.restart()
        print(f"{count} servers adopted again in {adopted(hub, count):.0f} s")
        rate = rate_of(sandbox)
        assert len(hub.api("GET", "users", params={"state": "ready", "limit": 2 * MANY})) == count
        assert not hub.said("appears to have stopped")
        assert not hub.said("does not appear to be running")
        assert f'hpcbridge_servers{{state="RUNNING",system="cluster"}} {count}.0' in hub.metrics()
    return rate


@pytest.mark.timeout(2400)
def test_requests_do_not_grow_with_the_servers(tmp_path: Path) -> None:
    """A server of a user each, simulated jobs; one HTTP server answers for all of them."""
    with everybodys_server() as port, ThreadPoolExecutor() as pool:

        def rate(count: int) -> float:
            with start_sandbox("--accounting-lag", "1", "--user", "alice", "--user", HUB_USER) as sandbox:
                return watched(tmp_path / str(count), sandbox, port, count)

        rates = dict(zip((FEW, MANY), pool.map(rate, (FEW, MANY)), strict=True))
    print(f"REST requests per minute: {rates}")
    steps = (tmp_path / str(MANY) / "held.log").read_text().splitlines()
    collections = [float(step.split()[0]) for step in steps if "garbage collection" in step]
    print(f"garbage collections above 20 ms: {len(collections)}, the longest {max(collections, default=0):.2f} s")
    ours = [step for step in steps if any(word in step for word in OURS)]
    worst = max((float(line.split()[0]) for line in ours), default=0.0)
    print(f"longest step of ours in the hub's loop, with {MANY} servers: {worst * 1000:.0f} ms (below 20 ms: 0)")
    assert 0 < rates[MANY] <= max(rates[FEW] * 1.5, 8)
    assert worst < HELD, max(ours)


@pytest.mark.timeout(900)
def test_without_a_service_credential_there_is_one_listing_per_user_who_waits(
    cluster: SandboxProcess, tmp_path: Path
) -> None:
    people, rates = ("alice", "bob", "carol", "dave"), {}
    with blockers(cluster, 1) as (blocker,):
        light = {"command": ["python3", "-c", LIGHT], "directives": [f"--dependency=afterany:{blocker}"]}
        with Hub(tmp_path, cluster, systems={"queue": {**light, "service": None}}) as hub:
            assert "no service credential, so one listing per user who waits" in hub.doctor()
            for number, person in enumerate(people, 1):
                hub.login(person)
                hub.start_server(person, system="queue")
                hub.wait_state(person, "", "job_id")
                if number in (1, 4):
                    rates[number] = rate_of(cluster, "GET /compute/")
            for person in people:
                hub.stop_server(person)
            wait_for(lambda: not any(hub.server(person) for person in people), 60, "the servers' end")
    print(f"listings per minute, by the number of users who wait: {rates}")
    assert 0 < 2 * rates[1] <= rates[4] <= 8 * rates[1]
