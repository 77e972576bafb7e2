"""A stage directory as it must be on the cluster: every entry, its content by SHA-256, links and paths rewritten."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpcbridge.staging.trees.entries import Kind
from hpcbridge.staging.trees.patterns import Filter
from hpcbridge_reframe.paths import (
    TEXT_MAX,
    PathMap,
    is_of_the_system,
    stage_directories_in,
    stage_directory_of,
)

Signature = tuple[int, int, int]
"""Size, modification time (ns) and inode: while they are the same, so is the content."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is, or shall be, at a path on the cluster. Of a file `key` names its content, of a link `target` its aim."""

    kind: Kind
    mode: int = 0
    size: int = 0
    mtime: int = 0
    key: str = ""
    target: str = ""

    def is_like(self, other: Entry | None) -> bool:
        """Whether nothing would have to be done; times of directories and links do not count."""
        if other is None or (self.kind, self.mode, self.key, self.target) != (
            other.kind,
            other.mode,
            other.key,
            other.target,
        ):
            return False
        return self.kind is not Kind.FILE or self.mtime == other.mtime


@dataclass(frozen=True, slots=True)
class Known:
    """An entry that is on the cluster, and how its counterpart here looked then (None: it has none)."""

    entry: Entry
    signature: Signature | None = None


@dataclass(frozen=True, slots=True)
class Content:
    """Where the bytes of a key are: a file here that must still look like `signature`, or `data` itself."""

    size: int
    path: Path | None = None
    signature: Signature | None = None
    data: bytes | None = None

    def read(self) -> bytes:
        """The bytes. Raises OSError when the file is not what it was."""
        if self.data is not None:
            return self.data
        assert self.path is not None
        data = self.path.read_bytes()
        self.check()
        return data

    def check(self) -> None:
        """Raises OSError when the file is not what it was."""
        if self.path is not None and signature(self.path.stat()) != self.signature:
            raise OSError(f"{self.path} changed while it was on its way to the cluster")


@dataclass(slots=True)
class Tree:
    """What `scan` found: entries by path (directories before what is in them), contents, other stage directories."""

    entries: dict[str, Entry] = field(default_factory=dict)
    signatures: dict[str, Signature] = field(default_factory=dict)
    contents: dict[str, Content] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)

    def fingerprint(self) -> str:
        """Stands for all that matters to the job: everything but times."""
        rows = sorted((path, e.kind.value, e.mode, e.key, e.target) for path, e in self.entries.items())
        return hashlib.sha256(repr(rows).encode("utf-8", "surrogateescape")).hexdigest()


def signature(found: os.stat_result) -> Signature:
    """How a file looks from outside."""
    return found.st_size, found.st_mtime_ns, found.st_ino


def key_of(digest: str, size: int, mode: int) -> str:
    """The name of a content in the store; it tells a file that was cut short, and one that can be run."""
    return f"{digest}-{size}{'x' if mode & 0o111 else ''}"


class Scanner:
    """Looks through stage directories; `store` is where contents are on the cluster, `stage` the prefix here."""

    def __init__(self, stage: str, store: str, filter: Filter) -> None:
        self.stage = stage
        self.store = store
        self.filter = filter
        self._digests: dict[tuple[str, Signature], str] = {}

    def scan(self, root: Path, map: PathMap, known: Mapping[str, Known]) -> Tree:
        """The tree at `root`; what looks as it did when it was `known` is not read again. Raises OSError."""
        tree = Tree()
        own = stage_directory_of(str(root), self.stage)
        self._directory(root, root, "", map, known, tree)
        tree.others.discard(own or "")
        return tree

    def _directory(
        self, root: Path, here: Path, under: str, map: PathMap, known: Mapping[str, Known], tree: Tree
    ) -> None:
        for item in sorted(os.scandir(here), key=lambda item: item.name):
            path = under + item.name
            found = item.stat(follow_symlinks=False)
            encoded = os.fsencode(path)
            if stat.S_ISDIR(found.st_mode):
                if self.filter.enters(encoded):
                    if self.filter.keeps(encoded, Kind.DIRECTORY):
                        tree.entries[path] = Entry(Kind.DIRECTORY, _mode(found))
                    self._directory(root, Path(item.path), f"{path}/", map, known, tree)
            elif stat.S_ISLNK(found.st_mode):
                if self.filter.keeps(encoded, Kind.LINK):
                    tree.signatures[path] = signature(found)
                    self._link(root, path, Path(item.path), map, tree)
            elif stat.S_ISREG(found.st_mode) and self.filter.keeps(encoded, Kind.FILE, found.st_size):
                tree.signatures[path] = signature(found)
                tree.entries[path] = self._file(path, Path(item.path), found, map, known, tree)

    def _file(
        self, path: str, local: Path, found: os.stat_result, map: PathMap, known: Mapping[str, Known], tree: Tree
    ) -> Entry:
        mtime, mode = int(found.st_mtime), _mode(found)
        before = known.get(path)
        if before is not None and before.signature == signature(found) and before.entry.mode == mode:
            return before.entry
        key, content = self._content(local, found, map, tree)
        tree.contents[key] = content
        return Entry(Kind.FILE, mode, content.size, mtime, key)

    def _content(self, local: Path, found: os.stat_result, map: PathMap, tree: Tree) -> tuple[str, Content]:
        looks, mode = signature(found), _mode(found)
        if found.st_size <= TEXT_MAX:
            data = local.read_bytes()
            tree.others |= stage_directories_in(data, self.stage)
            shipped = map.forward(data)
            key = key_of(hashlib.sha256(shipped).hexdigest(), len(shipped), mode)
            if shipped is not data and shipped != data:
                return key, Content(len(shipped), data=shipped)
            return key, Content(len(data), local, looks)
        return key_of(self._digest(local, looks), found.st_size, mode), Content(found.st_size, local, looks)

    def _digest(self, local: Path, looks: Signature) -> str:
        """Many tests link the same large file; it is read once."""
        known = self._digests.get((str(local), looks))
        if known is None:
            with local.open("rb") as stream:
                known = hashlib.file_digest(stream, "sha256").hexdigest()
            self._digests[str(local), looks] = known
        return known

    def _link(self, root: Path, path: str, local: Path, map: PathMap, tree: Tree) -> None:
        """A link: inside the mirror it points to its counterpart there; what it points to outside comes along."""
        target = str(local.readlink())
        aim = os.path.normpath(local.parent / target)
        if aim == str(root) or aim.startswith((f"{root}/", f"{self.stage}/")):
            other = stage_directory_of(aim, self.stage)
            if other is not None:
                tree.others.add(other)
            there = map.there(aim) if target.startswith("/") else target
            tree.entries[path] = Entry(Kind.LINK, target=there or target)
        elif (there := map.there(aim)) is not None:
            tree.entries[path] = Entry(Kind.LINK, target=there)
        elif is_of_the_system(aim) or not local.exists():
            tree.entries[path] = Entry(Kind.LINK, target=target)
        else:
            self._outside(path, local.resolve(), map, tree)

    def _outside(self, path: str, aim: Path, map: PathMap, tree: Tree) -> None:
        """What lies outside of the mirror is in the store, once, and links point there."""
        found = aim.stat()
        if stat.S_ISDIR(found.st_mode):
            tree.entries[path] = Entry(Kind.DIRECTORY, _mode(found))
            for item in sorted(aim.iterdir()):
                if item.exists():
                    self._outside(f"{path}/{item.name}", item, map, tree)
        elif stat.S_ISREG(found.st_mode):
            key, content = self._content(aim, found, map, tree)
            tree.contents[key] = content
            tree.entries[path] = Entry(Kind.LINK, target=f"{self.store}/{blob_path(key)}")


def blob_path(key: str) -> str:
    """Where a content is, below the store."""
    return f"{key[:2]}/{key}"


def _mode(found: os.stat_result) -> int:
    return stat.S_IMODE(found.st_mode) & 0o777
