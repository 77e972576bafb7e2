"""One request each way, up to the server's own limit."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

from hpcbridge.errors import IntegrityError
from hpcbridge.staging import digests
from hpcbridge.staging.context import PATIENCE, Transfer, task_group
from hpcbridge.staging.local import LocalFile
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.partfile import PartFile, Source
from hpcbridge.staging.plan import RANGE
from hpcbridge.staging.progress import Phase

if TYPE_CHECKING:
    from hpcbridge.firecrest.models import FileStat

ATTEMPTS = 2
"""Transfers at most: a second one when the first arrived damaged."""
SNAPSHOTS = 3
"""Downloads at most of a file that somebody is writing to."""


async def put(t: Transfer, source: LocalFile, target: RemotePath) -> str | None:
    """Send the whole file in one request, not atomically; returns the SHA-256 both sides agree on, if compared.

    Raises IntegrityError.
    """
    data = await asyncio.to_thread(source.read, 0, source.size)
    for last in (False, True):
        t.reporter.phase(Phase.UPLOADING, done=0)
        async with task_group() as group:
            hashing = group.create_task(asyncio.to_thread(_sha256, data)) if digests.wanted(t) else None
            await t.client.upload(t.name, target.directory, target.name, data, patience=PATIENCE)
        t.reporter.add(len(data))
        try:
            return await digests.check(t, target, len(data), hashing.result() if hashing else None)
        except IntegrityError:
            if last:
                raise
    raise AssertionError("unreachable")


async def get(t: Transfer, remote: RemotePath, before: FileStat) -> str | None:
    """Receive the whole file in one request; returns the SHA-256 both sides agree on, if compared.

    `before`: what `stat` has just said of the file (through links).

    A file that grows meanwhile is received as it was at one moment. Raises IntegrityError when it changes otherwise.
    """
    for _ in range(SNAPSHOTS):
        t.reporter.phase(Phase.DOWNLOADING, done=0)
        data, agreed = await _with_digest(t, remote)
        if len(data) == before.size and (agreed is None or agreed == await asyncio.to_thread(_sha256, data)):
            await asyncio.to_thread(_store, t, data)
            return agreed
        after = await t.client.stat(t.name, str(remote), dereference=True, patience=PATIENCE)
        if before.size <= len(data) <= after.size and before.size < after.size:
            await asyncio.to_thread(_store, t, data)
            return None
        before = after
    raise t.error(f"{remote} arrived differently {SNAPSHOTS} times", kind=IntegrityError, path=str(remote))


async def _with_digest(t: Transfer, remote: RemotePath) -> tuple[bytes, str | None]:
    """The content, and the SHA-256 that the system computes meanwhile, if it is wanted."""
    async with task_group() as group:
        summing = group.create_task(digests.remote_sha256(t, remote)) if digests.wanted(t) else None
        data = await t.client.download(t.name, str(remote), patience=PATIENCE)
        t.reporter.add(len(data))
        t.reporter.phase(Phase.VERIFYING)
    return data, summing.result() if summing else None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _store(t: Transfer, data: bytes) -> None:
    source = Source(t.site, t.name, "", len(data), 0)
    part = PartFile.open(t.local, source, RANGE, resume=False)
    try:
        part.write(0, data)
        part.publish()
    finally:
        part.close()
    t.size = len(data)
