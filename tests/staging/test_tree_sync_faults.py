"""Syncs that are large, interrupted, killed, crowded or lied to: each ends equal, or with an error that says why."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import hpcbridge
from hpcbridge.errors import (
    Conflict,
    TransferError,
)
from hpcbridge.staging import Progress
from hpcbridge.staging.trees import jobscript
from hpcbridge.staging.trees.sync_down import sync_down
from hpcbridge.staging.trees.sync_up import sync_up
from support.node import seen
from support.pair import REMOTE, Pair, wiped
from support.proxy import start_proxy
from support.sandbox import SandboxProcess
from support.scale import PROVE
from support.staging import connected

TESTS = Path(__file__).parents[1]


@pytest.fixture
def pair(sandbox: SandboxProcess, tmp_path: Path) -> Pair:
    return Pair(wiped(sandbox), tmp_path / "tree")


@pytest.fixture
async def system(sandbox: SandboxProcess) -> AsyncIterator[hpcbridge.System]:
    async with connected(sandbox) as system:
        yield system


@pytest.mark.usefixtures("every_report")
async def test_a_large_delta_goes_in_pieces_and_resumes(
    pair: Pair, system: hpcbridge.System, sandbox: SandboxProcess
) -> None:
    pair.fill(pair.local, 3)
    await pair.up(system)
    (pair.local / "large").write_bytes(os.urandom(22_000_000))

    class Enough(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.phase == "uploading" and progress.done > 11_000_000:
            raise Enough

    sandbox.post("/faults", [{"method": "POST", "path": "*/ops/upload", "kind": "latency", "seconds": 0.3}])
    with pytest.raises(Enough):
        await sync_up(system, pair.local, pair.remote, route="chunked", progress=stop)
    sandbox.delete("/faults")
    await asyncio.sleep(1)
    sent = await pair.up(system, route="chunked")
    assert sent.route == "chunked"
    assert pair.calls["POST /filesystem/{}/ops/upload"] <= 3
    assert pair.equal()
    assert not [path for path in pair.state.iterdir() if path.name.startswith(".hpcbridge-put")]


@pytest.mark.usefixtures("every_report")
async def test_a_large_delta_down_resumes(pair: Pair, system: hpcbridge.System, sandbox: SandboxProcess) -> None:
    pair.fill(pair.there, 3)
    await pair.down(system)
    (pair.there / "large").write_bytes(os.urandom(22_000_000))
    pair.give(pair.there)

    class Enough(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.phase == "downloading" and progress.done > 12_000_000:
            raise Enough

    sandbox.post("/faults", [{"method": "GET", "path": "*/ops/download", "kind": "latency", "seconds": 0.3}])
    with pytest.raises(Enough):
        await sync_down(system, pair.remote, pair.local, route="chunked", progress=stop)
    sandbox.delete("/faults")
    assert not (pair.local / "large").exists()
    seen_done: list[int] = []

    def note(progress: Progress) -> None:
        if progress.phase == "downloading":
            seen_done.append(progress.done)

    await sync_down(system, pair.remote, pair.local, route="chunked", progress=note)
    assert seen_done[0] > 7_000_000
    assert pair.equal()
    assert [path.name for path in pair.local.parent.iterdir()] == ["tree"]


async def test_directories_that_cannot_be_written_do_not_stop_a_sync(pair: Pair, system: hpcbridge.System) -> None:
    """The jobs run as a user who is bound by modes."""
    pair.fill(pair.local, 3)
    (pair.local / "d0" / "below").mkdir()
    (pair.local / "d0" / "below" / "file").write_text("first")
    for path in (pair.local / "d0", pair.local / "d0" / "below"):
        path.chmod(0o555)
    (pair.local / "d0" / "f 0").chmod(0o400)
    await pair.up(system)
    assert pair.equal()
    (pair.local / "d0" / "below" / "file").write_text("second")
    (pair.local / "d0" / "f 0").unlink()
    (pair.local / "d0" / "f 1").chmod(0o600)
    (pair.local / "d0" / "below" / "new").mkdir(0o500)
    await pair.up(system, delete=True)
    assert pair.equal()
    shutil.rmtree(pair.local / "d0")
    await pair.up(system, delete=True)
    assert pair.equal()


@pytest.mark.needs("curl")
@pytest.mark.parametrize("route", ["s3", "chunked"])
async def test_a_large_delta_takes_the_routes_of_a_copy(pair: Pair, system: hpcbridge.System, route: str) -> None:
    pair.fill(pair.local, 3)
    (pair.local / "large").write_bytes(os.urandom(9_000_000))
    sent = await pair.up(system, route=route)
    assert (sent.route, pair.equal()) == (route, True)
    (pair.there / "larger").write_bytes(os.urandom(9_000_000))
    pair.give(pair.there)
    back = await pair.down(system, route=route)
    assert (back.route, pair.equal()) == (route, True)
    assert [path.name for path in pair.state.iterdir() if path.name.endswith(".archive")] == []


async def test_a_file_that_changes_while_it_is_sent_is_an_error(pair: Pair, system: hpcbridge.System) -> None:
    pair.fill(pair.local, 3)
    large = pair.local / "large"
    large.write_bytes(os.urandom(40_000_000))
    meddled = []

    def meddle(progress: Progress) -> None:
        # Reports are rare, and pieces are read ahead: what has been read is compared at the end.
        if progress.phase == "uploading" and progress.done and not meddled:
            meddled.append(progress.done)
            with large.open("r+b") as file:
                file.write(b"other")

    with pytest.raises(TransferError, match="changed"):
        await sync_up(system, pair.local, pair.remote, route="chunked", progress=meddle)
    assert meddled
    assert not pair.there.exists()
    await pair.up(system)
    assert pair.equal()


async def test_a_change_within_the_same_tick_is_never_lost(pair: Pair, system: hpcbridge.System) -> None:
    pair.fill(pair.local, 3)
    path = pair.local / "-"
    for number in range(6):
        path.write_text(f"a{number}")
        found = path.stat()
        await pair.up(system)
        path.write_text(f"b{number}")
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
        await pair.up(system)
        assert (pair.there / "-").read_text() == f"b{number}"


async def test_two_syncs_at_once_take_turns(
    sandbox: SandboxProcess, pair: Pair, system: hpcbridge.System, tmp_path: Path
) -> None:
    pair.fill(pair.local, 30)
    other = Pair(sandbox, tmp_path / "other")
    other.fill(other.local, 60)
    await asyncio.gather(
        sync_up(system, pair.local, REMOTE, delete=True), sync_up(system, other.local, REMOTE, delete=True)
    )
    assert seen(pair.there) in (seen(pair.local), seen(other.local))
    with pytest.raises(Conflict):
        await asyncio.gather(sync_down(system, REMOTE, tmp_path / "new"), sync_down(system, REMOTE, tmp_path / "new"))


async def test_a_lock_that_nobody_gives_up_is_told(
    pair: Pair, system: hpcbridge.System, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.fill(pair.local, 3)
    await pair.up(system)
    monkeypatch.setattr(jobscript, "TURN", 0)
    (pair.state / "lock").symlink_to("another")
    (pair.state / "beat").write_text("")
    (pair.local / "-").write_text("changed")
    with pytest.raises(Conflict, match="another"):
        await pair.up(system)
    (pair.state / "lock").unlink()
    await pair.up(system)
    assert pair.equal()


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_answers_that_are_lost_change_nothing(sandbox: SandboxProcess, tmp_path: Path, direction: str) -> None:
    pair = Pair(wiped(sandbox), tmp_path / "tree")
    pair.fill(pair.local if direction == "up" else pair.there, 30)
    env = sandbox.client_env()
    rates = {"lost": 0.3, "503": 0.1, "undelivered": 0.1}
    async with start_proxy(sandbox.url, rates, method="POST", path="/filesystem/*") as proxy:
        options = {"url": proxy.url, "token_url": env["AUTH_TOKEN_URL"], "system": env["FIRECREST_SYSTEM"]}
        secret = {"client_id": env["FIRECREST_CLIENT_ID"], "client_secret": env["FIRECREST_CLIENT_SECRET"]}
        async with hpcbridge.connect(**options, **secret) as hpc:
            system = hpc.system()
            for number in range(6):
                if direction == "up":
                    (pair.local / "-").write_text(str(number))
                    await sync_up(system, pair.local, REMOTE, delete=True)
                else:
                    (pair.there / "-").write_text(str(number))
                    await sync_down(system, REMOTE, pair.local, delete=True)
                assert pair.equal()
        assert proxy.fates["lost"] > 0


@pytest.mark.parametrize("direction", ["up", "down"])
def test_after_kill_9_the_next_sync_ends_equal(sandbox: SandboxProcess, tmp_path: Path, direction: str) -> None:
    pair = Pair(wiped(sandbox), tmp_path / "tree")
    origin, target = (pair.local, pair.there) if direction == "up" else (pair.there, pair.local)
    pair.fill(origin, 300)
    chance = random.Random(11)
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "support.sync_child", direction, str(pair.local), REMOTE]
    environment = os.environ | sandbox.client_env() | {"PYTHONPATH": path}
    for number in range(25 if PROVE else 4):
        (origin / "d0" / "f 0").write_text(f"{number}")
        (origin / f"d{number % 3}").rename(origin / "moving")
        (origin / "moving").rename(origin / f"d{number % 3}")
        (origin / f"new {number}").write_bytes(os.urandom(100_000))
        pair.give(pair.there)
        child = subprocess.Popen(command, env=environment)
        time.sleep(chance.uniform(0.2, 1.6))
        child.kill()
        child.wait()
        subprocess.run(command, env=environment, check=True, timeout=120)
        assert seen(target) == seen(origin), number
    assert {p.name for p in tmp_path.iterdir()} == {"tree"}
    time.sleep(1)  # a job of a killed client may still be at its end
    assert not [p.name for p in pair.state.iterdir() if p.name == "lock"]
