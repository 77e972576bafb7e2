"""What a transfer must remember across the death of its process: a small file per transfer, locked while it runs.

Each is a list of JSON lines under `transfers` in the state directory, 0600, because presigned URLs are among them. The
first line says which transfer it is, each later one what has been done; a line that a crash has torn ends the list.
It is safe to delete: the transfer then starts again, and what the earlier one had asked for ends by its own limits.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from hpcbridge.errors import Conflict
from hpcbridge.jobs.intents import state_directory

if TYPE_CHECKING:
    from hpcbridge.staging.context import Transfer

log = logging.getLogger(__name__)

FORMAT = 1
"""Version of the lines; a journal of another one is ignored and the transfer starts again."""
RETENTION = 8 * 86400
"""Seconds for which an abandoned journal is kept: no presigned URL is valid for more than seven days."""

Entry = dict[str, Any]


class Journal:
    """The journal of one transfer, held by this process until `close`.

    Attributes:
        about: which transfer the lines are about; {} when there are none.
        entries: the lines after the first one, those of an earlier process included.
    """

    def __init__(self, path: Path, what: str, fd: int) -> None:
        """Prefer `Journal.of`; `fd` is -1 where nothing can be kept."""
        self.about: Entry = {}
        self.entries: list[Entry] = []
        self._path = path
        self._what = what
        self._fd = fd

    @classmethod
    def of(cls, t: Transfer, kind: str, *place: str) -> Self:
        """The journal of the transfer of this `kind` from or to `place`, by this credential.

        Raises Conflict while another process (or another transfer of this one) holds it.
        """
        session = t.client.session
        key = "\0".join([kind, session.site.url, session.credential.identity, t.name, *place])
        return cls.open(state_directory() / "transfers" / f"{_digest(key)}.jsonl", place[0])

    @classmethod
    def open(cls, path: Path, what: str) -> Self:
        """The journal at `path`, of a transfer of `what`. Raises Conflict."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _sweep(path.parent)
            fd = _locked(path, what)
        except OSError as error:
            log.warning("%s cannot be resumed after a crash: %s: %s", what, path, error.strerror)
            return cls(path, what, -1)
        self = cls(path, what, fd)
        lines, length = load(_read(fd))
        os.ftruncate(fd, length)
        if lines:
            self.about = {name: value for name, value in lines[0].items() if name != "format"}
            self.entries = lines[1:]
        return self

    def start(self, **about: Any) -> None:
        """Forget what was noted, and note which transfer begins. Raises Conflict like `of`, after a `remove`."""
        self.about, self.entries = about, []
        if self._fd >= 0 and not self._has_name():
            os.close(self._fd)
            self._fd = -1
            self._fd = _locked(self._path, self._what)
        self._write({"format": FORMAT, **about}, 0)

    def add(self, **entry: Any) -> None:
        """Note what has been done; it is on the disk when this returns."""
        self.entries.append(entry)
        self._write(entry, None)

    def noted(self, name: str) -> list[Entry]:
        """The lines that have `name`, in order."""
        return [entry for entry in self.entries if name in entry]

    def remove(self) -> None:
        """Nothing has to be remembered any more."""
        self.about, self.entries = {}, []
        self._unlink()

    def close(self) -> None:
        """Let go of it, and remove it when nothing was noted."""
        if self._fd >= 0:
            if not self.about:
                self._unlink()
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        """Hold it for the length of a block."""
        return self

    def __exit__(self, *_: TracebackType | type[BaseException] | BaseException | None) -> None:
        """Close it; what was noted stays."""
        self.close()

    def _unlink(self) -> None:
        if self._fd >= 0 and self._has_name():
            self._path.unlink(missing_ok=True)

    def _has_name(self) -> bool:
        """Whether the name still leads to this file: somebody may have deleted it, and another process made one."""
        with suppress(FileNotFoundError):
            return self._path.stat().st_ino == os.fstat(self._fd).st_ino
        return False

    def _write(self, entry: Entry, size: int | None) -> None:
        if self._fd < 0:
            return
        try:
            if size is not None:
                os.ftruncate(self._fd, size)
            data = memoryview(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
            while data:
                data = data[os.write(self._fd, data) :]
            os.fsync(self._fd)
        except OSError as error:
            # A full disk must not end an upload: only its resumption is lost.
            log.warning("the journal %s is given up: %s", self._path, error.strerror)
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


def load(text: bytes) -> tuple[list[Entry], int]:
    """The lines of a journal up to the first one that is not whole, and their bytes; ([], 0) for another format."""
    entries: list[Entry] = []
    length = 0
    for line in text.splitlines(keepends=True):
        try:
            entry = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            break
        if not isinstance(entry, dict):
            break
        entries.append(entry)
        length += len(line)
    return (entries, length) if entries and entries[0].get("format") == FORMAT else ([], 0)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _read(fd: int) -> bytes:
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        return file.read()


def _locked(path: Path, what: str) -> int:
    """A descriptor that appends to the file and holds its lock."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed the file meanwhile: the name then leads to another one, or nowhere.
            if path.stat().st_ino == os.fstat(fd).st_ino:
                return fd
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP):
                return fd  # without locks, two transfers to one place are the user's to avoid
            os.close(fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                hint = "Wait for it to end, or choose another place"
                raise Conflict(f"another transfer of {what} is running", path=what, hint=hint) from error
            raise
        os.close(fd)


def _sweep(directory: Path) -> None:
    """Remove journals that nobody will come back for."""
    horizon = time.time() - RETENTION
    for path in directory.glob("*.jsonl"):
        with suppress(OSError):
            if path.stat().st_mtime < horizon:
                _remove_unheld(path)


def _remove_unheld(path: Path) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(fd)
