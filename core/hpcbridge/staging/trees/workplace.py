"""Where a tree is received on this machine: hidden, beside its place, so that one rename publishes it."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from hpcbridge.errors import AlreadyExists, InvalidPath
from hpcbridge.staging.names import NAME_MAX

_SUFFIX = ".hpcbridge-tree"


@dataclass(frozen=True, slots=True)
class Workplace:
    """`target` is the tree's place; `staged` the hidden directory in which the tree is unpacked.

    The archive is received under the name of `staged` (see `partfile.part_path`).
    """

    target: Path
    staged: Path

    @classmethod
    def of(cls, local: Path) -> Workplace:
        """Beside `local`, or inside it where the directory that holds it is not ours or is on another file system.

        Raises AlreadyExists for a file in the tree's place, InvalidPath where nothing can be written.
        """
        if os.path.lexists(local) and not local.is_dir():
            what = "a link that leads nowhere" if local.is_symlink() else "a file"
            raise AlreadyExists(f"{local} is {what}", path=str(local), hint="A directory needs another place")
        target = local.resolve()
        if target.is_dir() and not _shares_room(target):
            return cls(target, target / _SUFFIX)
        name = f".{target.name}{_SUFFIX}"
        # Room for what the part file and its journal add.
        if len(os.fsencode(name)) > NAME_MAX - 32:
            name = f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32]}{_SUFFIX}"
        return cls(target, target.with_name(name))

    def prepare(self) -> None:
        """Make the directories above. Raises InvalidPath where that is refused."""
        try:
            self.staged.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidPath(f"cannot write {self.staged.parent}: {error.strerror}", path=str(self.target)) from error

    def fresh(self) -> Path:
        """The empty directory to unpack into. Raises InvalidPath."""
        self.clear()
        try:
            self.staged.mkdir()
        except OSError as error:
            raise InvalidPath(f"cannot write {self.staged}: {error.strerror}", path=str(self.target)) from error
        return self.staged

    def clear(self) -> None:
        """Remove what an earlier attempt has unpacked; directories that it could not enter, too."""
        self.staged.with_name(f"{self.staged.name}.modes").unlink(missing_ok=True)
        if self.staged.is_symlink():
            self.staged.unlink()  # nobody of us has made it
        elif self.staged.is_dir():
            for directory, _, _ in os.walk(self.staged):
                Path(directory).chmod(0o700)
            shutil.rmtree(self.staged)


def _shares_room(target: Path) -> bool:
    """Whether something can be renamed from beside a directory into it."""
    above = target.parent
    return above != target and os.access(above, os.W_OK | os.X_OK) and above.stat().st_dev == target.stat().st_dev
