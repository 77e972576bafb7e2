"""Pipes between the server and a command: collect its output, feed its input, without threads or copies."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from typing import Final

PIPE_SIZE: Final = 1 << 20


def _pipe() -> tuple[int, int]:
    read, write = os.pipe2(os.O_CLOEXEC)
    # An unprivileged user may run out of his pipe quota; the default size of 64 KiB is only slower.
    with contextlib.suppress(OSError):
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    return read, write


class Collector:
    """Reads a pipe until its end or until ``limit`` bytes, whichever comes first."""

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self.overflow = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._limit = limit
        self._read, self.child = _pipe()
        os.set_blocking(self._read, False)

    def begin(self) -> None:
        """Close the child's end here and start to read."""
        os.close(self.child)
        self.child = -1
        asyncio.get_running_loop().add_reader(self._read, self._on_readable)

    def _on_readable(self) -> None:
        try:
            chunk = os.read(self._read, PIPE_SIZE)
        except BlockingIOError:
            return
        self.data += chunk
        self.overflow = len(self.data) >= self._limit
        if not chunk or self.overflow:
            self.close()

    def close(self) -> None:
        """Stop reading; may be called again."""
        if self._read >= 0:
            asyncio.get_running_loop().remove_reader(self._read)
            os.close(self._read)
            self._read = -1
        if self.child >= 0:
            os.close(self.child)
            self.child = -1
        if not self.done.done():
            self.done.set_result(None)


class Feeder:
    """Writes bytes into a pipe as fast as the child takes them, then closes it (when there were any)."""

    def __init__(self, data: bytes | None) -> None:
        self._data = memoryview(data or b"")
        self.child, self._write = _pipe()
        os.set_blocking(self._write, False)

    def begin(self) -> None:
        """Close the child's end here and start to write."""
        os.close(self.child)
        self.child = -1
        if self._data:
            asyncio.get_running_loop().add_writer(self._write, self._on_writable)

    def _on_writable(self) -> None:
        try:
            self._data = self._data[os.write(self._write, self._data[:PIPE_SIZE]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.close()  # the child does not want the rest; its exit code says why
            return
        if not self._data:
            self.close()

    def close(self) -> None:
        """End the input; may be called again."""
        if self._write >= 0:
            asyncio.get_running_loop().remove_writer(self._write)
            os.close(self._write)
            self._write = -1
        if self.child >= 0:
            os.close(self.child)
            self.child = -1
