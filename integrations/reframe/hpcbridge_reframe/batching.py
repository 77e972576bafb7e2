"""What many tests ask for at about the same time, asked once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")

GATHER = 0.2
"""Seconds for which more questions are waited for; `MOST` while more keep coming."""
MOST = 2.0
PACE = 1.0
"""Seconds between the beginnings of two batches: of a stream of questions many go together, a single one at once."""


class Batch(Generic[Q, A]):
    """Collects questions and has them answered together, one batch after the other.

    `work` returns an answer, or an error, for each question; what it raises is everybody's answer.
    """

    def __init__(self, work: Callable[[Sequence[Q]], Awaitable[Sequence[A | Exception]]]) -> None:
        self._work = work
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._working: asyncio.Task[None] | None = None
        self._due = 0.0

    async def ask(self, question: Q) -> A:
        """The answer, once the batch that it belongs to is done."""
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._run(), name="hpcbridge-reframe-batch")
        return await answer

    async def _run(self) -> None:
        while self._waiting:
            await self._gather()
            batch, self._waiting = [each for each in self._waiting if not each[1].done()], []
            if not batch:
                continue
            try:
                answers = await self._work([question for question, _ in batch])
            except Exception as error:
                answers = [error] * len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    async def _gather(self) -> None:
        waited, seen = 0.0, -1
        while waited < MOST and (seen != len(self._waiting) or time.monotonic() < self._due):
            seen = len(self._waiting)
            await asyncio.sleep(GATHER)
            waited += GATHER
        self._due = time.monotonic() + PACE
