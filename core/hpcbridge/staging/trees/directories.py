"""Directories below one that we hold open, reached name by name, so that no link can lead anywhere else."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

KEPT = 64
"""Directories held open at most: the latest used."""
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Directories:
    """File descriptors of directories below `root`. Paths are relative to it; empty means `root` itself."""

    def __init__(self, root: Path) -> None:
        """Open `root`, through links if it is one. Raises OSError."""
        self.root = root
        self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open: dict[bytes, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in (*self._open.values(), self._fd):
            os.close(fd)
        self._open.clear()

    def fd(self, path: bytes) -> int:
        """The descriptor of a directory, good until `KEPT` others were asked for.

        Raises OSError: NotADirectoryError (or ELOOP) where a name on the way is a link or a file.
        """
        if not path:
            return self._fd
        fd = self._open.pop(path, None)
        if fd is None:
            fd = self._reach(path)
            if len(self._open) >= KEPT:
                os.close(self._open.pop(next(iter(self._open))))
        self._open[path] = fd
        return fd

    def _reach(self, path: bytes) -> int:
        above, names = path, []
        while above and above not in self._open:
            above, _, name = above.rpartition(b"/")
            names.append(name)
        held = fd = self._open[above] if above else self._fd
        for name in reversed(names):
            try:
                inner = os.open(name, _OPEN, dir_fd=fd)
            finally:
                if fd != held:
                    os.close(fd)
            fd = inner
        return fd

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """The descriptor of the directory that holds `path`, and the name in it."""
        above, _, name = path.rpartition(b"/")
        return self.fd(above), name

    def look(self, path: bytes) -> os.stat_result | None:
        """What is at `path`, a link itself and not where it leads; None when nothing is."""
        fd, name = self.parent(path)
        try:
            return os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def names(self, path: bytes) -> list[bytes]:
        """The names in a directory, in no order."""
        # `scandir` of a descriptor takes its own copy, whose position is shared: it must be at the start.
        fd = os.open(b".", _OPEN, dir_fd=self.fd(path))
        try:
            with os.scandir(fd) as entries:
                return [os.fsencode(entry.name) for entry in entries]
        finally:
            os.close(fd)

    def make(self, path: bytes, mode: int) -> None:
        """Make a directory. Raises FileExistsError for whatever is there."""
        fd, name = self.parent(path)
        os.mkdir(name, mode, dir_fd=fd)

    def unlock(self, path: bytes) -> int | None:
        """Let the owner into a directory, to move what is in it; returns the mode that it had if that was changed."""
        fd, name = self.parent(path)
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o700 == 0o700:
            return None
        mode = stat.S_IMODE(found.st_mode)
        os.chmod(name, mode | 0o700, dir_fd=fd)
        return mode

    def finish(self, path: bytes, mode: int, mtime: int) -> None:
        """Give a directory its mode and modification time (s); the set-group-id that it inherited stays.

        Raises OSError, OverflowError for a time that no clock shows.
        """
        fd = self.fd(path)
        os.utime(fd, ns=(mtime * 1_000_000_000, mtime * 1_000_000_000))
        os.fchmod(fd, mode | os.fstat(fd).st_mode & stat.S_ISGID)
