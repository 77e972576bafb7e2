"""sync_up and sync_down against a real sandbox: what they send, what they cost, and how they end after whatever."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import hpcbridge
from hpcbridge.errors import (
    AlreadyExists,
    InvalidPath,
    PathNotFound,
    PermissionDenied,
    TooLarge,
)
from hpcbridge.staging import keyed_jobs
from hpcbridge.staging.trees import records
from hpcbridge.staging.trees import sync_up as sync_up_module
from hpcbridge.staging.trees.patterns import Filter
from hpcbridge.staging.trees.records import Record, RecordFile
from hpcbridge.staging.trees.results import Action
from hpcbridge.staging.trees.sync_down import sync_down
from hpcbridge.staging.trees.sync_up import sync_up
from support.node import seen
from support.pair import Pair, wiped
from support.sandbox import SandboxProcess
from support.scale import PROVE
from support.staging import connected

FILES = 10_000 if PROVE else 1_000
TESTS = Path(__file__).parents[1]


@pytest.fixture
def clean(any_sandbox: SandboxProcess) -> SandboxProcess:
    return wiped(any_sandbox)


@pytest.fixture
def pair(sandbox: SandboxProcess, tmp_path: Path) -> Pair:
    return Pair(wiped(sandbox), tmp_path / "tree")


@pytest.fixture
async def system(sandbox: SandboxProcess) -> AsyncIterator[hpcbridge.System]:
    async with connected(sandbox) as system:
        yield system


async def test_up_sends_what_changed_in_three_calls(clean: SandboxProcess, tmp_path: Path) -> None:
    pair = Pair(clean, tmp_path / "tree")
    pair.fill(pair.local, FILES)
    async with connected(clean) as system:
        first = await pair.up(system)
        assert (first.files, first.links, first.deleted, first.unchanged) == (FILES + 2, 1, 0, 0)
        assert pair.calls.total() <= 12
        assert pair.equal()

        nothing = await pair.up(system)
        assert (nothing.bytes, nothing.files, nothing.changes, nothing.route) == (0, 0, [], None)
        assert nothing.unchanged == len(seen(pair.local))
        assert pair.calls.total() == 2

        (pair.local / "d0" / "f 0").write_bytes(os.urandom(1000))
        one = await pair.up(system)
        assert [(change.path, change.action) for change in one.changes] == [(b"d0/f 0", Action.COPY)]
        assert one.bytes < 8192
        assert pair.calls.total() == 3
        assert pair.equal()

        (pair.local / "d0").rename(pair.local / "moved")
        (pair.local / "-").chmod(0o640)
        (pair.local / "new\nline").unlink()
        os.utime(pair.local / "d1" / "f 100", (1, 1))
        several = await pair.up(system, delete=True)
        actions = Counter(change.action for change in several.changes)
        # 100 files and their directory under another name; the old ones, and a file.
        assert actions == {Action.MOVE: 100, Action.COPY: 1, Action.CHANGE: 2, Action.DELETE: 102}
        assert several.bytes < 500 * 205
        assert pair.calls.total() == 3
        assert pair.equal()
    names = {path.name for path in pair.state.iterdir()}
    assert names >= {"manifest", "cache"}
    assert not [name for name in names if name.endswith((".work", ".000000", ".new", ".done"))]


async def test_down_receives_what_changed_in_three_calls(clean: SandboxProcess, tmp_path: Path) -> None:
    pair = Pair(clean, tmp_path / "tree")
    pair.fill(pair.there, FILES)
    async with connected(clean) as system:
        first = await pair.down(system)
        assert (first.files, first.links, first.deleted, first.unchanged) == (FILES + 2, 1, 0, 0)
        assert pair.equal()
        assert pair.calls.total() <= 20
        await pair.down(system)  # tells what is here now

        nothing = await pair.down(system)
        assert (nothing.files, nothing.changes, nothing.route) == (0, [], None)
        assert pair.calls.total() == 2

        (pair.there / "d0" / "f 0").write_bytes(os.urandom(1000))
        one = await pair.down(system)
        assert [(change.path, change.action) for change in one.changes] == [(b"d0/f 0", Action.COPY)]
        assert one.bytes < 8192
        assert pair.calls.total() == 2
        assert pair.equal()

        (pair.there / "d0").rename(pair.there / "moved")
        (pair.there / "-").chmod(0o640)
        (pair.there / "new\nline").unlink()
        os.utime(pair.there / "d1" / "f 100", (1, 1))
        several = await pair.down(system, delete=True)
        actions = Counter(change.action for change in several.changes)
        assert actions == {Action.MOVE: 100, Action.COPY: 1, Action.CHANGE: 2, Action.DELETE: 102}
        assert several.bytes < 500 * 205
        assert pair.calls.total() == 3
        assert pair.equal()
    assert {path.name for path in tmp_path.iterdir()} == {"tree"}


async def test_what_jobs_write_stays_and_what_they_change_is_set_right(pair: Pair, system: hpcbridge.System) -> None:
    pair.fill(pair.local, 3)
    await pair.up(system)
    (pair.there / "output").write_text("of a job")
    (pair.there / "d0" / "f 1").write_text("overwritten")
    (pair.there / "d0" / "f 2").unlink()
    (pair.there / "-").chmod(0o600)
    os.utime(pair.there / "new\nline", (7, 7))
    pair.give(pair.there)
    again = await pair.up(system)
    assert pair.calls["POST /compute/{}/jobs"] == 2
    assert sorted(change.path for change in again.changes) == [b"-", b"d0/f 1", b"d0/f 2", b"new\nline"]
    assert (pair.there / "output").read_text() == "of a job"
    assert seen(pair.there).items() >= seen(pair.local).items()
    gone = await pair.up(system, delete=True)
    assert ([change.path for change in gone.changes], gone.deleted) == ([b"output"], 1)
    assert pair.equal()


async def test_a_dry_run_tells_and_changes_nothing(pair: Pair, system: hpcbridge.System) -> None:
    pair.fill(pair.local, 3)
    home = sorted(pair.there.parent.iterdir())
    before = await sync_up(system, pair.local, pair.remote, dry_run=True)
    assert len(before.changes) == len(seen(pair.local))
    assert sorted(pair.there.parent.iterdir()) == home
    await pair.up(system)
    (pair.local / "d0" / "f 0").write_text("other")
    (pair.local / "-").chmod(0o600)
    (pair.local / "empty").rmdir()
    (pair.there / "output").write_text("of a job")
    pair.give(pair.there)
    ours, theirs = seen(pair.local), seen(pair.there)
    up = await pair.up(system, dry_run=True, delete=True)
    assert {(change.path, change.action) for change in up.changes} == {
        (b"d0/f 0", Action.COPY),
        (b"-", Action.CHANGE),
        (b"empty", Action.DELETE),
        (b"output", Action.DELETE),
    }
    assert (up.bytes, up.route) == (5, None)
    assert pair.calls.total() <= 3
    down = await pair.down(system, dry_run=True, delete=True)
    assert {(change.path, change.action) for change in down.changes} == {
        (b"d0/f 0", Action.COPY),
        (b"-", Action.CHANGE),
        (b"empty", Action.COPY),
        (b"output", Action.COPY),
    }
    assert (seen(pair.local), seen(pair.there)) == (ours, theirs)
    await pair.up(system, delete=True)
    assert pair.equal()


async def test_a_dry_run_knows_what_has_to_be_sent(pair: Pair, system: hpcbridge.System) -> None:
    pair.fill(pair.local, 3)
    await pair.up(system)
    (pair.there / "d0" / "f 0").write_text("written by a job")
    (pair.local / "d0" / "f 1").rename(pair.local / "renamed")
    told = await pair.up(system, dry_run=True)
    done = await pair.up(system)
    expected = {(b"d0/f 0", Action.COPY), (b"renamed", Action.MOVE)}
    assert {(change.path, change.action) for change in told.changes} == expected
    assert {(change.path, change.action) for change in done.changes} == expected
    assert told.bytes == (pair.local / "d0" / "f 0").stat().st_size


async def test_a_lost_record_costs_a_job_and_no_content(
    pair: Pair, system: hpcbridge.System, own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_up_module, "AT_ONCE", 1000)
    pair.fill(pair.local, 200)
    await pair.up(system)
    (pair.local / "d0" / "f 7").write_bytes(os.urandom(1000))
    shutil.rmtree(own_state)
    again = await pair.up(system)
    assert [change.path for change in again.changes] == [b"d0/f 7"]
    assert again.bytes < 50_000
    assert pair.calls["POST /compute/{}/jobs"] <= 3
    assert pair.equal()
    assert (await pair.up(system)).bytes == 0


async def test_a_lost_state_directory_is_made_again(
    pair: Pair, system: hpcbridge.System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyed_jobs, "ANSWER_LAG", 1.0)
    pair.fill(pair.local, 20)
    await pair.up(system)
    for change in ("changed", None):
        shutil.rmtree(pair.state)
        if change:
            (pair.local / "-").write_text(change)
        await pair.up(system)
        assert pair.equal()
    await pair.down(system)
    shutil.rmtree(pair.state)
    (pair.there / "-").write_text("there")
    pair.give(pair.there)
    await pair.down(system)
    assert pair.equal()


async def test_what_the_patterns_leave_out_is_left_alone(pair: Pair, system: hpcbridge.System) -> None:
    pair.fill(pair.local, 3)
    filter = Filter(exclude=("*.log", "/scratch/"), max_file_size=5000)
    (pair.local / "here.log").write_text("not sent")
    (pair.local / "large").write_bytes(bytes(6000))
    sent = await pair.up(system, filter=filter)
    assert [skipped.path for skipped in sent.skipped] == [b"large"]
    assert not (pair.there / "here.log").exists()
    (pair.there / "scratch").mkdir()
    (pair.there / "scratch" / "x").write_text("kept")
    (pair.there / "job.log").write_text("kept")
    (pair.there / "big").write_bytes(bytes(6000))
    (pair.there / "output").write_text("goes")
    pair.give(pair.there)
    gone = await pair.up(system, filter=filter, delete=True)
    assert [change.path for change in gone.changes] == [b"output"]
    back = await pair.down(system, filter=filter, delete=True)
    assert back.changes == []
    assert [skipped.path for skipped in back.skipped if "limit" in skipped.why] == [b"big"]
    assert (pair.local / "here.log").exists()
    assert (pair.there / "scratch" / "x").exists()


async def test_a_tree_without_room_beside_it_keeps_its_state_inside(
    sandbox: SandboxProcess, tmp_path: Path, system: hpcbridge.System
) -> None:
    wiped(sandbox)
    closed = sandbox.host_path("/home/alice/closed")
    shutil.rmtree(closed, ignore_errors=True)
    pair = Pair(sandbox, tmp_path / "tree", "/home/alice/closed/tree")
    pair.there.mkdir(parents=True)
    found = closed.parent.stat()
    os.chown(pair.there, found.st_uid, found.st_gid)
    pair.local.mkdir()
    (pair.local / "a").write_text("a")
    try:
        await pair.up(system)
        assert pair.equal()
        assert len(list(pair.there.glob(".hpcbridge-sync-*"))) == 1
        (pair.local / "b").write_text("b")
        await pair.up(system, delete=True)
        assert pair.equal()
        # Ours alone does not come down, and does not go.
        await pair.down(system, delete=True)
        assert sorted(path.name for path in pair.local.iterdir()) == ["a", "b"]
        assert len(list(pair.there.glob(".hpcbridge-sync-*"))) == 1
    finally:
        shutil.rmtree(closed)


async def test_refusals(pair: Pair, system: hpcbridge.System, tmp_path: Path) -> None:
    pair.fill(pair.local, 3)
    with pytest.raises(TooLarge):
        await sync_up(system, pair.local, pair.remote, max_size=100)
    with pytest.raises(InvalidPath):
        await sync_up(system, pair.local, "relative")
    with pytest.raises(PathNotFound):
        await sync_up(system, tmp_path / "missing", pair.remote)
    with pytest.raises(PathNotFound):
        await sync_down(system, pair.remote, pair.local)
    with pytest.raises(PermissionDenied):
        await sync_up(system, pair.local, "/home/bob/tree")
    await pair.up(system)
    with pytest.raises(TooLarge):
        await sync_down(system, pair.remote, pair.local, max_size=100)
    (pair.local / "file").write_text("x")
    with pytest.raises(AlreadyExists):
        await sync_down(system, pair.remote, pair.local / "file")
    with pytest.raises(AlreadyExists):
        await sync_up(system, pair.local, f"{pair.remote}/-")
    (pair.there / "secret").write_text("x")
    (pair.there / "secret").chmod(0)
    with pytest.raises(PermissionDenied, match="secret"):
        await sync_down(system, pair.remote, pair.local)


async def test_a_directory_with_outputs_does_not_become_a_file(pair: Pair, system: hpcbridge.System) -> None:
    pair.fill(pair.local, 3)
    await pair.up(system)
    (pair.there / "d0" / "output").write_text("of a job")
    pair.give(pair.there)
    shutil.rmtree(pair.local / "d0")
    (pair.local / "d0").write_text("now a file")
    with pytest.raises(AlreadyExists, match="d0/output"):
        await pair.up(system)
    assert (pair.there / "d0" / "output").exists()
    await pair.up(system, delete=True)
    assert pair.equal()


def test_the_record_is_private_and_safe_to_damage(tmp_path: Path) -> None:
    file = RecordFile.of("up", "https://site", "me", "daint", "/scratch/é\udcff", tmp_path / "trees")
    assert file.load() is None
    record = Record("/scratch/.hpcbridge-sync-x", (b"-" * 64 + b"\n\xff", b"b"))
    file.save(record)
    assert file.load() == record
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.path.parent.stat().st_mode & 0o777 == 0o700
    data = file.path.read_bytes()
    for damage in (data[:-1], data[:-2] + b"x\0", data[:10], b"", data.replace(b"sync 1", b"sync 2", 1)):
        file.path.write_bytes(damage)
        assert file.load() is None
    file.forget()
    assert file.load() is None


def test_yesterdays_record_loads(tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_bytes(
        b"hpcbridge sync 1\n"
        b'{"state": "/home/me/.hpcbridge-sync-a", '
        b'"sha256": "cd8b1c4e52eaea3b2b1d3f64c5a6f5e6b1a6f8e7f8d6d65b3c1d5c8b1a5ad9f2"}\n'
        b"row one\0row two\0"
    )
    text = path.read_bytes()
    import hashlib

    digest = hashlib.sha256(b"row one\0row two\0").hexdigest().encode()
    path.write_bytes(text.replace(text.split(b'"sha256": "')[1][:64], digest))
    assert records.RECORD_FORMAT == 1
    assert RecordFile(path).load() == Record("/home/me/.hpcbridge-sync-a", (b"row one", b"row two"))
