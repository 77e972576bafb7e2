"""The local file of an upload: read in order, in bounded blocks, in a thread, hashed on the way."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

from hpcbridge.errors import InvalidRequest, TransferError

BLOCK = 1 << 20
"""Bytes read at a time where no piece asks for more."""


class LocalFile:
    """An open regular file whose size and modification time must not change until the transfer has ended."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises OSError (FileNotFoundError …) and InvalidRequest for what is not a regular file."""
        self.path = path
        # Without O_NONBLOCK, opening a named pipe would wait for its writer.
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(self._fd)
            what = "a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
            raise InvalidRequest(f"{path} is {what}", path=str(path), hint="Only files are sent")
        self.size = found.st_size
        self.mtime_ns = found.st_mtime_ns

    @property
    def identity(self) -> str:
        """What makes it the same file for an upload that is taken up again: size and modification time."""
        return f"{self.size} {self.mtime_ns}"

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

    async def blocks(self, offset: int, length: int, digest: hashlib._Hash | None = None) -> AsyncIterator[bytes]:
        """The bytes of a span, block by block; `digest` is updated on the way."""
        end = offset + length
        while offset < end:
            data = await asyncio.to_thread(self._block, offset, min(BLOCK, end - offset), digest)
            offset += len(data)
            yield data

    def _block(self, offset: int, length: int, digest: hashlib._Hash | None) -> bytes:
        data = self.read(offset, length)
        if digest is not None:
            digest.update(data)
        return data

    async def sha256(self, offset: int = 0, length: int | None = None) -> str:
        """Hexadecimal SHA-256 of a span, the whole file by default."""
        digest = hashlib.sha256()
        async for _ in self.blocks(offset, self.size - offset if length is None else length, digest):
            pass
        return digest.hexdigest()
