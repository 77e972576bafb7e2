"""Groups of tasks: what is left of a failure that was caught."""

from __future__ import annotations

import asyncio

import pytest

from hpcbridge.staging.context import task_group


async def test_a_failure_comes_out_as_itself_and_leaves_no_cancel_behind() -> None:
    """With one left, timeouts later in the same task end as cancellations on Debian 12's Python 3.11.2."""
    task = asyncio.current_task()
    assert task is not None

    async def fail() -> None:
        raise ValueError("first")

    async def work() -> None:
        async with task_group() as group:
            group.create_task(fail())
            group.create_task(asyncio.sleep(60))

    with pytest.raises(ValueError, match="first"):
        await work()
    assert task.cancelling() == 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)


async def test_a_cancel_from_outside_stays_one() -> None:
    async def work() -> None:
        async with task_group() as group:
            group.create_task(asyncio.sleep(60))

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
