"""Is what lies on the system what was sent? Size always, SHA-256 by command or, past its five seconds, by a job."""

from __future__ import annotations

import posixpath
import secrets
from contextlib import suppress

from hpcbridge.errors import CommandTimeout, IntegrityError, InvalidRequest, ServerError
from hpcbridge.staging.context import PATIENCE, Transfer
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.plan import AUTO_SHA256, Verify
from hpcbridge.staging.preparing import Prepare, parse_prepared
from hpcbridge.staging.progress import Phase


def wanted(t: Transfer) -> bool:
    """Whether SHA-256 is to be compared: on request, else where one quick command does it."""
    return t.verify is Verify.SHA256 or (t.verify is Verify.AUTO and t.size <= AUTO_SHA256)


async def check(t: Transfer, target: RemotePath, size: int, sha256: str | None) -> str | None:
    """Compare what lies at `target` with `size` bytes and `sha256` (None: size only).

    Returns the digest where it was compared. Raises IntegrityError, and TransferError where SHA-256 was asked for and
    the system gives none.
    """
    if t.verify is None:
        return None
    t.reporter.phase(Phase.VERIFYING)
    found = await remote_sha256(t, target) if sha256 is not None else None
    if found is not None:
        if found != sha256:
            message = f"the SHA-256 of {target} is not that of the file that was sent"
            raise t.error(message, kind=IntegrityError, path=str(target))
        return found
    arrived = (await t.client.stat(t.name, str(target), dereference=True, patience=PATIENCE)).size
    if arrived != size:
        raise t.error(f"{size} bytes were sent and {arrived} are there", kind=IntegrityError, path=str(target))
    return None


async def remote_sha256(t: Transfer, path: RemotePath) -> str | None:
    """SHA-256 of a file on the system: by the server's command, else (if it was asked for) by a job.

    None where it was not asked for and the command needs more than the five seconds it has.
    """
    if path.commands_carry_it:
        with suppress(CommandTimeout, ServerError, InvalidRequest):
            return await t.client.checksum(t.name, str(path), patience=PATIENCE)
    if t.verify is not Verify.SHA256:
        return None
    return await _by_job(t, path)


async def _by_job(t: Transfer, path: RemotePath) -> str:
    # Loaded when first used: it takes a sixth of a second.
    from hpcbridge.staging import keyed_jobs
    from hpcbridge.staging.journal import Journal

    with Journal.of(t, "sum", str(path), str(t.local)) as journal:
        if journal.about:
            await keyed_jobs.remove_directory(t, journal.about["stage"])
        # In the user's own directory: nothing says that we may write beside a file that we may read.
        stage = await keyed_jobs.private_path(t)
        journal.start(stage=stage)
        await keyed_jobs.make_directory(t, stage)
        plan = Prepare(stage, secrets.token_hex(4), path, piece=None, sha256=True)
        job = keyed_jobs.spec(t, script=plan.script(), directory=stage, label="hpcbridge-sum", session=plan.session)
        text = await keyed_jobs.run(t, job, f"sum {plan.session}", posixpath.join(stage, plan.answer_name))
        prepared = parse_prepared(text) if text is not None else None
        await keyed_jobs.remove_directory(t, stage)
        journal.remove()
    if prepared is None or prepared.sha256 is None:
        why = prepared.reason if prepared else "it ended without an answer"
        raise t.error(f"the job that computes the checksum failed: {why}", path=str(path))
    return prepared.sha256
