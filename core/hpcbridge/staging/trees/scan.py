"""Look through a local tree: what is in it, what its files' digests are, and what cannot be carried."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hpcbridge.credentials.store import logins_directory
from hpcbridge.errors import InvalidPath, PathNotFound, PermissionDenied, TransferError
from hpcbridge.jobs.intents import state_directory
from hpcbridge.sites import config_directory, config_file
from hpcbridge.staging.source import BLOCK
from hpcbridge.staging.trees.entries import LINK_MODE, Entry, Kind, Manifest, Member, Skipped, Stamp
from hpcbridge.staging.trees.hashes import HashCache, now_ns
from hpcbridge.staging.trees.patterns import Filter

HASHERS = min(8, os.cpu_count() or 1)
"""Threads that hash large files; hashlib lets others run only while it has much to do."""
ATTEMPTS = 3
"""Times a file is read that is written to meanwhile."""
EXTENTS = 10_000
"""Extents of one file at most; holes between more are partly sent as zeros."""
_NAMED = 5
"""Unreadable paths that an error names."""
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_ODD = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


@dataclass(frozen=True, slots=True)
class Scan:
    """A tree at one time: `members` in the manifest's order, and the `bytes` in its files (holes included)."""

    manifest: Manifest
    members: list[Member]
    skipped: list[Skipped]
    bytes: int


def scan(root: Path, filter: Filter | None = None, *, hashing: bool = True, cache: HashCache | None = None) -> Scan:
    """Look through the directory `root`; links are not followed, `root` itself apart. Blocks: call it in a thread.

    Args:
        root: a directory.
        filter: what is kept; everything by default.
        hashing: compute SHA-256 of every file.
        cache: digests of earlier scans; it is saved at the end.

    Raises PathNotFound and InvalidPath for a root that is no directory, PermissionDenied when part of the tree cannot
    be read, TransferError for a file that does not stop changing.
    """
    return _Scanner(os.fsencode(root), filter or Filter(), hashing, cache).run()


@dataclass(slots=True)
class _Scanner:
    root: bytes
    filter: Filter
    hashing: bool
    cache: HashCache | None
    members: list[Member] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    denied: list[bytes] = field(default_factory=list)
    # Directories that are kept only if they lead to something, and large files, which threads hash at the end.
    leading: dict[bytes, Entry] = field(default_factory=dict)
    large: list[tuple[bytes, bytes, os.stat_result]] = field(default_factory=list)
    own: frozenset[tuple[int, int]] = field(default_factory=lambda: _own())

    def run(self) -> Scan:
        waiting = [b""]
        while waiting:
            waiting.extend(self._directory(waiting.pop()))
        if self.large and not self.denied:
            with ThreadPoolExecutor(min(HASHERS, len(self.large))) as threads:
                hashed = threads.map(lambda each: _read(each[1], each[2]), self.large)
                for (path, local, _), outcome in zip(self.large, hashed, strict=True):
                    self._hashed(path, local, outcome)
        if self.denied:
            raise self._unreadable()
        self.members.sort(key=lambda member: member.entry.path)
        if self.cache is not None:
            self.cache.save()
        manifest = Manifest(member.entry for member in self.members)
        return Scan(manifest, self.members, sorted(self.skipped), sum(entry.size for entry in manifest))

    def _directory(self, path: bytes) -> list[bytes]:
        """Take in what is in a directory; returns the directories below it."""
        prefix = path + b"/" if path else b""
        below: list[bytes] = []
        for name, found in self._names(path):
            inner = prefix + name
            if (found.st_dev, found.st_ino) in self.own:
                self.skipped.append(Skipped(inner, "hpcbridge's own state, logins or configuration"))
            elif stat.S_ISDIR(found.st_mode):
                if self.filter.enters(inner):
                    self._add_directory(inner, found)
                    below.append(inner)
            elif not self.filter.selects(inner):
                continue
            elif stat.S_ISREG(found.st_mode):
                self._file(inner, found)
            elif stat.S_ISLNK(found.st_mode):
                self._link(inner, found)
            else:
                self.skipped.append(Skipped(inner, _ODD.get(stat.S_IFMT(found.st_mode), "of an unknown kind")))
        return below

    def _names(self, path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
        local = self._local(path)
        # Nothing below the root is followed, not even a link that has just taken a directory's place.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | (os.O_NOFOLLOW if path else 0)
        try:
            fd = os.open(local, flags)
        except OSError as error:
            self._failed(path, error)
            return
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        yield os.fsencode(entry.name), entry.stat(follow_symlinks=False)
        finally:
            os.close(fd)

    def _failed(self, path: bytes, error: OSError) -> None:
        """What cannot be opened has vanished, or is reported at the end, or ends the scan."""
        name = os.fsdecode(self._local(path))
        if not path and error.errno == errno.ENOENT:
            raise PathNotFound(f"{name} does not exist", path=name) from error
        if not path and error.errno == errno.ENOTDIR:
            raise InvalidPath(f"{name} is not a directory", path=name) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            self.denied.append(path)
        elif error.errno == errno.ENAMETOOLONG:
            raise InvalidPath(f"a path below {os.fsdecode(self.root)} is too long to be opened", path=name) from error
        elif error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EMLINK):
            self.skipped.append(Skipped(path, "it vanished while the tree was looked through"))
        else:
            raise TransferError(f"{name} cannot be read: {error.strerror}", path=name) from error

    def _local(self, path: bytes) -> bytes:
        return self.root.rstrip(b"/") + b"/" + path if path else self.root

    def _add(self, entry: Entry, *, local: bytes | None = None, found: os.stat_result | None = None) -> None:
        """Keep an entry, and the directories that lead to it."""
        parent = entry.path.rpartition(b"/")[0]
        while parent and self.leading and (above := self.leading.pop(parent, None)) is not None:
            self.members.append(Member(above))
            parent = parent.rpartition(b"/")[0]
        if local is None or found is None:
            self.members.append(Member(entry))
            return
        stamp = Stamp(found.st_size, found.st_mtime_ns, found.st_ino)
        sparse = found.st_size > 4096 and found.st_blocks * 512 < found.st_size
        extents = _extents(local, found.st_size) if sparse else None
        self.members.append(Member(entry, local, None, stamp, extents))

    def _add_directory(self, path: bytes, found: os.stat_result) -> None:
        entry = Entry(path, Kind.DIRECTORY, found.st_mode & 0o777, mtime=found.st_mtime_ns // 1_000_000_000)
        if self.filter.include and not self.filter.selects(path + b"/"):
            self.leading[path] = entry
        else:
            self._add(entry)

    def _link(self, path: bytes, found: os.stat_result) -> None:
        try:
            target = os.readlink(self._local(path))  # noqa: PTH115 - a Path cannot hold bytes
        except OSError as error:
            self._failed(path, error if error.errno != errno.EINVAL else FileNotFoundError(errno.ENOENT, "replaced"))
            return
        self._add(Entry(path, Kind.LINK, LINK_MODE, 0, found.st_mtime_ns // 1_000_000_000, target))

    def _file(self, path: bytes, found: os.stat_result) -> None:
        limit = self.filter.max_file_size
        if limit is not None and found.st_size > limit:
            self.skipped.append(Skipped(path, f"its {found.st_size} bytes are more than {limit}"))
            return
        local = self._local(path)
        known = self.cache.get(path, found) if self.hashing and self.cache is not None else None
        if known is None and self.hashing:
            if found.st_size > BLOCK:
                self.large.append((path, local, found))
            else:
                self._hashed(path, local, _read(local, found))
        elif os.access(local, os.R_OK):
            self._add_file(path, local, found, known)
        else:
            self._failed(path, _why_not(local))

    def _hashed(self, path: bytes, local: bytes, outcome: _Read | OSError) -> None:
        if isinstance(outcome, OSError):
            self._failed(path, outcome)
            return
        if self.cache is not None:
            self.cache.put(path, outcome.found, outcome.sha256, outcome.began_ns)
        self._add_file(path, local, outcome.found, outcome.sha256)

    def _add_file(self, path: bytes, local: bytes, found: os.stat_result, sha256: str | None) -> None:
        mtime = found.st_mtime_ns // 1_000_000_000
        entry = Entry(path, Kind.FILE, found.st_mode & 0o777, found.st_size, mtime, b"", sha256)
        self._add(entry, local=local, found=found)

    def _unreadable(self) -> PermissionDenied:
        names = [os.fsdecode(self._local(path)) for path in sorted(self.denied)]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return PermissionDenied(
            f"cannot read {', '.join(names[:_NAMED])}{more}",
            path=names[0],
            hint="Nothing was sent; make them readable, or exclude them",
        )


def _own() -> frozenset[tuple[int, int]]:
    """Device and inode of our own state, logins and configuration: secrets, some of which change in mid-transfer."""
    own = set()
    for path in (state_directory(), logins_directory(), config_directory(), config_file()):
        with suppress(OSError):
            found = path.stat()
            own.add((found.st_dev, found.st_ino))
    return frozenset(own)


class _Read(NamedTuple):
    """A file that was read: how it looked before and after, its digest, and when reading began."""

    found: os.stat_result
    sha256: str
    began_ns: int


def _read(local: bytes, found: os.stat_result) -> _Read | OSError:
    """Hash a file, again if it changes meanwhile. Raises TransferError when it does not stop."""
    try:
        fd = os.open(local, _OPEN)
    except OSError as error:
        return error
    try:
        for _ in range(ATTEMPTS):
            began = now_ns()
            digest = _digest(fd, found.st_size)
            after = os.fstat(fd)
            if _looks(after) == _looks(found):
                return _Read(after, digest, began)
            if not stat.S_ISREG(after.st_mode):
                return FileNotFoundError(errno.ENOENT, "something else took its place")
            os.lseek(fd, 0, os.SEEK_SET)
            found = after
    except OSError as error:
        return error
    finally:
        os.close(fd)
    name = os.fsdecode(local)
    raise TransferError(f"{name} changes while it is read", path=name, hint="Wait for its writer, or exclude it")


def _digest(fd: int, size: int) -> str:
    digest = hashlib.sha256()
    while size > 0 and (data := os.read(fd, min(BLOCK, size))):
        digest.update(data)
        size -= len(data)
    return digest.hexdigest()


def _looks(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev


def _why_not(local: bytes) -> OSError:
    """Why a file cannot be read."""
    try:
        os.close(os.open(local, _OPEN))
    except OSError as error:
        return error
    return PermissionError(errno.EACCES, "not readable")


def _extents(local: bytes, size: int) -> tuple[tuple[int, int], ...] | None:
    """(offset, length) of what is not a hole; None where the file system tells of no holes."""
    try:
        fd = os.open(local, _OPEN)
    except OSError:
        return None  # whoever reads the file next reports it
    try:
        found = list(_data(fd, size))
    except OSError:
        return None
    finally:
        os.close(fd)
    return None if found == [(0, size)] else tuple(found)


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    start, end, count = 0, 0, 0
    while end < size:
        try:
            data = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing but a hole until the end
                raise
            break
        if data >= size:
            break
        # After many extents, small holes are passed over, and smaller ones of a larger and larger size.
        if end and data - end >= (1 << (count // EXTENTS)) * 4096 * (count >= EXTENTS):
            yield start, end - start
            count += 1
            start = data
        elif not end:
            start = data
        end = min(size, os.lseek(fd, data, os.SEEK_HOLE))
    if end:
        yield start, end - start
