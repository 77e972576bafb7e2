"""What a sync has brought from the system, put into a local tree: content by renames, modes and times, deletions.

Directories are reached name by name without following a link (`directories`), so nothing outside the tree is touched.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hpcbridge.errors import AlreadyExists, IntegrityError, TransferError
from hpcbridge.staging.trees.directories import Directories
from hpcbridge.staging.trees.entries import Entry, Kind, Manifest
from hpcbridge.staging.trees.extract import publish
from hpcbridge.staging.trees.listing import entry_of, records
from hpcbridge.staging.trees.patterns import Filter
from hpcbridge.staging.trees.results import Action, Change
from hpcbridge.staging.trees.scan import scan

UNKNOWN = "z" * 64
"""In the place of a digest that the job did not compute."""
_BLOCK = 1 << 20


@dataclass(slots=True)
class Arrival:
    """What has been unpacked in `staged`: `rows` that differ, `extra` paths that are not there, and their content.

    `here` is the local tree as it was compared, `target` its root. `unsteady` are paths that must not be used, None
    for all files.
    """

    staged: Path
    target: Path
    here: Manifest
    filter: Filter
    unsteady: tuple[bytes, ...] | None
    delete: bool
    dry: bool
    missing: list[bytes] = field(default_factory=list)
    odd: list[bytes] = field(default_factory=list)
    large: list[bytes] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    skipped: list[bytes] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    extra: list[bytes] = field(default_factory=list)
    touched: list[Entry] = field(default_factory=list)

    def plan(self) -> None:
        """Read what has come, and decide. Raises IntegrityError for content that is not what the rows say."""
        self.missing = self._list("extra")
        self.extra = [path for path in self.missing if self._goes(path)] if self.delete else []
        self.odd, self.large = self._list("odd"), self._list("large")
        found = scan(self.staged / "tree").manifest
        sources: dict[str, Entry] = {entry.sha256: entry for entry in self.here if entry.sha256 is not None}
        for entry in sorted(map(entry_of, self._list("rows")), key=lambda each: each.path):
            if entry.kind is Kind.FILE and (self.unsteady is None or entry.path in self.unsteady):
                self.skipped.append(entry.path)
                with suppress(FileNotFoundError):
                    self._staged(entry.path).unlink()
                continue
            self.entries.append(entry)
            self.changes.append(Change(entry.path, self._action(entry, found, sources), entry.kind, entry.size))
        self.changes += [Change(path, Action.DELETE, self._kind(path)) for path in self.extra]

    @property
    def added(self) -> int:
        """Entries that the local tree did not have."""
        return sum(self.here.get(change.path) is None for change in self.changes)

    def publish(self) -> None:
        """Change the tree. Raises AlreadyExists, before anything has changed, for what must not be overwritten."""
        if self.target.is_dir():
            self._clear_way()
        publish(self.staged / "tree", self.target)
        with Directories(self.target) as there:
            for entry in self.touched:
                _touch(there, entry)
            for path in sorted(self.extra, reverse=True):
                _remove(there, path)

    def _list(self, name: str) -> list[bytes]:
        return list(records((self.staged / name).read_bytes()))

    def _staged(self, path: bytes) -> Path:
        return self.staged / "tree" / os.fsdecode(path)

    def _kind(self, path: bytes) -> Kind:
        entry = self.here.get(path)
        return entry.kind if entry is not None else Kind.FILE

    def _goes(self, path: bytes) -> bool:
        entry = self.here.get(path)
        return entry is not None and self.filter.keeps(path, entry.kind, entry.size)

    def _action(self, entry: Entry, found: Manifest, sources: dict[str, Entry]) -> Action:
        """What is done about an entry; content that is here already is put in its place among what has come."""
        old, arrived = self.here.get(entry.path), found.get(entry.path)
        if entry.kind is Kind.DIRECTORY:
            if old is not None and old.kind is Kind.DIRECTORY:
                self.touched.append(entry)
                return Action.CHANGE
            return Action.COPY
        if self.dry:
            return self._forecast(entry, old, sources)
        if arrived is not None and arrived.kind is entry.kind:
            if entry.kind is Kind.FILE and entry.sha256 not in (UNKNOWN, arrived.sha256):
                raise _damaged(entry.path)
            return Action.COPY
        if entry.kind is Kind.LINK or entry.sha256 is None or entry.sha256 not in sources:
            raise _damaged(entry.path)
        if old is not None and old.sha256 == entry.sha256:
            self.touched.append(entry)
            return Action.CHANGE
        self._bring(sources[entry.sha256], entry)
        return Action.MOVE

    def _forecast(self, entry: Entry, old: Entry | None, sources: dict[str, Entry]) -> Action:
        if entry.kind is Kind.LINK or entry.sha256 is None or entry.sha256 not in sources:
            return Action.COPY
        return Action.CHANGE if old is not None and old.sha256 == entry.sha256 else Action.MOVE

    def _bring(self, source: Entry, entry: Entry) -> None:
        """Copy a local file to where what has come waits, as `entry` says."""
        with Directories(self.target) as here, Directories(self.staged / "tree") as there:
            self._lead(there, entry.path)
            (fd, name), (to, new) = here.parent(source.path), there.parent(entry.path)
            digest = hashlib.sha256()
            with (
                os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd), "rb") as old,
                os.fdopen(
                    os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=to), "wb"
                ) as out,
            ):
                while data := old.read(_BLOCK):
                    digest.update(data)
                    out.write(data)
            if digest.hexdigest() != entry.sha256:
                where = self.target / os.fsdecode(source.path)
                raise TransferError(f"{where} changed meanwhile", path=str(where), hint="Sync again")
            _touch(there, entry)

    def _lead(self, there: Directories, path: bytes) -> None:
        """Make the directories that lead to a path, as they are in the tree."""
        parts = path.split(b"/")[:-1]
        for depth in range(1, len(parts) + 1):
            above = b"/".join(parts[:depth])
            if there.look(above) is None:
                known = self.here.get(above)
                there.make(above, known.mode if known is not None else 0o755)

    def _clear_way(self) -> None:
        """Move away what is of another kind than what comes; look first."""
        blocked = []
        with Directories(self.target) as there:
            for entry in self.entries:
                old = self.here.get(entry.path)
                if old is None or (old.kind is Kind.DIRECTORY) == (entry.kind is Kind.DIRECTORY):
                    continue
                if old.kind is Kind.DIRECTORY and (inside := self._precious(old.path)):
                    raise AlreadyExists(
                        f"{self.target / os.fsdecode(old.path)} is a directory where a file shall be, and holds "
                        f"{', '.join(inside[:5])}",
                        path=str(self.target),
                        hint="Nothing was changed; move it away, or delete what is not there (`delete=True`)",
                    )
                blocked.append(old.path)
            for number, path in enumerate(blocked):
                fd, name = there.parent(path)
                os.rename(name, self.staged / f"way.{number}", src_dir_fd=fd)

    def _precious(self, path: bytes) -> list[str]:
        """What is in a directory and not to be deleted."""
        inside = scan(self.target / os.fsdecode(path), hashing=False)
        doomed = set(self.extra)
        paths = [path + b"/" + entry.path for entry in inside.manifest if entry.kind is not Kind.DIRECTORY]
        paths += [path + b"/" + each.path for each in inside.skipped]
        return [os.fsdecode(each) for each in paths if each not in doomed]


def _damaged(path: bytes) -> IntegrityError:
    return IntegrityError(f"the content of {os.fsdecode(path)!r} did not arrive as it was compared", hint="Sync again")


def _touch(there: Directories, entry: Entry) -> None:
    """Mode and time of a file, mode of a directory; whatever has taken its place meanwhile stays as it is."""
    fd, name = there.parent(entry.path)
    found = there.look(entry.path)
    if found is None or stat.S_ISDIR(found.st_mode) != (entry.kind is Kind.DIRECTORY) or stat.S_ISLNK(found.st_mode):
        return
    os.chmod(name, entry.mode | found.st_mode & stat.S_ISGID, dir_fd=fd)
    if entry.kind is Kind.FILE:
        os.utime(name, (entry.mtime, entry.mtime), dir_fd=fd, follow_symlinks=False)


def _remove(there: Directories, path: bytes) -> None:
    """A file, a link or an empty directory; what others have put into a directory keeps it."""
    with suppress(FileNotFoundError, NotADirectoryError):
        found = there.look(path)
        if found is None:
            return
        above = path.rpartition(b"/")[0]
        mode = there.unlock(above) if above else None
        fd, name = there.parent(path)
        if stat.S_ISDIR(found.st_mode):
            with suppress(OSError):
                os.rmdir(name, dir_fd=fd)
        else:
            os.unlink(name, dir_fd=fd)
        if mode is not None:
            os.fchmod(there.fd(above), mode)
