"""Unpacking believes nothing: whatever an archive says, nothing is written outside, and the reason is told."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcbridge.errors import AlreadyExists, IntegrityError, TooLarge, TransferError
from hpcbridge.staging.trees.directories import Directories
from hpcbridge.staging.trees.extract import HEADER_MAX, extract
from support.scale import PROVE
from support.trees import QUICK, Directory, File, make, snapshot, tar

FILE, DIRECTORY, LINK, HARD = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def member(name: str, kind: bytes = FILE, data: bytes = b"x", link: str = "", **fields: object) -> bytes:
    """One member as bytes; `fields` are those of TarInfo."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = len(data) if kind in (FILE, tarfile.CONTTYPE, b"Y") else 0
    form = fields.pop("form", tarfile.GNU_FORMAT)
    for field, value in fields.items():
        setattr(info, field, value)
    body = data if info.size else b""
    return info.tobuf(form, "utf-8", "surrogateescape") + body + bytes(-len(body) % 512)  # type: ignore[arg-type]


def whole(*members: bytes) -> io.BytesIO:
    return io.BytesIO(b"".join(members) + bytes(1024))


HOSTILE = {
    "absolute": (["/tmp/hostile"], "absolute"),
    "climbing": (["../hostile"], "climbs"),
    "climbing inside": (["a/../../hostile"], "climbs"),
    "climbing at the end": ([("a", DIRECTORY), "a/.."], "climbs"),
    "a link, then a file through it": ([("a", LINK, "/tmp"), "a/hostile"], "another member"),
    "a link out, then a directory": ([("a", LINK, ".."), ("a", DIRECTORY)], "another member"),
    "a link, then a file in its place": ([("a", LINK, "../hostile"), "a"], "another member"),
    "a file, then another below it": (["a", "a/b"], "another member"),
    "a link to itself": ([("a", LINK, "a"), "a/b"], "another member"),
    "a hard link out": ([("a", HARD, "/etc/passwd")], "hard link"),
    "a hard link inside": (["a", ("b", HARD, "a")], "hard link"),
    "a character device": ([("a", tarfile.CHRTYPE)], "character device"),
    "a block device": ([("a", tarfile.BLKTYPE)], "block device"),
    "a pipe": ([("a", tarfile.FIFOTYPE)], "named pipe"),
    "an unknown type": ([("a", b"Y")], "unknown type"),
    "a file twice": (["a", "a"], "another member"),
    "a file twice, in other words": (["a/b", "./a//b"], "another member"),
    "a directory twice": ([("a", DIRECTORY), ("a", DIRECTORY)], "twice"),
    "a link twice": ([("a", LINK, "x"), ("a", LINK, "x")], "another member"),
    "a link to nothing": ([("a", LINK, "")], "no path"),
    "a nameless file": ([""], "nothing"),
    "a file in place of the root": (["."], "nothing"),
    "a link in place of the root": ([("./", LINK, "/tmp")], "nothing"),
    "a long name": (["n" * 256], "too long"),
    "a long path": (["d/" * 2048 + "f"], "too long"),
    "a long target": ([("a", LINK, "t" * 5000)], "no path"),
}  # fmt: skip


@pytest.fixture
def into(tmp_path: Path) -> Path:
    found = tmp_path / "into"
    found.mkdir()
    (tmp_path / "canary").write_text("alive")
    return found


def built(each: str | tuple[object, ...]) -> bytes:
    if isinstance(each, str):
        return member(each)
    name, kind, *link = each
    return member(str(name), kind, link=str(link[0]) if link else "")  # type: ignore[arg-type]


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_member_is_refused_by_name(into, what):
    members, why = HOSTILE[what]
    with pytest.raises(IntegrityError) as refused:
        extract(whole(*map(built, members)), into)
    assert why in str(refused.value)
    last = members[-1] if isinstance(members[-1], str) else members[-1][0]
    assert f"member '{ {'./a//b': 'a/b', './': '.'}.get(last, last[:100]) }" in str(refused.value)
    assert sorted(each.name for each in into.parent.iterdir()) == ["canary", "into"]


def pax(headers: dict[str, str], name: str = "a", data: bytes = b"x") -> bytes:
    return member(name, data=data, form=tarfile.PAX_FORMAT, pax_headers=headers)


def sparse_map(*numbers: int, data: bytes, size: int) -> bytes:
    """A GNU sparse 1.0 member with any map."""
    text = b"".join(b"%d\n" % number for number in numbers)
    text += bytes(-len(text) % 512)
    headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "a",
        "GNU.sparse.realsize": str(size),
    }
    return pax(headers, data=text + data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"\0" * 100, "truncated"),
        (b"not an archive at all" * 100, "damaged"),
        (member("a"), "no proper end"),
        (member("a") + bytes(512), "cut short"),
        (member("a", data=b"x" * 900)[:700], "middle of 'a'"),
        (member("a") + b"\xff" * 512 + bytes(1024), "no proper end"),
        (member("a") + bytes(1024) + member("b"), "follows its end"),
        (member("a", mtime=2**70), "impossible"),
        (member("a", size=2**62)[:2048], "middle"),
        (member("a" * 300)[:600], "the archive is"),
        (pax({"mtime": "inf"}), "impossible"),
        (pax({"mtime": "nan"}), "impossible"),
        (pax({"path": "/etc/x"}), "absolute"),
        (pax({"path": "a\0b"}), "NUL"),
        (pax({"path": "../x"}), "climbs"),
        (pax({"size": "-512"}), "the archive is"),
        (pax({"GNU.sparse.name": "../x", "GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), "the archive is"),
        (pax({"GNU.sparse.name": "../x"}), "climbs"),
        (pax({"GNU.sparse.map": "0,1,0,1", "GNU.sparse.size": "2"}), "overlap"),
        (sparse_map(2, 0, 1, 0, 1, data=b"xx", size=2), "overlap"),
        (sparse_map(1, 5, 10, data=b"x" * 10, size=4), "leave"),
        (sparse_map(1, -5, 10, data=b"x" * 10, size=40), "the archive is"),
        (sparse_map(1, 0, 600, data=b"x" * 10, size=600), "middle"),
        (sparse_map(99999999, data=b"", size=4), "the archive is"),
    ],
)
def test_a_damaged_archive_is_an_error_that_says_why(into, data, why):
    with pytest.raises(IntegrityError, match=why):
        extract(io.BytesIO(data), into)
    assert sorted(each.name for each in into.parent.iterdir()) == ["canary", "into"]


def test_an_archive_cut_anywhere_is_refused(tmp_path):
    source = tmp_path / "from"
    source.mkdir()
    make(source, Directory({b"a": File((b"x" * 700,)), b"d": Directory({b"b" * 120: File((b"y", None, b"z"))})}))
    data = tar("--format=gnu", "--sparse", "-b1", "-c", "-f", "-", "-C", source, ".")
    zipped = gzip.compress(data)
    for each, ends in ((data, range(0, len(data) - 1024, 37)), (zipped, range(0, len(zipped), 7))):
        for end in ends:
            with tempfile.TemporaryDirectory(dir=QUICK) as there, pytest.raises(IntegrityError):
                extract(io.BytesIO(each[:end]), Path(there))


def test_a_flipped_bit_in_a_compressed_archive_is_found(into):
    zipped = bytearray(gzip.compress(whole(member("a", data=os.urandom(5000))).getvalue()))
    zipped[3000] ^= 4
    with pytest.raises(IntegrityError, match="damaged"):
        extract(io.BytesIO(zipped), into)


def test_what_comes_in_drops_is_put_together(into):
    class Drops:
        def __init__(self, data: bytes) -> None:
            self.left = io.BytesIO(data)

        def read(self, size: int, /) -> bytes:
            return self.left.read(min(size, 7))

    data = whole(member("d", DIRECTORY), member("d/" + "n" * 200, data=b"y" * 3000)).getvalue()
    for each in (data, gzip.compress(data)):
        with tempfile.TemporaryDirectory(dir=QUICK) as there:
            extract(Drops(each), Path(there))
            assert (Path(there) / "d" / ("n" * 200)).read_bytes() == b"y" * 3000


def test_a_bomb_is_stopped_at_the_limit(into):
    zipped = gzip.compress(whole(member("a", data=bytes(50 << 20))).getvalue())
    assert len(zipped) < 100_000
    with pytest.raises(TooLarge):
        extract(io.BytesIO(zipped), into, max_size=1 << 20)
    assert (into / "a").stat().st_size <= 2 << 20
    many = gzip.compress(b"".join(member(f"{n:05d}", data=b"") for n in range(5000)))
    for each in into.iterdir():
        each.unlink()
    with pytest.raises(TooLarge):
        extract(io.BytesIO(many), into, max_size=1 << 20)
    assert len(list(into.iterdir())) <= 2100


def test_huge_headers_are_not_read_into_memory(into):
    """A name of four gigabytes, and a map of extents without end."""
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE):
        head = tarfile.TarInfo("x")
        head.type, head.size = kind, 4 << 30
        endless = Zeros(head.tobuf(tarfile.GNU_FORMAT))
        with pytest.raises(IntegrityError, match="header"):
            extract(endless, into, compression="")
        assert endless.given < 3 * HEADER_MAX
    sparse = bytearray(member("x", tarfile.GNUTYPE_SPARSE))
    sparse[482] = 1
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse[:512])
    block = struct.pack("<504xB7x", 1)
    endless = Zeros(bytes(sparse), block)
    with pytest.raises(IntegrityError, match="header"):
        extract(endless, into, compression="")
    assert endless.given < 3 * HEADER_MAX


def test_many_small_headers_are_not_a_huge_one(into, monkeypatch):
    monkeypatch.setattr("hpcbridge.staging.trees.extract.HEADER_MAX", 4096)
    assert len(extract(whole(*(member(f"{n}" * 150) for n in range(10))), into)) == 10


class Zeros:
    """A stream that never ends."""

    def __init__(self, head: bytes, block: bytes = bytes(512)) -> None:
        self.head, self.block, self.given = head, block, 0

    def read(self, size: int, /) -> bytes:
        if not self.head:
            self.head = self.block * max(1, min(size, 1 << 20) // len(self.block))
        found, self.head = self.head[:size], self.head[size:]
        self.given += len(found)
        return found


def test_set_id_and_sticky_bits_are_dropped(into):
    extract(whole(member("d", DIRECTORY, mode=0o7755), member("f", mode=0o6755), member("g", mode=0o1644)), into)
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in into.iterdir()}
    assert modes == {"d": 0o755, "f": 0o755, "g": 0o644}


def test_directories_below_a_set_group_id_one_inherit_it(into):
    into.chmod(0o2755)
    extract(whole(member("d", DIRECTORY, mode=0o755)), into)
    assert stat.S_IMODE((into / "d").stat().st_mode) == 0o2755


def test_a_directory_that_is_named_late_or_never_is_there(into):
    entries = extract(
        whole(member("a/b/c"), member("a", DIRECTORY, mode=0o700, mtime=5), member("./", DIRECTORY)), into
    )
    assert (into / "a/b/c").read_bytes() == b"x"
    assert stat.S_IMODE((into / "a").stat().st_mode) == 0o700
    assert (into / "a").stat().st_mtime == 5
    assert [entry.path for entry in entries] == [b"a/b/c", b"a"]


def test_only_an_empty_directory_is_unpacked_into(into):
    (into / "there").touch()
    with pytest.raises(AlreadyExists):
        extract(whole(member("a")), into)


def test_a_disk_that_is_full_is_not_the_archives_fault(tmp_path):
    limit = 1 << 20
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from hpcbridge.staging.trees.extract import extract\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "extract(sys.stdin.buffer, Path(sys.argv[1]))\n"
    )
    data = whole(member("big", data=bytes(3 << 20))).getvalue()
    done = subprocess.run([sys.executable, "-c", script, tmp_path], input=data, capture_output=True, check=False)
    assert b"TransferError: cannot write big" in done.stderr


def test_a_gigabyte_passes_in_constant_memory(tmp_path):
    size = (2 << 30) if PROVE else (300 << 20)
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from hpcbridge.staging.trees.extract import extract\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "extract(sys.stdin.buffer, Path(sys.argv[1]))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    into = tmp_path / "into"
    into.mkdir()
    run = subprocess.Popen([sys.executable, "-c", script, into], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdin
    assert run.stdout
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    head = member("big", size=size)[:512]
    run.stdin.write(packer.compress(head))
    for _ in range(size >> 20):
        run.stdin.write(packer.compress(bytes(1 << 20)))
    run.stdin.write(packer.compress(bytes(1024)) + packer.flush())
    run.stdin.close()
    grown = int(run.stdout.read())
    assert run.wait() == 0
    assert (into / "big").stat().st_size == size
    assert grown < 16 << 10, f"{grown} KiB"
    shutil.rmtree(into)


@contextmanager
def arena() -> Iterator[tuple[Path, Path]]:
    """A directory to unpack into, in one full of things that must not change."""
    root = Path(tempfile.mkdtemp(dir=QUICK))
    try:
        (root / "canary").mkdir()
        (root / "canary" / "a").write_text("alive")
        (root / "canary" / "link").symlink_to("a")
        (root / "into").mkdir()
        yield root, root / "into"
    finally:
        shutil.rmtree(root)


parts = st.sampled_from(["a", "b", "c", "..", ".", "", "canary", "A", "a\0", "\udcff", "n" * 120, "\n"])
paths = st.one_of(
    st.lists(parts, min_size=1, max_size=4).map("/".join),
    st.sampled_from(["/", "//", "../canary/a", "{root}/canary/a", "{root}/new", "a", "a/b", "a/b/c", "link/a"]),
)
kinds = st.sampled_from(
    [FILE, FILE, DIRECTORY, LINK, LINK, HARD, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, b"Y", b"V"]
)
members = st.tuples(
    paths, kinds, st.binary(max_size=600), paths, st.integers(0, 0o7777), st.sampled_from([0, -1, 2**33, 2**65]),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)  # fmt: skip


@given(st.lists(members, max_size=7), st.integers(0, 10_000), st.booleans())
@settings(max_examples=5000 if PROVE else 300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_nothing_is_ever_written_outside(specs, damage, damaged):
    with arena() as (root, into):
        data = b""
        for path, kind, content, link, mode, mtime, form in specs:
            name, target = path.format(root=root), link.format(root=root)
            data += member(name, kind, content, target, mode=mode, mtime=mtime, form=form)
        if damaged and data:
            at = damage % len(data)
            data = data[:at] + bytes([data[at] ^ (1 << damage % 8)]) + data[at + 1 :]
        before = outside(root)
        try:
            entries = extract(io.BytesIO(data + bytes(1024)), into)
        except TransferError:  # or the IntegrityError that it includes; nothing else comes out
            pass
        else:
            there = snapshot(into)
            assert {entry.path for entry in entries} <= set(there)
            assert not any(mode & 0o7000 for kind, mode, *_ in there.values() if kind != "link")
            assert all(kind in ("file", "directory", "link") for kind, *_ in there.values())
        assert outside(root) == before


def outside(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything but what is below `into`, with the canary's times."""
    return {path: what for path, what in snapshot(root).items() if path != b"into" and not path.startswith(b"into/")}


def test_directories_are_reached_without_following_a_link(tmp_path):
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "outside" / "b").mkdir(parents=True)
    (tmp_path / "root" / "out").symlink_to("../outside")
    with Directories(tmp_path / "root") as directories:
        directories.fd(b"a")
        for path in (b"out", b"out/b"):
            with pytest.raises(NotADirectoryError):
                directories.fd(path)
        # A directory that is held open is the one that it was, whatever takes its name.
        (tmp_path / "root" / "a").rename(tmp_path / "root" / "moved")
        (tmp_path / "root" / "a").symlink_to("../outside/b")
        directories.make(b"a/new", 0o700)
    assert (tmp_path / "root" / "moved" / "new").is_dir()


def test_a_tree_deeper_than_any_path_needs_few_descriptors(tmp_path):
    path = b"/".join([b"d"] * 1500)
    with Directories(tmp_path) as directories:
        for end in range(1, len(path) + 1, 2):
            directories.make(path[:end], 0o700)
        directories.finish(path, 0o755, 5)
        assert directories.look(path)
        assert directories.names(path[:-2]) == [b"d"]
        assert len(os.listdir("/dev/fd")) < 150  # noqa: PTH208
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)
