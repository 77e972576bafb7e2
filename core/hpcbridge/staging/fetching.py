"""The half of a large download that does not care where the bytes come from: ranges, journal, hash, publication."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

from hpcbridge.staging.context import Transfer, task_group
from hpcbridge.staging.partfile import PartFile, PrefixSha256
from hpcbridge.staging.plan import piece_size

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

    async def sink(self, offset: int, data: bytes) -> None:
        """Take bytes that have arrived."""
        await asyncio.to_thread(self._part.write, offset, data)
        self._t.reporter.add(len(data))

    async def fill(self, fetch: Fetch, workers: int) -> str | None:
        """Fetch every missing range; returns the SHA-256 of the whole when hashing.

        What has arrived is journalled, also when this fails or is cancelled.
        """
        following = asyncio.ensure_future(self._follow())
        missing = iter(list(self._part.missing()))
        try:
            async with task_group() as group:
                for _ in range(workers):
                    group.create_task(self._work(fetch, missing))
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
