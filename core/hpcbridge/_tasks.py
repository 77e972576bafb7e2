"""One task of a job array: `120_3` is asked for, the REST interface knows `120`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hpcbridge.errors import JobNotFound

if TYPE_CHECKING:
    from collections.abc import Callable

    from hpcbridge.jobs.state import JobInfo
    from hpcbridge.jobs.watch import JobWatcher


def is_task(job_id: str) -> bool:
    """Whether the id is that of one task."""
    return "_" in job_id


def array_of(job_id: str) -> str:
    """The array's id of a task's; any other id as it is."""
    return job_id.partition("_")[0]


def find(info: JobInfo, job_id: str) -> JobInfo | None:
    """The task `job_id` in what is known of its array."""
    return next((task for task in info.tasks if task.job_id == job_id), None)


def pick(info: JobInfo, job_id: str, system: str) -> JobInfo:
    """What was asked for: the task, or `info` itself when `job_id` is no task's. Raises JobNotFound."""
    if not is_task(job_id):
        return info
    if (task := find(info, job_id)) is None:
        raise JobNotFound("the array has no such task (yet)", system=system, job_id=job_id)
    return task


async def wait_for(
    watcher: JobWatcher, job_id: str, *, name: str | None, on_change: Callable[[JobInfo], None] | None
) -> JobInfo:
    """Until the one task has ended, whatever the others do. Raises what `JobWatcher.wait` raises, and JobNotFound."""
    ended: asyncio.Future[JobInfo] = asyncio.get_running_loop().create_future()
    last: list[JobInfo] = []

    def changed(info: JobInfo) -> None:
        task = find(info, job_id)
        if task is None or last[-1:] == [task]:
            return
        last[:] = [task]
        if on_change is not None:
            on_change(task)
        if task.is_terminal and not ended.done():
            ended.set_result(task)

    array = asyncio.ensure_future(watcher.wait(array_of(job_id), name=name, on_change=changed))
    try:
        await asyncio.wait({array, ended}, return_when=asyncio.FIRST_COMPLETED)
        return ended.result() if ended.done() else pick(await array, job_id, watcher.system)
    finally:
        array.cancel()
