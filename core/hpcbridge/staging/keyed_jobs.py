"""Our own jobs of a transfer: submitted once, and followed to the answer that their script leaves behind."""

from __future__ import annotations

import asyncio
import posixpath
import secrets
import time
from contextlib import suppress

from hpcbridge.errors import AlreadyExists, HpcBridgeError, InvalidPath, NotFound, Unavailable
from hpcbridge.jobs.spec import JobSpec
from hpcbridge.jobs.state import LOST_RACE_EXIT, JobInfo, JobState
from hpcbridge.jobs.submit import submit_once
from hpcbridge.staging.context import PATIENCE, Transfer, given_up, transfer_directives, watched
from hpcbridge.staging.preparing import PRIVATE_PREFIX
from hpcbridge.staging.progress import Phase

FIRST_LOOK = 0.15
LONGEST_PAUSE = 15.0
"""Seconds between two looks for the answer: the first, and the longest while the job waits in the queue.

A look costs the login node one small command, a listing of jobs two larger ones, and the answer can be read seconds
before accounting knows of the job's end.
"""
ANSWER_LAG = 8.0
"""Seconds for which the answer may be missing after the job's end: network file systems cache."""
RATE = 50_000_000
"""Bytes per second that a job may be as slow as before its time limit ends it."""
MINUTES = 10
"""Time limit of a short job; a site's own limit in its transfer directives is kept for those."""


def can_run_in(t: Transfer, directory: str) -> bool:
    """Whether jobs of ours can be started in a directory: its name is in directives, and in hybrid mode on a line."""
    blank = t.info.scheduler.mode == "hybrid" and any(c.isspace() for c in directory)
    return not blank and not any(c in '"\\' for c in directory)


def require_runnable(t: Transfer, directory: str) -> None:
    """Raise InvalidPath for a directory that jobs cannot be started in; to be asked before anything is sent."""
    if not can_run_in(t, directory):
        raise t.error("no job can be started in this directory", kind=InvalidPath, path=directory)


def spec(t: Transfer, *, script: str, directory: str, label: str, session: str, work: int | None = None) -> JobSpec:
    """A small job in the place that the site has for transfers. Raises InvalidPath for a directory jobs cannot use.

    `work`: bytes that the job takes as long for as for its real work, which its time limit is made of; default: `size`
    of the transfer.
    """
    require_runnable(t, directory)
    fields = transfer_directives(t.info.transfer_directives, t.info.scheduler.mode, t.account)
    minutes = MINUTES + (t.size if work is None else work) // RATE // 60
    own_limit = any("--time" in line or line.startswith("-t") for line in fields.get("directives", ()))
    # The scheduler's REST mode carries no time limit: the partition's holds.
    if t.info.scheduler.mode != "rest" and (minutes > MINUTES or not own_limit):
        fields["time"] = str(minutes)
    log = f"{directory}/{session}.log"
    return JobSpec(script=script, workdir=directory, name=label, output=log, error=log, **fields)


async def run(t: Transfer, job: JobSpec, key: str, answer_path: str) -> str | None:
    """Submit `job` once under `key` and return the text of its answer; None when it ended without one.

    Raises what `submit_once` raises, and JobFailed when the job was cancelled meanwhile.
    """
    # The key is unique to this upload session, so who we are adds nothing to it, and asking costs three commands.
    submitted = await submit_once(t.client, t.name, job, key, user="-")
    show(t, submitted.job_id, None)
    changed = asyncio.Event()

    def changes(info: JobInfo) -> None:
        show(t, info.job_id, info)
        changed.set()

    watching = asyncio.ensure_future(watched(t, submitted.job_id, changes, name=submitted.name))
    watching.add_done_callback(lambda _: changed.set())
    try:
        return await _answer(t, answer_path, watching, changed, adopted=submitted.adopted)
    finally:
        await given_up(watching)


def show(t: Transfer, job_id: str, info: JobInfo | None) -> None:
    """Report a change of the job's state: a wait in the queue is visible as such."""
    if info is None or info.state.is_queued:
        why = f" ({info.reason})" if info and info.reason else ""
        t.reporter.phase(Phase.QUEUED, f"job {job_id} waits in the queue{why}")
    elif not info.is_terminal:
        t.reporter.phase(Phase.JOINING, f"job {job_id} runs")


async def _answer(
    t: Transfer, path: str, watching: asyncio.Future[JobInfo], changed: asyncio.Event, *, adopted: bool
) -> str | None:
    pause = FIRST_LOOK
    while not watching.done():
        try:
            async with asyncio.timeout(pause):
                await changed.wait()
        except TimeoutError:
            pause = min(pause * 1.4, LONGEST_PAUSE)
        else:
            changed.clear()
            pause = FIRST_LOOK
        if (text := await _look(t, path)) is not None:
            return text
    return await _last_look(t, path, watching.result(), adopted=adopted)


async def _last_look(t: Transfer, path: str, info: JobInfo, *, adopted: bool) -> str | None:
    if info.state is JobState.CANCELLED:
        if adopted:
            # In an earlier attempt's time: whoever calls again wants another job.
            return await _look(t, path)
        raise info.failure(site=t.site, system=t.name) or t.error("the job was cancelled", job_id=info.job_id)
    # Another job holds the lock: its answer is ours, and it has all the time its own limit gives it.
    lag = MINUTES * 60.0 if info.exit_code == LOST_RACE_EXIT else ANSWER_LAG
    end = time.monotonic() + lag
    while True:
        text = await _look(t, path)
        if text is not None or time.monotonic() > end:
            return text
        await asyncio.sleep(1.0)


async def _look(t: Transfer, path: str) -> str | None:
    # The watcher outlasts outages, and so does this.
    with suppress(NotFound, Unavailable):
        return (await t.client.download(t.name, path, polling=True)).decode(errors="replace")
    return None


async def private_directory(t: Transfer) -> str:
    """A new hidden directory in the user's own: nothing says that we may write beside a file that we may read."""
    directory = await private_path(t)
    await make_directory(t, directory)
    return directory


async def private_path(t: Transfer) -> str:
    """A path for `make_directory`, to be written down before: then it can be removed after a crash."""
    return posixpath.join(await t.system.home(), f"{PRIVATE_PREFIX}{secrets.token_hex(8)}")


async def make_directory(t: Transfer, directory: str) -> None:
    """Make a staging directory, unless it is there."""
    with suppress(AlreadyExists):
        await t.client.mkdir(t.name, directory, parents=False, patience=PATIENCE)


async def remove_directory(t: Transfer, directory: str) -> None:
    """Remove a staging directory; what cannot be removed is left to a later job's cleaning."""
    for pause in (0.0, 0.5, 2.0):
        await asyncio.sleep(pause)
        try:
            await t.client.rm(t.name, directory, patience=PATIENCE)
        except NotFound:
            return
        except HpcBridgeError:
            # A network file system keeps the log of a job that is just ending under another name for a moment.
            continue
        return
