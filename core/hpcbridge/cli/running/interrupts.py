"""SIGINT, SIGTERM and SIGHUP end a run, and its job with it.

GitHub's runner sends SIGINT, SIGTERM 7.5 s later, and SIGKILL 2.5 s after that; GitLab's and Jenkins's send SIGTERM
first. So the first signal begins the cleaning up, a different one changes nothing, and only the same one again, a
second later (a person who insists), gives up waiting for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

INSISTING = 1.0
"""Seconds after which the same signal again means it: Ctrl-C is often pressed twice at once."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """The first signal that came; what it means for the job has been done by now, or given up."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)


async def until_interrupted(work: Coroutine[Any, Any, T], after: Callable[[], Awaitable[None]]) -> T:
    """The result of `work`. A signal cancels it, and then `after` is awaited.

    Raises Interrupted when a signal came. Signals that the caller's shell ignores (`nohup`) stay ignored.
    """
    loop = asyncio.get_running_loop()
    task: asyncio.Future[T] = asyncio.ensure_future(work)
    seen: dict[int, float] = {}
    insisted = asyncio.Event()

    def received(number: int) -> None:
        if not seen:
            task.cancel()
        elif loop.time() - seen.get(number, loop.time()) >= INSISTING:
            insisted.set()
            task.cancel()
        seen.setdefault(number, loop.time())

    caught = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    for number in caught:
        with contextlib.suppress(RuntimeError, ValueError):  # not in the main thread: nobody sends us signals there
            loop.add_signal_handler(number, received, number)
    try:
        try:
            result = await task
        except BaseException:
            if not seen:
                raise
        else:
            if not seen:
                return result
        await _unless(insisted, after)
        raise Interrupted(next(iter(seen)))
    finally:
        for number in caught:
            with contextlib.suppress(RuntimeError, ValueError):
                loop.remove_signal_handler(number)


async def _unless(insisted: asyncio.Event, after: Callable[[], Awaitable[None]]) -> None:
    """Await `after`, but not for longer than it takes to send one request once somebody has insisted."""
    cleaning, enough = asyncio.ensure_future(after()), asyncio.ensure_future(insisted.wait())
    await asyncio.wait({cleaning, enough}, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait({cleaning}, timeout=INSISTING)
    enough.cancel()
    if cleaning.done():
        cleaning.result()
    else:
        cleaning.cancel()
