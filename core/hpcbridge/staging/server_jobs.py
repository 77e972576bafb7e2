"""The jobs that the *server* makes for a transfer through the object store: how they ended, and what they leave behind.

Jobs of cp and rm that failed end COMPLETED with exit code 0, and the other scripts share the flaw, so a state proves
nothing: the log has to say "successfully".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hpcbridge.errors import HpcBridgeError, JobNotFound, NotFound
from hpcbridge.jobs.state import JobInfo
from hpcbridge.staging.context import PATIENCE, Transfer, given_up, watched
from hpcbridge.staging.progress import Phase

if TYPE_CHECKING:
    from hpcbridge.firecrest.models import JobRow, TransferJob

INGRESS = "IngressFileTransfer"
EGRESS = "OutgressFileTransfer"
"""Names that the server gives its jobs up and down."""
SUCCESS = "successfully"
"""The word in the output log of every transfer script that did its work."""
ABANDON_PATIENCE = 5.0
"""Seconds of outage outlasted for the sake of tidiness only."""
UNANSWERED_LAG = 10.0
"""Seconds after a POST without an answer by which its job shows in a listing, if there is one."""
SEEING_OFF = 60.0
"""Longest wait in seconds for the end of a job that is of no use any more."""
CLOCKS = 120.0
"""Seconds by which the clocks here and there may differ."""
FIRST_PAUSE, PAUSE_SHARE, LONGEST_PAUSE = 2.0, 0.1, 15.0
"""Seconds between two looks into a running job's log: a share of the time waited so far, within these bounds."""
LOG_LAG = 6.0
"""Seconds for which a log may be missing or incomplete after the job's end: network file systems cache."""


async def wait(t: Transfer, job: TransferJob) -> None:
    """Wait for the server's job and make sure that it did its work. Raises TransferError with its own words.

    Its log tells as soon as it has; accounting is seconds later, and listings are up to 15 s apart by then.
    """
    begun = time.monotonic()
    watching = asyncio.ensure_future(watched(t, job.job_id, lambda now: show(t, now)))
    try:
        while not watching.done():
            pause = min(max(FIRST_PAUSE, (time.monotonic() - begun) * PAUSE_SHARE), LONGEST_PAUSE)
            await asyncio.wait({watching}, timeout=pause)
            if SUCCESS in await read_log(t, job.output_log, polling=True):
                return
        await confirm(t, job, watching.result())
    finally:
        await given_up(watching)


async def did_its_work(t: Transfer, job: TransferJob) -> None:
    """Like `wait`, but asks the scheduler only when the log does not say it yet."""
    if SUCCESS not in await read_log(t, job.output_log):
        await wait(t, job)


def show(t: Transfer, info: JobInfo) -> None:
    """Report a change of the job's state: a wait in the queue is visible as such."""
    if info.state.is_queued:
        why = f" ({info.reason})" if info.reason else ""
        t.reporter.phase(Phase.QUEUED, f"transfer job {info.job_id} waits in the queue{why}")
    elif not info.is_terminal:
        t.reporter.phase(Phase.STAGING, f"transfer job {info.job_id} runs")


async def confirm(t: Transfer, job: TransferJob, info: JobInfo) -> None:
    """Raise TransferError unless the log says that the work was done."""
    log = ""
    for _ in range(4):
        log = await read_log(t, job.output_log)
        if SUCCESS in log:
            return
        await asyncio.sleep(LOG_LAG / 4)
    words = (await read_log(t, job.error_log)).strip() or log.strip()
    said = f"; its log ends: {words[-400:]}" if words else ""
    ended = f"ended as {info.raw_state or info.state}, exit code {info.exit_code}"
    raise t.error(
        f"the server's transfer job {ended} without having done its work{said}",
        job_id=job.job_id,
        hint=f"Its logs are kept: {', '.join(job.logs)}" if job.logs else None,
    )


async def read_log(t: Transfer, path: str | None, *, polling: bool = False) -> str:
    """The log's text; "" when there is none (yet)."""
    if path is None:
        return ""
    with suppress(NotFound):
        return (await t.client.download(t.name, path, patience=PATIENCE, polling=polling)).decode(errors="replace")
    return ""


async def look(t: Transfer, job: TransferJob, asked: float) -> JobInfo | None:
    """The job now, which was asked for at `asked` (s since 1970); None when the scheduler does not know it any more."""
    while True:
        try:
            return JobInfo.from_row((await t.client.job(t.name, job.job_id, patience=PATIENCE))[0])
        except JobNotFound:
            if time.time() > asked + UNANSWERED_LAG:
                return None
        # Accounting does not know it yet.
        await asyncio.sleep(1.0)


def dump(job: TransferJob) -> dict[str, Any]:
    """The server's words again, as `TransferJob.from_json` reads them."""
    logs = {"outputLog": job.output_log, "errorLog": job.error_log}
    return {"jobId": job.job_id, "system": job.system, "workingDirectory": job.working_directory, "logs": logs}


async def abandon(t: Transfer, job: TransferJob) -> None:
    """Cancel a job whose transfer has failed on our side, and remove its logs: it would wait for its time limit."""
    with suppress(HpcBridgeError):
        await t.client.cancel(t.name, job.job_id, patience=ABANDON_PATIENCE)
    for path in job.logs:
        with suppress(HpcBridgeError):
            await t.client.rm(t.name, path, patience=ABANDON_PATIENCE)


async def remove_logs(t: Transfer, job: TransferJob) -> None:
    """Delete both logs; what cannot be deleted stays, the file has arrived all the same."""
    for path in job.logs:
        with suppress(HpcBridgeError):
            await t.client.rm(t.name, path, patience=PATIENCE)


async def see_off(t: Transfer, job_id: str, logs: Collection[str]) -> None:
    """Let a job end that must not be cancelled, and remove its logs.

    A cancelled egress job leaves a copy of the file behind; one that nobody waits for ends soon, with nothing but logs.
    """
    with suppress(HpcBridgeError, TimeoutError):
        async with asyncio.timeout(SEEING_OFF):
            if (await t.system.watcher.info(job_id)).state.is_queued:
                await t.client.cancel(t.name, job_id, patience=ABANDON_PATIENCE)
            await t.system.watcher.wait(job_id)
    for path in logs:
        with suppress(HpcBridgeError):
            await t.client.rm(t.name, path, patience=ABANDON_PATIENCE)


async def clear_unanswered(t: Transfer, name: str, path: str, asked: list[int], known: Collection[str]) -> None:
    """End the jobs called `name` about `path` that nobody has the id of, and remove their logs.

    The server had made them for requests whose answers were lost, at the moments `asked` (s since 1970); nothing but
    their script says what they are about. `known` are the ids of jobs that somebody does have. A job that cannot be
    found is left to its time limit.
    """
    await asyncio.sleep(max(0.0, asked[-1] + UNANSWERED_LAG - time.time()))
    with suppress(HpcBridgeError):
        for row in await t.client.jobs(t.name, names=[name], patience=ABANDON_PATIENCE):
            if row.job_id not in known and _may_be_of(row, asked[0]):
                await _clear(t, row, path)


def _may_be_of(row: JobRow, since: float) -> bool:
    moment = row.submitted or row.started
    return moment is None or moment.timestamp() > since - CLOCKS


async def _clear(t: Transfer, row: JobRow, path: str) -> None:
    job = await t.client.metadata(t.name, row.job_id)
    if path not in (job.script or ""):
        return
    if row.name == INGRESS or t.info.transfer == "streamer":
        with suppress(HpcBridgeError):
            await t.client.cancel(t.name, row.job_id, patience=ABANDON_PATIENCE)
    await see_off(t, row.job_id, [log for log in (job.standard_output, job.standard_error) if log])
