"""One file that a job publishes: brought into a staging directory beside the target, joined and renamed there."""

from __future__ import annotations

import posixpath
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from hpcbridge.errors import IntegrityError, InvalidPath, NotFound
from hpcbridge.staging import delivery, digests, keyed_jobs
from hpcbridge.staging.context import PATIENCE, Transfer
from hpcbridge.staging.joining import Answer, Join, Verdict, parse_answer
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.pieces import Stage, open_stage
from hpcbridge.staging.plan import Route, Verify
from hpcbridge.staging.progress import Phase

if TYPE_CHECKING:
    from hpcbridge.staging.source import SourceFile


async def put(t: Transfer, source: SourceFile, target: RemotePath, route: Route = Route.CHUNKED) -> str | None:
    """Send `source` to `target`; returns the SHA-256 that both sides agree on, None when only the size was compared.

    Raises IntegrityError when the pieces arrive damaged again and again, InvalidPath when the target is a directory.
    """
    stage = await open_stage(t, target, source, delivery.stage_piece(t, source, route))
    if stage.begun is not None:
        earlier = await _published_before(t, source, target, stage, route)
        if earlier is not None:
            return earlier.sha256
    delivered = await delivery.deliver(t, source, stage, route)

    async def run(delivered: delivery.Delivery) -> Answer | None:
        return await _join(t, source, target, delivered)

    answer = await delivery.take(t, delivered, run, lambda answer: _refuse_hopeless(t, target, answer), target)
    return answer.sha256


async def _published_before(
    t: Transfer, source: SourceFile, target: RemotePath, stage: Stage, route: Route
) -> Answer | None:
    """The answer of a job that an earlier attempt had submitted; None when the file has to be sent again."""
    assert stage.begun is not None
    earlier = delivery.Delivery(t, source, replace(stage), route)
    earlier.stage.session, earlier.stage.attempts = stage.begun
    earlier.sha256 = None if t.verify in (None, Verify.SIZE) else await source.sha256()
    answer = await _join(t, source, target, earlier)
    if answer is not None and answer.verdict is Verdict.PUBLISHED:
        # That may have been long ago.
        with suppress(IntegrityError, NotFound):
            found = await t.client.stat(t.name, str(target), dereference=True, patience=PATIENCE)
            if found.size == source.size:
                await digests.check(t, target, source.size, earlier.sha256)
                await keyed_jobs.remove_directory(t, stage.directory)
                return answer
        stage.renew()
    return None


async def _join(t: Transfer, source: SourceFile, target: RemotePath, delivered: delivery.Delivery) -> Answer | None:
    """Run the next joining job of this session; None when it died without an answer."""
    stage, sha256 = delivered.stage, delivered.sha256
    plan = Join(stage.directory, stage.session, target, delivered.count, source.size, sha256, stage.attempts)
    job = keyed_jobs.spec(
        t, script=plan.script(), directory=stage.directory, label="hpcbridge-put", session=stage.session
    )
    t.reporter.phase(Phase.QUEUED, "submitting the joining job")
    # The directory, which is part of the job's name, stands for the file and its place.
    key = f"put {stage.session} {stage.attempts} {sha256 or 'size'} {t.account or ''}"
    text = await keyed_jobs.run(t, job, key, posixpath.join(stage.directory, plan.answer_name))
    return None if text is None else parse_answer(text)


def _refuse_hopeless(t: Transfer, target: RemotePath, answer: Answer) -> None:
    """Raise when another job would fail in the same way."""
    what, _, words = answer.reason.partition(" ")
    if what == "directory":
        hint = "End the path with / to put the file inside it"
        raise t.error(f"{target} is a directory", kind=InvalidPath, path=str(target), hint=hint)
    if what == "publishing" or "No such file" not in words:
        raise t.error(f"the joining job failed while {what} {target}: {words}", path=str(target))
