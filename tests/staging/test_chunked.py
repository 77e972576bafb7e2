"""Uploads in pieces: joined by one job, resumed, repaired; and downloads in pieces for systems without a store."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import hpcbridge
from hpcbridge.errors import IntegrityError, InvalidPath, TransferError
from hpcbridge.staging import Progress, get_file, keyed_jobs, put_file
from support.sandbox import SandboxProcess
from support.staging import connected, leftovers, random_file, sha256

PIECE = 5 << 20
SIZE = 4 * PIECE + 12_345


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_file(tmp_path_factory.mktemp("chunked") / "big", SIZE)


@pytest.fixture
async def system(
    sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[hpcbridge.System]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(keyed_jobs, "ANSWER_LAG", 2.0)
    async with connected(sandbox) as system:
        yield system


def uploads(sandbox: SandboxProcess) -> int:
    return sum(n for what, n in sandbox.get("/requests")["counts"].items() if what.endswith("/ops/upload"))


def stages(sandbox: SandboxProcess) -> list[Path]:
    return [p for p in sandbox.host_path("/home/alice").glob(".hpcbridge-put-*") if p.is_dir()]


def clear(sandbox: SandboxProcess) -> None:
    import shutil

    for path in stages(sandbox):
        shutil.rmtree(path)


async def test_pieces_and_one_job_make_the_file(
    any_sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, big: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    seen: list[Progress] = []
    async with connected(any_sandbox) as system:
        before = system.client.session.requests
        sent = await put_file(system, big, "/home/alice/joined", progress=seen.append)
        # Systems, ls, mkdir, 5 pieces, submit, a few looks at job and answer, rm.
        assert system.client.session.requests - before < 30
    assert (sent.route, sent.bytes, sent.sha256) == ("chunked", SIZE, sha256(big))
    assert sha256(any_sandbox.host_path("/home/alice/joined")) == sha256(big)
    assert leftovers(any_sandbox) == []
    phases = [p.phase for p in seen]
    assert phases[0] == "checking"
    assert phases[-1] == "done"
    assert [each for i, each in enumerate(phases) if each not in phases[:i]][:3] == ["checking", "uploading", "queued"]
    assert seen[-1].done == SIZE
    assert all(p.done <= SIZE for p in seen)


async def test_the_file_appears_whole_and_keeps_its_mode(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, big: Path
) -> None:
    old = random_file(tmp_path / "old", 1000)
    await put_file(system, old, "/home/alice/whole")
    target = sandbox.host_path("/home/alice/whole")
    target.chmod(0o640)
    sizes = set()

    async def look() -> None:
        while True:
            sizes.add(target.stat().st_size)
            await asyncio.sleep(0.002)

    looking = asyncio.ensure_future(look())
    await put_file(system, big, "/home/alice/whole")
    looking.cancel()
    assert sizes <= {1000, SIZE}
    assert target.stat().st_mode & 0o777 == 0o640


@pytest.mark.usefixtures("every_report")
async def test_an_interrupted_upload_sends_only_what_is_missing(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path
) -> None:
    class Enough(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.phase == "uploading" and progress.done >= 2 * PIECE:
            raise Enough

    sandbox.post("/faults", [{"method": "POST", "path": "*/ops/upload", "kind": "latency", "seconds": 0.3}])
    with pytest.raises(Enough):
        await put_file(system, big, "/home/alice/resumed", progress=stop)
    sandbox.delete("/faults")
    assert len(stages(sandbox)) == 1
    await asyncio.sleep(0.5)
    whole = sum(p.stat().st_size in (PIECE, SIZE % PIECE) for p in stages(sandbox)[0].glob("*.00000?"))
    assert whole >= 2
    sandbox.delete("/requests")
    sent = await put_file(system, big, "/home/alice/resumed")
    assert uploads(sandbox) == 5 - whole
    assert sent.sha256 == sha256(big) == sha256(sandbox.host_path("/home/alice/resumed"))
    assert leftovers(sandbox) == []


KILLED = """
import asyncio, os, signal, sys
sys.path.insert(0, {tests!r})
import hpcbridge
from hpcbridge.staging import put_file

def stop(progress):
    if progress.phase == {phase!r}:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with hpcbridge.connect() as hpc:
        await put_file(hpc.system(), {local!r}, {remote!r}, progress=stop)

asyncio.run(main())
"""


@pytest.mark.parametrize("phase", ["uploading", "queued", "joining"])
async def test_a_client_killed_at_any_point_is_taken_up_by_the_next(
    sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, big: Path, phase: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    remote = f"/home/alice/killed-{phase}"
    code = KILLED.format(tests=str(Path(__file__).parents[1]), phase=phase, local=str(big), remote=remote)
    env = {**os.environ, **sandbox.client_env()}
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], env=env, check=False)
    assert done.returncode in (-signal.SIGKILL, 0)
    async with connected(sandbox) as system:
        sent = await put_file(system, big, remote)
    assert sent.sha256 == sha256(big) == sha256(sandbox.host_path(remote))
    for _ in range(50):
        if not leftovers(sandbox):
            break
        await asyncio.sleep(0.1)
    assert leftovers(sandbox) == []


async def test_a_corrupted_piece_is_noticed_and_sent_again(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path
) -> None:
    def spoil(progress: Progress) -> None:
        if progress.phase == "queued" and not spoiled:
            piece = next(p for p in stages(sandbox)[0].iterdir() if p.name.endswith(".000002"))
            piece.write_bytes(bytes(piece.stat().st_size))
            spoiled.append(piece)

    spoiled: list[Path] = []
    sandbox.delete("/requests")
    sent = await put_file(system, big, "/home/alice/repaired", progress=spoil)
    assert spoiled
    assert uploads(sandbox) == 6
    assert sent.sha256 == sha256(big) == sha256(sandbox.host_path("/home/alice/repaired"))
    assert leftovers(sandbox) == []


async def test_pieces_that_arrive_damaged_every_time_leave_the_target_alone(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, big: Path
) -> None:
    old = random_file(tmp_path / "old", 10)
    await put_file(system, old, "/home/alice/kept")

    def spoil(progress: Progress) -> None:
        if progress.phase == "queued":
            for piece in stages(sandbox)[0].glob("*.000001"):
                piece.write_bytes(bytes(PIECE))

    with pytest.raises(IntegrityError, match="3 times"):
        await put_file(system, big, "/home/alice/kept", progress=spoil)
    assert sandbox.host_path("/home/alice/kept").read_bytes() == old.read_bytes()
    clear(sandbox)


async def test_pieces_that_vanish_are_sent_again(system: hpcbridge.System, sandbox: SandboxProcess, big: Path) -> None:
    def lose(progress: Progress) -> None:
        if progress.phase == "queued" and not lost:
            lost.extend(stages(sandbox)[0].glob("*.000003"))
            for piece in lost:
                piece.unlink()

    lost: list[Path] = []
    sent = await put_file(system, big, "/home/alice/lost", progress=lose)
    assert lost
    assert sent.sha256 == sha256(sandbox.host_path("/home/alice/lost"))


async def test_a_directory_in_the_way_and_a_file_that_changes_are_said(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, big: Path
) -> None:
    await system.mkdir("/home/alice/dir")
    with pytest.raises(InvalidPath, match="is a directory"):
        await put_file(system, big, "/home/alice/dir")
    clear(sandbox)
    mine = tmp_path / "mine"
    mine.write_bytes(big.read_bytes())

    def touch(progress: Progress) -> None:
        if progress.phase == "uploading":
            os.utime(mine)

    with pytest.raises(TransferError, match="changed"):
        await put_file(system, mine, "/home/alice/changing", progress=touch)
    assert not sandbox.host_path("/home/alice/changing").exists()
    clear(sandbox)


@pytest.mark.parametrize("name", ['it\'s "big"', "new\nline\n"])
async def test_large_files_with_odd_names_go_there_and_back(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, big: Path, name: str
) -> None:
    await put_file(system, big, f"/home/alice/{name}")
    assert sha256(sandbox.host_path(f"/home/alice/{name}")) == sha256(big)
    got = await get_file(system, f"/home/alice/{name}", tmp_path / "out")
    assert (got.route, got.sha256) == ("chunked", sha256(big))
    assert sha256(tmp_path / "out") == sha256(big)
    assert leftovers(sandbox) == []


@pytest.mark.usefixtures("every_report")
async def test_a_download_in_pieces_is_resumed(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, big: Path
) -> None:
    await put_file(system, big, "/home/alice/cut")

    class Enough(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.phase == "downloading" and progress.done > 8_000_000:
            raise Enough

    sandbox.post("/faults", [{"method": "GET", "path": "*/ops/download", "kind": "latency", "seconds": 0.3}])
    with pytest.raises(Enough):
        await get_file(system, "/home/alice/cut", tmp_path / "out", route="chunked", progress=stop)
    sandbox.delete("/faults")
    sandbox.delete("/requests")
    got = await get_file(system, "/home/alice/cut", tmp_path / "out", route="chunked")
    assert got.sha256 == sha256(big) == sha256(tmp_path / "out")
    counts = sandbox.get("/requests")["counts"]
    pieces = -(-SIZE // 3_932_157)
    assert sum(n for what, n in counts.items() if what.endswith("/ops/download")) < pieces + 5


async def test_two_uploads_of_one_file_to_one_place_do_not_hurt_each_other(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path
) -> None:
    results = await asyncio.gather(
        put_file(system, big, "/home/alice/twice"), put_file(system, big, "/home/alice/twice"), return_exceptions=True
    )
    assert any(not isinstance(each, BaseException) for each in results)
    assert sha256(sandbox.host_path("/home/alice/twice")) == hashlib.sha256(big.read_bytes()).hexdigest()
    clear(sandbox)
