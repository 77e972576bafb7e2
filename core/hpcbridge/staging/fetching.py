"""The half of a large download that does not care where the bytes come from: ranges, journal, hash, publication."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

from hpcbridge.staging.context import Transfer, task_group
from hpcbridge.staging.partfile import PartFile, PrefixSha256
from hpcbridge.staging.progress import Phase, Reporter

SAVE_INTERVAL = 5.0
"""Seconds between two moments at which all is on the disk: what a crash of the machine loses at most."""

Write = Callable[[int, bytes], None]
"""Takes (offset, bytes), in order; from any thread."""
Fetch = Callable[[int, int, int, Write], Awaitable[None]]
"""Fetches (index of the first range, offset, length) into a `Write`."""


def runs(missing: list[int], longest: int) -> list[range]:
    """Neighbours among the missing ranges, together, at most `longest` of them."""
    found: list[range] = []
    for index in missing:
        if found and index == found[-1].stop and len(found[-1]) < longest:
            found[-1] = range(found[-1].start, index + 1)
        else:
            found.append(range(index, index + 1))
    return found


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

    async def fill(self, fetch: Fetch, workers: int, longest: int = 1) -> str | None:
        """Fetch every missing range, up to `longest` neighbours at a time; returns the SHA-256 when hashing.

        What has arrived is journalled, also when this fails or is cancelled.
        """
        following = asyncio.ensure_future(self._follow())
        missing = iter(runs(list(self._part.missing()), longest))
        try:
            async with task_group() as group:
                reporting = group.create_task(self._report())
                await asyncio.gather(*(group.create_task(self._work(fetch, missing)) for _ in range(workers)))
                reporting.cancel()
            self._drain()
            self._t.reporter.phase(Phase.VERIFYING)
        except BaseException:
            self._prefix = None
            self._part.save()
            raise
        finally:
            self._over = True
            self._arrived.set()
            await following
        return self._prefix.digest if self._prefix else None

    async def _work(self, fetch: Fetch, missing: Iterator[range]) -> None:
        for run in missing:
            offset = run.start * self._part.step
            length = min(run.stop * self._part.step, self._part.source.size) - offset
            await fetch(run.start, offset, length, self._write)

    def _write(self, offset: int, data: bytes) -> None:
        """Take bytes that have arrived, in order within a run; any thread."""
        self._part.write(offset, data)
        end, step = offset + len(data), self._part.step
        last = end == self._part.source.size
        with self._counting:
            self._unreported += len(data)
            whole = range(offset // step, -(-end // step) if last else end // step)
            for index in whole:
                self._part.mark(index)
        if whole:
            self._part.note()

    async def _report(self) -> None:
        """Tell the caller, in the loop's thread, where an exception of the callback ends the transfer."""
        while True:
            await asyncio.sleep(Reporter.INTERVAL)
            self._drain()
            self._arrived.set()

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
