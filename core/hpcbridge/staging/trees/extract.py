"""Unpack an archive from a stream, believing nothing it says.

Everything is made anew (`O_EXCL`) in directories that this process has made itself and reaches name by name without
following a link, so that no member can write outside, through a link, or twice to one place. tarfile reads the headers;
it sees the stream through a window that neither goes back nor lets a header be larger than headers are.
"""

from __future__ import annotations

import errno
import gzip
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol, cast

from hpcbridge.errors import AlreadyExists, HpcBridgeError, IntegrityError, TooLarge, TransferError
from hpcbridge.staging.names import NAME_MAX, PATH_MAX
from hpcbridge.staging.source import BLOCK
from hpcbridge.staging.trees.directories import Directories
from hpcbridge.staging.trees.entries import LINK_MODE, Entry, Kind
from hpcbridge.staging.trees.publishing import publish

__all__ = ["extract", "publish"]

HEADER_MAX = 8 << 20
"""Bytes of one member's headers at most: names, and the map of a sparse file (350,000 extents)."""
_GZIP = b"\x1f\x8b\x08"
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE)
_ODD = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a named pipe",
}


class Readable(Protocol):
    """Anything with `read`."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; empty at the end."""
        ...


def extract(
    stream: Readable, into: Path, *, max_size: int | None = None, compression: str | None = None
) -> list[Entry]:
    """Unpack a tar archive (GNU or pax, with holes) into the new, empty directory `into`; in constant memory.

    Args:
        stream: read once, from where it is to its end.
        into: an empty directory that nobody else writes to.
        max_size: bytes that the unpacked archive may have, headers included; what is compressed can be small and
            become anything.
        compression: "" or "gzip"; None looks at the first block.

    Returns the entries in the archive's order, without SHA-256. Modes lose set-id and sticky bits.

    Raises IntegrityError for an archive that is damaged, cut short, or hostile: it says which member and why. TooLarge
    past `max_size`, AlreadyExists when `into` is not empty, TransferError when the disk refuses. What was unpacked
    until then stays in `into`, for the caller to remove.
    """
    if any(into.iterdir()):
        raise AlreadyExists(f"{into} is not empty", path=str(into))
    window = _Window(_uncompressed(stream, compression), max_size)
    try:
        with Directories(into) as directories:
            unpacking = _Unpacking(window, directories)
            unpacking.run()
            return unpacking.entries
    except (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, ValueError, OverflowError) as error:
        raise IntegrityError(f"the archive is damaged: {error}", path=str(into)) from error


def _uncompressed(stream: Readable, compression: str | None) -> Readable:
    if compression is None:
        head = b""
        while len(head) < tarfile.BLOCKSIZE and (more := stream.read(tarfile.BLOCKSIZE - len(head))):
            head += more
        stream = _Again(head, stream)
        compression = "gzip" if head.startswith(_GZIP) and not _is_header(head) else ""
    return cast("Readable", gzip.GzipFile(fileobj=cast("IO[bytes]", stream))) if compression else stream


def _is_header(block: bytes) -> bool:
    """Whether a block is a member's header: an uncompressed archive may begin with any name."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


class _Again:
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, stream: Readable) -> None:
        self._head = head
        self._stream = stream

    def read(self, size: int, /) -> bytes:
        head, self._head = self._head[:size], self._head[size:]
        return head or self._stream.read(size)


class _Window:
    """What tarfile sees of the stream: forwards only, and with bounded headers. `position` counts bytes."""

    def __init__(self, stream: Readable, limit: int | None) -> None:
        self._stream = stream
        self._limit = limit
        self._last = b""
        self.position = 0
        self.header = 0

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        if position < self.position:
            raise tarfile.ReadError("a member has a negative size")
        while position > self.position and self.take(min(BLOCK, position - self.position)):
            pass

    def read(self, size: int) -> bytes:
        """For headers: all of `size` bytes unless the stream ends."""
        self.header += size
        if size < 0 or self.header > HEADER_MAX:
            raise tarfile.ReadError(f"a header of more than {HEADER_MAX} bytes")
        found = self.take(size)
        while len(found) < size and (more := self.take(size - len(found))):
            found += more
        self._last = found
        return found

    def take(self, size: int) -> bytes:
        """For content: some of `size` bytes, empty at the end of the stream."""
        found = self._stream.read(size)
        self.position += len(found)
        if self._limit is not None and self.position > self._limit:
            raise TooLarge(f"the archive has more than {self._limit} bytes when it is unpacked")
        return found

    def finish(self) -> None:
        """Read to the end, which checks a compressed stream. Raises ReadError unless only zeros were left."""
        # tarfile takes any damaged header but the first for the end.
        if len(self._last) != tarfile.BLOCKSIZE or any(self._last):
            raise tarfile.ReadError("it has no proper end")
        zeros = 0
        while rest := self.take(BLOCK):
            zeros += len(rest)
            if rest.count(0) != len(rest):
                raise tarfile.ReadError("something follows its end")
        if zeros < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("its end is cut short")


class _Unpacking:
    def __init__(self, window: _Window, directories: Directories) -> None:
        self.entries: list[Entry] = []
        self._window = window
        self._directories = directories
        # Path -> mode and time that the archive gives it, None as long as it has not named it.
        self._made: dict[bytes, tuple[int, int] | None] = {}

    def run(self) -> None:
        for info in self._members():
            path = _path(info)
            try:
                self._member(info, path)
            except OSError as error:
                if isinstance(error, gzip.BadGzipFile):
                    raise
                self._refused(path, error)
            except (OverflowError, ValueError) as error:
                raise _hostile(info.name, f"it has an impossible time or size: {error}") from error
        self._window.finish()
        for path in sorted(self._made, reverse=True):
            if (given := self._made[path]) is not None:
                self._directories.finish(path, *given)

    def _members(self) -> Iterator[tarfile.TarInfo]:
        with tarfile.TarFile(fileobj=cast("Any", self._window), encoding="utf-8", errors="surrogateescape") as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
                # tarfile lets the later one of two names win, which for GNU tar's sparse files is a made-up one.
                info.name = info.pax_headers.get("GNU.sparse.name", info.name)
                yield info
                self._window.header = 0

    def _member(self, info: tarfile.TarInfo, path: bytes) -> None:
        mtime = int(info.mtime)
        if not path:
            if not info.isdir():
                raise _hostile(info.name, "it names nothing")
            return  # the root itself, whose mode is the caller's
        if info.isdir():
            self._add_directory(path, info.mode & 0o777, mtime)
            return
        self._require_parent(path)
        if info.issym():
            self._add_link(path, _encoded(info.linkname), mtime)
        elif info.type in _FILES:
            self._add_file(path, info, mtime)
        else:
            raise _hostile(info.name, f"it is {_ODD.get(info.type, f'of the unknown type {info.type!r}')}")

    def _refused(self, path: bytes, error: OSError) -> NoReturn:
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.EMLINK):
            raise _hostile(os.fsdecode(path), "its place is taken by another member") from error
        name = os.fsdecode(path)
        raise TransferError(f"cannot write {name}: {error.strerror}", path=name) from error

    def _require_parent(self, path: bytes) -> None:
        """Make the directories above that the archive has not named yet."""
        above = path.rpartition(b"/")[0]
        missing = []
        while above and above not in self._made:
            missing.append(above)
            above = above.rpartition(b"/")[0]
        for each in reversed(missing):
            self._directories.make(each, 0o777)
            self._made[each] = None

    def _add_directory(self, path: bytes, mode: int, mtime: int) -> None:
        if self._made.get(path, ...) is ...:
            self._require_parent(path)
            self._directories.make(path, 0o700)
        elif self._made[path] is not None:
            raise _hostile(os.fsdecode(path), "it occurs twice")
        self._made[path] = mode, mtime
        self.entries.append(Entry(path, Kind.DIRECTORY, mode, 0, mtime))

    def _add_link(self, path: bytes, target: bytes, mtime: int) -> None:
        if not target or b"\0" in target or len(target) > PATH_MAX:
            raise _hostile(os.fsdecode(path), "its target is no path")
        fd, name = self._directories.parent(path)
        os.symlink(target, name, dir_fd=fd)
        os.utime(name, ns=(mtime * 1_000_000_000, mtime * 1_000_000_000), dir_fd=fd, follow_symlinks=False)
        self.entries.append(Entry(path, Kind.LINK, LINK_MODE, 0, mtime, target))

    def _add_file(self, path: bytes, info: tarfile.TarInfo, mtime: int) -> None:
        directory, name = self._directories.parent(path)
        fd = os.open(name, _CREATE, 0o600, dir_fd=directory)
        try:
            if info.sparse is None:
                self._copy(fd, path, info.size)
            else:
                for offset, length in _extents(info):
                    os.lseek(fd, offset, os.SEEK_SET)
                    self._copy(fd, path, length)
                os.ftruncate(fd, info.size)
            os.fchmod(fd, info.mode & 0o777)
            os.utime(fd, ns=(mtime * 1_000_000_000, mtime * 1_000_000_000))
        finally:
            os.close(fd)
        self.entries.append(Entry(path, Kind.FILE, info.mode & 0o777, info.size, mtime))

    def _copy(self, fd: int, path: bytes, length: int) -> None:
        while length > 0:
            data = self._window.take(min(BLOCK, length))
            if not data:
                raise IntegrityError(f"the archive ends in the middle of {os.fsdecode(path)!r}")
            length -= len(data)
            while data:
                data = data[os.write(fd, data) :]


def _extents(info: tarfile.TarInfo) -> list[tuple[int, int]]:
    """The extents of a sparse file, in order. Raises IntegrityError when they overlap or leave it."""
    end = 0
    # Those without a length fill a header up, or say where the file ends, which `size` says as well.
    found = [each for each in cast("list[tuple[int, int]]", info.sparse) if each[1]]
    for offset, length in found:
        if offset < end or length < 0:
            raise _hostile(info.name, "its extents overlap")
        end = offset + length
    if end > info.size:
        raise _hostile(info.name, "its extents leave it")
    return found


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _path(info: tarfile.TarInfo) -> bytes:
    """A member's path below the root; empty for the root itself. Raises IntegrityError for one that leaves it."""
    whole = _encoded(info.name)
    if info.size < 0:
        raise _hostile(info.name, "its size is negative")
    if whole.startswith(b"/"):
        raise _hostile(info.name, "its path is absolute")
    names = [name for name in whole.split(b"/") if name not in (b"", b".")]
    if b".." in names:
        raise _hostile(info.name, "its path climbs with '..'")
    if b"\0" in whole:
        raise _hostile(info.name, "its path holds a NUL")
    path = b"/".join(names)
    if len(path) > PATH_MAX or any(len(name) > NAME_MAX for name in names):
        raise _hostile(info.name, "its path is too long")
    return path


def _hostile(name: str, why: str) -> HpcBridgeError:
    shown = name if len(name) <= 200 else f"{name[:200]}…"
    return IntegrityError(
        f"the archive is refused for its member {shown!r}: {why}", hint="Nothing was published; tell the site"
    )
