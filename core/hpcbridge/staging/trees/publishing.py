"""Let a tree that was unpacked beside its place appear in it: by renames only, never through a link.

A new tree appears by one rename. Into an existing directory, whatever is missing there is moved as it is, files replace
files, and directories that are on both sides are merged, each file whole. Moving out of a directory changes its times,
and its mode may have to let us in: both are written down before (`NAME.modes` beside the staged tree), so that after a
kill the same call can simply be made again.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hpcbridge.errors import AlreadyExists, TransferError
from hpcbridge.staging.trees.directories import Directories

_NAMED = 5
"""Conflicts that an error names."""


def publish(staged: Path, target: Path) -> None:
    """Move the content of the directory `staged` to `target`, which is on the same file system; `staged` is gone then.

    What is in `target` and not in `staged` stays. Directories on both sides get mode and time of the staged one, where
    they are ours. `target` itself may be a link to a directory, and keeps its mode.

    Raises AlreadyExists before anything was moved when a directory is in the place of a file or link, or anything but a
    directory in that of a directory; TransferError when the file system refuses in between: then call it again.
    """
    real = _place(target)
    try:
        if real is None:
            staged.rename(target)
        elif not _replaces_empty(staged, real):
            with Directories(staged) as source, Directories(real) as there, _Modes.beside(staged) as modes:
                _Merge(source, there, modes).run()
            modes.path.unlink(missing_ok=True)
            staged.rmdir()
    except OSError as error:
        raise TransferError(f"{target} cannot be published: {error}", path=str(target)) from error


def _place(target: Path) -> Path | None:
    """The directory that is there, None when nothing is."""
    if not os.path.lexists(target):
        return None
    if not target.is_dir():
        what = "a link that leads nowhere" if target.is_symlink() and not target.exists() else "not a directory"
        raise AlreadyExists(f"{target} is {what}", path=str(target), hint="Move it away, or choose another place")
    return target.resolve()


def _replaces_empty(staged: Path, target: Path) -> bool:
    """Take the place of a directory with nothing in it, by one rename."""
    if any(target.iterdir()):
        return False
    staged.chmod(stat.S_IMODE(target.stat().st_mode))
    try:
        staged.rename(target)
    except OSError as error:
        # Somebody has put something into it, or it cannot be replaced: a mount point, or below a directory of others.
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY, errno.EACCES, errno.EPERM, errno.EXDEV):
            return False
        raise
    return True


class _Modes:
    """Mode and time that directories of the staged tree had before we touched them, in a file beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[bytes, tuple[int, int]] = {}
        with suppress(FileNotFoundError):
            records = path.read_bytes()
            for record in records.split(b"\0")[:-1]:
                mode, mtime, inner = record.split(b" ", 2)
                self.known[inner] = int(mode, 8), int(mtime)
            os.truncate(path, records.rfind(b"\0") + 1)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._out = os.fdopen(os.open(path, flags, 0o600), "ab", buffering=0)

    @classmethod
    def beside(cls, staged: Path) -> _Modes:
        return cls(staged.with_name(f"{staged.name}.modes"))

    def __enter__(self) -> _Modes:
        return self

    def __exit__(self, *error: object) -> None:
        self._out.close()

    def note(self, path: bytes, found: os.stat_result) -> None:
        """Write down what a directory is like, unless an attempt before this one has."""
        if path not in self.known:
            self.known[path] = found.st_mode & 0o777, found.st_mtime_ns // 1_000_000_000
            self._out.write(b"%o %d %s\0" % (*self.known[path], path))


@dataclass(slots=True)
class _Merge:
    source: Directories
    there: Directories
    modes: _Modes
    moves: list[bytes] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    opened: dict[bytes, int] = field(default_factory=dict)

    def run(self) -> None:
        try:
            self._compare()
            if self.conflicts:
                raise self._conflict()
        except BaseException:
            self._restore()
            raise
        for path in self.moves:
            self._move(path)
        for path in sorted(self.modes.known, reverse=True):
            self._finish(path)

    def _compare(self) -> None:
        """Find what is to be moved, and what is in the way."""
        waiting = [b""]
        while waiting:
            directory = waiting.pop()
            if directory:
                self._enter(directory)
            prefix = directory + b"/" if directory else b""
            for name in self.source.names(directory):
                path = prefix + name
                if self._is_common(path):
                    waiting.append(path)

    def _enter(self, directory: bytes) -> None:
        """Let us into a directory that is on both sides."""
        if found := self.source.look(directory):
            self.modes.note(directory, found)
        self.source.unlock(directory)
        if (mode := self.there.unlock(directory)) is not None:
            self.opened[directory] = mode

    def _is_common(self, path: bytes) -> bool:
        """Whether a directory is on both sides; else it is to be moved, or something is in its way."""
        ours, theirs = self.source.look(path), self.there.look(path)
        if ours is None:
            return False
        if theirs is not None and stat.S_ISDIR(ours.st_mode) != stat.S_ISDIR(theirs.st_mode):
            what = "a directory" if stat.S_ISDIR(theirs.st_mode) else "not a directory"
            self.conflicts.append(f"{self.there.root / os.fsdecode(path)} is {what}")
            return False
        if theirs is not None and stat.S_ISDIR(ours.st_mode):
            return True
        if stat.S_ISDIR(ours.st_mode) and not ours.st_mode & 0o200:
            self.modes.note(path, ours)  # only a directory that can be written can be moved to another one
        self.moves.append(path)
        return False

    def _conflict(self) -> AlreadyExists:
        shown = sorted(self.conflicts)
        more = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
        return AlreadyExists(
            f"{', '.join(shown[:_NAMED])}{more} in the way of the new tree",
            path=str(self.there.root),
            hint="Nothing was changed; move what is in the way",
        )

    def _restore(self) -> None:
        for path in sorted(self.modes.known, reverse=True):
            if self.source.look(path) is not None:
                self.source.finish(path, *self.modes.known[path])
        for path in sorted(self.opened, reverse=True):
            os.fchmod(self.there.fd(path), self.opened[path])
        self.modes.path.unlink(missing_ok=True)

    def _move(self, path: bytes) -> None:
        if path in self.modes.known:
            self.source.unlock(path)
        (source, name), (there, _) = self.source.parent(path), self.there.parent(path)
        os.rename(name, name, src_dir_fd=source, dst_dir_fd=there)

    def _finish(self, path: bytes) -> None:
        """Give a directory at its place what it had when it was staged, and remove the empty one it came from."""
        try:
            left = self.source.look(path)
        except FileNotFoundError:
            return  # the directory above has been finished, and this one before it
        found = self.there.look(path)
        if found is not None and stat.S_ISDIR(found.st_mode) and os.geteuid() in (found.st_uid, 0):
            self.there.unlock(path)
            self.there.finish(path, *self.modes.known[path])
        if left is not None:
            source, name = self.source.parent(path)
            os.rmdir(name, dir_fd=source)
