"""`cleanup` and `gc`: the end of an attempt's allocation and of its files. Both may be repeated at will."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING

from hpcbridge.errors import HpcBridgeError, JobNotFound, NotFound
from hpcbridge_gitlab import slots
from hpcbridge_gitlab.box import Box
from hpcbridge_gitlab.patience import PASSING, outlast
from hpcbridge_gitlab.records import Attempt, Records, current
from hpcbridge_gitlab.site import opened
from hpcbridge_gitlab.verdicts import Stop

if TYPE_CHECKING:
    from hpcbridge import System
    from hpcbridge_gitlab.contract import CiJob
    from hpcbridge_gitlab.settings import Settings

_VERDICTS_KEPT = 7 * 86400.0


async def cleanup(settings: Settings, job: CiJob) -> int:
    """End the attempt's allocation and remove its files. What is left undone in time, `gc` does."""
    records = Records(settings.state)
    try:
        attempt = current(records, job)
    except Stop:
        return 0  # it never began
    left: list[str] = []
    if not attempt.stopped:
        try:
            async with asyncio.timeout(settings.driver.cleanup):
                left = await _end(settings, attempt)
        except TimeoutError:
            left = ["the site was too slow"]
        except HpcBridgeError as error:
            left = [str(error)]
    slots.release(attempt)
    for line in left:
        print(f"hpcbridge: {line}; the lease ends the allocation, `hpcbridge-gitlab gc` the rest", flush=True)  # noqa: T201
    return 0


async def _end(settings: Settings, attempt: Attempt) -> list[str]:
    """Stop the agent, else cancel its job; then the files. What could not be done, in words."""
    if not attempt.key:
        attempt.stopped = True  # nothing was submitted
        attempt.save()
        return []
    async with opened(settings, attempt.site, attempt.system) as system:
        box = Box(system.client, attempt, settings.driver)
        if not await _agent_leaves(box, attempt, settings.driver.cleanup / 2):
            if not attempt.job_id:
                # The submit's answer is not known. A job that starts later finds this file, or no directory at all.
                await _quietly(system.client.upload(attempt.system, attempt.box, "abandoned", b"1\n", patience=1))
            # For as long as the caller's own limit allows.
            for job_id in await outlast(lambda: _ids(system, attempt), 60):
                await outlast(lambda job_id=job_id: _cancel(system, attempt, job_id), 60)  # type: ignore[misc]
            await outlast(lambda: _remove(system, attempt), 60)
        attempt.stopped = True
        attempt.save()
    return []


async def _agent_leaves(box: Box, attempt: Attempt, within: float) -> bool:
    """Whether the agent has gone by itself, with all its files: the end that accounting calls COMPLETED."""
    if not attempt.job_id or not attempt.started:
        return False
    try:
        async with asyncio.timeout(within):
            state = await outlast(lambda: box.state(patience=1), within)
            if state is None or state.status == "ended":
                return False
            await box.post("stop", "cleanup", b"exit 0\n")
            while await outlast(lambda: box.state(patience=1), within) is not None:  # noqa: ASYNC110 (it is far away)
                await asyncio.sleep(0.2)
            return True
    except (*PASSING, TimeoutError):
        return False


async def _ids(system: System, attempt: Attempt) -> list[str]:
    if attempt.job_id or not attempt.name:
        return [attempt.job_id] if attempt.job_id else []
    rows = await system.client.jobs(attempt.system, names=[attempt.name], time_window="24h", patience=2)
    return sorted({row.job_id for row in rows})


async def _cancel(system: System, attempt: Attempt, job_id: str) -> None:
    """Cancel and see it end; of a job that has ended already, the server says 500."""
    from hpcbridge.jobs.state import JobState

    try:
        await system.client.cancel(attempt.system, job_id, patience=2)
    except HpcBridgeError:
        try:
            rows = await system.client.job(attempt.system, job_id, patience=2)
        except JobNotFound:
            return
        if not all(JobState.parse(row.state).is_terminal for row in rows):
            raise


async def _remove(system: System, attempt: Attempt) -> None:
    await _quietly(system.client.rm(attempt.system, attempt.home, patience=1))


async def _quietly(work: Awaitable[None]) -> None:
    try:
        await work
    except NotFound:
        return


async def gc(settings: Settings, *, everything: bool = False) -> int:
    """End and remove what attempts have left that nobody has worked for since their lease; says what it did.

    With `everything` also those of live leases. Returns 1 when something is left.
    """
    records = Records(settings.state)
    done = left = 0
    for attempt in list(records.all()):
        if attempt.stopped:
            records.forget(attempt)
            continue
        if attempt.age < settings.driver.lease * 1.5 and not everything:
            left += 1
            print(f"{_title(attempt)}: in use")  # noqa: T201
            continue
        try:
            async with asyncio.timeout(60):
                words = await _collect(settings, attempt)
        except (HpcBridgeError, TimeoutError, Stop) as error:
            left += 1
            print(f"{_title(attempt)}: {error or 'the site was too slow'}")  # noqa: T201
            continue
        slots.release(attempt)
        records.forget(attempt)
        done += 1
        print(f"{_title(attempt)}: {words}")  # noqa: T201
    records.sweep(_VERDICTS_KEPT)
    print(f"{done} removed, {left} left")  # noqa: T201
    return 1 if left else 0


async def _collect(settings: Settings, attempt: Attempt) -> str:
    if not attempt.key:
        attempt.stopped = True
        attempt.save()
        return "nothing had been submitted"
    async with opened(settings, attempt.site, attempt.system) as system:
        live = await _live(system, attempt)
        there = await _is_there(system, attempt)
    if not live and not there:
        attempt.stopped = True
        attempt.save()
        return "nothing was left on the system"
    await _end(settings, attempt)
    found: Iterable[str] = [f"job {', '.join(live)}"] if live else []
    return "ended " + " and ".join([*found, *([attempt.home] if there else [])])


async def _live(system: System, attempt: Attempt) -> list[str]:
    from hpcbridge.jobs.state import JobState

    live = []
    for job_id in await _ids(system, attempt):
        try:
            rows = await system.client.job(attempt.system, job_id)
        except JobNotFound:
            continue
        if any(not JobState.parse(row.state).is_terminal for row in rows):
            live.append(job_id)
    return live


async def _is_there(system: System, attempt: Attempt) -> bool:
    try:
        await system.client.stat(attempt.system, attempt.home)
    except NotFound:
        return False
    return True


def _title(attempt: Attempt) -> str:
    return f"{attempt.label} attempt {attempt.number} ({attempt.project}, {attempt.system})"
