"""How much we ask at a time: requests in flight (adaptive, per session) and polling (a rate per process and site).

OpenSSH allows 10 sessions per connection by default, and FirecREST turns more concurrent calls into sporadic 424 and
500. What a site bears is not announced, so the number in flight is found as TCP finds its window: one more after a
full round of successes while callers are waiting, half after a sign of overload. What must not happen twice takes no
part in finding it: a submit that is one too many gets an answer that does not tell whether it was done, and learning
that takes most of a minute. While one is in flight there are no more than at the start.

First come, first served, but for polls: one listing is what every job waits for, and behind the transfers of hundreds
of jobs its turn would come after a minute. Only so many polls pass at a time that everything else has places, too.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class LimiterPolicy:
    """Constants of the adaptation; times in seconds.

    `initial` is where the search begins, and the most in flight beside a request that must not happen twice.
    `growth_interval` is the least time between two steps up; after an overload at n in flight, n is not tried again
    for `memory`.
    """

    initial: int = 8
    growth_interval: float = 1.0
    memory: float = 60.0


class Slot:
    """One request in flight; the holder says how it went."""

    __slots__ = ("limiter", "started")

    def __init__(self, limiter: AdaptiveLimiter) -> None:
        self.limiter = limiter
        self.started = time.monotonic()

    def succeeded(self) -> None:
        """An answer without a sign of overload."""
        self.limiter.succeeded()

    def overloaded(self, retry_after: float | None = None) -> None:
        """424, 429, 503: too much at once. `retry_after` (seconds) holds everybody back, within reason."""
        self.limiter.overloaded(self.started, retry_after)


class AdaptiveLimiter:
    """Additive increase, multiplicative decrease over the requests of one event loop; polls first, then in order."""

    LONGEST_HOLD = 10.0
    """Seconds that one 429 may hold back the requests of others."""

    def __init__(self, maximum: int, policy: LimiterPolicy | None = None) -> None:
        self.policy = policy or LimiterPolicy()
        self.maximum = maximum
        self.limit = min(self.policy.initial, maximum)
        self.in_flight = 0
        self._once = 0
        self._waiting: list[tuple[bool, int, asyncio.Future[None], bool]] = []
        """Heap of (does not pass, number, place, once)."""
        self._passing = 0
        self._numbers = itertools.count()
        self._successes = 0
        self._changed = time.monotonic()
        self._decreased = 0.0
        self._ceiling, self._ceiling_until = maximum, 0.0
        self._held_until = 0.0

    @asynccontextmanager
    async def slot(self, *, once: bool = False, poll: bool = False) -> AsyncIterator[Slot]:
        """Wait for a place, `once` for what must not happen twice; it is free again when the block ends.

        A `poll` passes whatever else waits, unless others that have passed take half of the places already.
        """
        passes = await self._acquire(once=once, poll=poll)
        try:
            yield Slot(self)
        finally:
            self._release(once, passes)

    async def _acquire(self, *, once: bool = False, poll: bool = False) -> bool:
        """Wait for a place; whether this one passes others, which `_release` must know."""
        if (hold := self._held_until - time.monotonic()) > 0:
            await asyncio.sleep(hold)
        passes = poll and self._passing < max(1, min(self.limit, self.policy.initial) // 2)
        self._passing += passes
        if (passes or not self._waiting) and self._has_place(once):
            self._enter(once)
            return passes
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (not passes, next(self._numbers), place, once))
        try:
            await place  # whoever wakes us has counted us in
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._release(once, passes)
            else:
                self._passing -= passes
                self._wake()  # past us, and those behind may need less room
            raise
        return passes

    def _has_place(self, once: bool) -> bool:
        careful = once or self._once > 0
        return self.in_flight < (min(self.limit, self.policy.initial) if careful else self.limit)

    def _enter(self, once: bool) -> None:
        self.in_flight += 1
        self._once += once

    def _release(self, once: bool, passes: bool) -> None:
        self.in_flight -= 1
        self._once -= once
        self._passing -= passes
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            _, _, place, once = self._waiting[0]
            if not place.done():
                if not self._has_place(once):
                    return
                self._enter(once)
                place.set_result(None)
            heapq.heappop(self._waiting)

    def succeeded(self) -> None:
        """Count a success; after a round of them, and only if somebody is waiting, allow one more."""
        self._successes += 1
        now = time.monotonic()
        top = self.maximum if now >= self._ceiling_until else self._ceiling
        if self._successes < self.limit or not self._waiting or self.limit >= top:
            return
        if now - self._changed >= self.policy.growth_interval:
            self._successes, self._changed = 0, now
            self.limit += 1
            self._wake()

    def overloaded(self, started: float, retry_after: float | None = None) -> None:
        """Halve, once per round trip: answers to requests older than the last decrease tell of the old limit."""
        now = time.monotonic()
        if retry_after is not None:
            self._held_until = max(self._held_until, now + min(retry_after, self.LONGEST_HOLD))
        if started < self._decreased:
            return
        level = min(self.limit, max(self.in_flight, 1))
        self._ceiling, self._ceiling_until = max(1, level - 1), now + self.policy.memory
        self.limit = max(1, level // 2)
        self._successes, self._changed, self._decreased = 0, now, now


class PollingRate:
    """Spaces polling requests evenly, over all loops and threads of the process."""

    _shared: ClassVar[dict[tuple[int, str], PollingRate]] = {}
    _lock = threading.Lock()

    def __init__(self, per_second: float) -> None:
        self.interval = 1.0 / per_second
        self._next = 0.0
        self._returned: list[float] = []

    @classmethod
    def shared(cls, pid: int, url: str, per_second: float) -> PollingRate:
        """The process's one instance for a site; the first caller's rate holds until somebody asks for a lower one."""
        with cls._lock:
            rate = cls._shared.setdefault((pid, url), cls(per_second))
            rate.interval = max(rate.interval, 1.0 / per_second)
            return rate

    async def wait(self) -> None:
        """Sleep until this caller's moment; who is cancelled gives it back, and those behind move up."""
        moment = self._reserve()
        try:
            while (left := moment - time.monotonic()) > 0:
                await asyncio.sleep(min(left, max(0.5, left / 4)))
                moment = self._earlier(moment)
        except asyncio.CancelledError:
            with self._lock:
                heapq.heappush(self._returned, moment)
            raise

    def _reserve(self) -> float:
        """The next free moment (monotonic clock)."""
        with self._lock:
            self._drop_stale()
            if self._returned:
                return heapq.heappop(self._returned)
            moment = max(time.monotonic(), self._next)
            self._next = moment + self.interval
            return moment

    def _earlier(self, moment: float) -> float:
        """A moment that was given back, where it is earlier than `moment`, which is then given back instead."""
        with self._lock:
            self._drop_stale()
            if not self._returned or self._returned[0] >= moment:
                return moment
            return heapq.heappushpop(self._returned, moment)

    def _drop_stale(self) -> None:
        # A moment that has passed is not made up for: two would follow each other at once.
        while self._returned and self._returned[0] < time.monotonic():
            heapq.heappop(self._returned)


def _renew_lock() -> None:
    PollingRate._lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)  # another thread of the parent may have held it
