"""cp, mv, rm, mkdir, du and reading on the sandbox: by requests where they are enough, else by one job."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

import hpcbridge
from hpcbridge.errors import (
    Conflict,
    HpcBridgeError,
    IntegrityError,
    InvalidPath,
    IsDirectory,
    PathNotFound,
    PermissionDenied,
    SomeFailed,
)
from hpcbridge.staging import Progress
from support.sandbox import SandboxProcess
from support.staging import connected, leftovers

ODD = ["it's", "new\nline", "größe", "-rf", 'double"quote', "back\\slash", "not utf-8 \udcff"]


@pytest.fixture
async def system(sandbox: SandboxProcess) -> AsyncIterator[hpcbridge.System]:
    async with connected(sandbox) as system:
        yield system
    assert leftovers(sandbox) == []


@pytest.fixture
async def there(system: hpcbridge.System, tmp_path: Path) -> AsyncIterator[str]:
    """A directory of alice's."""
    path = f"/home/alice/{tmp_path.name}"
    await system.mkdir(path)
    yield path
    await system.rm(path, missing_ok=True)


async def write(system: hpcbridge.System, path: str, content: bytes = b"content") -> str:
    await system.client.upload(system.name, path.rpartition("/")[0], path.rpartition("/")[2], content)
    return path


async def names(system: hpcbridge.System, path: str) -> list[str]:
    return sorted(entry.name for entry in await system.ls(path, hidden=True))


def submits(sandbox: SandboxProcess) -> int:
    counts = sandbox.get("/requests")["counts"]
    return sum(count for each, count in counts.items() if each.startswith("POST") and each.endswith("/jobs"))


async def test_on_either_scheduler_a_tree_is_copied_moved_read_and_measured(
    any_sandbox: SandboxProcess, tmp_path: Path
) -> None:
    path = f"/home/alice/{tmp_path.name}"
    async with connected(any_sandbox) as system:
        await system.mkdir(f"{path}/tree/sub")
        await write(system, f"{path}/tree/sub/f")
        await system.cp(f"{path}/tree", f"{path}/it's\na copy", recursive=True)
        await system.mv([f"{path}/it's\na copy", f"{path}/tree"], "/scratch/alice/")
        assert await names(system, path) == []
        assert b"".join([block async for block in system.read("/scratch/alice/it's\na copy/sub/f")]) == b"content"
        assert (await system.du("/scratch/alice/it's\na copy")).bytes == 7
        await system.rm(["/scratch/alice/it's\na copy", "/scratch/alice/tree", path])
    assert leftovers(any_sandbox) == []


async def test_many_paths_are_one_job(sandbox: SandboxProcess, system: hpcbridge.System, there: str) -> None:
    sources = [await write(system, f"{there}/{index}") for index in range(5)]
    await system.mkdir(f"{there}/d")
    sandbox.delete("/requests")
    await system.cp(sources, f"{there}/d")
    assert submits(sandbox) == 1
    assert await names(system, f"{there}/d") == [str(index) for index in range(5)]
    await system.mv(sources[:2], f"{there}/d/")
    assert submits(sandbox) == 2
    assert await names(system, there) == ["2", "3", "4", "d"]


async def test_trees_are_copied_and_renamed(system: hpcbridge.System, there: str) -> None:
    await system.mkdir(f"{there}/tree/sub")
    await write(system, f"{there}/tree/sub/f")
    await system.cp(f"{there}/tree", f"{there}/copy", recursive=True)
    await system.mv(f"{there}/copy", f"{there}/renamed")
    assert await names(system, there) == ["renamed", "tree"]
    assert await system.read_bytes(f"{there}/renamed/sub/f") == b"content"


async def test_failures_are_told_path_by_path_and_the_rest_is_done(system: hpcbridge.System, there: str) -> None:
    good = await write(system, f"{there}/good")
    await system.mkdir([f"{there}/target", f"{there}/tree"])
    with pytest.raises(SomeFailed) as failed:
        await system.cp([f"{there}/missing", good, f"{there}/tree", "/etc/passwd"], f"{there}/target")
    kinds = {path: type(error) for path, error in failed.value.failures.items()}
    assert kinds == {f"{there}/missing": PathNotFound, f"{there}/tree": Conflict, "/etc/passwd": InvalidPath}
    assert "omitting directory" in str(failed.value)
    assert await names(system, f"{there}/target") == ["good"]


async def test_one_path_raises_its_own_error(system: hpcbridge.System, there: str) -> None:
    with pytest.raises(PathNotFound, match="cannot stat"):
        await system.cp(f"{there}/missing", f"{there}/x")
    with pytest.raises(PermissionDenied):
        await system.mv(await write(system, f"{there}/f"), "/home/bob/f")
    with pytest.raises(PathNotFound):
        await system.rm(f"{there}/missing")
    with pytest.raises(Conflict, match="Is a directory"):
        await system.rm(there, recursive=False)
    with pytest.raises(InvalidPath):
        await system.cp(f"{there}/f", "/tmp/f")
    with pytest.raises(InvalidPath):
        await system.cp(f"{there}/f", f"{there}/../g")
    assert await names(system, there) == ["f"]


@pytest.mark.parametrize("name", ODD)
async def test_a_file_of_any_name_is_copied_read_measured_and_removed(
    system: hpcbridge.System, there: str, name: str
) -> None:
    await write(system, f"{there}/plain", b"12345")
    odd = f"{there}/{name}"
    await system.cp(f"{there}/plain", odd)
    assert b"".join([block async for block in system.read(odd)]) == b"12345"
    assert (await system.du(odd)).bytes == 5
    assert await system.glob(f"{there}/*") == sorted([odd, f"{there}/plain"])
    await system.rm(odd)
    assert await names(system, there) == ["plain"]


async def test_a_directory_of_any_name_is_made_listed_and_removed(system: hpcbridge.System, there: str) -> None:
    odd = f"{there}/it's\na directory"
    await system.mkdir(f"{odd}/sub")
    await write(system, f"{there}/f")
    await system.mv(f"{there}/f", odd)
    assert await names(system, odd) == ["f", "sub"]
    assert b"".join([block async for block in system.read(f"{odd}/f")]) == b"content"
    assert [usage.path for usage in (await system.du(odd)).below] == [f"{odd}/sub"]
    await system.rm(odd)
    assert await names(system, there) == []


@pytest.mark.parametrize("path", ["/", "/home", "/home/", "/home/alice", "/home/alice/", "/scratch"])
async def test_what_is_dear_is_not_removed(sandbox: SandboxProcess, system: hpcbridge.System, path: str) -> None:
    sandbox.delete("/requests")
    with pytest.raises(InvalidPath):
        await system.rm(path)
    with pytest.raises(InvalidPath):
        await system.mv(path, "/scratch/x")
    assert not any(each.startswith(("DELETE", "POST")) for each in sandbox.get("/requests")["counts"])


async def test_inside_a_removed_directory_nothing_is_removed_twice(system: hpcbridge.System, there: str) -> None:
    await system.mkdir(f"{there}/a/b")
    await system.rm([f"{there}/a/b", f"{there}/a", f"{there}/a"])
    assert await names(system, there) == []


async def test_a_removal_that_takes_too_long_goes_on_as_a_job(
    sandbox: SandboxProcess, system: hpcbridge.System, there: str
) -> None:
    kept, slow = await write(system, f"{there}/kept"), await write(system, f"{there}/slow")
    rule = {"method": "DELETE", "path": "*/ops/rm", "kind": "status", "status": 408, "message": "Command timed out"}
    sandbox.post("/faults", [rule])
    sandbox.delete("/requests")
    from hpcbridge.staging.remote import jobs, operations

    t = await jobs.context(system)
    await operations.remove(t, [slow])
    assert submits(sandbox) == 1
    sandbox.reset()
    assert await names(system, there) == ["kept"]
    await system.rm(kept)
    for directory in sandbox.host_path("/home/alice").glob(".hpcbridge-get-*"):  # the fault has kept it
        shutil.rmtree(directory)


async def test_a_lost_answer_copies_once(sandbox: SandboxProcess, system: hpcbridge.System, there: str) -> None:
    source = await write(system, f"{there}/f")
    rule = {"method": "POST", "path": "/compute/*/jobs", "kind": "drop_after", "count": 1}
    sandbox.post("/faults", [rule])
    await system.mv(source, f"{there}/g")
    assert await names(system, there) == ["g"]


async def test_du_adds_up_by_listing_and_by_job_alike(
    sandbox: SandboxProcess, system: hpcbridge.System, there: str
) -> None:
    await system.mkdir([f"{there}/a/deep/er", f"{there}/b"])
    for name, size in (("a/1", 100), ("a/deep/2", 20), ("a/deep/er/3", 3), (".hidden", 1000)):
        await write(system, f"{there}/{name}", b"x" * size)
    await system.client.symlink(system.name, f"{there}/a", f"{there}/link")
    listed = await system.du(there)
    assert (listed.bytes, listed.files, listed.directories, listed.links) == (1123, 4, 4, 1)
    assert [(each.path.removeprefix(there), each.bytes) for each in listed.below] == [
        ("/a/deep/er", 3),
        ("/a/deep", 23),
        ("/a", 123),
        ("/b", 0),
    ]
    rule = {"method": "GET", "path": "*/ops/ls", "kind": "status", "status": 408}
    sandbox.post("/faults", [rule])
    assert await system.du(there) == listed
    assert (await system.du(f"{there}/a/1")).bytes == 100
    sandbox.reset()
    assert (await system.du(f"{there}/a/1")).bytes == 100
    with pytest.raises(PathNotFound):
        await system.du(f"{there}/missing")
    with pytest.raises(PermissionDenied):
        await system.du("/home/bob")


@pytest.mark.parametrize("size", [1, 3_932_157, 3_932_158, 9_000_000])
async def test_reading_is_exact_at_any_size(
    sandbox: SandboxProcess, system: hpcbridge.System, there: str, size: int
) -> None:
    content = os.urandom(size)
    file = sandbox.host_path(f"{there}/f")
    await write(system, f"{there}/f")
    file.write_bytes(content)
    digest, seen = hashlib.sha256(), []
    async for block in system.read(f"{there}/f", progress=seen.append):
        digest.update(block)
    assert digest.digest() == hashlib.sha256(content).digest()
    if size > 3_932_157:
        queued = [report for report in seen if isinstance(report, Progress) and report.phase == "queued"]
        assert any("waits in the queue" in report.detail for report in queued)


async def test_who_stops_reading_leaves_nothing(sandbox: SandboxProcess, system: hpcbridge.System, there: str) -> None:
    await write(system, f"{there}/f")
    sandbox.host_path(f"{there}/f").write_bytes(bytes(20_000_000))
    async with aclosing(system.read(f"{there}/f")) as blocks:  # type: ignore[type-var]
        async for _ in blocks:
            break
    assert leftovers(sandbox) == []


async def test_what_is_damaged_on_its_way_is_told(
    sandbox: SandboxProcess, system: hpcbridge.System, there: str
) -> None:
    await write(system, f"{there}/f")
    sandbox.host_path(f"{there}/f").write_bytes(os.urandom(35_000_000))
    blocks = system.read(f"{there}/f")
    seen = len(await anext(blocks))
    (piece,) = sandbox.host_path("/home/alice").glob(".hpcbridge-get-*/*.000008")
    piece.write_bytes(bytes(piece.stat().st_size))

    async def rest() -> None:
        nonlocal seen
        async for block in blocks:
            seen += len(block)

    with pytest.raises(IntegrityError):
        await rest()
    assert seen == 35_000_000


async def test_an_empty_file_reads_as_nothing(sandbox: SandboxProcess, system: hpcbridge.System, there: str) -> None:
    await write(system, f"{there}/f")
    sandbox.host_path(f"{there}/f").write_bytes(b"")
    assert b"".join([block async for block in system.read(f"{there}/f")]) == b""


async def test_what_cannot_be_read_says_why(system: hpcbridge.System, there: str) -> None:
    cases: list[tuple[str, type[HpcBridgeError]]] = [
        (there, IsDirectory),
        (f"{there}/missing", PathNotFound),
        (f"{there}/mis'sing", PathNotFound),
        ("/home/bob/x", PermissionDenied),
        ("/etc/passwd", InvalidPath),
    ]
    for path, kind in cases:
        with pytest.raises(kind):
            async for _ in system.read(path):
                pass


async def test_a_directory_that_may_not_be_read_is_left_out_of_du_and_named(
    sandbox: SandboxProcess, system: hpcbridge.System, there: str
) -> None:
    await system.mkdir(f"{there}/closed")
    await write(system, f"{there}/f")
    await system.client.chmod(system.name, f"{there}/closed", "000")
    usage = await system.du(there)
    await system.client.chmod(system.name, f"{there}/closed", "700")
    assert (usage.bytes, usage.files) == (7, 1)
    assert "Permission denied" in usage.unread
    assert f"{there}/closed" in usage.unread
