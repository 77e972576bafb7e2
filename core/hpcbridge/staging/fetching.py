"""The half of a large download that does not care where the bytes come from: ranges, journal, hash, publication."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

from hpcbridge.staging.context import Transfer, task_group
from hpcbridge.staging.partfile import PartFile, PrefixSha256
from hpcbridge.staging.plan import piece_size
from hpcbridge.staging.progress import Reporter

SAVE_INTERVAL = 5.0
"""Seconds between two entries in the journal: what a crash loses at most."""

Fetch = Callable[[int, int, int], Awaitable[None]]
"""Fetches range (index, offset, length) into the part file."""


class Receiver:
    """Fills a part file by `workers` fetches at a time, hashing and journalling behind them."""

    def __init__(self, t: Transfer, part: PartFile, *, hashing: bool) -> None:
        """`hashing`: compute SHA-256 on the way."""
        self._t = t
        self._part = part
        self._prefix = PrefixSha256(part) if hashing else None
        self._saved = time.monotonic()
        self._arrived = asyncio.Event()
        self._over = False
        self._counting = threading.Lock()
        self._unreported = 0

    def write(self, offset: int, data: bytes) -> None:
        """Take bytes that have arrived; any thread."""
        self._part.write(offset, data)
        with self._counting:
            self._unreported += len(data)

    async def fill(self, fetch: Fetch, workers: int) -> str | None:
        """Fetch every missing range; returns the SHA-256 of the whole when hashing.

        What has arrived is journalled, also when this fails or is cancelled.
        """
        following = asyncio.ensure_future(self._follow())
        missing = iter(list(self._part.missing()))
        try:
            async with task_group() as group:
                reporting = group.create_task(self._report())
                await asyncio.gather(*(group.create_task(self._work(fetch, missing)) for _ in range(workers)))
                reporting.cancel()
            self._drain()
        except BaseException:
            self._prefix = None
            self._part.save()
            raise
        finally:
            self._over = True
            self._arrived.set()
            await following
        return self._prefix.digest if self._prefix else None

    async def _work(self, fetch: Fetch, missing: Iterator[int]) -> None:
        for index in missing:
            await fetch(index, index * self._part.step, piece_size(self._part.source.size, self._part.step, index))
            self._part.mark(index)
            self._arrived.set()

    async def _report(self) -> None:
        """Tell the caller, in the loop's thread, where an exception of the callback ends the transfer."""
        while True:
            await asyncio.sleep(Reporter.INTERVAL)
            self._drain()

    def _drain(self) -> None:
        with self._counting:
            count, self._unreported = self._unreported, 0
        self._t.reporter.add(count)

    async def _follow(self) -> None:
        """Behind the fetches: hash the prefix, write the journal."""
        while not self._over:
            await self._arrived.wait()
            self._arrived.clear()
            if time.monotonic() - self._saved > SAVE_INTERVAL and not self._over:
                await asyncio.to_thread(self._part.save)
                self._saved = time.monotonic()
            if self._prefix is not None:
                await self._prefix.follow()
