"""An archive in gzip, where a sample says that it pays: then it is written to a temporary file first."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from hpcbridge.errors import TransferError
from hpcbridge.staging.source import SourceFile
from hpcbridge.staging.trees.archive import Archive

LARGEST = 2 << 30
"""Bytes of an archive that is compressed at most: what is larger would wait too long, and need too much room."""
SMALLEST = 64 << 10
"""Archives up to this many bytes are one small request in any case."""
PAYS = 0.6
"""Share of its size to which the sample must shrink.

Compressing goes at about 40 MB/s: what saves a third only, as headers of small files do, pays on slow lines only.
"""
_LEVEL = 3
_CHUNK = 1 << 20
"""Bytes in one gzip member. Members that follow each other are one stream (RFC 1952), and threads can share them."""
_SAMPLES, _SAMPLE = 16, 32 << 10


def compressed(archive: Archive, *, largest: int = LARGEST, directory: Path | None = None) -> Archive | GzipArchive:
    """The archive in gzip when a sample of it shrinks well and it has at most `largest` bytes, else the archive itself.

    Blocks: call it in a thread. The temporary file is made in `directory` (default: where temporary files go), has no
    name there, and goes with `close()`; where there is no room for it, the archive stays as it is. The caller closes
    both.

    Raises TransferError when a file changed meanwhile.
    """
    if not SMALLEST < archive.size <= largest or _ratio(archive) > PAYS:
        return archive
    try:
        return GzipArchive(archive, directory)
    except OSError:
        return archive


def _ratio(archive: Archive) -> float:
    step = max(_SAMPLE, archive.size // _SAMPLES)
    taken = packed = 0
    for offset in range(0, archive.size, step):
        data = archive.read(offset, min(_SAMPLE, archive.size - offset))
        taken += len(data)
        packed += len(zlib.compress(data, 1))
    return packed / taken


class GzipArchive(SourceFile):
    """An archive that was compressed into a file without a name."""

    compression = "gzip"

    def __init__(self, archive: Archive, directory: Path | None = None) -> None:
        """Compress it. Raises TransferError when a file changed meanwhile, OSError when there is no room."""
        self.archive = archive
        self.name = archive.name
        # Another zlib can make other bytes of the same content.
        self.identity = f"{archive.identity} gzip {_LEVEL} {_CHUNK} {zlib.ZLIB_RUNTIME_VERSION}"
        with tempfile.TemporaryFile(dir=directory, prefix=".hpcbridge-") as file:
            self._fd = os.dup(file.fileno())
        try:
            self.size = _fill(self._fd, archive)
            archive.check_unchanged()
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset` on; any thread. Raises ValueError for a span outside."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{length} bytes from {offset} on are not within {self.size}")
        parts = []
        while length and (data := os.pread(self._fd, length, offset)):
            parts.append(data)
            offset += len(data)
            length -= len(data)
        if length:
            raise self.changed()
        return b"".join(parts)

    def check_unchanged(self) -> None:
        """The content was copied when it was compressed."""

    def changed(self) -> TransferError:
        """The error for a temporary file that was cut short."""
        return TransferError(f"the compressed copy of {self.name} was damaged", path=self.name, hint="Send it again")

    def close(self) -> None:
        """Let the temporary file go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _fill(fd: int, archive: Archive) -> int:
    """Compress in as many threads as there are processors, with two members for each in memory; returns the size."""
    workers = min(8, os.cpu_count() or 1)
    size = 0
    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(workers) as threads:
        for offset in range(0, archive.size, _CHUNK):
            waiting.append(threads.submit(_member, archive, offset))
            if len(waiting) > 2 * workers:
                size += _write(fd, waiting.popleft().result())
        while waiting:
            size += _write(fd, waiting.popleft().result())
    return size


def _member(archive: Archive, offset: int) -> bytes:
    data = archive.read(offset, min(_CHUNK, archive.size - offset))
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


def _write(fd: int, data: bytes) -> int:
    length = len(data)
    while data:
        data = data[os.write(fd, data) :]
    return length
