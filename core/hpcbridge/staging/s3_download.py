"""Down through the object store: the server's own job puts the file there, ranged reads in parallel fetch it.

The object appears whole, when its multipart upload is completed, so the first byte is asked for until it is there: that
costs the site nothing, and is seconds earlier than accounting. The job's end is looked at afterwards. A journal keeps
the object's URL and the job, so that another process goes on reading where one died, without a second job.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from hpcbridge.errors import IntegrityError, JobFailed, TransferError, Unavailable
from hpcbridge.jobs.state import JobInfo
from hpcbridge.staging import asking, digests, server_jobs
from hpcbridge.staging.context import PATIENCE, Transfer, given_up, watched
from hpcbridge.staging.fetching import Receiver, Write
from hpcbridge.staging.journal import Entry, Journal
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
ATTEMPTS = 3
"""Times the file is read when its SHA-256 is another: twice the same object, then another one."""


async def get(t: Transfer, remote: RemotePath, part: PartFile, *, resume: bool = True) -> str | None:
    """Fill `part` with `remote`; returns the SHA-256 both sides agree on, None when only the size was compared.

    What an earlier attempt had put into the object store is used again (`resume=False`: cleared away).

    Raises TransferError when the server's job did not do its work, IntegrityError when the file differs.
    """
    # The sum is computed on the system while its job runs, so it costs no time here.
    summing = asyncio.ensure_future(digests.remote_sha256(t, remote)) if digests.wanted(t) else None
    try:
        with Journal.of(t, "s3-get", str(remote), str(part.target)) as journal:
            return await _Download(t, remote, part, journal).run(summing, resume=resume)
    finally:
        await given_up(summing)


class _Download:
    """One file's way, and what its journal knows of it.

    Lines besides those of `asking`: `checked` when the part file is whole.
    """

    def __init__(self, t: Transfer, remote: RemotePath, part: PartFile, journal: Journal) -> None:
        self._t = t
        self._remote = remote
        self._part = part
        self._journal = journal
        self._about = asdict(part.source)

    async def run(self, summing: asyncio.Future[str | None] | None, *, resume: bool) -> str | None:
        staged = await self._taken_up(resume=resume)
        for attempt in range(ATTEMPTS):
            if attempt == ATTEMPTS - 1:
                # What was read twice and is wrong is so in the object, too.
                await self._discard()
                staged = False
            if not staged and self._gaps():
                await self._stage()
                staged = True
            try:
                ours = await _receive(self._t, self._part, self._download if staged else None, hashing=bool(summing))
            except TransferError:
                await self._discard()
                raise
            self._t.reporter.phase(Phase.VERIFYING)
            theirs = await summing if summing else None
            if theirs in (None, ours):
                await self._finish(checked=theirs is not None)
                return theirs
            self._part.forget()
        await self._discard()
        message = f"{self._remote} arrived damaged {ATTEMPTS} times"
        raise self._t.error(message, kind=IntegrityError, path=str(self._remote))

    async def _taken_up(self, *, resume: bool) -> bool:
        """Whether the object of an earlier attempt is there, or will be."""
        if asking.answer(self._journal) is None:
            return False
        if resume and self._journal.about == self._about:
            if self._journal.noted("checked") and not self._gaps():
                return True
            with suppress(TransferError, JobFailed):
                await _appear(self._t, self._download, self._part.source.size)
                return True
        await self._discard()
        return False

    async def _stage(self) -> None:
        """Have the file put into the object store."""
        self._t.reporter.phase(Phase.CHECKING, "asking for the file in the object store")

        async def request() -> Entry:
            t = self._t
            found = await t.client.transfer_download(t.name, str(self._remote), account=t.account, patience=PATIENCE)
            directives = {"downloadUrl": found.url.reveal()}
            return {"transferJob": server_jobs.dump(found.job), "transferDirectives": directives}

        await asking.ask(self._journal, self._about, request)
        try:
            await _appear(self._t, self._download, self._part.source.size)
        except IntegrityError:
            await self._discard()
            raise
        except TransferError:
            # What the job did wrong is in its logs, and they stay.
            self._journal.remove()
            raise

    def _gaps(self) -> bool:
        return any(True for _ in self._part.missing())

    async def _finish(self, *, checked: bool) -> None:
        """The bytes are here; unless SHA-256 has proved them, the job's log has to say so too. Then its logs go."""
        if asking.answer(self._journal) is None:
            return
        job = self._download.job
        if not (checked or self._journal.noted("checked")):
            await server_jobs.did_its_work(self._t, job)
        self._journal.add(checked=True)
        await server_jobs.remove_logs(self._t, job)
        await asking.clear(self._t, self._journal, server_jobs.EGRESS, str(self._remote))
        self._journal.remove()

    async def _discard(self) -> None:
        """The object of an earlier attempt is of no use: clear its job away."""
        if asking.answer(self._journal) is not None:
            await server_jobs.see_off(self._t, self._download.job_id, self._download.logs)
            await asking.clear(self._t, self._journal, server_jobs.EGRESS, str(self._remote))
            self._journal.remove()

    @property
    def _download(self) -> S3Download:
        # Imported late: the models cost time that a direct transfer does not need.
        from hpcbridge.firecrest.models import S3Download

        return S3Download.from_json(asking.answer(self._journal) or {})


async def _appear(t: Transfer, download: S3Download, size: int) -> None:
    """Wait until the object is there, whole."""
    t.reporter.phase(Phase.STAGING, f"transfer job {download.job_id} copies the file to the object store")
    watching = asyncio.ensure_future(watched(t, download.job_id, lambda info: server_jobs.show(t, info)))
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
        found = await store.size(download.url)
        if found != size:
            # A second opinion: this answer ends the transfer.
            found = await store.size(download.url)
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


async def _receive(t: Transfer, part: PartFile, download: S3Download | None, *, hashing: bool) -> str | None:
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
