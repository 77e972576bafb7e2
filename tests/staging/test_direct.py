"""Small files: one request each way, checked."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import hpcbridge
from hpcbridge.errors import (
    IntegrityError,
    InvalidPath,
    InvalidRequest,
    PathNotFound,
    PermissionDenied,
    TooLarge,
    TransferError,
)
from hpcbridge.staging import Progress, get_file, put_file
from support.sandbox import SandboxProcess
from support.staging import connected, leftovers, random_file


@pytest.fixture
async def system(
    sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[hpcbridge.System]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    async with connected(sandbox) as system:
        yield system


@pytest.mark.parametrize(
    "size", [1, 10_000, 3_932_157, *(pytest.param(n, marks=pytest.mark.needs("curl")) for n in (3_932_158, 5_242_880))]
)
async def test_a_small_file_goes_there_and_back(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, size: int
) -> None:
    source = random_file(tmp_path / "in", size)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    before = system.client.session.requests
    sent = await put_file(system, source, "/home/alice/small.bin")
    assert (sent.route, sent.bytes, sent.sha256) == ("direct", size, digest)
    # Systems (once), the upload, its checksum.
    assert system.client.session.requests - before <= 3
    assert sandbox.host_path("/home/alice/small.bin").read_bytes() == source.read_bytes()
    got = await get_file(system, "/home/alice/small.bin", tmp_path / "out")
    assert got.route == ("direct" if size <= 3_932_157 else "s3")
    assert (got.bytes, got.sha256) == (size, digest)
    assert (tmp_path / "out").read_bytes() == source.read_bytes()
    assert leftovers(sandbox) == []


@pytest.mark.parametrize("atomic", [False, True])
async def test_an_empty_file_goes_there_and_back(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, atomic: bool
) -> None:
    source = random_file(tmp_path / "in", 0)
    sent = await put_file(system, source, f"/home/alice/empty-{atomic}", atomic=atomic)
    assert sent.bytes == 0
    assert sandbox.host_path(f"/home/alice/empty-{atomic}").read_bytes() == b""
    got = await get_file(system, f"/home/alice/empty-{atomic}", tmp_path / "out")
    assert (got.bytes, (tmp_path / "out").read_bytes()) == (0, b"")
    assert leftovers(sandbox) == []


ODD = [
    "sp ace",
    "ünï\u20accode",
    "-rf",
    'quo"te',
    "it's",
    "new\nline",
    "tab\there",
    "back\\slash",
    "$HOME;`id`&<>",
    "\udcff",
]


@pytest.mark.parametrize("name", ODD)
async def test_odd_names_arrive_as_they_are(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, name: str
) -> None:
    source = random_file(tmp_path / "in", 1000)
    await put_file(system, source, f"/home/alice/{name}")
    assert name in [path.name for path in sandbox.host_path("/home/alice").iterdir()]
    await get_file(system, f"/home/alice/{name}", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == source.read_bytes()
    sandbox.host_path(f"/home/alice/{name}").unlink()
    assert leftovers(sandbox) == []


async def test_what_cannot_travel_is_refused_before_anything_is_sent(system: hpcbridge.System, tmp_path: Path) -> None:
    source = random_file(tmp_path / "in", 10)
    before = system.client.session.requests
    for path in ["relative", "/home/it's/x", "/home/a\nb/x", "/home/alice/../bob/x", "/home/alice/" + "n" * 256]:
        with pytest.raises(InvalidPath):
            await put_file(system, source, path)
        with pytest.raises(InvalidPath):
            await get_file(system, path, tmp_path / "out")
    with pytest.raises(InvalidRequest, match="directory"):
        await put_file(system, tmp_path, "/home/alice/x")
    with pytest.raises(FileNotFoundError):
        await put_file(system, tmp_path / "no", "/home/alice/x")
    with pytest.raises(InvalidRequest, match="verify"):
        await put_file(system, source, "/home/alice/x", verify="crc")
    assert system.client.session.requests == before
    with pytest.raises(InvalidPath, match="file systems"):
        await put_file(system, source, "/etc/x")
    with pytest.raises(TooLarge):
        await put_file(system, random_file(tmp_path / "big", 5_242_881), "/home/alice/x", route="direct")


async def test_what_is_not_there_or_not_allowed_is_said(system: hpcbridge.System, tmp_path: Path) -> None:
    source = random_file(tmp_path / "in", 10)
    with pytest.raises(PathNotFound):
        await put_file(system, source, "/home/alice/no/such/x")
    with pytest.raises(PathNotFound):
        await get_file(system, "/home/alice/no-such-file", tmp_path / "out")
    with pytest.raises(PermissionDenied):
        await put_file(system, source, "/home/bob/x")
    with pytest.raises(InvalidPath, match="directory"):
        await get_file(system, "/home/alice", tmp_path / "out")
    assert not (tmp_path / "out").exists()


async def test_a_directory_as_target_means_inside_it(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    source = random_file(tmp_path / "in.dat", 10)
    await put_file(system, source, "/home/alice/")
    assert sandbox.host_path("/home/alice/in.dat").read_bytes() == source.read_bytes()
    (tmp_path / "here").mkdir()
    await get_file(system, "/home/alice/in.dat", tmp_path / "here")
    assert (tmp_path / "here" / "in.dat").read_bytes() == source.read_bytes()


async def test_links_are_followed_on_both_sides(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    source = random_file(tmp_path / "in", 1000)
    await put_file(system, source, "/home/alice/real")
    sandbox.host_path("/home/alice/link").symlink_to("real")
    (tmp_path / "out").symlink_to("target")
    await get_file(system, "/home/alice/link", tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    other = random_file(tmp_path / "other", 500)
    for atomic in (False, True):
        await put_file(system, other, "/home/alice/link", atomic=atomic)
        assert sandbox.host_path("/home/alice/link").is_symlink()
        assert sandbox.host_path("/home/alice/real").read_bytes() == other.read_bytes()
    sandbox.host_path("/home/alice/link").unlink()


@pytest.mark.parametrize(("verify", "compared"), [("auto", True), ("sha256", True), ("size", False), (None, False)])
async def test_verification_is_what_was_asked_for(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, verify: str | None, compared: bool
) -> None:
    source = random_file(tmp_path / "in", 1000)
    sent = await put_file(system, source, "/home/alice/v", verify=verify)
    got = await get_file(system, "/home/alice/v", tmp_path / "out", verify=verify)
    assert (sent.sha256 is not None, got.sha256 is not None) == (compared, compared)


async def test_sha256_is_had_by_a_job_where_the_command_gives_none(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    source = random_file(tmp_path / "in", 1000)
    sandbox.post("/faults", [{"method": "GET", "path": "*/ops/checksum", "kind": "status", "status": 408}])
    assert (await put_file(system, source, "/home/alice/v")).sha256 is None
    sent = await put_file(system, source, "/home/alice/v", verify="sha256")
    assert sent.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert leftovers(sandbox) == []


async def test_an_upload_that_arrives_damaged_is_noticed(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    source = random_file(tmp_path / "in", 1000)
    # The upload is acknowledged without having been done: what lies there is something else.
    await put_file(system, random_file(tmp_path / "other", 1000), "/home/alice/d")
    rule = {"method": "POST", "path": "*/ops/upload", "kind": "status", "status": 204}
    sandbox.post("/faults", [rule])
    with pytest.raises(IntegrityError):
        await put_file(system, source, "/home/alice/d")
    sandbox.delete("/faults")
    sandbox.post("/faults", [rule | {"count": 1}])
    assert (await put_file(system, source, "/home/alice/d")).sha256 is not None


async def test_progress_ends_at_the_size_and_its_exception_ends_the_transfer(
    system: hpcbridge.System, tmp_path: Path
) -> None:
    source = random_file(tmp_path / "in", 1000)
    seen: list[Progress] = []
    await put_file(system, source, "/home/alice/p", progress=seen.append)
    assert [(p.phase, p.done, p.total) for p in seen][-1] == ("done", 1000, 1000)

    def stop(_: Progress) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError):
        await get_file(system, "/home/alice/p", tmp_path / "out", progress=stop)
    assert not (tmp_path / "out").exists()


async def test_a_file_that_grows_is_received_as_it_was_at_one_moment(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    import asyncio

    path = sandbox.host_path("/home/alice/growing")
    path.write_bytes(b"")

    async def grow() -> None:
        with path.open("ab", buffering=0) as file:
            while True:
                file.write(b"0123456789")
                await asyncio.sleep(0.001)

    growing = asyncio.ensure_future(grow())
    try:
        got = await get_file(system, "/home/alice/growing", tmp_path / "out", verify="size")
    except TransferError as error:
        pytest.fail(str(error))
    finally:
        growing.cancel()
    assert (tmp_path / "out").stat().st_size == got.bytes
    assert path.read_bytes().startswith((tmp_path / "out").read_bytes())
