"""The bytes of a remote file, in order, whatever its size and name: in constant memory, and nothing kept on disk here.

A small file is one direct download. A larger one, or one whose name no request can carry, is cut by a job of ours into
pieces that are fetched a few ahead of the reader; at the end the SHA-256 of all that was handed out is compared.
"""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
import secrets
import stat
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

from hpcbridge.errors import IntegrityError, IsDirectory, TooLarge
from hpcbridge.staging.context import PATIENCE, Transfer, given_up
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.plan import piece_count, piece_size
from hpcbridge.staging.preparing import Prepare, Prepared, parse_prepared
from hpcbridge.staging.progress import Phase
from hpcbridge.staging.remote.paths import carried, failure, inside

AHEAD = 4
"""Pieces in flight or waiting for the reader; each is held in memory."""


async def read(t: Transfer, path: str) -> AsyncGenerator[bytes]:
    """The content of a file, byte for byte.

    Raises PathNotFound, PermissionDenied, IsDirectory before the first byte; IntegrityError after the last where what
    was read is not what is there.
    """
    path = inside(t.info, path)
    if carried(path):
        found = await t.client.stat(t.name, path, dereference=True)
        if stat.S_ISDIR(found.mode):
            raise t.error(f"{path} is a directory", kind=IsDirectory, path=path, hint="Only files can be read")
        if found.size <= t.limits.download:
            try:
                yield await t.client.download(t.name, path, patience=PATIENCE)
            except TooLarge:  # it has grown
                pass
            else:
                return
    # Closed by name: a reader that stops early closes this generator alone, and not those that it draws from.
    async with aclosing(_by_job(t, path)) as blocks:
        async for data in blocks:
            yield data


async def _by_job(t: Transfer, path: str) -> AsyncGenerator[bytes]:
    from hpcbridge.staging import keyed_jobs

    stage = await keyed_jobs.private_directory(t)
    try:
        plan = Prepare(stage, secrets.token_hex(4), RemotePath(*posixpath.split(path)), t.limits.download, sha256=True)
        prepared = await _prepared(t, plan, path)
        digest = hashlib.sha256()
        async with aclosing(_pieces(t, plan, prepared.size)) as pieces:
            async for data in pieces:
                digest.update(data)
                yield data
    finally:
        await keyed_jobs.remove_directory(t, stage)
    if prepared.sha256 not in (None, digest.hexdigest()):
        raise t.error("what was read is not what is there", kind=IntegrityError, path=path)


async def _prepared(t: Transfer, plan: Prepare, path: str) -> Prepared:
    from hpcbridge.staging import keyed_jobs

    job = keyed_jobs.spec(t, script=plan.script(), directory=plan.stage, label="hpcbridge-cat", session=plan.session)
    text = await keyed_jobs.run(t, job, f"cat {plan.session}", posixpath.join(plan.stage, plan.answer_name))
    if text is None:
        raise t.error("the job that cuts the file ended without an answer", path=path)
    prepared = parse_prepared(text)
    if prepared.reason:
        if "Is a directory" in prepared.reason:
            raise t.error(f"{path} is a directory", kind=IsDirectory, path=path, hint="Only files can be read")
        raise failure(prepared.reason, path, site=t.site, system=t.name)
    return prepared


async def _pieces(t: Transfer, plan: Prepare, size: int) -> AsyncGenerator[bytes]:
    piece = t.limits.download
    t.reporter.total = size
    t.reporter.phase(Phase.DOWNLOADING)
    coming: deque[asyncio.Future[bytes]] = deque()
    count, asked = piece_count(size, piece), 0
    try:
        for index in range(count):
            while asked < min(count, index + AHEAD):
                path = posixpath.join(plan.stage, plan.piece_name(asked))
                coming.append(asyncio.ensure_future(t.client.download(t.name, path, patience=PATIENCE)))
                asked += 1
            data = await coming.popleft()
            if len(data) != (wanted := piece_size(size, piece, index)):
                message = f"a piece has {len(data)} bytes instead of {wanted}"
                raise t.error(message, kind=IntegrityError, path=str(plan.source))
            t.reporter.add(len(data))
            yield data
    finally:
        for future in coming:
            await given_up(future)
