"""The local file of an upload: read in order, in bounded blocks, in a thread, hashed on the way."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hpcbridge.errors import InvalidRequest, TransferError
from hpcbridge.staging.source import SourceFile


class LocalFile(SourceFile):
    """An open regular file whose size and modification time must not change until the transfer has ended."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises OSError (FileNotFoundError …) and InvalidRequest for what is not a regular file."""
        self.path = path
        self.name = str(path)
        # Without O_NONBLOCK, opening a named pipe would wait for its writer.
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(self._fd)
            what = "a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
            raise InvalidRequest(f"{path} is {what}", path=str(path), hint="Only files are sent")
        self.size = found.st_size
        self.mtime_ns = found.st_mtime_ns
        self.identity = f"{self.size} {self.mtime_ns}"

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset` on; any thread. Raises TransferError when there are fewer."""
        data = os.pread(self._fd, length, offset)
        while len(data) < length:
            more = os.pread(self._fd, length - len(data), offset + len(data))
            if not more:
                raise self.changed()
            data += more
        return data

    def check_unchanged(self) -> None:
        """Raise TransferError when somebody has written to the file since it was opened."""
        found = os.fstat(self._fd)
        if (found.st_size, found.st_mtime_ns) != (self.size, self.mtime_ns):
            raise self.changed()

    def changed(self) -> TransferError:
        """The error for a file that was written to while it was sent."""
        return TransferError(f"{self.path} changed while it was being sent", path=str(self.path), hint="Send it again")
