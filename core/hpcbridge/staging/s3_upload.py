"""Up through the object store: presigned parts in parallel, and the server's own job that fetches the object.

The server looks for the object once and then every 60 s. Its job cannot be keyed, and only the answer to the request
that made it holds the URLs of the parts, so a journal keeps both, and the parts that were taken: another process goes
on where one died, as long as the job lives. An upload whose job has gone starts again, under a new key.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hpcbridge.errors import IntegrityError, JobFailed, NotFound, TransferError
from hpcbridge.staging import asking, digests, server_jobs
from hpcbridge.staging.context import PATIENCE, Transfer, given_up, task_group
from hpcbridge.staging.journal import Entry, Journal
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.object_store import ObjectStore
from hpcbridge.staging.parts import PartSender
from hpcbridge.staging.plan import READERS, spans
from hpcbridge.staging.progress import Phase

if TYPE_CHECKING:
    from hpcbridge.firecrest.models import S3Upload, TransferJob
    from hpcbridge.jobs.state import JobInfo
    from hpcbridge.staging.source import SourceFile

UNWATCHED = 20.0
"""Seconds of sending after which an eye is kept on the job, whose time limit may end it first."""
HOPELESS = (TransferError, JobFailed, NotFound)
"""Failures that going on with the same object would only repeat; all others leave the upload to be taken up again."""


async def put(
    t: Transfer, source: SourceFile, target: RemotePath, *, check: bool = True, place: str | None = None
) -> str | None:
    """Send `source` to `target`; returns the SHA-256 both sides agree on, None when only the size was compared.

    `check=False` leaves the comparison to a job that is to come. `place` is what an interrupted upload is found by
    where the target's name differs from one attempt to the next (see `earlier_target`).

    Raises TransferError when the server's job did not do its work, IntegrityError when the file differs, Conflict when
    another process sends to the same target.
    """
    with Journal.of(t, "s3-put", place or str(target)) as journal:
        upload = _Upload(t, source, target, journal, check=check)
        return await upload.run()


def earlier_target(t: Transfer, source: SourceFile, place: str) -> RemotePath | None:
    """Where an interrupted upload of `source` under `place` was going; None when there is none."""
    with Journal.of(t, "s3-put", place) as journal:
        if journal.about.get("source") != source.identity:
            return None
        return RemotePath(*journal.about["target"])


class _Upload:
    """One file's way, and what its journal knows of it.

    Lines besides those of `asking`: `part` and `etag` for each part that was taken, `completing` before the object is
    made of them, `checked` when it lies at the target.
    """

    def __init__(self, t: Transfer, source: SourceFile, target: RemotePath, journal: Journal, *, check: bool) -> None:
        self._t = t
        self._source = source
        self._target = target
        self._journal = journal
        self._check = check
        self._about = {"source": source.identity, "target": [target.directory, target.name]}
        self._hashing = asyncio.ensure_future(source.sha256()) if check and digests.wanted(t) else None
        self._agreed: str | None = None
        self._ended = False
        """Whether the job has ended, so that the object needs no more attention."""
        self._staging = False
        """Whether the object was made: it is the job's turn."""

    async def run(self) -> str | None:
        try:
            if not await self._resumed():
                await self._anew()
            return self._agreed
        finally:
            await given_up(self._hashing)

    async def _resumed(self) -> bool:
        """Finish what an earlier attempt began; False when the file has to be sent from its start."""
        if await self._taken_up():
            try:
                await self._finish()
                return True
            except HOPELESS:
                await asyncio.to_thread(self._source.check_unchanged)
        await self._abandon()
        return False

    async def _anew(self) -> None:
        for last in (False, True):
            await self._begin()
            try:
                return await self._finish()
            except HOPELESS as error:
                if self._staging and not isinstance(error, IntegrityError):
                    # What the job did wrong is in its logs, and they stay.
                    self._journal.remove()
                    raise
                again = self._staging and not last
                await self._abandon()
                if not again:
                    raise
        raise AssertionError("unreachable")

    async def _taken_up(self) -> bool:
        """Whether an earlier attempt can be gone on with."""
        if asking.answer(self._journal) is None or self._journal.about != self._about:
            return False
        self._t.reporter.phase(Phase.CHECKING, "looking for the transfer job of an earlier attempt")
        info = await server_jobs.look(self._t, self._upload.job, asking.last(self._journal))
        self._ended = info is None or info.is_terminal
        if self._journal.noted("checked"):
            return True
        return info is not None and (not info.is_terminal or (info.ok and bool(self._journal.noted("completing"))))

    async def _begin(self) -> None:
        """Get a place in the object store, and a job."""
        self._t.reporter.phase(Phase.CHECKING, "asking for a place in the object store")
        self._ended = self._staging = False

        async def request() -> Entry:
            t, size = self._t, self._source.size
            upload = await t.client.transfer_upload(
                t.name, str(self._target), size, account=t.account, patience=PATIENCE
            )
            return _directives(upload)

        await asking.ask(self._journal, self._about, request)

    async def _finish(self) -> None:
        job = self._upload.job
        if self._journal.noted("checked"):
            await self._still_there()
        else:
            if not self._ended:
                await self._stage()
            self._staging = True
            self._t.reporter.phase(Phase.STAGING, f"transfer job {job.job_id} fetches the file from the object store")
            await server_jobs.wait(self._t, job)
        if self._check:
            digest = await self._hashing if self._hashing else None
            self._agreed = await digests.check(self._t, self._target, self._source.size, digest)
        self._journal.add(checked=True)
        await server_jobs.remove_logs(self._t, job)
        await asking.clear(self._t, self._journal, server_jobs.INGRESS, str(self._target))
        self._journal.remove()

    async def _stage(self) -> None:
        """Put the object there, whole; without it the server's job would look for it until its time limit."""
        upload = self._upload
        parts = spans(self._source.size, upload.part_size)
        if len(parts) != len(upload.part_urls):
            raise self._t.error(f"the server gave {len(upload.part_urls)} places for {len(parts)} parts")
        etags = {entry["part"]: entry["etag"] for entry in self._journal.noted("part")}
        done = sum(parts[index][1] for index in etags)
        self._t.reporter.phase(Phase.UPLOADING, "going on where it stopped" if done else "", done=done)
        again = bool(self._journal.noted("completing"))
        sending = asyncio.ensure_future(self._send(upload, parts, etags))
        await self._before_the_job_ends(sending, upload.job)
        await asyncio.to_thread(self._source.check_unchanged)
        self._journal.add(completing=True)
        store = ObjectStore(self._t.client.session.storage)
        await store.complete(upload.complete_url, [etags[index] for index in range(len(parts))], again=again)

    async def _send(self, upload: S3Upload, parts: list[tuple[int, int]], etags: dict[int, str]) -> None:
        sender = PartSender(self._t, self._source, ObjectStore(self._t.client.session.storage))
        free = asyncio.Semaphore(READERS)

        async def send(index: int) -> None:
            async with free:
                etags[index] = await sender.send(upload.part_urls[index], *parts[index])
                self._journal.add(part=index, etag=etags[index])

        async with task_group() as group:
            for index in range(len(parts)):
                if index not in etags:
                    group.create_task(send(index))

    async def _before_the_job_ends(self, sending: asyncio.Future[None], job: TransferJob) -> None:
        """Wait for the last part; what is sent after the job's end nobody would fetch."""
        watching: asyncio.Future[JobInfo] | None = None
        try:
            await asyncio.wait({sending}, timeout=UNWATCHED)
            if not sending.done():
                watching = asyncio.ensure_future(self._t.system.watcher.wait(job.job_id))
                both: set[asyncio.Future[Any]] = {sending, watching}
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if watching is None or sending.done():
                return await sending
            info = watching.result()
            raise self._t.error(
                f"the server's transfer job ended as {info.state} before the file was sent",
                job_id=job.job_id,
                hint="Where its time limit is the reason: take route='chunked', or ask the site for a longer one",
            )
        finally:
            await given_up(sending)
            await given_up(watching)

    async def _still_there(self) -> None:
        found = await self._t.client.stat(self._t.name, str(self._target), dereference=True, patience=PATIENCE)
        if found.size != self._source.size:
            raise self._t.error(f"{self._target} has changed since it was sent", kind=IntegrityError)

    async def _abandon(self) -> None:
        """End the job, which would wait for its time limit, and remove its logs."""
        if asking.answer(self._journal):
            await server_jobs.abandon(self._t, self._upload.job)
            await asking.clear(self._t, self._journal, server_jobs.INGRESS, str(self._target))
            self._journal.remove()

    @property
    def _upload(self) -> S3Upload:
        # Imported late: the models cost time that a direct transfer does not need.
        from hpcbridge.firecrest.models import S3Upload

        return S3Upload.from_json(asking.answer(self._journal) or {})


def _directives(upload: S3Upload) -> dict[str, Any]:
    """The server's answer again, as `S3Upload.from_json` reads it: for the journal, which only its owner can read."""
    return {
        "transferJob": server_jobs.dump(upload.job),
        "transferDirectives": {
            "partsUploadUrls": [url.reveal() for url in upload.part_urls],
            "completeUploadUrl": upload.complete_url.reveal(),
            "maxPartSize": upload.part_size,
        },
    }
