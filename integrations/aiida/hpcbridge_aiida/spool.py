"""The spool: what was put and has not been sent yet, on disk as the very tar archive that will be sent.

One file per directory under way, and beside it what it is. A worker that is killed leaves both, and the worker that
goes on with the calculation sends them. Everything here blocks, and is run in threads.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

FORMAT = 1
"""Version of the format of the record beside the archive."""
RETENTION_DAYS = 30
LEFT_BEHIND = 900.0
"""Seconds after which an archive on the cluster that nobody has removed is taken for one that was left behind."""
BLOCK = tarfile.BLOCKSIZE
END = b"\0" * (2 * BLOCK)
"""What ends an archive; the spool's files have none, so that several can be sent as one."""


@dataclass(frozen=True, slots=True)
class Operation:
    """Something to be done on the cluster after the archive has been unpacked; `verb` is one of `batch.VERBS`."""

    verb: str
    options: str
    source: str
    target: str


@dataclass(slots=True)
class Record:
    """What is under way: the directory `root`, in an archive with names relative to `base`, then `operations`."""

    root: str
    base: str
    operations: list[Operation] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Record:
        """The reverse. Raises OSError for a format of a later version."""
        if int(data.get("format", 1)) > FORMAT:
            raise OSError(f"the spool was written by a newer hpcbridge (format {data['format']}); use that one")
        operations = [Operation(**each) for each in data.get("operations", ())]
        return cls(str(data["root"]), str(data["base"]), operations)


class SpoolFile:
    """The archive of one directory under way, locked as long as this process has it open."""

    def __init__(self, path: Path, record: Record) -> None:
        """Start anew; what an earlier attempt has left under this name is dropped."""
        self.path, self.record = path, record
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file: BinaryIO = _locked(path)
        self._file.truncate(0)
        self.members: list[tuple[int, int]] = []
        self.save()

    @classmethod
    def reopen(cls, path: Path) -> SpoolFile | None:
        """What another process has left, or None where it has left nothing. Raises BlockingIOError if it is alive."""
        if not path.exists():
            return None
        self = cls.__new__(cls)
        self.path = path
        self._file = _locked(path)
        try:
            record = json.loads(path.with_suffix(".json").read_bytes())
        except (FileNotFoundError, ValueError):
            # It had only begun, so the calculation will begin its upload again.
            self.discard()
            return None
        self.record, self.members = Record.from_json(record), []
        self._file.seek(0)
        with suppress(tarfile.ReadError), tarfile.open(fileobj=self._file, mode="r:") as archive:
            starts = [member.offset for member in archive]
            self.members = list(zip(starts, [*starts[1:], archive.offset], strict=True))
        return self

    @property
    def size(self) -> int:
        """Bytes that are waiting."""
        return self.members[-1][1] if self.members else 0

    @property
    def pending(self) -> bool:
        """Whether there is anything to be sent or done."""
        return bool(self.members or self.record.operations)

    def directory(self, path: str, mode: int) -> None:
        """Add a directory with permission bits `mode`."""
        self._append(self._header(path, tarfile.DIRTYPE, mode))

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        header = self._header(path, tarfile.SYMTYPE, 0o777)
        header.linkname = target
        self._append(header)

    def file(self, path: str, source: Path, mode: int) -> None:
        """Add the content of the local file `source`."""
        data = source.read_bytes()
        header = self._header(path, tarfile.REGTYPE, mode)
        header.size, header.mtime = len(data), int(source.stat().st_mtime)
        self._append(header, data)

    def operation(self, operation: Operation) -> None:
        """Add something to be done after all of that."""
        self.record.operations.append(operation)
        self.save()

    def blocks(self) -> Iterator[bytes]:
        """The members, each with its header and padding."""
        for start, end in self.members:
            self._file.seek(start)
            yield self._file.read(end - start)

    def change_mode(self, path: str, mode: int) -> bool:
        """Give what is in the archive under `path` another mode; False where it is not in it."""
        name, found = self._name(path), None
        self._file.seek(0)
        with suppress(tarfile.ReadError), tarfile.open(fileobj=self._file, mode="r:") as archive:
            for member in archive:
                found = member if member.name == name else found
        if found is None:
            return False
        self._file.seek(found.offset_data)
        data = self._file.read(found.size) if found.isreg() else b""
        found.mode = mode
        self._append(found, data)
        return True

    def sent(self) -> None:
        """All of it is where it belongs."""
        self._file.truncate(0)
        self.members, self.record.operations = [], []
        self.save()

    def save(self) -> None:
        """Write down what this is, at once and whole."""
        new = self.path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(json.dumps(self.record.to_json()).encode())
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path.with_suffix(".json"))

    def discard(self) -> None:
        """Forget it: first the record, because an archive without one is nothing."""
        self.path.with_suffix(".json").unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self._file.close()

    def _name(self, path: str) -> str:
        return path[len(self.record.base.rstrip("/")) + 1 :]

    def _header(self, path: str, kind: bytes, mode: int) -> tarfile.TarInfo:
        header = tarfile.TarInfo(self._name(path))
        header.type, header.mode, header.mtime = kind, mode, int(time.time())
        return header

    def _append(self, header: tarfile.TarInfo, data: bytes = b"") -> None:
        start = self.size
        self._file.seek(start)
        self._file.write(header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        self._file.write(data)
        self._file.write(b"\0" * (-len(data) % BLOCK))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.members.append((start, self._file.tell()))


class Notes:
    """Archives of ours on the cluster that will have to be removed, whatever happens to this process meanwhile."""

    def __init__(self, directory: Path) -> None:
        """One small file for each in `directory`."""
        self._directory = directory

    def add(self, path: str) -> None:
        """`path` is about to be made."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self._directory / path.rpartition("/")[2]).write_text(path)

    def remove(self, path: str) -> None:
        """It is gone."""
        (self._directory / path.rpartition("/")[2]).unlink(missing_ok=True)

    def left_behind(self) -> list[str]:
        """Those of processes that did not come to remove them."""
        horizon = time.time() - LEFT_BEHIND
        found = []
        for note in self._directory.glob("*"):
            with suppress(FileNotFoundError):
                if note.stat().st_mtime < horizon:
                    found.append(note.read_text())
        return found


def spool_path(directory: Path, identity: Sequence[str], root: str) -> Path:
    """Where the spool keeps what is under way to `root` as that identity."""
    text = json.dumps([*identity, root], ensure_ascii=True)
    return directory / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.tar"


def sweep(directory: Path) -> None:
    """Drop what nobody has come back for in a month."""
    horizon = time.time() - RETENTION_DAYS * 86400
    for path in directory.glob("*.*"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < horizon:
                path.unlink()


def _locked(path: Path) -> BinaryIO:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    file = os.fdopen(descriptor, "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    except OSError:
        pass  # a file system without locks: the work directory belongs to one calculation all the same
    return file
