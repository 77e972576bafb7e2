"""What earlier transfers have shown of a site is kept, and nothing about it can break a transfer."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hpcbridge
from hpcbridge.credentials.flows import TokenCallable
from hpcbridge.errors import TransferError
from hpcbridge.staging import routes
from hpcbridge.staging.context import Transfer
from hpcbridge.staging.estimates import Figures
from hpcbridge.staging.plan import Direction, Route
from hpcbridge.staging.progress import Progress, Reporter
from hpcbridge.staging.seen import KEPT, Seen
from support.httpd import Answer, Request, httpd
from support.sandbox import SandboxProcess
from support.staging import connected, random_file

SITE = "https://firecrest.example"


@pytest.fixture
def seen(tmp_path: Path) -> Seen:
    return Seen(SITE, "daint", tmp_path / "figures")


def test_nothing_seen_is_the_measured_defaults(seen):
    assert seen.figures() == Figures()


def test_the_first_figure_counts_whole_and_later_ones_by_their_share(seen):
    seen.learn(up=10e6)
    assert seen.figures() == Figures(up=10e6)
    seen.learn(up=20e6, queue=12.0)
    assert seen.figures() == Figures(up=15e6, queue=12.0)
    for _ in range(30):
        seen.learn(up=40e6)
    assert seen.figures().up == pytest.approx(40e6, rel=0.01)


def test_sites_and_systems_are_kept_apart(seen, tmp_path):
    seen.learn(up=10e6)
    for site, system in ((SITE, "eiger"), (SITE + "/two", "daint")):
        assert Seen(site, system, tmp_path / "figures").figures() == Figures()


def test_the_file_is_private_and_says_its_format(seen):
    seen.learn(up=10e6)
    assert stat.S_IMODE(seen.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(seen.path.parent.stat().st_mode) == 0o700
    assert json.loads(seen.path.read_text())["format"] == 1


YESTERDAYS = '{"format": 1, "site": "https://firecrest.example", "system": "daint", "figures": {"up": [3e6, 4, %f]}}'


def test_yesterdays_file_loads_and_last_seasons_does_not_count(seen):
    seen.path.parent.mkdir()
    seen.path.write_text(YESTERDAYS % (time.time() - 86400))
    assert seen.figures() == Figures(up=3e6)
    seen.path.write_text(YESTERDAYS % (time.time() - KEPT - 1))
    assert seen.figures() == Figures()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": 2, "figures": {"up": [1, 1, 9e9]}}',
        '{"format": 1, "figures": {"up": 1}}',
        '{"format": 1, "figures": {"up": [-1, 1, 9e9], "queue": [0, 1, 9e9], "colour": [1, 1, 9e9]}}',
        '{"format": 1, "figures": null}',
    ],
)
def test_a_file_of_no_use_is_none_and_is_written_anew(seen, text):
    seen.path.parent.mkdir()
    seen.path.write_text(text)
    assert seen.figures() == Figures()
    seen.learn(up=7e6)
    assert seen.figures() == Figures(up=7e6)


def test_what_cannot_be_kept_costs_nothing(tmp_path):
    (tmp_path / "figures").write_text("not a directory")
    seen = Seen(SITE, "daint", tmp_path / "figures")
    seen.learn(up=1e6)
    assert seen.figures() == Figures()


TEACH = """
import sys
from pathlib import Path
from hpcbridge.staging.seen import Seen
for _ in range(50):
    Seen(sys.argv[1], "daint", Path(sys.argv[2])).learn(queue=5.0)
"""


def test_writers_at_the_same_time_lose_nothing(seen):
    """Each figure counts once: the number it was made of is in the file."""
    command = [sys.executable, "-c", TEACH, SITE, str(seen.path.parent)]
    workers = [subprocess.Popen(command) for _ in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    assert json.loads(seen.path.read_text())["figures"]["queue"][1] == 200
    assert not list(seen.path.parent.glob(".new-*"))


# -- on a system ---------------------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HPCBRIDGE_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


async def test_a_transfer_is_learnt_from_without_one_more_request(sandbox: SandboxProcess, tmp_path, state):
    local = random_file(tmp_path / "f", 20_000_000)
    async with connected(sandbox) as system:
        seen = Seen(sandbox.url, system.name)
        before = sandbox.get("/requests")["counts"]
        assert (await system.put(local, "/home/alice/seen")).route == "chunked"
        after = sandbox.get("/requests")["counts"]
        found = seen.figures()
        assert found.up != Figures().up
        assert 0 < found.queue < 60
        await system.get("/home/alice/seen", tmp_path / "back")
        assert seen.figures().store_down != Figures().store_down
    assert not {path for path in after if after[path] != before.get(path, 0)} & {"/status/{system_name}/partitions"}


async def test_the_next_transfer_goes_by_what_was_seen(sandbox: SandboxProcess, tmp_path, state):
    """A store that was met as slow is left alone, and the progress says what was chosen and how long it may take."""
    local = random_file(tmp_path / "f", 8_000_000)
    told: list[Progress] = []
    async with connected(sandbox) as system:
        await system.put(local, "/home/alice/next")
        Seen(sandbox.url, system.name).learn(store_down=1e4, staging=1e4)
        result = await system.get("/home/alice/next", tmp_path / "back", progress=told.append)
    assert result.route == "chunked"
    assert any(each.detail.startswith("chunked about ") for each in told)
    assert (tmp_path / "back").read_bytes() == local.read_bytes()


async def test_an_unreadable_state_directory_ends_no_transfer(sandbox: SandboxProcess, tmp_path, monkeypatch):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "figures").write_text("in the way")
    monkeypatch.setenv("HPCBRIDGE_STATE_DIR", str(tmp_path / "state"))
    local = random_file(tmp_path / "f", 6_000_000)
    async with connected(sandbox) as system:
        await system.put(local, "/home/alice/odd")
        await system.get("/home/alice/odd", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == local.read_bytes()


async def test_the_state_of_the_queue_is_asked_for_only_where_it_can_change_the_choice(
    sandbox: SandboxProcess, tmp_path, state
):
    """One request, for large transfers only: the partition that the site's transfer jobs use."""
    async with connected(sandbox) as system:
        info = await system.info()
        found = await routes.queue_state(system.client, info)
        assert found is not None
        assert found.starts_jobs
        t = _transfer(system, info, tmp_path)
        for size, direction, wanted, asked in (
            (1_000_000, Direction.UP, None, 0),
            (100_000_000, Direction.UP, None, 0),
            (2_000_000_000, Direction.DOWN, None, 0),
            (2_000_000_000, Direction.UP, "chunked", 0),
            (2_000_000_000, Direction.UP, None, 1),
        ):
            sandbox.delete("/requests")
            await routes.route_for(t, size, direction=direction, wanted=wanted)
            assert sum(sandbox.get("/requests")["counts"].values()) == asked, (size, direction, wanted)


@pytest.mark.parametrize(("state", "route"), [("UP", Route.CHUNKED), ("DOWN", Route.S3), ("INACTIVE", Route.S3)])
async def test_a_partition_that_starts_no_jobs_counts_as_a_long_queue(
    sandbox: SandboxProcess, tmp_path, monkeypatch, state, route
):
    """The bytes then go where their job can wait while they move."""
    monkeypatch.setenv("HPCBRIDGE_STATE_DIR", str(tmp_path / "state"))

    async def answer(request: Request) -> Answer:
        rows = [{"name": "normal", "partition": "UP"}, {"name": "xfer", "partition": state}]
        return Answer(body={"partitions": rows} if request.path.endswith("/partitions") else systems)

    with sandbox.client() as client:
        systems = client.get("/status/systems").json()
    credential = TokenCallable(lambda: "token")
    async with (
        httpd(answer) as server,
        hpcbridge.connect(url=server.url, system=sandbox.system, credential=credential) as hpc,
    ):
        system = hpc.system()
        t = _transfer(system, await system.info(), tmp_path)
        assert await routes.route_for(t, 2_000_000_000, direction=Direction.UP) is route
    assert [each.path for each in server.requests].count("/status/sandbox/partitions") == 1


async def test_a_server_that_tells_nothing_of_its_partitions_ends_no_transfer(sandbox: SandboxProcess, tmp_path, state):
    async with connected(sandbox) as system:
        t = _transfer(system, await system.info(), tmp_path)
        sandbox.post("/faults", [{"path": "/status/*/partitions", "kind": "status", "status": 500}])
        assert await routes.route_for(t, 2_000_000_000, direction=Direction.UP) is Route.CHUNKED


@pytest.mark.parametrize("route", [None, "chunked", "s3"])
async def test_a_file_that_the_disk_has_no_room_for_starts_no_job(sandbox: SandboxProcess, tmp_path, route):
    large = sandbox.host_path("/home/alice/large")
    large.touch()
    os.truncate(large, 8 << 40)
    try:
        sandbox.delete("/requests")
        async with connected(sandbox) as system:
            with pytest.raises(TransferError, match="the disk has"):
                await system.get("/home/alice/large", tmp_path / "large", route=route)
            assert set(sandbox.get("/requests")["counts"]) == {"GET /status/systems", "GET /filesystem/{}/ops/stat"}
    finally:
        large.unlink()
    assert not list(tmp_path.iterdir())


def _transfer(system, info, tmp_path):
    return Transfer(system, info, tmp_path / "f", Reporter(None))
