"""Interrupted downloads in pieces, and files that arrive damaged: what is fetched again, and what is left behind."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import hpcbridge
from hpcbridge.errors import Conflict, IntegrityError
from hpcbridge.staging import Progress, get_file, put_file
from hpcbridge.staging.plan import download_limit
from support.sandbox import SandboxProcess
from support.scale import PROVE
from support.staging import connected, leftovers, random_file, sha256

SIZE = 26_000_000
TOO_SLOW = {"path": "*/ops/checksum", "kind": "status", "status": 408}
"""What the server says of a checksum that takes more than its five seconds."""
PIECES = -(-SIZE // download_limit(5 << 20))


class Stop(Exception):
    """Raised by a progress callback, as Ctrl-C would be."""


@pytest.fixture
async def system(
    sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[hpcbridge.System]:
    monkeypatch.setenv("HPCBRIDGE_STATE_DIR", str(tmp_path / "state"))
    async with connected(sandbox) as system:
        yield system
    assert list((tmp_path / "state" / "transfers").glob("*")) == []


@pytest.fixture
def there(system: hpcbridge.System, sandbox: SandboxProcess) -> Path:
    """A file on the cluster."""
    path = sandbox.host_path("/home/alice/there")
    random_file(path, SIZE)
    shutil.copystat(path.parent, path)
    path.chmod(0o644)
    return path


def stage(sandbox: SandboxProcess) -> Path:
    (found,) = sandbox.host_path("/home/alice").glob(".hpcbridge-get-*")
    return found


def jobs(sandbox: SandboxProcess) -> int:
    return int(sandbox.get("/requests")["counts"].get("POST /compute/{}/jobs", 0))


def fetched(sandbox: SandboxProcess) -> int:
    return int(sandbox.get("/requests")["counts"].get("GET /filesystem/{}/ops/download", 0))


def stop_at(phase: str, share: float = 0.0) -> Callable[[Progress], None]:
    def look(progress: Progress) -> None:
        if progress.phase == phase and progress.done >= share * SIZE:
            raise Stop

    return look


def once(phase: str, act: Callable[[], object]) -> Callable[[Progress], None]:
    """Do something when a phase is first seen."""
    done: list[object] = []

    def look(progress: Progress) -> None:
        if progress.phase == phase and not done:
            done.append(act())

    return look


def spoil(path: Path) -> None:
    """Change one byte in the middle, and neither size nor time."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


async def interrupted(system: hpcbridge.System, sandbox: SandboxProcess, out: Path, phase: str = "downloading") -> None:
    sandbox.post("/faults", [{"path": "*/ops/download", "kind": "latency", "seconds": 0.15}])
    share = 0.3 if phase == "downloading" else 0.0
    with pytest.raises(Stop):
        await get_file(system, "/home/alice/there", out, route="chunked", progress=stop_at(phase, share))
    sandbox.reset()


@pytest.mark.parametrize("phase", ["queued", "downloading", "verifying"])
async def test_the_pieces_of_an_earlier_attempt_are_used(
    system: hpcbridge.System, sandbox: SandboxProcess, there: Path, tmp_path: Path, phase: str
) -> None:
    await interrupted(system, sandbox, tmp_path / "out", phase)
    kept = stage(sandbox)
    got = await get_file(system, "/home/alice/there", tmp_path / "out", route="chunked", progress=None)
    assert got.sha256 == sha256(there) == sha256(tmp_path / "out")
    if phase != "queued":
        assert jobs(sandbox) == 0
        assert fetched(sandbox) < PIECES
    assert not kept.exists()
    assert leftovers(sandbox) == []


@pytest.mark.parametrize("change", ["content", "resume=False"])
async def test_another_file_is_cut_anew(
    system: hpcbridge.System, sandbox: SandboxProcess, there: Path, tmp_path: Path, change: str
) -> None:
    await interrupted(system, sandbox, tmp_path / "out")
    if change == "content":
        random_file(there, SIZE)
        os.utime(there, (1_000_000_000, 1_000_000_000))
    resume = change == "content"
    got = await get_file(system, "/home/alice/there", tmp_path / "out", route="chunked", resume=resume)
    assert got.sha256 == sha256(there) == sha256(tmp_path / "out")
    assert jobs(sandbox) == 1
    assert leftovers(sandbox) == []


async def test_pieces_that_somebody_removed_are_cut_anew(
    system: hpcbridge.System, sandbox: SandboxProcess, there: Path, tmp_path: Path
) -> None:
    await interrupted(system, sandbox, tmp_path / "out")
    for path in stage(sandbox).glob("*.00*"):
        path.unlink()
    got = await get_file(system, "/home/alice/there", tmp_path / "out", route="chunked")
    assert got.sha256 == sha256(there) == sha256(tmp_path / "out")
    assert leftovers(sandbox) == []


async def test_pieces_that_are_damaged_are_cut_anew(
    system: hpcbridge.System, sandbox: SandboxProcess, there: Path, tmp_path: Path
) -> None:
    look = once("downloading", lambda: spoil(next(stage(sandbox).glob("*.000001"))))
    got = await get_file(system, "/home/alice/there", tmp_path / "out", route="chunked", progress=look)
    assert got.sha256 == sha256(there) == sha256(tmp_path / "out")
    assert jobs(sandbox) == 2
    assert leftovers(sandbox) == []


async def test_pieces_that_are_damaged_every_time_are_an_error(
    system: hpcbridge.System, sandbox: SandboxProcess, there: Path, tmp_path: Path
) -> None:
    def look(progress: Progress) -> None:
        if progress.phase == "downloading" and progress.done == 0:
            spoil(next(stage(sandbox).glob("*.000001")))

    def always(progress: Progress) -> None:
        # An even number of times would mend it.
        if progress.phase == "downloading" and progress.done == 0 and (name := stage(sandbox).name) not in seen:
            seen.add(name)
            look(progress)

    seen: set[str] = set()
    with pytest.raises(IntegrityError, match="damaged"):
        await get_file(system, "/home/alice/there", tmp_path / "out", route="chunked", progress=always)
    assert not (tmp_path / "out").exists()
    assert leftovers(sandbox) == []


async def test_a_second_download_to_the_same_place_is_told(
    system: hpcbridge.System, sandbox: SandboxProcess, there: Path, tmp_path: Path
) -> None:
    sandbox.post("/faults", [{"path": "*/ops/download", "kind": "latency", "seconds": 0.15}])
    first = asyncio.ensure_future(get_file(system, "/home/alice/there", tmp_path / "out", route="chunked"))
    while not list((tmp_path / "state" / "transfers").glob("*")):
        await asyncio.sleep(0.02)
    with pytest.raises(Conflict):
        await get_file(system, "/home/alice/there", tmp_path / "out", route="chunked")
    # Another place is another transfer.
    await get_file(system, "/home/alice/there", tmp_path / "other", route="chunked")
    await first
    assert sha256(tmp_path / "out") == sha256(there) == sha256(tmp_path / "other")


async def test_a_checksum_job_that_nobody_waited_for_leaves_no_directory(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    source = random_file(tmp_path / "in", 1000)
    sandbox.post("/faults", [TOO_SLOW])

    def stop(progress: Progress) -> None:
        if progress.phase == "queued":
            raise Stop

    with pytest.raises(Stop):
        await put_file(system, source, "/home/alice/sum", verify="sha256", progress=stop)
    assert stage(sandbox)
    sent = await put_file(system, source, "/home/alice/sum", verify="sha256")
    assert sent.sha256 == sha256(source)
    assert leftovers(sandbox) == []


@pytest.mark.parametrize("route", ["direct", "chunked", pytest.param("s3", marks=pytest.mark.needs("curl"))])
async def test_an_upload_that_is_damaged_over_there_is_noticed_and_sent_again(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, route: str
) -> None:
    source = random_file(tmp_path / "in", 2_000_000 if route == "direct" else SIZE)
    target = sandbox.host_path(f"/home/alice/damaged-{route}")

    def damage() -> None:
        if route == "chunked":
            (pieces,) = sandbox.host_path("/home/alice").glob(".hpcbridge-put-*")
            spoil(next(pieces.glob("*.000002")))
        else:
            spoil(target)

    look = once("queued" if route == "chunked" else "verifying", damage)
    sent = await put_file(system, source, f"/home/alice/damaged-{route}", route=route, progress=look)
    assert sent.sha256 == sha256(source) == sha256(target)
    assert leftovers(sandbox) == []


@pytest.mark.parametrize("route", ["direct", "chunked", pytest.param("s3", marks=pytest.mark.needs("curl"))])
async def test_a_download_that_is_damaged_here_is_noticed_and_fetched_again(
    system: hpcbridge.System, sandbox: SandboxProcess, there: Path, tmp_path: Path, route: str
) -> None:
    """By a fault in what was written, as a bad disk or a stray writer makes it."""
    if route == "direct":
        random_file(there, 2_000_000)
    from hpcbridge.staging import partfile

    def damaged() -> None:
        spoil(partfile.part_path(tmp_path / "out"))

    # Half of it is there and hashed when its first range is changed: so the interrupted one is gone on with.
    if route != "direct":
        with pytest.raises(Stop):
            await get_file(system, "/home/alice/there", tmp_path / "out", route=route, progress=stop_at("verifying"))
        damaged()
    got = await get_file(system, "/home/alice/there", tmp_path / "out", route=route)
    assert got.sha256 == sha256(there) == sha256(tmp_path / "out")
    assert leftovers(sandbox) == []


@pytest.mark.needs("curl")
@pytest.mark.parametrize("route", ["chunked", "s3"])
async def test_sha256_is_compared_by_a_job_where_the_command_has_too_little_time(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, route: str
) -> None:
    source = random_file(tmp_path / "in", 2_000_000_000 if PROVE else SIZE)
    sandbox.post("/faults", [TOO_SLOW])
    sent = await put_file(system, source, "/home/alice/huge", route=route, verify="sha256")
    assert sent.sha256 == sha256(source) == sha256(sandbox.host_path("/home/alice/huge"))
    got = await get_file(system, "/home/alice/huge", tmp_path / "out", route=route, verify="sha256")
    assert got.sha256 == sent.sha256 == sha256(tmp_path / "out")
    assert (await get_file(system, "/home/alice/huge", tmp_path / "out", route=route, verify="size")).sha256 is None
    assert leftovers(sandbox) == []
    sandbox.host_path("/home/alice/huge").unlink()
