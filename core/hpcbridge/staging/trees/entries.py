"""What a tree is made of. Names are bytes throughout, because Linux asks nothing of them but no `/` and no NUL."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

MANIFEST_FORMAT = 1
"""Version of a manifest that was written down."""
_HEAD = b"hpcbridge manifest %d\n"
LINK_MODE = 0o777
"""The mode of every link: Linux has no other, and the modes of macOS mean nothing there."""


class Kind(StrEnum):
    """What an entry is; its first letter stands for it in manifests, as in find's `%y`."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"


_KINDS = {kind.value[0].encode(): kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, directory or symbolic link of a tree.

    `path` is relative to the tree's root: `/` between names, no `./`, no `//`, never empty. `mode` holds the permission
    bits (at most 0o777); `size` is in bytes, 0 for anything but a file; `mtime` in whole seconds since 1970, negative
    before; `target` is where a link points, as it is; `sha256` a file's hexadecimal digest, None when not computed.
    """

    path: bytes
    kind: Kind
    mode: int
    size: int = 0
    mtime: int = 0
    target: bytes = b""
    sha256: str | None = None

    def record(self, *, mtime: bool = True) -> bytes:
        """One entry as bytes without NUL: kind, mode (octal), size, mtime, SHA-256 (or `-`), path, and `//` target.

        A relative path has no `//`, so that what follows the first is the target.
        """
        head = b"%c %o %d %s %s %s" % (
            ord(self.kind[0]),
            self.mode,
            self.size,
            b"%d" % self.mtime if mtime else b"-",
            (self.sha256 or "-").encode(),
            self.path,
        )
        return head + b"//" + self.target if self.kind is Kind.LINK else head

    @classmethod
    def from_record(cls, record: bytes) -> Entry:
        """Read what `record` wrote. Raises ValueError for anything else."""
        letter, mode, size, mtime, digest, path = record.split(b" ", 5)
        kind = _KINDS.get(letter)
        if kind is None or not path:
            raise ValueError(f"not a manifest's record: {record[:80]!r}")
        target = b""
        if kind is Kind.LINK:
            path, _, target = path.partition(b"//")
        sha256 = None if digest == b"-" else digest.decode("ascii")
        return cls(path, kind, int(mode, 8), int(size), int(mtime), target, sha256)


class Manifest:
    """The entries of a tree, sorted by the bytes of their paths (as `LC_ALL=C sort` does): parents come first."""

    __slots__ = ("entries",)

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        """Sort the entries. Raises ValueError when a path occurs twice."""
        self.entries = sorted(entries, key=attrgetter("path"))
        for before, after in zip(self.entries, self.entries[1:], strict=False):
            if before.path == after.path:
                raise ValueError(f"{before.path!r} occurs twice")

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Manifest) and self.entries == other.entries

    __hash__ = None  # type: ignore[assignment]

    def get(self, path: bytes) -> Entry | None:
        """The entry at `path`, None when there is none."""
        index = bisect_left(self.entries, path, key=attrgetter("path"))
        if index < len(self.entries) and self.entries[index].path == path:
            return self.entries[index]
        return None

    def digest(self) -> str:
        """Hexadecimal SHA-256 of the tree's content: path, kind, mode, size, SHA-256 and target of every entry.

        Modification times are not content. Raises ValueError when a file was not hashed.
        """
        whole = hashlib.sha256(_HEAD % MANIFEST_FORMAT)
        for entry in self.entries:
            if entry.kind is Kind.FILE and entry.sha256 is None:
                raise ValueError(f"{entry.path!r} has not been hashed")
            whole.update(entry.record(mtime=False) + b"\0")
        return whole.hexdigest()

    def dump(self) -> bytes:
        """The manifest written down: a line that names the format, then a record per entry, each ended by NUL."""
        return _HEAD % MANIFEST_FORMAT + b"".join(entry.record() + b"\0" for entry in self.entries)

    @classmethod
    def load(cls, data: bytes) -> Manifest:
        """Read what `dump` wrote. Raises ValueError for another format, and for what is damaged or cut short."""
        head, _, records = data.partition(b"\n")
        if head + b"\n" != _HEAD % MANIFEST_FORMAT:
            raise ValueError(f"not a manifest of format {MANIFEST_FORMAT}: {head[:60]!r}")
        *whole, rest = records.split(b"\0")
        if rest:
            raise ValueError("the manifest is cut short")
        return cls(Entry.from_record(record) for record in whole)


class Stamp(NamedTuple):
    """What a local file looked like when it was scanned; another look means other content."""

    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class Member:
    """An entry of an archive, and where a file's bytes come from: a local path, or `data` itself.

    `stamp` guards against changes between scan and reading; without one, the archive takes its own when it is made.
    `extents` are the (offset, length) of what is not a hole, None for a file without holes.
    """

    entry: Entry
    local: bytes | Path | None = None
    data: bytes | None = None
    stamp: Stamp | None = None
    extents: tuple[tuple[int, int], ...] | None = None


class Skipped(NamedTuple):
    """Something that was left out of a tree, and why, as in `a socket`."""

    path: bytes
    why: str
