"""Trees for tests: generated ones, how they are made on the disk, and what of them must come back."""

# A Path cannot hold names that are bytes.
# ruff: noqa: PTH101, PTH102, PTH115, PTH118, PTH123, PTH208, PTH211

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

HOLE = 64 << 10
"""Bytes of a hole; a multiple of every file system's block."""
ODD_NAMES = [
    b"plain.txt",
    b"with space",
    b" leading",
    b"trailing ",
    b"-rf",
    b"--",
    b"new\nline",
    b"\n",
    b"tab\there",
    b"it's",
    b'"double"',
    b"back\\slash",
    b"$(reboot)",
    b"*",
    b"?[a]",
    b"...",
    b".hidden",
    b"\xff\xfe not utf-8",
    b"\x1f\x8b\x08",
    b"\x01\x02",
    "Zürich ☃ 漢字".encode(),
    "é".encode(),
    b"e\xcc\x81",
    b"~",
    b"#x#",
    b"%s%n",
    b"PaxHeader",
    b"GNUSparseFile.0",
    b"@LongLink",
    b"x" * 99,
    b"y" * 100,
    b"z" * 101,
    b"\xc3\xa9" * 127,
    b"n" * 255,
]
ODD_TARGETS = [
    b"plain.txt",
    b"..",
    b"../../outside",
    b"/etc/passwd",
    b"/",
    b"nowhere\n",
    b"\xff",
    b" ",
    b"t" * 100,
    b"u" * 101,
    b"v/" * 2000 + b"v",
]


QUICK = next((each for each in ("/dev/shm",) if os.access(each, os.W_OK)), None)
"""Where trees are made by the hundred: ext4 takes a millisecond for a file where others have just been deleted."""


@dataclass(frozen=True)
class File:
    """`parts` alternate: bytes, or None for a hole of `HOLE` bytes."""

    parts: tuple[bytes | None, ...] = ()
    mode: int = 0o644
    mtime: int = 1_795_000_000

    @property
    def content(self) -> bytes:
        return b"".join(bytes(HOLE) if part is None else part for part in self.parts)


@dataclass(frozen=True)
class Link:
    target: bytes
    mtime: int = 1_795_000_000


@dataclass(frozen=True)
class Directory:
    children: dict[bytes, File | Link | Directory] = field(default_factory=dict)
    mode: int = 0o755
    mtime: int = 1_795_000_000


Node = File | Link | Directory

names = st.one_of(
    st.sampled_from(ODD_NAMES),
    st.sampled_from([b"a", b"b", b"c", b"a-b", b"a.c"]),
    st.binary(min_size=1, max_size=255).map(lambda each: each.replace(b"/", b"_").replace(b"\0", b"0")),
).filter(lambda each: each not in (b".", b".."))
modes = st.one_of(st.sampled_from([0o644, 0o755, 0o600, 0o444, 0o000, 0o777]), st.integers(0, 0o777))
# What ext4 keeps: 1901 to 2446.
times = st.one_of(st.just(1_795_000_000), st.just(-1), st.just(0), st.integers(-(2**31), 15_032_385_535))
files = st.builds(
    File,
    st.lists(st.one_of(st.binary(max_size=1500), st.none()), max_size=4).map(tuple),
    modes,
    times,
)
links = st.builds(Link, st.one_of(st.sampled_from(ODD_TARGETS), names), times)
nodes: st.SearchStrategy[Node] = st.recursive(
    st.one_of(files, links, st.builds(Directory, st.just({}), modes, times)),
    lambda inner: st.builds(Directory, st.dictionaries(names, inner, max_size=5), modes, times),
    max_leaves=12,
)
trees = st.dictionaries(names, nodes, max_size=6).map(Directory)


def make(root: bytes | Path, tree: Directory) -> None:
    """Write a tree into the existing, empty directory `root`; its own mode and time stay."""
    _fill(os.fsencode(root), tree)


def _fill(root: bytes, tree: Directory) -> None:
    for name, node in tree.children.items():
        path = root + b"/" + name
        if isinstance(node, Link):
            os.symlink(node.target, path)
            os.utime(path, (node.mtime, node.mtime), follow_symlinks=False)
            continue
        if isinstance(node, Directory):
            os.mkdir(path)
            _fill(path, node)
        else:
            with open(path, "wb") as out:
                for part in node.parts:
                    if part is None:
                        out.seek(HOLE, os.SEEK_CUR)
                    else:
                        out.write(part)
                out.truncate()
        os.chmod(path, node.mode)
        os.utime(path, (node.mtime, node.mtime))


def snapshot(root: bytes | Path, *, directory_times: bool = True) -> dict[bytes, tuple[object, ...]]:
    """Everything of a tree that must come back: path -> kind, mode, time, and content or target."""
    found: dict[bytes, tuple[object, ...]] = {}
    whole = os.fsencode(root)

    def look(path: bytes) -> None:
        for name in os.listdir(whole + b"/" + path if path else whole):
            inner = path + b"/" + name if path else name
            full = whole + b"/" + inner
            at = os.lstat(full)
            mode, mtime = stat.S_IMODE(at.st_mode), at.st_mtime_ns // 10**9
            if stat.S_ISLNK(at.st_mode):
                found[inner] = ("link", mtime, os.readlink(full))
            elif stat.S_ISDIR(at.st_mode):
                found[inner] = ("directory", mode, mtime if directory_times else None)
                look(inner)
            elif stat.S_ISREG(at.st_mode):
                found[inner] = ("file", mode, mtime, at.st_size, _sum(full))
            else:
                found[inner] = ("odd", stat.S_IFMT(at.st_mode))

    look(b"")
    return found


def _sum(path: bytes) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def blocks(root: bytes | Path) -> dict[bytes, int]:
    """Path -> bytes on the disk, of the files in a tree."""
    whole = os.fsencode(root)
    return {
        os.path.relpath(os.path.join(above, name), whole): os.lstat(os.path.join(above, name)).st_blocks * 512
        for above, _, inside in os.walk(whole)
        for name in inside
        if stat.S_ISREG(os.lstat(os.path.join(above, name)).st_mode)
    }


def tar(*arguments: str | bytes | Path, stdin: bytes | None = None) -> bytes:
    """Run GNU tar as a node would; its output. Fails when tar complains."""
    command = ["tar", "--warning=no-timestamp", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, env=os.environ | {"LC_ALL": "C"}, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert not done.stderr, done.stderr.decode(errors="replace")
    return done.stdout


def unprivileged(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python as somebody to whom modes mean something: root is left without the right to pass them over."""
    without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*without, sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
