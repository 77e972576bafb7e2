"""The limiter finds what a site bears, polling is spaced over the process, the breaker lets one probe through."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest

from hpcbridge.errors import NotSent
from hpcbridge.http.breaker import BreakerPolicy, CircuitBreaker
from hpcbridge.http.limiter import AdaptiveLimiter, LimiterPolicy, PollingRate

QUICK = LimiterPolicy(initial=4, growth_interval=0.0, memory=0.2)


async def run(limiter: AdaptiveLimiter, calls: int, bears: int | None = None) -> int:
    """Push `calls` requests through; those beyond `bears` in flight are answered as overload. Returns the peak."""
    peak = in_flight = 0

    async def call() -> None:
        nonlocal peak, in_flight
        async with limiter.slot() as slot:
            in_flight += 1
            peak = max(peak, in_flight)
            over = bears is not None and in_flight > bears
            await asyncio.sleep(0.002)
            in_flight -= 1
            slot.overloaded() if over else slot.succeeded()

    await asyncio.gather(*(call() for _ in range(calls)))
    return peak


async def test_it_begins_low_and_grows_while_others_wait() -> None:
    limiter = AdaptiveLimiter(16, QUICK)
    await run(limiter, 400)
    assert 8 < limiter.limit <= 16


async def test_it_does_not_grow_without_need() -> None:
    limiter = AdaptiveLimiter(16, QUICK)
    for _ in range(100):
        await run(limiter, 1)
    assert limiter.limit == 4


async def test_overload_halves_once_per_round_trip_and_is_remembered() -> None:
    limiter = AdaptiveLimiter(32, LimiterPolicy(initial=16, growth_interval=0.0, memory=60))
    await run(limiter, 16, bears=0)
    assert limiter.limit == 8  # sixteen bad answers to one round of requests are one sign
    await run(limiter, 800)
    assert limiter.limit <= 15  # what was too much is not tried again for a while


async def test_it_settles_below_what_the_site_bears() -> None:
    limiter = AdaptiveLimiter(32, LimiterPolicy(initial=8, growth_interval=0.0, memory=60))
    await run(limiter, 600, bears=10)
    assert await run(limiter, 200, bears=10) <= 10


async def test_what_must_not_happen_twice_is_never_the_one_too_many() -> None:
    limiter = AdaptiveLimiter(32, LimiterPolicy(initial=8, growth_interval=0.0, memory=60))
    careful, peaks = 0, []

    async def call(once: bool) -> None:
        nonlocal careful
        async with limiter.slot(once=once) as slot:
            careful += once
            await asyncio.sleep(0.002)
            if careful:
                peaks.append(limiter.in_flight)
            careful -= once
            slot.succeeded()

    for _ in range(3):  # the second and third round begin with what the first has found
        await asyncio.gather(*(call(once=number % 7 == 0) for number in range(700)))
        await run(limiter, 300)
    assert limiter.limit == 32
    assert max(peaks) <= 8
    assert len(peaks) >= 300
    assert limiter.in_flight == 0


async def test_polls_pass_whatever_else_waits_and_keep_their_own_order() -> None:
    limiter = AdaptiveLimiter(4, LimiterPolicy(initial=4))
    order: list[str] = []

    async def call(name: str, **kind: bool) -> None:
        async with limiter.slot(**kind):
            order.append(name)

    async with limiter.slot(), limiter.slot(), limiter.slot(), limiter.slot():
        kinds = {"a": {}, "b": {"once": True}, "c": {"poll": True}, "d": {}, "e": {"poll": True}}
        calls = [asyncio.ensure_future(call(name, **kind)) for name, kind in kinds.items()]
        await asyncio.sleep(0.01)
    await asyncio.gather(*calls)
    assert order == ["c", "e", "a", "b", "d"]


async def test_polls_that_never_end_keep_nobody_waiting() -> None:
    """Slow answers to many polls take half of the places; a submit, which needs room, has its turn."""
    limiter = AdaptiveLimiter(4, LimiterPolicy(initial=2, growth_interval=0.0))
    await run(limiter, 100)
    assert limiter.limit == 4

    async def poll() -> None:
        async with limiter.slot(poll=True):
            await asyncio.sleep(0.05)

    async def polls() -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(poll())
                await asyncio.sleep(0.005)

    others = asyncio.create_task(polls())
    await asyncio.sleep(0.1)
    async with asyncio.timeout(2), limiter.slot(once=True):
        pass
    others.cancel()
    await asyncio.wait({others})
    assert (limiter.in_flight, limiter._passing) == (0, 0)


async def test_a_poll_takes_the_place_that_a_submit_must_not_have() -> None:
    """The submit waits until there are few enough in flight; what stands behind it waits with it, but for polls."""
    limiter = AdaptiveLimiter(4, LimiterPolicy(initial=2, growth_interval=0.0))
    await run(limiter, 100)
    async with limiter.slot(), limiter.slot():
        submit = asyncio.ensure_future(limiter._acquire(once=True))
        await asyncio.sleep(0)
        async with asyncio.timeout(1), limiter.slot(poll=True):
            assert not submit.done()
    await submit


async def test_a_cancelled_careful_waiter_lets_those_behind_it_pass() -> None:
    limiter = AdaptiveLimiter(4, LimiterPolicy(initial=2, growth_interval=0.0))
    await run(limiter, 100)
    assert limiter.limit == 4
    async with limiter.slot(), limiter.slot():
        careful = asyncio.ensure_future(limiter._acquire(once=True))
        behind = asyncio.ensure_future(limiter._acquire(once=False))
        await asyncio.sleep(0.01)
        assert not behind.done()  # first come, first served
        careful.cancel()
        await asyncio.wait_for(behind, 1)
    assert limiter.in_flight == 1


async def test_a_waiter_that_is_cancelled_just_as_a_place_becomes_free_is_cancelled() -> None:
    limiter = AdaptiveLimiter(1, LimiterPolicy(initial=1))
    async with limiter.slot():
        waiting = asyncio.ensure_future(limiter._acquire(once=False))
        await asyncio.sleep(0)
        waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert limiter.in_flight == 0


async def test_a_cancelled_waiter_leaves_no_hole() -> None:
    limiter = AdaptiveLimiter(1, LimiterPolicy(initial=1))
    entered = asyncio.Event()

    async def hold() -> None:
        async with limiter.slot():
            entered.set()
            await asyncio.sleep(0.05)

    holder = asyncio.create_task(hold())
    await entered.wait()
    waiter = asyncio.create_task(run(limiter, 1))
    await asyncio.sleep(0.01)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    await holder
    assert limiter.in_flight == 0
    assert await asyncio.wait_for(run(limiter, 3), 1) == 1


async def test_retry_after_holds_everybody_back() -> None:
    limiter = AdaptiveLimiter(4, QUICK)
    async with limiter.slot() as slot:
        slot.overloaded(retry_after=0.1)
    began = time.monotonic()
    await run(limiter, 2)
    assert time.monotonic() - began >= 0.09


def test_polling_is_spaced_over_all_loops_and_threads_of_the_process() -> None:
    moments: list[float] = []

    async def poll() -> None:
        rate = PollingRate.shared(os.getpid(), "http://polling.test", 50)
        for _ in range(4):
            await rate.wait()
            moments.append(time.monotonic())

    threads = [threading.Thread(target=asyncio.run, args=(poll(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(moments) == 12
    assert max(moments) - min(moments) >= 11 * 0.02 * 0.95


def test_the_breaker_opens_probes_once_and_closes() -> None:
    breaker = CircuitBreaker("s", BreakerPolicy(failures=3, pause=0.05, longest_pause=0.2))
    for _ in range(3):
        with breaker.admit() as admission:
            admission.failed()
    with pytest.raises(NotSent) as held:
        breaker.admit()
    assert held.value.retry_after
    time.sleep(0.06)
    with breaker.admit() as probe:
        with pytest.raises(NotSent):
            breaker.admit()  # one probe at a time
        probe.succeeded()
    assert not breaker.is_open
    breaker.admit()


def test_a_failed_probe_doubles_the_pause_and_a_cancelled_one_makes_room() -> None:
    breaker = CircuitBreaker("s", BreakerPolicy(failures=1, pause=0.03, longest_pause=0.2))
    with breaker.admit() as admission:
        admission.failed()
    time.sleep(0.04)
    with breaker.admit():
        pass  # no verdict
    with breaker.admit() as probe:
        probe.failed()
    time.sleep(0.04)
    with pytest.raises(NotSent):
        breaker.admit()
    time.sleep(0.03)
    breaker.admit()


def test_a_success_in_between_keeps_it_closed() -> None:
    breaker = CircuitBreaker("s", BreakerPolicy(failures=2))
    for failed in (True, False, True):
        with breaker.admit() as admission:
            admission.failed() if failed else admission.succeeded()
    assert not breaker.is_open


async def test_a_poll_that_is_cancelled_gives_its_moment_back() -> None:
    rate = PollingRate(per_second=20)
    waiting = [asyncio.create_task(rate.wait()) for _ in range(200)]
    last = asyncio.create_task(rate.wait())  # its moment is 10 s away
    await asyncio.sleep(0.3)
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    begun = time.monotonic()
    async with asyncio.timeout(20):
        await rate.wait()
        await last
    assert time.monotonic() - begun < 5
    moments = []
    for _ in range(4):
        await rate.wait()
        moments.append(time.monotonic())
    assert moments[-1] - moments[0] >= 0.14
