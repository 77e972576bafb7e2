"""A tar archive that exists only while it is read.

Headers have lengths that are known beforehand, so every byte of the archive has a known place: an upload can read any
part of it, in any order and again after an interruption, without a copy on the disk. The format is GNU's own: it holds
names as the bytes they are, sizes and times of any magnitude, and the holes of sparse files.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from hpcbridge.errors import TransferError
from hpcbridge.staging.source import SourceFile
from hpcbridge.staging.trees.entries import Entry, Kind, Member, Stamp

LAYOUT = 1
"""Version of the layout: another one puts the same members at other places."""
_BLOCK = 512
_NAME = 100
"""Bytes of a name, or of a link's target, in a header of its own; longer ones come before it."""
_TRAILER = 2 * _BLOCK
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_TYPES = {Kind.FILE: tarfile.REGTYPE, Kind.DIRECTORY: tarfile.DIRTYPE, Kind.LINK: tarfile.SYMTYPE}

Extents = tuple[tuple[int, int], ...]


class Archive(SourceFile):
    """The members, one after another, as `tar --format=gnu --sparse` would write them; owners are not told.

    The same members always give the same bytes, in whatever order they come. `identity` is that of the layout and of
    all that is in it.
    """

    compression = ""

    def __init__(self, members: Sequence[Member], name: str = "the archive") -> None:
        """Lay the members out; what is in a directory follows it at once.

        tar gives a directory its mode and time as soon as it sees something that lies elsewhere: by the bytes of the
        paths alone, `a-b` would come between `a` and `a/b`.

        `name` is what messages call the archive, such as the tree's local path. Raises ValueError for a file without
        content, TransferError for one that is no longer what its entry says.
        """
        self.name = name
        complete = (member if _is_complete(member) else _stamped(member) for member in members)
        self.members = sorted(complete, key=lambda member: member.entry.path.replace(b"/", b"\0"))
        self._starts = array("Q", accumulate(map(_length, self.members), initial=0))
        self.size = self._starts[-1] + _TRAILER
        self.identity = _identity(self.members)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset` on; any thread.

        Raises TransferError for a file that has changed, shrunk or vanished, ValueError for a span outside the archive.
        """
        end = offset + length
        if offset < 0 or length < 0 or end > self.size:
            raise ValueError(f"{length} bytes from {offset} on are not within {self.size}")
        parts: list[bytes] = []
        index = bisect_right(self._starts, offset) - 1
        while offset < end and index < len(self.members):
            start, stop = self._starts[index], min(self._starts[index + 1], end)
            parts.extend(_pieces(self.members[index], offset - start, stop - start))
            offset = stop
            index += 1
        parts.append(bytes(end - offset))
        return b"".join(parts)

    def check_unchanged(self) -> None:
        """Raise TransferError when one of the files has changed since it was scanned."""
        for member in self.members:
            if member.local is not None:
                try:
                    found = os.lstat(member.local)
                except OSError as error:
                    raise _changed(member.local, error.strerror) from error
                if _stamp(found) != member.stamp:
                    raise _changed(member.local)

    def changed(self) -> TransferError:
        """The error for a tree that was written to while it was sent."""
        return _changed(self.name)

    def close(self) -> None:
        """Files are open only while they are read."""


def _changed(local: bytes | Path | str, why: str | None = None) -> TransferError:
    name = os.fsdecode(local)
    reason = f": {why}" if why else ""
    return TransferError(f"{name} changed while it was being sent{reason}", path=name, hint="Send it again")


def _stamp(found: os.stat_result) -> Stamp:
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ino)


def _is_complete(member: Member) -> bool:
    return member.entry.kind is not Kind.FILE or member.stamp is not None


def _stamped(member: Member) -> Member:
    """A file's member that was made by hand, with the stamp that reading compares with."""
    entry = member.entry
    if member.data is not None:
        if len(member.data) != entry.size:
            raise ValueError(f"{entry.path!r} has {len(member.data)} bytes instead of {entry.size}")
        return member
    if member.local is None:
        raise ValueError(f"{entry.path!r} has no content")
    try:
        found = os.lstat(member.local)
    except OSError as error:
        raise _changed(member.local, error.strerror) from error
    if found.st_size != entry.size:
        raise _changed(member.local)
    return Member(entry, member.local, None, _stamp(found), member.extents)


def _identity(members: Sequence[Member]) -> str:
    whole = hashlib.sha256(b"hpcbridge archive %d" % LAYOUT)
    for member in members:
        whole.update(b"\0" + member.entry.record())
        if member.data is not None:
            whole.update(b"\0\0" + hashlib.sha256(member.data).digest())
        elif member.entry.sha256 is None and member.stamp is not None:
            whole.update(b"\0\0%d %d %d" % member.stamp)
        if member.extents is not None:
            whole.update(b"\0\0" + repr(member.extents).encode())
    return whole.hexdigest()


def _padded(length: int) -> int:
    return -(-length // _BLOCK) * _BLOCK


def _stored(member: Member) -> int:
    """Bytes of content that are in the archive."""
    if member.entry.kind is not Kind.FILE:
        return 0
    return member.entry.size if member.extents is None else sum(length for _, length in member.extents)


def _header_length(member: Member) -> int:
    entry = member.entry
    length = _BLOCK
    for text in (entry.path + b"/" if entry.kind is Kind.DIRECTORY else entry.path, entry.target):
        if len(text) > _NAME:
            length += _BLOCK + _padded(len(text) + 1)
    if member.extents is not None:
        length += -(-max(0, len(member.extents) + 1 - 4) // 21) * _BLOCK
    return length


def _length(member: Member) -> int:
    return _header_length(member) + _padded(_stored(member))


def _pieces(member: Member, offset: int, end: int) -> Iterator[bytes]:
    """The bytes of a member's part of the archive, header and padding included, from `offset` to `end`."""
    start = _header_length(member)
    if offset < start:
        yield _header(member)[offset:end]
    stored = _stored(member)
    first, last = max(offset - start, 0), min(end - start, stored)
    if first < last:
        yield from _content(member, first, last)
    if end - start > stored:
        yield bytes(end - max(offset, start + stored))


_PLAIN = tarfile.TarInfo().tobuf(tarfile.GNU_FORMAT)
_PLAIN_SUM = sum(_PLAIN[108:124]) + sum(_PLAIN[156:]) + 8 * ord(" ")
"""A plain file's header, and the sum of its bytes besides name, mode, size and time; the sum's own count as blanks."""


def _header(member: Member) -> bytes:
    entry = member.entry
    if entry.kind is Kind.FILE and member.extents is None and len(entry.path) <= _NAME and 0 <= entry.mtime < 8**11:
        # What tarfile would write, in a third of the time: most trees are made of these.
        numbers = b"%07o\0" % (entry.mode & 0o7777), _number(_stored(member)), b"%011o\0" % entry.mtime
        checksum = b"%06o\0 " % (_PLAIN_SUM + sum(entry.path) + sum(map(sum, numbers)))
        mode, size, mtime = numbers
        return b"".join((entry.path.ljust(_NAME, b"\0"), mode, _PLAIN[108:124], size, mtime, checksum, _PLAIN[156:]))
    return _tarfile_header(member)


def _tarfile_header(member: Member) -> bytes:
    entry = member.entry
    info = tarfile.TarInfo(entry.path.decode("utf-8", "surrogateescape"))
    info.type = _TYPES[entry.kind]
    info.mode = entry.mode
    info.mtime = entry.mtime
    info.linkname = entry.target.decode("utf-8", "surrogateescape")
    info.size = _stored(member)
    if member.extents is not None:
        info.type = tarfile.GNUTYPE_SPARSE
    whole = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return whole if member.extents is None else _with_extents(whole, member.extents, entry.size)


def _with_extents(whole: bytes, extents: Extents, size: int) -> bytes:
    """A header with the map of a sparse file, which continues in blocks of its own after four extents.

    The last one has no length: it says where the file ends. The format: GNU tar's manual, "Basic Tar Format".
    """
    fields = [_number(offset) + _number(length) for offset, length in (*extents, (size, 0))]
    head = bytearray(whole[-_BLOCK:])
    head[386:482] = b"".join(fields[:4]).ljust(96, b"\0")
    head[482] = len(fields) > 4
    head[483:495] = _number(size)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    blocks = [whole[:-_BLOCK], bytes(head)]
    for at in range(4, len(fields), 21):
        more = at + 21 < len(fields)
        blocks.append(b"".join(fields[at : at + 21]).ljust(504, b"\0") + bytes([more]) + bytes(7))
    return b"".join(blocks)


def _number(value: int) -> bytes:
    """A size as 12 bytes: octal, or binary from 8 GiB on."""
    return b"%011o\0" % value if value < 8**11 else b"\x80" + value.to_bytes(11, "big")


def _content(member: Member, first: int, last: int) -> Iterator[bytes]:
    """What is stored of a file, from `first` to `last`, as it was when it was scanned."""
    if member.data is not None:
        yield member.data[first:last]
        return
    local = member.local
    assert local is not None
    try:
        fd = os.open(local, _OPEN)
    except OSError as error:
        raise _changed(local, error.strerror) from error
    try:
        if _stamp(os.fstat(fd)) != member.stamp:
            raise _changed(local)
        for offset, length in _spans(member.extents, first, last):
            while length:
                data = os.pread(fd, length, offset)
                if not data:
                    raise _changed(local)
                yield data
                offset += len(data)
                length -= len(data)
    except OSError as error:
        raise _changed(local, error.strerror) from error
    finally:
        os.close(fd)


def _spans(extents: Extents | None, first: int, last: int) -> Iterator[tuple[int, int]]:
    """(offset in the file, length) of what is stored from `first` to `last`."""
    if extents is None:
        yield first, last - first
        return
    position = 0
    for offset, length in extents:
        low, high = max(first - position, 0), min(last - position, length)
        if low < high:
            yield offset + low, high - low
        position += length
        if position >= last:
            return


def archive_size(entries: Sequence[Entry]) -> int:
    """Bytes in an archive of these entries; files with holes take less."""
    return sum(_length(Member(entry)) for entry in entries) + _TRAILER
