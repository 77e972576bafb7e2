"""The jobs that the *server* makes for a transfer through the object store: how they ended, and what they leave behind.

Jobs of cp and rm that failed end COMPLETED with exit code 0, and the other scripts share the flaw, so a state proves
nothing: the log has to say "successfully".
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from hpcbridge.errors import HpcBridgeError, NotFound
from hpcbridge.jobs.state import JobInfo
from hpcbridge.staging.context import PATIENCE, Transfer
from hpcbridge.staging.progress import Phase

if TYPE_CHECKING:
    from hpcbridge.firecrest.models import TransferJob

SUCCESS = "successfully"
"""The word in the output log of every transfer script that did its work."""
ABANDON_PATIENCE = 5.0
"""Seconds of outage outlasted for the sake of tidiness only."""
LOG_LAG = 6.0
"""Seconds for which a log may be missing or incomplete after the job's end: network file systems cache."""


async def wait(t: Transfer, job: TransferJob) -> JobInfo:
    """Wait for the server's job and make sure that it did its work. Raises TransferError with its own words."""
    info = await t.system.watcher.wait(job.job_id, on_change=lambda now: show(t, now))
    await confirm(t, job, info)
    return info


def show(t: Transfer, info: JobInfo) -> None:
    """Report a change of the job's state: a wait in the queue is visible as such."""
    if info.state.is_queued:
        t.reporter.phase(Phase.QUEUED, f"transfer job {info.job_id} waits in the queue ({info.reason or 'no reason'})")
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


async def read_log(t: Transfer, path: str | None) -> str:
    """The log's text; "" when there is none (yet)."""
    if path is None:
        return ""
    with suppress(NotFound):
        return (await t.client.download(t.name, path, patience=PATIENCE)).decode(errors="replace")
    return ""


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
