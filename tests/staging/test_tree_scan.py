"""Looking through a tree: what is in it, what is left out and why, and what need not be read again."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from hpcbridge.errors import InvalidPath, PathNotFound, TransferError
from hpcbridge.staging.trees import scan as scanning
from hpcbridge.staging.trees.entries import Entry, Kind, Manifest
from hpcbridge.staging.trees.hashes import CACHE_FORMAT, RACY_NS, HashCache
from hpcbridge.staging.trees.patterns import Filter
from hpcbridge.staging.trees.scan import scan
from support.trees import Directory, File, Link, make, unprivileged

OLD = 1_700_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    found = tmp_path / "root"
    found.mkdir()
    return found


def paths(manifest: Manifest) -> list[str]:
    return [os.fsdecode(entry.path) for entry in manifest]


def test_every_kind_is_seen_as_it_is(root):
    make(
        root,
        Directory(
            {
                b"file": File((b"content",), mode=0o640, mtime=-5),
                b"set-id": File((b"x",), mode=0o6755),
                b"link": Link(b"/nowhere", mtime=7),
                b"dir": Directory({b"in": File()}, mode=0o1777, mtime=9),
            }
        ),
    )
    found = scan(root)
    assert list(found.manifest) == [
        Entry(b"dir", Kind.DIRECTORY, 0o777, 0, 9),
        Entry(b"dir/in", Kind.FILE, 0o644, 0, 1_795_000_000, sha256=hashlib.sha256(b"").hexdigest()),
        Entry(b"file", Kind.FILE, 0o640, 7, -5, sha256=hashlib.sha256(b"content").hexdigest()),
        Entry(b"link", Kind.LINK, 0o777, 0, 7, b"/nowhere"),
        Entry(b"set-id", Kind.FILE, 0o755, 1, 1_795_000_000, sha256=hashlib.sha256(b"x").hexdigest()),
    ]
    assert found.bytes == 8
    assert [member.entry for member in found.members] == list(found.manifest)
    assert [entry.sha256 for entry in scan(root, hashing=False).manifest] == [None] * 5


def test_links_are_not_followed_but_the_root_may_be_one(root, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").touch()
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(".")
    (tmp_path / "alias").symlink_to(root)
    assert paths(scan(root).manifest) == paths(scan(tmp_path / "alias").manifest) == ["loop", "out"]


def test_what_is_no_tree_is_refused(root):
    (root / "file").touch()
    with pytest.raises(InvalidPath, match="not a directory"):
        scan(root / "file")
    with pytest.raises(PathNotFound):
        scan(root / "nothing")


def test_sockets_pipes_and_devices_are_left_out_and_named(root):
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
        if os.geteuid() == 0:
            os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        found = scan(root)
    assert not len(found.manifest)
    whys = {os.fsdecode(path): why for path, why in found.skipped}
    assert whys.pop("null", "a character device") == "a character device"
    assert whys == {"pipe": "a named pipe", "socket": "a socket"}
    assert scan(root, Filter(exclude=("*",))).skipped == []


def test_large_files_are_left_out_and_named(root):
    (root / "small").write_bytes(b"x" * 10)
    (root / "large").write_bytes(b"x" * 11)
    found = scan(root, Filter(max_file_size=10))
    assert paths(found.manifest) == ["small"]
    assert [path for path, _ in found.skipped] == [b"large"]
    assert "11 bytes" in found.skipped[0].why


def test_excluded_directories_are_not_entered_and_included_files_bring_theirs(root):
    for name in ("a/b/x.dat", "a/b/y.txt", "a/c/z.txt", "tmp/x.dat", "x.dat"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "empty").mkdir()
    (root / "tmp").chmod(0)  # cannot be read without privileges, and need not be
    assert paths(scan(root, Filter(include=("*.dat",), exclude=("tmp/",))).manifest) == [
        "a",
        "a/b",
        "a/b/x.dat",
        "x.dat",
    ]
    everything = ["a", "a/b", "a/b/x.dat", "a/b/y.txt", "a/c", "a/c/z.txt", "empty", "x.dat"]
    assert paths(scan(root, Filter(exclude=("tmp",))).manifest) == everything
    assert paths(scan(root, Filter(include=("empty", "/a/c"))).manifest) == ["a", "a/c", "a/c/z.txt", "empty"]


@pytest.mark.parametrize("hashing", [True, False])
def test_what_cannot_be_read_is_an_error_that_names_the_first_ones(root, hashing):
    make(
        root,
        Directory(
            {b"readable": File((b"x",))}
            | {b"file%d" % n: File((b"x",), mode=0) for n in range(4)}
            | {b"dir%d" % n: Directory({b"x": File()}, mode=0) for n in range(3)}
        ),
    )
    script = (
        "import sys; from pathlib import Path; from hpcbridge.staging.trees.scan import scan\n"
        f"scan(Path(sys.argv[1]), hashing={hashing})\n"
    )
    done = unprivileged(script, root)
    assert "PermissionDenied: cannot read" in done.stderr, done.stderr
    for name in ("dir0", "dir1", "dir2", "file0", "file1", "and 2 more"):
        assert name in done.stderr.splitlines()[-1]


def test_a_path_too_long_to_be_opened_is_refused(root):
    here = os.open(root, os.O_RDONLY)
    for _ in range(17):
        os.mkdir("d" * 250, dir_fd=here)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    try:
        with pytest.raises(InvalidPath, match="too long"):
            scan(root)
    finally:
        subprocess.run(["rm", "-rf", root], check=True)


def test_what_vanishes_meanwhile_is_left_out(root):
    """A whole tree comes and goes while another thread looks through it."""
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            for n in range(20):
                (root / f"d{n}" / "inner").mkdir(parents=True)
                (root / f"d{n}" / "inner" / "file").write_bytes(b"x" * n)
            for n in range(20):
                (root / f"d{n}" / "inner" / "file").unlink()
                (root / f"d{n}" / "inner").rmdir()
                (root / f"d{n}").rmdir()

    (root / "stays").touch()
    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            found = scan(root)
            assert found.manifest.get(b"stays")
    except TransferError:
        pass  # a file that is being written cannot be hashed; that is said
    finally:
        over.set()
        thread.join()


def test_a_file_that_changes_while_it_is_read_is_read_again_or_refused(root, monkeypatch):
    target = root / "log"
    target.write_bytes(b"a")
    times = []

    def digest(fd: int, size: int) -> str:
        times.append(size)
        if len(times) < limit:
            with target.open("ab") as out:
                out.write(b"b")
        return real(fd, size)

    real = scanning._digest
    monkeypatch.setattr(scanning, "_digest", digest)
    limit = 3
    (entry,) = scan(root).manifest
    assert entry.size == 3
    assert entry.sha256 == hashlib.sha256(b"abb").hexdigest()
    times.clear()
    limit = 99
    with pytest.raises(TransferError, match="log changes while it is read"):
        scan(root)


# ---- the cache


def aged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    os.utime(path, (OLD, OLD))


@pytest.fixture
def later(monkeypatch):
    """The clock of the cache stands an hour ahead: files that were made just now are old."""
    real = time.time_ns
    monkeypatch.setattr(scanning, "now_ns", lambda: real() + 3600 * 10**9)


def test_digests_are_remembered_and_a_change_is_seen(root, tmp_path, later):
    for n in range(20):
        aged(root / f"f{n}", b"%d" % n)
    first = scan(root, cache=HashCache.of(root, tmp_path / "hashes"))
    aged(root / "f3", b"x")  # same size, same time: only inode or change time tell
    cache = HashCache.of(root, tmp_path / "hashes")
    known = [path for path in (b"f%d" % n for n in range(20)) if cache.get(path, (root / path.decode()).stat())]
    assert len(known) == 19
    assert b"f3" not in known
    second = scan(root, cache=cache)
    assert second.manifest.get(b"f3") != first.manifest.get(b"f3")
    assert [each for each in second.manifest if each.path != b"f3"] == [
        each for each in first.manifest if each.path != b"f3"
    ]


def test_a_file_written_within_the_clocks_granularity_is_read_again(root, tmp_path):
    """Git's racy entries: the next change could look the same."""
    (root / "young").write_bytes(b"1")
    scan(root, cache=HashCache.of(root, tmp_path / "hashes"))
    assert HashCache.of(root, tmp_path / "hashes").get(b"young", (root / "young").stat()) is None
    now = time.time_ns()
    found = (root / "young").stat()
    cache = HashCache.of(root, tmp_path / "hashes")
    cache.put(b"young", found, "0" * 64, found.st_ctime_ns + RACY_NS)
    assert cache._seen == {}
    cache.put(b"young", found, "0" * 64, found.st_ctime_ns + RACY_NS + 1)
    assert cache._seen
    # A time in the future is young for as long as it lies there.
    os.utime(root / "young", ns=(now + 10**12, now + 10**12))
    cache.put(b"future", (root / "young").stat(), "0" * 64, now + 10**11)
    assert b"future" not in cache._seen


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-5],
        lambda data: data.replace(b"hashes 1", b"hashes 2"),
        lambda data: data.replace(b"hashes 1", b"hashes 0"),
        lambda data: os.urandom(200),
        lambda data: data[:30] + b"\0" + data[30:],
        lambda data: data.replace(b" ", b"", 3),
    ],
)
def test_a_cache_that_is_damaged_or_of_another_format_counts_as_empty(root, tmp_path, later, damage):
    aged(root / "a", b"1")
    aged(root / "b", b"2")
    whole = scan(root, cache=HashCache.of(root, tmp_path / "hashes"))
    file = HashCache.of(root, tmp_path / "hashes").file
    file.write_bytes(damage(file.read_bytes()))
    assert scan(root, cache=HashCache.of(root, tmp_path / "hashes")).manifest == whole.manifest


def test_yesterdays_cache_is_read(root, tmp_path):
    """Written down by format 1; whoever changes the format keeps this loading, or raises the number."""
    assert CACHE_FORMAT == 1
    aged(root / "odd\n name", b"abc")
    found = (root / "odd\n name").stat()
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    look = f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"
    file = HashCache.of(root, tmp_path / "hashes").file
    file.parent.mkdir()
    file.write_bytes(b"hpcbridge hashes 1\n" + f"{look} {digest} odd\n name\0".encode())
    assert HashCache.of(root, tmp_path / "hashes").get(b"odd\n name", found) == digest


def test_the_cache_belongs_to_its_user_and_may_fail_to_be_written(root, tmp_path, later, monkeypatch):
    monkeypatch.setenv("HPCBRIDGE_STATE_DIR", str(tmp_path / "state"))
    aged(root / "a", b"1")
    scan(root, cache=HashCache.of(root))
    (file,) = (tmp_path / "state" / "hashes").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    (tmp_path / "blocked").touch()
    assert len(scan(root, cache=HashCache.of(root, tmp_path / "blocked")).manifest) == 1


def test_what_is_no_longer_there_is_forgotten(root, tmp_path, later):
    aged(root / "a", b"1")
    aged(root / "b", b"1")
    scan(root, cache=HashCache.of(root, tmp_path / "hashes"))
    (root / "a").unlink()
    scan(root, cache=HashCache.of(root, tmp_path / "hashes"))
    assert set(HashCache.of(root, tmp_path / "hashes")._known) == {b"b"}


# ---- the manifest


def test_yesterdays_manifest_is_read():
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    text = (
        b"hpcbridge manifest 1\nd 755 0 -5 - a b\0f 640 3 7 "
        + digest.encode()
        + b" a b/\n\0l 777 0 9 - a b/z//../x//y\0"
    )
    manifest = Manifest(
        [
            Entry(b"a b/z", Kind.LINK, 0o777, 0, 9, b"../x//y"),
            Entry(b"a b/\n", Kind.FILE, 0o640, 3, 7, sha256=digest),
            Entry(b"a b", Kind.DIRECTORY, 0o755, 0, -5),
        ]
    )
    assert manifest.dump() == text
    assert Manifest.load(text) == manifest
    assert manifest.digest() == "c43c01a68e2414d3b626da31c6674a4fad713ca0d15e5bd9b6eed9ffa97974ca"
    for damaged in (text[:-1], text.replace(b"manifest 1", b"manifest 2"), text.replace(b"f 640", b"x 640"), b""):
        with pytest.raises(ValueError, match=r"manifest|record"):
            Manifest.load(damaged)


def test_the_digest_of_a_manifest_is_that_of_the_content():
    one = Entry(b"a", Kind.FILE, 0o644, 3, 7, sha256="0" * 64)
    from dataclasses import replace

    same = Manifest([one]).digest()
    assert Manifest([replace(one, mtime=8)]).digest() == same
    for other in ({"mode": 0o600}, {"size": 4}, {"sha256": "1" * 64}, {"path": b"b"}):
        assert Manifest([replace(one, **other)]).digest() != same
    with pytest.raises(ValueError, match="not been hashed"):
        Manifest([replace(one, sha256=None)]).digest()
    with pytest.raises(ValueError, match="twice"):
        Manifest([one, one])
    assert Manifest([one]).get(b"a") is one
    assert Manifest([one]).get(b"b") is None
