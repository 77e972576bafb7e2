"""Questions of many tests, answered together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from hpcbridge_reframe.batching import PACE, Batch


class Work:
    """Doubles numbers, and remembers which came together; refuses -1, and breaks at -2."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    async def __call__(self, numbers: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(numbers))
        if -2 in numbers:
            raise OSError("broken")
        return [ValueError("-1") if number == -1 else 2 * number for number in numbers]


async def test_what_is_asked_at_a_time_is_asked_once() -> None:
    work = Work()
    batch: Batch[int, int] = Batch(work)
    assert await asyncio.gather(*(batch.ask(number) for number in range(50))) == [2 * number for number in range(50)]
    assert len(work.batches) == 1


async def test_a_stream_of_questions_goes_in_few_batches_and_a_single_one_at_once() -> None:
    work = Work()
    batch: Batch[int, int] = Batch(work)
    began = time.monotonic()
    asked = []
    for number in range(25):
        asked.append(asyncio.create_task(batch.ask(number)))
        await asyncio.sleep(0.3)
    assert asked[0].done()
    assert await asyncio.gather(*asked) == [2 * number for number in range(25)]
    assert len(work.batches) <= (time.monotonic() - began) / PACE + 2
    assert len(work.batches[0]) < 10


async def test_an_error_is_that_of_its_question_or_of_the_batch() -> None:
    work = Work()
    batch: Batch[int, int] = Batch(work)
    answers = await asyncio.gather(*(batch.ask(number) for number in (1, -1, 2)), return_exceptions=True)
    assert (answers[0], answers[2]) == (2, 4)
    assert isinstance(answers[1], ValueError)
    with pytest.raises(OSError, match="broken"):
        await batch.ask(-2)
    assert await batch.ask(3) == 6


async def test_a_question_that_nobody_waits_for_is_not_asked() -> None:
    work = Work()
    batch: Batch[int, int] = Batch(work)
    left, kept = asyncio.create_task(batch.ask(1)), asyncio.create_task(batch.ask(2))
    await asyncio.sleep(0)
    left.cancel()
    assert await kept == 4
    assert work.batches == [[2]]
