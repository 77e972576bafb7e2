"""Intents: what was meant to be submitted, recorded before the POST, so that no crash can make two jobs of it.

The default store keeps one JSON file per key in the user's state directory, created exclusively and fsynced. Files,
not SQLite: home directories are often NFS.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hpcbridge.errors import ConfigurationError, KeyConflict
from hpcbridge.jobs.names import is_ours

FORMAT = 1
"""Version of the record's format; a record without one is of the first."""

RETENTION_DAYS = 30
"""Days for which a record is kept; servers look back at most 7."""


@dataclass(frozen=True, slots=True)
class Intent:
    """The record of one submit.

    `new`: whether this call made it. `since`: when it was first meant (aware). `job_id`: None while no answer is
    known.
    """

    new: bool
    since: datetime
    job_id: str | None = None


class IntentStore(Protocol):
    """Where intents are kept: a record must survive a crash of this process and be seen by the one that replaces it.

    `key` is the job's full name (`names.job_name`), by which the job can also be looked up. It stands for (site,
    system, user, work directory, key) and the label. Hosts with a database of their own implement these three methods.
    """

    async def begin(self, key: str, spec_hash: str) -> Intent:
        """Record the intent if there is none, atomically: `new` is True for exactly one caller.

        Raises KeyConflict when the key was recorded with another hash.
        """
        ...

    async def bind(self, key: str, job_id: str) -> None:
        """Record the scheduler's id."""
        ...

    async def abandon(self, key: str) -> None:
        """Forget an intent to which the scheduler has said a definite no.

        The key may be used for a corrected script.
        """
        ...


@runtime_checkable
class HoldsKeys(Protocol):
    """A store that can also make two live processes with the same key take turns."""

    def hold(self, key: str) -> AbstractAsyncContextManager[None]:
        """Wait for the key, and keep it until the block ends or the process dies."""
        ...


def state_directory() -> Path:
    """$HPCBRIDGE_STATE_DIR, else the platform's state directory (XDG: ~/.local/state/hpcbridge)."""
    if configured := os.environ.get("HPCBRIDGE_STATE_DIR"):
        return Path(configured).expanduser()
    import platformdirs

    return platformdirs.user_state_path("hpcbridge", appauthor=False)


class FileIntentStore:
    """One fsynced file per key under `directory`; kept 30 days."""

    def __init__(self, directory: Path | None = None) -> None:
        """`directory` defaults to `intents` in the state directory; it is made (0700) at the first use."""
        self.directory = directory or state_directory() / "intents"
        self._swept = False

    async def begin(self, key: str, spec_hash: str) -> Intent:
        """See `IntentStore`."""
        return await asyncio.to_thread(self._begin, key, spec_hash)

    async def bind(self, key: str, job_id: str) -> None:
        """See `IntentStore`."""
        await asyncio.to_thread(self._bind, key, job_id)

    async def known(self, key: str) -> str | None:
        """The id bound to `key` on this machine, None where there is none; nothing is recorded."""
        path = self._path(key, ".json")
        return str(job_id) if path.exists() and (job_id := _read(path).get("job_id")) else None

    async def abandon(self, key: str) -> None:
        """See `IntentStore`."""
        await asyncio.to_thread(self._abandon, key)

    @contextlib.asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        """Wait until no other process on this file system submits under `key`. A killed process lets go of it."""
        await asyncio.to_thread(self._prepare)
        path = self._path(key, ".lock")
        held = try_lock(path)
        while held is None:
            await asyncio.sleep(0.2)
            held = try_lock(path)
        try:
            yield
        finally:
            # First the name, then the lock: whoever opened the old file finds out by its inode and opens anew.
            path.unlink(missing_ok=True)
            os.close(held)

    def _path(self, key: str, suffix: str) -> Path:
        if is_ours(key):
            key = key.rpartition(".")[2]  # under another label the same key is a conflict, not a second job
        safe = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,120}", key, re.ASCII)
        return self.directory / ((key if safe else hashlib.sha256(key.encode()).hexdigest()) + suffix)

    def _prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self._swept:
            self._swept = True
            self._sweep()

    def _sweep(self) -> None:
        horizon = time.time() - RETENTION_DAYS * 86400
        for path in self.directory.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):  # another process sweeps too
                if path.stat().st_mtime < horizon:
                    path.unlink()

    def _begin(self, key: str, spec_hash: str) -> Intent:
        self._prepare()
        path, now = self._path(key, ".json"), datetime.now(UTC)
        record = {"format": FORMAT, "key": key, "spec": spec_hash, "since": now.isoformat(), "job_id": None}
        if self._create(path, record):
            return Intent(new=True, since=now)
        found = _read(path)
        if found.get("spec") not in (None, spec_hash):
            raise KeyConflict(
                f"The key already stands for {found.get('key', key)}, with another script, options or label, "
                f"since {found.get('since')}",
                job_id=found.get("job_id"),
                path=str(path),
            )
        since = found.get("since")
        return Intent(False, datetime.fromisoformat(since) if since else _modified(path), found.get("job_id"))

    def _bind(self, key: str, job_id: str) -> None:
        self._prepare()
        path = self._path(key, ".json")
        record = (_read(path) if path.exists() else {}) | {"format": FORMAT, "key": key, "job_id": job_id}
        with self._written(record) as temporary:
            temporary.replace(path)
        _sync_directory(self.directory)

    def _abandon(self, key: str) -> None:
        self._path(key, ".json").unlink(missing_ok=True)
        _sync_directory(self.directory)

    def _create(self, path: Path, record: dict[str, Any]) -> bool:
        """Make `path` with its whole content, or nothing: a link to a complete file, which NFS makes atomically too."""
        with self._written(record) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                    raise
                return _create_without_links(path, temporary.read_bytes())
        _sync_directory(self.directory)
        return True

    @contextlib.contextmanager
    def _written(self, record: dict[str, Any]) -> Any:
        handle, name = tempfile.mkstemp(dir=self.directory, prefix=".new-")  # 0600
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(json.dumps(record, indent=1).encode())
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def _create_without_links(path: Path, data: bytes) -> bool:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return True


def _read(path: Path) -> dict[str, Any]:
    """The record; one that cannot be read still says that something was meant.

    So it counts as an intent without an id.
    """
    try:
        record = json.loads(path.read_bytes())
    except ValueError:
        return {}
    if not isinstance(record, dict):
        return {}
    if int(record.get("format", 1)) > FORMAT:
        raise ConfigurationError(
            f"The record has format {record['format']}, this version knows up to {FORMAT}",
            path=str(path),
            hint="A newer hpcbridge wrote it: use that one",
        )
    return record


def _modified(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock file, or None while another process does."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(handle).st_ino:
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass  # held by another process, or its holder has just let go and removed the file
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP):
            return handle  # a file system without locks: the record and the job's own lock still stand
        os.close(handle)
        raise
    os.close(handle)
    return None
