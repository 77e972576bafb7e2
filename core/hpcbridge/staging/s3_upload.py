"""Up through the object store: presigned parts in parallel, and the server's own job that fetches the object.

The server looks for the object once and then every 60 s, and its job cannot be keyed: after a lost answer an ingress
job without an object is left behind, which ends at its time limit.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from hpcbridge.errors import AmbiguousOutcome, IntegrityError
from hpcbridge.staging import digests, server_jobs
from hpcbridge.staging.context import PATIENCE, Transfer, given_up, task_group
from hpcbridge.staging.local import LocalFile
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.object_store import ObjectStore
from hpcbridge.staging.plan import READERS, spans
from hpcbridge.staging.progress import Phase

if TYPE_CHECKING:
    from hpcbridge.firecrest.models import S3Upload

PART_ATTEMPTS = 4
"""Times a part is sent whose ETag is not its MD5."""


async def put(t: Transfer, source: LocalFile, target: RemotePath, *, check: bool = True) -> str | None:
    """Send `source` to `target`; returns the SHA-256 both sides agree on, None when only the size was compared.

    `check=False` leaves the comparison to a job that is to come.

    Raises TransferError when the server's job did not do its work, IntegrityError when the file differs.
    """
    t.reporter.phase(Phase.CHECKING, "asking for a place in the object store")
    upload = await _ask(t, source, target)
    hashing = asyncio.ensure_future(source.sha256()) if check and digests.wanted(t) else None
    try:
        await _stage(t, source, upload)
        t.reporter.phase(Phase.STAGING, f"transfer job {upload.job_id} fetches the file from the object store")
        await server_jobs.wait(t, upload.job)
        digest = await hashing if hashing else None
    finally:
        await given_up(hashing)
    agreed = await digests.check(t, target, source.size, digest) if check else None
    await server_jobs.remove_logs(t, upload.job)
    return agreed


async def _ask(t: Transfer, source: LocalFile, target: RemotePath) -> S3Upload:
    for last in (False, False, True):
        try:
            return await t.client.transfer_upload(
                t.name, str(target), source.size, account=t.account, patience=PATIENCE
            )
        except AmbiguousOutcome:
            if last:
                raise
            await asyncio.sleep(1.0)
    raise AssertionError("unreachable")


async def _stage(t: Transfer, source: LocalFile, upload: S3Upload) -> None:
    """Put the object there; without it the server's job would look for it until its time limit."""
    try:
        await _send(t, source, upload)
        source.check_unchanged()
    except BaseException:
        await server_jobs.abandon(t, upload.job)
        raise


async def _send(t: Transfer, source: LocalFile, upload: S3Upload) -> None:
    parts = spans(source.size, upload.part_size)
    if len(parts) != len(upload.part_urls):
        raise t.error(f"the server gave {len(upload.part_urls)} places for {len(parts)} parts", path=source.name)
    t.reporter.phase(Phase.UPLOADING, done=0)
    store = ObjectStore(t.client.session.storage)
    free = asyncio.Semaphore(READERS)
    etags = [""] * len(parts)

    async def send(index: int, offset: int, length: int) -> None:
        async with free:
            part = _Part(t, source, offset, length)
            etags[index] = await part.send(store, upload.part_urls[index].reveal())

    async with task_group() as group:
        for index, (offset, length) in enumerate(parts):
            group.create_task(send(index, offset, length))
    await store.complete(upload.complete_url.reveal(), etags)


class _Part:
    """One part, read again for each attempt; at most two blocks of it are in memory."""

    def __init__(self, t: Transfer, source: LocalFile, offset: int, length: int) -> None:
        self._t = t
        self._source = source
        self._offset = offset
        self._length = length
        self._sent = 0
        self._md5 = hashlib.md5(usedforsecurity=False)

    async def send(self, store: ObjectStore, url: str) -> str:
        """Send until the ETag is the part's MD5; returns the ETag.

        A store that encrypts has ETags that are no MD5: they differ each time or have another form, so a part that was
        taken with the same ETag twice is damaged on the way, and one with ever new ETags is left to the final check.
        """
        seen: list[str] = []
        for _ in range(PART_ATTEMPTS):
            etag = await store.put_part(url, self._length, self._content)
            if not is_md5(etag) or etag.strip('"') == self._md5.hexdigest():
                return etag
            seen.append(etag)
        if len(set(seen)) == len(seen) > 1:
            return seen[-1]
        raise self._t.error(
            f"a part of {self._length} bytes arrived damaged {PART_ATTEMPTS} times", kind=IntegrityError
        )

    async def _content(self) -> AsyncIterator[bytes]:
        # Called anew for each attempt: what an attempt before has counted is taken back.
        self._t.reporter.add(-self._sent)
        self._sent = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        async for block in self._source.blocks(self._offset, self._length, self._md5):
            yield block
            self._sent += len(block)
            self._t.reporter.add(len(block))


def is_md5(etag: str) -> bool:
    """Whether an ETag has the form of an MD5."""
    bare = etag.strip('"')
    return len(bare) == 32 and all(c in "0123456789abcdef" for c in bare)
