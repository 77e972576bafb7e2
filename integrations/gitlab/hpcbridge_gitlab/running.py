"""`run`: one stage, in the allocation or on this host.

A cancel kills the script and leaves the allocation: after_script, caches and artifacts come after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hpcbridge.errors import HpcBridgeError
from hpcbridge_gitlab.box import Box
from hpcbridge_gitlab.contract import BEFORE_SOURCES, HOST_STAGES, is_main
from hpcbridge_gitlab.output import pass_on, say
from hpcbridge_gitlab.records import Records, current
from hpcbridge_gitlab.site import opened
from hpcbridge_gitlab.verdicts import Cause, Stop

if TYPE_CHECKING:
    from hpcbridge_gitlab.agent import State
    from hpcbridge_gitlab.contract import CiJob
    from hpcbridge_gitlab.records import Attempt
    from hpcbridge_gitlab.settings import Settings

_T = TypeVar("_T")

CANCEL_WITHIN = 8.0
"""Seconds in which a cancelled stage must be over here: the runner's SIGKILL comes 10 s after its SIGTERM."""


async def run(settings: Settings, job: CiJob, script: str, stage: str, cancelled: asyncio.Event) -> int:
    """Run the stage `stage`, whose script is the file `script`. Raises Stop."""
    attempt = current(Records(settings.state), job)
    if stage in HOST_STAGES:
        from hpcbridge_gitlab import hosting

        await hosting.run(settings, job, attempt, Path(script), stage, cancelled)
        if stage == "cleanup_file_variables":
            say(_report(attempt))
        return 0
    if not attempt.job_id:
        raise Stop(Cause.CONFIGURATION, "there is no allocation: prepare_exec must be hpcbridge-gitlab, too")
    content = Path(script).read_bytes()  # noqa: ASYNC240 (small and local)
    async with opened(settings, attempt.site, attempt.system) as system:
        box = Box(system.client, attempt, settings.driver)
        await _in_allocation(box, attempt, content, stage, cancelled)
    return 0


async def _in_allocation(box: Box, attempt: Attempt, script: bytes, stage: str, cancelled: asyncio.Event) -> None:
    if stage != BEFORE_SOURCES and not attempt.pushed:
        from hpcbridge_gitlab import sources

        await _unless(cancelled, sources.push(box, attempt))
    kind = ("wide" if attempt.wide else "main") if is_main(stage) else "after"
    seq = await _unless(cancelled, box.post(kind, stage, script))
    state = await _follow(box, seq, cancelled)
    _judge(state, attempt)


async def _unless(cancelled: asyncio.Event, work: Coroutine[Any, Any, _T]) -> _T:
    """Do it, unless the stage is cancelled first."""
    task, stop = asyncio.ensure_future(work), asyncio.ensure_future(cancelled.wait())
    try:
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Stop(Cause.CANCELLED, "cancelled", hint="")
        return task.result()
    finally:
        stop.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, HpcBridgeError):
                await task


async def _follow(box: Box, seq: int, cancelled: asyncio.Event) -> State:
    """Until the stage has ended; after a cancel, until the agent has killed it."""
    following = asyncio.ensure_future(box.follow(seq, pass_on))
    stop = asyncio.ensure_future(cancelled.wait())
    try:
        await asyncio.wait({following, stop}, return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            return following.result()
        say("cancelled; the script is being stopped, the allocation stays for after_script and artifacts")
        with contextlib.suppress(HpcBridgeError, TimeoutError):
            # If neither gets through, the next stage's script ends this one.
            async with asyncio.timeout(CANCEL_WITHIN):
                await box.cancel(seq)
                await following
        raise Stop(Cause.CANCELLED, "cancelled", hint="")
    finally:
        stop.cancel()
        following.cancel()


def _judge(state: State, attempt: Attempt) -> None:
    """An end that is not well, as Stop."""
    if state.reason == "timelimit":
        raise Stop(
            Cause.TIMEOUT,
            f"the allocation's limit of {attempt.limit} min is near; the script was stopped so that after_script and "
            "artifacts have time",
        )
    if state.reason == "damaged":
        raise Stop(Cause.LOST, "the script did not arrive on the node as it was")
    if state.reason != "none":
        raise Stop(Cause.CANCELLED, f"the script was stopped ({state.reason})", hint="")
    if state.code == 137:
        # The shell's own words for a process killed from outside; on a node that is nearly always its memory.
        raise Stop(Cause.OUT_OF_MEMORY, "the script was killed (SIGKILL)")
    if state.code:
        raise Stop(Cause.SCRIPT, f"exit code {state.code}", code=state.code)


def _report(attempt: Attempt) -> str:
    """What the job has used, for the end of its log."""
    if not attempt.started:
        return f"job {attempt.job_id or 'none'}: no allocation was used"
    used = time.time() - attempt.started
    charged = f", account {attempt.account}" if attempt.account else ""
    return (
        f"job {attempt.job_id} on {attempt.system} ({attempt.node}){charged}: queued "
        f"{attempt.started - attempt.queued:.0f} s, used {used / 60:.1f} of {attempt.limit} min"
    )
