"""`put_tree` against a real sandbox: where it stages, what it refuses, and what others see."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import hpcbridge
from hpcbridge.errors import (
    AlreadyExists,
    InvalidPath,
    InvalidRequest,
    JobFailed,
    PathNotFound,
    PermissionDenied,
    TooLarge,
    TransferError,
)
from hpcbridge.staging import Progress, keyed_jobs
from hpcbridge.staging.trees.download import get_tree
from hpcbridge.staging.trees.entries import Entry, Kind, Member
from hpcbridge.staging.trees.patterns import Filter
from hpcbridge.staging.trees.results import Action
from hpcbridge.staging.trees.upload import put_tree
from support.sandbox import SandboxProcess, start_sandbox
from support.staging import clear_leftovers, connected, leftovers
from support.trees import Directory, File, Link, make, snapshot

TREE = Directory(
    {
        b"a": Directory({b"x": File((b"1",), 0o600), b"closed": Directory({b"y": File((b"2",), 0o400)}, 0o555)}, 0o750),
        b"empty": Directory({}, 0o700),
        b"new\nline 'quoted'": File((b"3",)),
        b"link": Link(b"/etc/passwd"),
    }
)
HOME = "/home/alice"


@pytest.fixture
async def system(
    sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[hpcbridge.System]:
    monkeypatch.setattr(keyed_jobs, "ANSWER_LAG", 2.0)
    async with connected(sandbox) as system:
        yield system
    clear_leftovers(sandbox)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    where = tmp_path / "tree"
    where.mkdir(mode=0o750)
    make(where, TREE)
    return where


def calls(sandbox: SandboxProcess) -> dict[str, int]:
    """Requests besides the token, /status/systems, and looks at the job and its answer."""
    polls = ("GET /compute", "GET /status/systems", "GET /filesystem/{}/ops/download")
    counts = sandbox.get("/requests")["counts"]
    return {name: count for name, count in counts.items() if not name.startswith(polls)}


async def test_a_small_tree_costs_five_calls_and_keeps_all(
    any_sandbox: SandboxProcess, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Progress] = []
    async with connected(any_sandbox) as system:
        any_sandbox.delete("/requests")
        sent = await put_tree(system, tree, f"{HOME}/put-small/", progress=seen.append)
    assert calls(any_sandbox) == {
        "GET /filesystem/{}/ops/stat": 1,
        "POST /filesystem/{}/ops/mkdir": 1,
        "POST /filesystem/{}/ops/upload": 1,
        "POST /compute/{}/jobs": 1,
        "DELETE /filesystem/{}/ops/rm": 1,
    }
    there = any_sandbox.host_path(f"{HOME}/put-small")
    assert snapshot(there) == snapshot(tree)
    assert there.stat().st_mode & 0o777 == 0o750
    assert leftovers(any_sandbox) == []
    assert (sent.files, sent.directories, sent.links, sent.skipped) == (3, 3, 1, [])
    assert sent.sha256
    phases = [p.phase for p in seen]
    assert [each for i, each in enumerate(phases) if each not in phases[:i]][:3] == ["checking", "uploading", "queued"]
    assert (seen[-1].phase, seen[-1].done, seen[-1].total) == ("done", sent.bytes, sent.bytes)
    shutil.rmtree(there)


async def test_the_same_tree_again_is_merged_with_what_is_there(
    system: hpcbridge.System, sandbox: SandboxProcess, tree: Path
) -> None:
    await put_tree(system, tree, f"{HOME}/put-twice")
    there = sandbox.host_path(f"{HOME}/put-twice")
    (there / "a" / "result").write_text("a job's")
    (there / "a" / "x").write_text("changed there")
    (tree / "a" / "x").write_text("changed here")
    await put_tree(system, tree, f"{HOME}/put-twice")
    found, wanted = snapshot(there), snapshot(tree)
    assert {path: found[path] for path in wanted} == wanted
    assert found.keys() - wanted.keys() == {b"a/result"}
    assert leftovers(sandbox) == []


async def test_directories_above_are_made(system: hpcbridge.System, sandbox: SandboxProcess, tree: Path) -> None:
    await put_tree(system, tree, f"{HOME}/put-not/there/yet")
    assert snapshot(sandbox.host_path(f"{HOME}/put-not/there/yet")) == snapshot(tree)
    assert os.listdir(sandbox.host_path(f"{HOME}/put-not/there")) == ["yet"]  # noqa: PTH208


async def test_a_directory_whose_parent_is_not_ours_is_staged_inside(
    system: hpcbridge.System, sandbox: SandboxProcess, tree: Path
) -> None:
    seen: set[str] = set()

    def look(progress: Progress) -> None:
        if progress.phase == "uploading":
            seen.update(p.name for p in sandbox.host_path(HOME).glob(".hpcbridge-put-*"))

    kept = snapshot(sandbox.host_path(HOME))
    await put_tree(system, tree, HOME, progress=look)
    assert seen
    found = snapshot(sandbox.host_path(HOME))
    assert {path: found[path] for path in snapshot(tree)} == snapshot(tree)
    assert kept.keys() <= found.keys()
    assert leftovers(sandbox) == []
    for name in TREE.children:
        subprocess.run(["rm", "-rf", os.fsencode(sandbox.host_path(HOME)) + b"/" + name], check=True)


async def test_refused_before_anything_is_sent(
    system: hpcbridge.System, sandbox: SandboxProcess, tree: Path, tmp_path: Path
) -> None:
    sandbox.host_path(f"{HOME}/file").write_text("in the way")
    sandbox.delete("/requests")
    for error, remote, options in [
        (InvalidPath, "relative", {}),
        (InvalidPath, f"{HOME}/it's", {}),
        (InvalidPath, f"{HOME}/new\nline", {}),
        (InvalidPath, f"{HOME}/up/../down", {}),
        (InvalidPath, "/", {}),
        (InvalidPath, "/etc/ours", {}),
        (AlreadyExists, f"{HOME}/file", {}),
        (TooLarge, f"{HOME}/large", {"max_size": 2}),
        (InvalidRequest, f"{HOME}/route", {"route": "pigeon"}),
        (InvalidRequest, f"{HOME}/route", {"route": "direct"}),
        (TransferError, f"{HOME}/route", {"route": "streamer"}),
        (InvalidRequest, f"{HOME}/verify", {"verify": "perhaps"}),
    ]:
        with pytest.raises(error):
            await put_tree(system, tree, remote, **options)
    for local, error in [(tmp_path / "missing", PathNotFound), (tree / "a" / "x", InvalidPath)]:
        with pytest.raises(error):
            await put_tree(system, local, f"{HOME}/x")
    assert not any(name.startswith(("POST", "DELETE")) for name in calls(sandbox))
    assert leftovers(sandbox) == []


async def test_what_is_in_the_way_there_is_said_and_nothing_is_changed(
    system: hpcbridge.System, sandbox: SandboxProcess, tree: Path
) -> None:
    await put_tree(system, tree, f"{HOME}/put-way")
    there = sandbox.host_path(f"{HOME}/put-way")
    (there / "empty").rmdir()
    (there / "empty").write_text("a file now")
    before = snapshot(there)
    (tree / "a" / "x").write_text("changed")
    with pytest.raises(AlreadyExists, match="empty"):
        await put_tree(system, tree, f"{HOME}/put-way")
    assert snapshot(there) == before


async def test_a_place_that_is_not_ours_is_permission_denied(
    system: hpcbridge.System, sandbox: SandboxProcess, tree: Path
) -> None:
    closed = sandbox.host_path(f"{HOME}/put-closed")
    closed.mkdir(mode=0o555)  # root's
    with pytest.raises(PermissionDenied):
        await put_tree(system, tree, f"{HOME}/put-closed/new")
    inner = closed / "inner"
    inner.mkdir(mode=0o555)
    with pytest.raises(PermissionDenied):
        await put_tree(system, tree, f"{HOME}/put-closed/inner")
    shutil.rmtree(closed)


async def test_a_directory_in_which_no_job_can_start_is_refused_before_anything_is_sent(
    system: hpcbridge.System, sandbox: SandboxProcess, tree: Path
) -> None:
    await system.mkdir(f'{HOME}/put-q"')
    with pytest.raises(InvalidPath, match="no job"):
        await put_tree(system, tree, f'{HOME}/put-q"/tree')
    # Its own name may be anything that a call can name: the job is started beside it.
    await put_tree(system, tree, f'{HOME}/put-q"')
    assert snapshot(sandbox.host_path(f'{HOME}/put-q"')) == snapshot(tree)
    assert leftovers(sandbox) == []


@pytest.mark.parametrize("mode", ["hybrid", "rest"])
async def test_other_scheduler_modes(tree: Path, tmp_path: Path, mode: str) -> None:
    with start_sandbox("--user", "alice", "--accounting-lag", "1", "--scheduler-mode", mode) as sandbox:
        async with connected(sandbox) as system:
            await put_tree(system, tree, f"{HOME}/modes")
            await get_tree(system, f"{HOME}/modes", tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tree)


async def test_a_dry_run_says_what_would_be_sent(system: hpcbridge.System, sandbox: SandboxProcess, tree: Path) -> None:
    sandbox.delete("/requests")
    said = await put_tree(system, tree, f"{HOME}/put-dry", dry_run=True, filter=Filter(exclude=("a/closed",)))
    assert calls(sandbox) == {}
    assert (said.route, said.files, said.directories, said.links, said.bytes) == (None, 2, 2, 1, 2)
    assert {(c.path, c.action, c.kind) for c in said.changes} >= {(b"a/x", Action.COPY, Kind.FILE)}


async def test_patterns_sizes_and_what_cannot_be_sent(
    system: hpcbridge.System, sandbox: SandboxProcess, tree: Path
) -> None:
    os.mkfifo(tree / "pipe")
    (tree / "large").write_bytes(bytes(5000))
    (tree / "a" / "core.123").write_text("x")
    sent = await put_tree(system, tree, f"{HOME}/put-part", filter=Filter(exclude=("core.*",), max_file_size=4999))
    found = snapshot(sandbox.host_path(f"{HOME}/put-part"))
    assert found.keys() == snapshot(tree).keys() - {b"pipe", b"large", b"a/core.123"}
    assert sorted(skipped.path for skipped in sent.skipped) == [b"large", b"pipe"]


async def test_members_come_from_anywhere(system: hpcbridge.System, sandbox: SandboxProcess, tree: Path) -> None:
    members = [
        Member(Entry(b"d", Kind.DIRECTORY, 0o700)),
        Member(Entry(b"d/x", Kind.FILE, 0o600, 1), local=tree / "a" / "x"),
        Member(Entry(b"made", Kind.FILE, 0o644, 4), data=b"data"),
    ]
    sent = await put_tree(system, members, f"{HOME}/put-members")
    there = sandbox.host_path(f"{HOME}/put-members")
    assert ((there / "d" / "x").read_text(), (there / "made").read_text()) == ("1", "data")
    assert (sent.files, sent.directories) == (2, 1)


async def test_only_the_size_where_asked(system: hpcbridge.System, sandbox: SandboxProcess, tree: Path) -> None:
    sent = await put_tree(system, tree, f"{HOME}/put-size", verify="size")
    assert sent.sha256 is None
    assert snapshot(sandbox.host_path(f"{HOME}/put-size")) == snapshot(tree)


@pytest.mark.needs("curl")
async def test_through_the_object_store(system: hpcbridge.System, sandbox: SandboxProcess, tree: Path) -> None:
    (tree / "data").write_bytes(os.urandom(12_000_000))
    sent = await put_tree(system, tree, f"{HOME}/put-store", route="s3")
    assert sent.route == "s3"
    assert snapshot(sandbox.host_path(f"{HOME}/put-store")) == snapshot(tree)
    assert leftovers(sandbox) == []


async def test_text_is_compressed(system: hpcbridge.System, sandbox: SandboxProcess, tree: Path) -> None:
    (tree / "text").write_text("the same words again and again\n" * 100_000)
    sent = await put_tree(system, tree, f"{HOME}/put-text")
    assert sent.bytes < 300_000
    assert snapshot(sandbox.host_path(f"{HOME}/put-text")) == snapshot(tree)


async def test_a_damaged_piece_is_sent_again(system: hpcbridge.System, sandbox: SandboxProcess, tree: Path) -> None:
    (tree / "data").write_bytes(os.urandom(12_000_000))
    spoiled: list[Path] = []

    def spoil(progress: Progress) -> None:
        if progress.phase == "queued" and not spoiled:
            spoiled.extend(sandbox.host_path(HOME).glob(".hpcbridge-put-*/*.000001"))
            spoiled[0].write_bytes(bytes(spoiled[0].stat().st_size))

    sandbox.delete("/requests")
    await put_tree(system, tree, f"{HOME}/put-spoiled", progress=spoil)
    assert spoiled
    assert calls(sandbox)["POST /filesystem/{}/ops/upload"] == 4
    assert snapshot(sandbox.host_path(f"{HOME}/put-spoiled")) == snapshot(tree)
    assert leftovers(sandbox) == []


async def test_a_job_that_somebody_cancels_is_an_error_and_the_next_call_goes_on(
    system: hpcbridge.System, sandbox: SandboxProcess, tree: Path
) -> None:
    # Large, so that its job still runs when it is cancelled.
    (tree / "data").write_bytes(os.urandom(60_000_000))
    cancelled: list[str] = []
    with sandbox.client() as client:

        def cancel(progress: Progress) -> None:
            if progress.detail.startswith("job ") and not cancelled:
                cancelled.append(progress.detail.split()[1])
                client.delete(f"/compute/{sandbox.system}/jobs/{cancelled[0]}").raise_for_status()

        for turn in range(5):  # on a busy machine a job may be over before it is cancelled
            cancelled.clear()
            target = f"{HOME}/put-cancelled{turn}"
            try:
                await put_tree(system, tree, target, progress=cancel)
            except JobFailed:
                break
        else:
            pytest.fail("every job was over before it could be cancelled")
    assert not sandbox.host_path(target).exists()
    sandbox.delete("/requests")
    await put_tree(system, tree, target)
    assert "POST /filesystem/{}/ops/upload" not in calls(sandbox)
    assert snapshot(sandbox.host_path(target)) == snapshot(tree)
    assert leftovers(sandbox) == []


async def test_a_tree_that_changes_meanwhile_is_not_published(
    system: hpcbridge.System, sandbox: SandboxProcess, tree: Path
) -> None:
    (tree / "data").write_bytes(os.urandom(12_000_000))

    def touch(progress: Progress) -> None:
        if progress.phase == "uploading":
            (tree / "a" / "x").write_text("changed")

    with pytest.raises(TransferError, match="changed"):
        await put_tree(system, tree, f"{HOME}/put-moving", progress=touch)
    assert not sandbox.host_path(f"{HOME}/put-moving").exists()
