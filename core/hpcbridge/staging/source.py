"""What an upload reads from: one file, or an archive that exists only while it is read."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Protocol

from hpcbridge.errors import TransferError

BLOCK = 1 << 20
"""Bytes read at a time where no piece asks for more."""


class SourceFile(Protocol):
    """`size` bytes that any thread may read at any offset, again and again, with the same outcome.

    Every route of an upload takes one. `name` is what messages call it, such as the local path. `identity` tells
    whether an interrupted upload was of the same bytes: equal identity and size mean equal bytes at every offset.
    """

    size: int
    identity: str
    name: str

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset` on; any thread. Raises TransferError when they are no longer there."""
        ...

    def check_unchanged(self) -> None:
        """Raise TransferError when what is read from has changed since it was opened; blocks."""
        ...

    def changed(self) -> TransferError:
        """The error for a source that changed while it was sent."""
        ...

    def close(self) -> None:
        """Let go of files and temporary space."""
        ...

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
        """Hexadecimal SHA-256 of a span, the whole by default."""
        digest = hashlib.sha256()
        async for _ in self.blocks(offset, self.size - offset if length is None else length, digest):
            pass
        return digest.hexdigest()
