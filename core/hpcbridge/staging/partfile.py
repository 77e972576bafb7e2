"""The local side of a download: a full-length part file, and a journal of what is already in it.

`NAME` is received as `.NAME.hpcbridge-part` in the same directory and renamed when it is complete and checked. The
journal `.NAME.hpcbridge-part.json` beside it is safe to delete: the download then starts again.

A range that was written outlives this process, and, once it is on the disk, this machine's next start. The journal says
of both which they are, so that it can be written after each range and the disk be waited for only now and then.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from hpcbridge.errors import AlreadyExists, Conflict, InvalidPath, TransferError
from hpcbridge.staging.plan import piece_count, piece_size

JOURNAL_FORMAT = 1
"""Version of the journal; one that is newer, older or unreadable is ignored and the download starts again."""
_SUFFIX = ".hpcbridge-part"


@dataclass(frozen=True, slots=True)
class Source:
    """Which remote file a part file belongs to; another size or modification time (s since 1970) is another file."""

    site: str
    system: str
    path: str
    size: int
    mtime: int


def part_path(target: Path) -> Path:
    """Where `target` is received; names too long for the suffix are replaced by their hash."""
    name = f".{target.name}{_SUFFIX}"
    if len(os.fsencode(name)) > 250:
        name = f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32]}{_SUFFIX}"
    return target.with_name(name)


def journal_path(target: Path) -> Path:
    """Where the journal of `target`'s download is."""
    part = part_path(target)
    return part.with_name(part.name + ".json")


class PartFile:
    """A part file held by this process; `close()` keeps it for the next attempt, `publish()` makes it the target."""

    def __init__(self, target: Path, source: Source, step: int, fd: int) -> None:
        """Prefer `PartFile.open`."""
        self.target = target
        self.source = source
        self.step = step
        self.done = 0
        self._fd = fd
        self._synced = 0
        self._writing = threading.Lock()

    @classmethod
    def open(cls, target: Path, source: Source, step: int, *, resume: bool = True) -> Self:
        """Create the part file at its full length, or take up one of the same source.

        Raises Conflict when another process is receiving the same file, TransferError when the disk has too little
        room, InvalidPath when the target cannot be written.
        """
        if target.is_dir():
            raise AlreadyExists(f"{target} is a directory", path=str(target))
        part = part_path(target)
        try:
            # In a directory of several people's, a link of that name may lead to any file of ours.
            fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise InvalidPath(f"cannot write {part}: {error.strerror}", path=str(target)) from error
        try:
            _lock(fd, target)
            self = cls(target, source, step, fd)
            if resume:
                self.done = self._synced = self._journalled()
            if not self.done:
                os.ftruncate(fd, 0)
            _require_room(fd, source.size, target)
            os.ftruncate(fd, source.size)
        except BaseException:
            os.close(fd)
            raise
        return self

    def _journalled(self) -> int:
        if os.fstat(self._fd).st_size != self.source.size:
            return 0
        try:
            return load_journal(journal_path(self.target).read_text(), self.source, self.step)
        except (OSError, ValueError):
            return 0

    @property
    def count(self) -> int:
        """Number of ranges."""
        return piece_count(self.source.size, self.step)

    def missing(self) -> Iterator[int]:
        """Indices of the ranges that are not there yet, in order."""
        return (index for index in range(self.count) if not self.done >> index & 1)

    def received(self) -> int:
        """Bytes in complete ranges."""
        return sum(piece_size(self.source.size, self.step, i) for i in range(self.count) if self.done >> i & 1)

    def complete_up_to(self) -> int:
        """Bytes from the start of the file without a gap."""
        full = (~self.done & (self.done + 1)).bit_length() - 1
        return min(full * self.step, self.source.size)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write at `offset`; any thread."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            offset += written
            view = view[written:]

    def read(self, offset: int, length: int) -> bytes:
        """Read at `offset`; any thread."""
        return os.pread(self._fd, length, offset)

    def mark(self, index: int) -> None:
        """Range `index` is completely written."""
        self.done |= 1 << index

    def forget(self) -> None:
        """No range is there: the next attempt starts again."""
        self.done = self._synced = 0
        journal_path(self.target).unlink(missing_ok=True)

    def save(self) -> None:
        """Wait until the data is on the disk, and write the journal."""
        done = self.done
        _sync_data(self._fd)
        self._synced = done
        self.note()

    def note(self) -> None:
        """Write the journal; any thread. What it says of data that is not on the disk yet holds until the next boot."""
        journal = journal_path(self.target)
        new = journal.with_name(journal.name + ".new")
        with self._writing:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            with os.fdopen(fd, "w") as out:
                out.write(dump_journal(self.source, self.step, self._synced, self.done))
            new.replace(journal)

    def publish(self) -> None:
        """Rename to the target and remove the journal."""
        with suppress(OSError):
            os.fchmod(self._fd, self.target.stat().st_mode & 0o7777)
        part_path(self.target).replace(self.target)
        journal_path(self.target).unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file and its lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def discard(self) -> None:
        """Remove the part file and its journal."""
        part_path(self.target).unlink(missing_ok=True)
        journal_path(self.target).unlink(missing_ok=True)


def dump_journal(source: Source, step: int, synced: int, written: int) -> str:
    """The journal's text: the source, bytes per range, and a bit (hexadecimal) per range that is there.

    `done` are the ranges that are on the disk, `written` those that this boot of the machine can still read.
    """
    ranges = {"range": step, "done": f"{synced:x}", "written": f"{written:x}", "boot": boot()}
    return json.dumps({"format": JOURNAL_FORMAT, "source": asdict(source), **ranges})


def load_journal(text: str, source: Source, step: int) -> int:
    """The bits of the ranges that are there; 0 when the journal is of another version, source or range.

    Raises ValueError when it is not a journal at all.
    """
    journal: Any = json.loads(text)
    if not isinstance(journal, dict) or journal.get("format") != JOURNAL_FORMAT:
        return 0
    if journal.get("source") != asdict(source) or journal.get("range") != step:
        return 0
    done = int(str(journal.get("done")), 16)
    if boot() and journal.get("boot") == boot():
        done |= int(str(journal.get("written", 0)), 16)
    return done & ((1 << piece_count(source.size, step)) - 1)


@cache
def boot() -> str:
    """What names this run of the machine's kernel; "" where nothing does."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError, subprocess.SubprocessError):
        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]  # macOS
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    return ""


def _lock(fd: int, target: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks; two downloads into one file are then the user's to avoid.
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise Conflict(f"another process is receiving {target}", path=str(target)) from error


def _require_room(fd: int, size: int, target: Path) -> None:
    volume = os.fstatvfs(fd)
    free = volume.f_bavail * volume.f_frsize + os.fstat(fd).st_blocks * 512
    if free < size:
        message = f"{target} needs {size} bytes and the disk has {free} left"
        raise TransferError(message, path=str(target), hint="Make room there, or receive it elsewhere")


def _sync_data(fd: int) -> None:
    # macOS has no fdatasync.
    getattr(os, "fdatasync", os.fsync)(fd)


class PrefixSha256:
    """SHA-256 of a part file, computed behind the ranges as they close the gaps, so that little is left at the end."""

    BLOCK = 256 << 10
    """Bytes read at a time. Larger ones are not returned by each thread's allocator: 40 MB more for a file of 1 GB."""

    def __init__(self, part: PartFile) -> None:
        """Start at offset 0; nothing is read yet."""
        self._part = part
        self._hash = hashlib.sha256()
        self._position = 0

    async def follow(self) -> None:
        """Hash what is there without a gap; call again when more has arrived. Not to be called twice at once."""
        while (end := self._part.complete_up_to()) > self._position:
            await asyncio.to_thread(self._advance, min(end, self._position + 16 * self.BLOCK))

    def _advance(self, end: int) -> None:
        while self._position < end:
            block = self._part.read(self._position, min(self.BLOCK, end - self._position))
            self._hash.update(block)
            self._position += len(block)

    @property
    def digest(self) -> str:
        """Hexadecimal digest of what has been hashed."""
        return self._hash.hexdigest()
