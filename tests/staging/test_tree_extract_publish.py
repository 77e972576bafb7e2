"""Publishing: by renames only, never through a link, refused before anything moves, and repeatable when killed."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import stat
import sys
import traceback
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings

from hpcbridge.errors import AlreadyExists, TransferError
from hpcbridge.staging.trees.extract import publish
from support.scale import PROVE
from support.trees import QUICK, Directory, File, Link, make, snapshot, trees, unprivileged


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    found = tmp_path / ".target-staged"
    found.mkdir()
    return found


NEW = Directory(
    {
        b"both": Directory(
            {
                b"replaced": File((b"new",), mode=0o640, mtime=5),
                b"added": File((b"added",)),
                b"link-for-file": Link(b"/nowhere"),
                b"file-for-link": File((b"new",)),
                b"deeper": Directory({b"x": File((b"x",))}, mode=0o555, mtime=77),
            },
            mode=0o750,
            mtime=99,
        ),
        b"vault": Directory(
            {b"room": Directory({b"x": File((b"x",))}, mode=0, mtime=3), b"box": Directory(mode=0o400, mtime=4)}, mode=0
        ),
        b"only-new": Directory({b"y": File((b"y",), mode=0o444)}, mode=0o500, mtime=33),
        b"-odd\n\xff": File((b"odd",)),
    }
)
OLD = Directory(
    {
        b"both": Directory(
            {
                b"replaced": File((b"old",)),
                b"kept": File((b"kept",)),
                b"link-for-file": File((b"old",)),
                b"file-for-link": Link(b"../only-old"),
                b"deeper": Directory({b"old": File((b"old",))}, mode=0o500),
            },
            mode=0o555,
        ),
        b"vault": Directory({b"room": Directory({b"old": File((b"old",))}, mode=0)}, mode=0o000),
        b"only-old": File((b"untouched",), mtime=11),
    }
)


def merged(old: Directory, new: Directory) -> Directory:
    """What must be there afterwards."""
    children = dict(old.children)
    for name, node in new.children.items():
        there = children.get(name)
        both = isinstance(node, Directory) and isinstance(there, Directory)
        children[name] = merged(there, node) if both else node  # type: ignore[arg-type]
    return Directory(children, new.mode, new.mtime)


def expected(tmp_path: Path, tree: Directory) -> dict[bytes, tuple[object, ...]]:
    place = tmp_path / "expected"
    place.mkdir()
    make(place, tree)
    return snapshot(place)


def test_a_new_tree_appears_by_one_rename(tmp_path, staged):
    make(staged, NEW)
    inode = staged.stat().st_ino
    publish(staged, tmp_path / "target")
    assert (tmp_path / "target").stat().st_ino == inode
    assert snapshot(tmp_path / "target") == expected(tmp_path, NEW)
    assert not staged.exists()


def test_an_empty_directory_is_replaced_by_one_rename_and_its_mode_stays(tmp_path, staged):
    make(staged, NEW)
    target = tmp_path / "target"
    target.mkdir()
    target.chmod(0o2770)
    inode = staged.stat().st_ino
    publish(staged, target)
    assert target.stat().st_ino == inode
    assert stat.S_IMODE(target.stat().st_mode) == 0o2770


def test_an_existing_tree_is_merged(tmp_path, staged):
    target = tmp_path / "target"
    target.mkdir()
    make(target, OLD)
    make(staged, NEW)
    target.chmod(0o711)
    inode = target.stat().st_ino
    publish(staged, target)
    assert snapshot(target) == expected(tmp_path, merged(OLD, NEW))
    assert target.stat().st_ino == inode
    assert stat.S_IMODE(target.stat().st_mode) == 0o711
    assert sorted(each.name for each in tmp_path.iterdir()) == ["expected", "target"]


def test_without_privileges_read_only_directories_are_merged_and_moved(tmp_path, staged):
    target = tmp_path / "target"
    target.mkdir()
    make(target, OLD)
    make(staged, NEW)
    script = (
        "import sys; from pathlib import Path; from hpcbridge.staging.trees.extract import publish\n"
        "publish(*map(Path, sys.argv[1:]))\n"
    )
    done = unprivileged(script, staged, target)
    assert done.returncode == 0, done.stderr
    assert snapshot(target) == expected(tmp_path, merged(OLD, NEW))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["expected", "target"]


def test_without_privileges_locked_directories_come_out_of_an_archive(tmp_path):
    """Extraction needs no more than the owner has; what is locked in the archive is locked at the end."""
    (tmp_path / "from").mkdir()
    make(
        tmp_path / "from",
        Directory({b"locked": Directory({b"in": Directory({b"f": File((b"x",), mode=0)}, mode=0)}, mode=0)}),
    )
    script = (
        "import io, sys; from pathlib import Path; from hpcbridge.staging.trees.extract import extract, publish\n"
        "extract(sys.stdin.buffer, Path(sys.argv[1])); publish(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    from hpcbridge.staging.trees.archive import Archive
    from hpcbridge.staging.trees.scan import scan

    archive = Archive(scan(tmp_path / "from").members)
    (tmp_path / "a.tar").write_bytes(archive.read(0, archive.size))
    for target in ("to", "to"):  # the second time into what is there, locked as it is
        (tmp_path / "staged").mkdir()
        script = script.replace("sys.stdin.buffer", f"open({str(tmp_path / 'a.tar')!r}, 'rb')")
        done = unprivileged(script, tmp_path / "staged", tmp_path / target)
        assert done.returncode == 0, done.stderr
        assert snapshot(tmp_path / target) == snapshot(tmp_path / "from")


@pytest.mark.parametrize(
    ("name", "there", "what"),
    [
        (b"d", File((b"old",)), "not a directory"),
        (b"d", Link(b"elsewhere"), "not a directory"),
        (b"d", Link(b"nowhere"), "not a directory"),
        (b"f", Directory({b"x": File()}), "a directory"),
        (b"f", Directory(), "a directory"),
        (b"l", Directory(), "a directory"),
    ],
)
def test_what_is_in_the_way_is_named_before_anything_moves(tmp_path, staged, name, there, what):
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "elsewhere").mkdir()
    inside = {b"d": Directory({b"x": File((b"new",))}), b"f": File((b"new",)), b"l": Link(b"x")}
    make(staged, Directory({b"a": File((b"first",)), b"deep": Directory(inside, mode=0o555, mtime=5)}))
    make(target, Directory({b"a": File((b"old",)), b"deep": Directory({name: there}, mode=0o500, mtime=6)}))
    (target / "elsewhere").symlink_to("../elsewhere")
    before = snapshot(tmp_path)
    with pytest.raises(AlreadyExists) as refused:
        publish(staged, target)
    assert f"{target}/deep/{name.decode()} is {what} in the way" in str(refused.value)
    assert snapshot(tmp_path) == before


def test_nothing_is_written_through_a_link_that_leads_out(tmp_path, staged):
    target, outside = tmp_path / "target", tmp_path / "outside"
    target.mkdir()
    outside.mkdir()
    (outside / "file").write_text("alive")
    (target / "file").symlink_to(outside / "file")
    (target / "dir").symlink_to(outside)
    make(staged, Directory({b"file": File((b"new",))}))
    publish(staged, target)
    assert (outside / "file").read_text() == "alive"
    assert not (target / "file").is_symlink()
    staged.mkdir()
    make(staged, Directory({b"dir": Directory({b"file": File((b"new",))})}))
    with pytest.raises(AlreadyExists):
        publish(staged, target)
    assert (outside / "file").read_text() == "alive"


def test_the_target_itself_may_be_a_link_to_a_directory(tmp_path, staged):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").touch()
    (tmp_path / "target").symlink_to("real")
    make(staged, Directory({b"new": File()}))
    publish(staged, tmp_path / "target")
    assert (tmp_path / "target").is_symlink()
    assert sorted(each.name for each in (tmp_path / "real").iterdir()) == ["new", "old"]


@pytest.mark.parametrize("kind", ["file", "dangling"])
def test_a_target_that_is_no_directory_is_refused(tmp_path, staged, kind):
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("old")
    else:
        target.symlink_to("nowhere")
    make(staged, Directory({b"new": File()}))
    with pytest.raises(AlreadyExists, match="target is"):
        publish(staged, target)
    assert (staged / "new").exists()


def test_a_staged_tree_that_is_not_there_is_an_error(tmp_path, staged):
    staged.rmdir()
    with pytest.raises(TransferError, match="No such file"):
        publish(staged, tmp_path / "target")


EVENTS = {"os.rename", "os.chmod", "os.utime", "os.rmdir", "os.remove", "os.truncate", "os.mkdir"}


NEVER = 10**9


def killed_at(count: int, staged: Path, target: Path) -> bool:
    """Publish in a child to whom modes mean something, killed before its `count`-th change; whether it did its work."""
    child = os.fork()
    if child == 0:
        left = [count]

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            if event in EVENTS:
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            # No capability at all, by version 3 of the system call; `root` is an owner among others then.
            ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
            sys.addaudithook(watch)
            publish(staged, target)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), "it said that it cannot be done"
    return code == 0


def test_killed_anywhere_it_can_simply_be_run_again(tmp_path):
    wanted, old = expected(tmp_path, merged(OLD, NEW)), snapshot_of(tmp_path, OLD)
    for count in range(1, 200):
        place = tmp_path / str(count)
        staged, target = place / ".staged", place / "target"
        staged.mkdir(parents=True)
        target.mkdir()
        make(staged, NEW)
        make(target, OLD)
        lived = killed_at(count, staged, target)
        # What a reader can see meanwhile: each file is the old or the new one, whole.
        for path, what in snapshot(target).items():
            if what[0] != "directory":
                assert what in (old.get(path), wanted[path])
        for again in (*range(count % 7 + 1, 0, -1), NEVER):  # and killed again, each time a little earlier
            if staged.exists():
                killed_at(again, staged, target)
        assert snapshot(target) == wanted
        assert [each.name for each in place.iterdir()] == ["target"]
        if lived:
            break
    assert 10 < count < 199, "every step of it was the last one once"


def snapshot_of(tmp_path: Path, tree: Directory) -> dict[bytes, tuple[object, ...]]:
    place = tmp_path / "old"
    if not place.exists():
        place.mkdir()
        make(place, tree)
    return snapshot(place)


def conflict(old: Directory, new: Directory) -> bool:
    for name, node in new.children.items():
        there = old.children.get(name)
        if there is None:
            continue
        if isinstance(node, Directory) != isinstance(there, Directory):
            return True
        if isinstance(node, Directory) and isinstance(there, Directory) and conflict(there, node):
            return True
    return False


@given(trees, trees)
@settings(
    max_examples=1000 if PROVE else 100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
def test_any_tree_is_merged_into_any_other(old, new):
    import tempfile

    assume(old.children)
    root = Path(tempfile.mkdtemp(dir=QUICK))
    try:
        staged, target = root / "staged", root / "target"
        staged.mkdir()
        target.mkdir()
        make(staged, new)
        make(target, old)
        before = snapshot(target)
        if conflict(old, new):
            with pytest.raises(AlreadyExists):
                publish(staged, target)
            assert snapshot(target) == before
        else:
            publish(staged, target)
            assert snapshot(target) == expected(root, merged(old, new))
    finally:
        shutil.rmtree(root)
