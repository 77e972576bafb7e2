"""Down in pieces: one job cuts the file into a hidden directory of the user's, direct downloads fetch the pieces.

For systems without an object store, and for files whose name no call of the server can carry.
"""

from __future__ import annotations

import posixpath
import secrets
from pathlib import Path

from hpcbridge.errors import IntegrityError, PathNotFound
from hpcbridge.staging import keyed_jobs
from hpcbridge.staging.context import PATIENCE, Transfer, in_thread
from hpcbridge.staging.fetching import Receiver, Write
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.partfile import PartFile, Source
from hpcbridge.staging.plan import Verify
from hpcbridge.staging.preparing import Prepare, Prepared, parse_prepared
from hpcbridge.staging.progress import Phase

WORKERS = 4
"""Downloads in flight; each holds a piece in memory."""
ATTEMPTS = 2
"""Times the pieces are fetched when their SHA-256 is not that of the file."""


async def get(t: Transfer, remote: RemotePath, target: Path, *, resume: bool) -> str | None:
    """Receive `remote` as `target`; returns the SHA-256 both sides agree on, None when only the size was compared.

    Raises TransferError when the job failed, PathNotFound when there is no such file, IntegrityError.
    """
    t.reporter.phase(Phase.CHECKING, "preparing the file")
    stage = await keyed_jobs.private_directory(t)
    plan = Prepare(stage, secrets.token_hex(4), remote, t.limits.download, t.verify in (Verify.AUTO, Verify.SHA256))
    prepared = await _prepare(t, plan)
    t.size = t.reporter.total = prepared.size
    source = Source(t.site, t.name, str(remote), prepared.size, prepared.mtime)
    part = PartFile.open(target, source, t.limits.download, resume=resume)
    try:
        await _receive(t, part, plan, prepared)
        part.publish()
    finally:
        part.close()
    await keyed_jobs.remove_directory(t, stage)
    return prepared.sha256


async def _prepare(t: Transfer, plan: Prepare) -> Prepared:
    job = keyed_jobs.spec(t, script=plan.script(), directory=plan.stage, label="hpcbridge-get", session=plan.session)
    text = await keyed_jobs.run(t, job, f"get {plan.session}", posixpath.join(plan.stage, plan.answer_name))
    if text is None:
        raise t.error("the job that cuts the file ended without an answer", path=str(plan.source))
    prepared = parse_prepared(text)
    if prepared.reason:
        await keyed_jobs.remove_directory(t, plan.stage)
        kind = PathNotFound if "No such file" in prepared.reason else None
        message = f"the job that cuts the file failed: {prepared.reason}"
        raise t.error(message, path=str(plan.source), **({"kind": kind} if kind else {}))
    return prepared


async def _receive(t: Transfer, part: PartFile, plan: Prepare, prepared: Prepared) -> None:
    for _ in range(ATTEMPTS):
        t.reporter.phase(Phase.DOWNLOADING, "going on where it stopped" if part.done else "", done=part.received())
        receiver = Receiver(t, part, hashing=prepared.sha256 is not None)

        async def fetch(index: int, offset: int, length: int, write: Write) -> None:
            path = posixpath.join(plan.stage, plan.piece_name(index))
            data = await t.client.download(t.name, path, patience=PATIENCE)
            if len(data) != length:
                raise t.error(f"a piece has {len(data)} bytes instead of {length}", kind=IntegrityError, path=path)
            await in_thread(write, offset, data)

        ours = await receiver.fill(fetch, WORKERS)
        t.reporter.phase(Phase.VERIFYING)
        if prepared.sha256 in (None, ours):
            return
        part.forget()
    raise t.error(f"{plan.source} arrived damaged {ATTEMPTS} times", kind=IntegrityError, path=str(plan.source))
