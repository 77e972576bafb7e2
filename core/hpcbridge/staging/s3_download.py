"""Down through the object store: the server's own job puts the file there, ranged reads in parallel fetch it.

The object appears whole, when its multipart upload is completed, so the first byte is asked for until it is there: that
costs the site nothing, and is seconds earlier than accounting. The job's end is looked at afterwards.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from hpcbridge.errors import AmbiguousOutcome, IntegrityError, TransferError, Unavailable
from hpcbridge.jobs.state import JobInfo
from hpcbridge.staging import digests, server_jobs
from hpcbridge.staging.context import PATIENCE, Transfer, given_up
from hpcbridge.staging.fetching import Receiver, Write
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.object_store import ObjectMissing, ObjectStore
from hpcbridge.staging.partfile import PartFile
from hpcbridge.staging.plan import READERS, longest_run
from hpcbridge.staging.progress import Phase
from hpcbridge.staging.ranges import RangeReader

if TYPE_CHECKING:
    from hpcbridge.firecrest.models import S3Download

FIRST_PROBE = 0.05
LONGEST_PROBE = 5.0
PROBE_SHARE = 0.02
"""Seconds between two looks for the object: a share of the time waited so far, within these bounds."""
VISIBLE_LAG = 30.0
"""Seconds for which the object may be missing after the job has ended well."""
ATTEMPTS = 2
"""Times the object is read when its SHA-256 is not that of the file."""


async def get(t: Transfer, remote: RemotePath, part: PartFile) -> str | None:
    """Fill `part` with `remote`; returns the SHA-256 both sides agree on, None when only the size was compared.

    Raises TransferError when the server's job did not do its work, IntegrityError when the file differs.
    """
    # The sum is computed on the system while its job runs, so it costs no time here.
    summing = asyncio.ensure_future(digests.remote_sha256(t, remote)) if digests.wanted(t) else None
    download: S3Download | None = None
    try:
        for _ in range(ATTEMPTS):
            if download is None and any(True for _ in part.missing()):
                download = await ask(t, remote)
                await _appear(t, download, part.source.size)
            ours = await _receive(t, download, part, hashing=summing is not None)
            t.reporter.phase(Phase.VERIFYING)
            theirs = await summing if summing else None
            if theirs in (None, ours):
                await _finish(t, download, checked=theirs is not None)
                return theirs
            part.forget()
    except BaseException as error:
        # What the job itself did wrong is in its logs, and they stay.
        if download is not None and not isinstance(error, TransferError):
            await server_jobs.abandon(t, download.job)
        raise
    finally:
        await given_up(summing)
    if download is not None:
        await server_jobs.remove_logs(t, download.job)
    raise t.error(f"{remote} arrived damaged {ATTEMPTS} times", kind=IntegrityError, path=str(remote))


async def ask(t: Transfer, remote: RemotePath) -> S3Download:
    """Start the egress job. After a lost answer a second one is started: the first then does its work for nobody."""
    t.reporter.phase(Phase.CHECKING, "asking for the file in the object store")
    for last in (False, False, True):
        try:
            return await t.client.transfer_download(t.name, str(remote), account=t.account, patience=PATIENCE)
        except AmbiguousOutcome:
            if last:
                raise
            await asyncio.sleep(1.0)
    raise AssertionError("unreachable")


async def _appear(t: Transfer, download: S3Download, size: int) -> None:
    """Wait until the object is there, whole."""
    t.reporter.phase(Phase.STAGING, f"transfer job {download.job_id} copies the file to the object store")
    wait = t.system.watcher.wait(download.job_id, on_change=lambda info: server_jobs.show(t, info))
    watching = asyncio.ensure_future(wait)
    store = ObjectStore(t.client.session.storage)
    try:
        begun, ended = time.monotonic(), 0.0
        while not await _is_there(t, store, download, size):
            pause = min(max(FIRST_PROBE, (time.monotonic() - begun) * PROBE_SHARE), LONGEST_PROBE)
            if watching.done():
                await _explain(t, download, watching.result(), ended)
                ended += pause
                await asyncio.sleep(pause)
            else:
                await asyncio.wait({watching}, timeout=pause)
    finally:
        await given_up(watching)


async def _is_there(t: Transfer, store: ObjectStore, download: S3Download, size: int) -> bool:
    try:
        found = await store.size(download.url.reveal())
    except (ObjectMissing, Unavailable):
        return False
    if found != size:
        message = f"the object has {found} bytes where the file had {size}"
        raise t.error(message, kind=IntegrityError, job_id=download.job_id, hint="The file changed; fetch it again")
    return True


async def _explain(t: Transfer, download: S3Download, info: JobInfo, since: float) -> None:
    """The job has ended and there is no object: say why, or wait a little where the job says that it did its work."""
    if not info.ok or since == 0.0:
        await server_jobs.confirm(t, download.job, info)
    if since > VISIBLE_LAG:
        raise t.error("the server's transfer job did its work, but there is no object", job_id=download.job_id)


async def _receive(t: Transfer, download: S3Download | None, part: PartFile, *, hashing: bool) -> str | None:
    receiver = Receiver(t, part, hashing=hashing)
    t.reporter.phase(Phase.DOWNLOADING, "going on where it stopped" if part.done else "", done=part.received())
    if download is None:
        return await receiver.fill(_nothing, 0)
    reader = RangeReader(t.client.session.site, download.url, readers=READERS)

    async def fetch(_: int, offset: int, length: int, write: Write) -> None:
        await reader.read(offset, length, write)

    try:
        return await receiver.fill(fetch, READERS, longest_run(part.count))
    finally:
        reader.close()


async def _nothing(_index: int, _offset: int, _length: int, _write: Write) -> None:
    raise AssertionError("a part file without gaps has nothing to fetch")


async def _finish(t: Transfer, download: S3Download | None, *, checked: bool) -> None:
    """The bytes are here; unless SHA-256 has proved them, the job's log has to say so too. Then its logs go."""
    if download is None:
        return
    if not checked and server_jobs.SUCCESS not in await server_jobs.read_log(t, download.job.output_log):
        await server_jobs.wait(t, download.job)
    await server_jobs.remove_logs(t, download.job)
