"""A tree's state directory on the system: where it is, what is sent there, and the jobs that run in it.

It holds the manifest that was left in the tree, the digests of the tree's files beside their signatures, and the lock.
It is beside the tree (`.hpcbridge-sync-<hash>`), so that entries are published by renames and the tree holds nothing of
ours; where nobody may write there, it is inside. It is safe to delete: the next sync reads the tree's files again.
"""

from __future__ import annotations

import hashlib
import posixpath
import secrets
from base64 import b32encode
from contextlib import suppress
from typing import TYPE_CHECKING

from hpcbridge.errors import AlreadyExists, ConfigurationError, PermissionDenied
from hpcbridge.staging.context import PATIENCE, Transfer
from hpcbridge.staging.joining import piece_name
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.places import is_inside, usable_limits
from hpcbridge.staging.plan import Direction, Route
from hpcbridge.staging.progress import Phase
from hpcbridge.staging.routes import route_for
from hpcbridge.staging.trees.jobscript import STATE_PREFIX, Payload

if TYPE_CHECKING:
    from hpcbridge.staging.source import SourceFile
    from hpcbridge.staging.trees.answers import Answer
    from hpcbridge.staging.trees.jobscript import SyncJob


async def open_state(t: Transfer, target: RemotePath) -> str:
    """Make the state directory of a tree that is written to, or find it.

    Missing directories above the tree are made. Raises PermissionDenied.
    """
    name = STATE_PREFIX + await _hash(t, target)
    if target.directory != "/" and is_inside(t, target.directory):
        with suppress(PermissionDenied):
            return await _make(t, posixpath.join(target.directory, name))
    return await _make(t, posixpath.join(str(target), name))


async def open_reading_state(t: Transfer, target: RemotePath) -> str:
    """The same for a tree that is only read: nothing is put into it, but into the user's own directory."""
    return await _make(t, posixpath.join(await t.system.home(), STATE_PREFIX + await _hash(t, target)))


async def _hash(t: Transfer, target: RemotePath) -> str:
    # Two users of one tree cannot write into each other's directories.
    try:
        whose = await t.system.home()
    except ConfigurationError:
        whose = ""
    return b32encode(hashlib.sha256(f"{whose}\0{target}".encode()).digest()[:10]).decode().lower()


async def _make(t: Transfer, directory: str) -> str:
    from hpcbridge.staging.keyed_jobs import require_runnable

    require_runnable(t, directory)
    with suppress(AlreadyExists):
        await t.client.mkdir(t.name, directory, parents=True, patience=PATIENCE)
    return directory


async def run_job(t: Transfer, job: SyncJob, work: int, least: int = 0) -> Answer | None:
    """Run a job of a sync; None when it ended without an answer.

    `work`: bytes that it may have to read. `least`: time limit in minutes, at least, where the site sets none.
    """
    from hpcbridge.staging import keyed_jobs
    from hpcbridge.staging.trees.answers import parse_answer

    spec = keyed_jobs.spec(
        t, script=job.script(), directory=job.state, label="hpcbridge-sync", session=job.session, work=work
    )
    if spec.time is not None and int(spec.time) < least:
        spec = spec.model_copy(update={"time": str(least)})
    t.reporter.phase(Phase.QUEUED, "submitting the job that compares the trees")
    key = f"sync {job.session} {job.attempt}"
    text = await keyed_jobs.run(t, spec, key, posixpath.join(job.state, job.answer_name))
    return None if text is None else parse_answer(text)


class Sender:
    """Brings archives into a state directory: small ones by one request, others as `put_tree` does, with resume."""

    def __init__(self, t: Transfer, wanted: str | None, what: str = "") -> None:
        """`wanted` is the route that the caller insists on; `what` is being sent, as the progress tells it."""
        self._t = t
        self._wanted = wanted
        self._what = what
        self.route: Route | None = None
        self.bytes = 0

    async def send(self, source: SourceFile, state: str) -> Payload:
        """Raises what the route raises."""
        t = self._t
        t.size = t.reporter.total = source.size
        compression = getattr(source, "compression", "")
        limits = usable_limits(t, state, self._wanted)
        if source.size <= min(t.limits.upload, t.limits.piece) and self._wanted in (None, Route.DIRECT, Route.CHUNKED):
            self.route = self.route or Route.DIRECT
            payload = await self._small(source, state, compression)
        else:
            from hpcbridge.staging import delivery
            from hpcbridge.staging.pieces import open_stage

            route = await route_for(
                t, source.size, direction=Direction.UP, wanted=self._wanted, needs_job=True, limits=limits
            )
            stage = await open_stage(t, RemotePath(state, "payload"), source, delivery.stage_piece(t, source, route))
            sent = await delivery.deliver(t, source, stage, route)
            self.route = route
            payload = Payload(stage.directory, stage.session, sent.count, source.size, sent.sha256 or "", compression)
        self.bytes += source.size
        return payload

    async def _small(self, source: SourceFile, state: str, compression: str) -> Payload:
        from hpcbridge.staging.context import in_thread

        t, session = self._t, secrets.token_hex(4)
        data = await in_thread(source.read, 0, source.size)
        await in_thread(source.check_unchanged)
        t.reporter.phase(Phase.UPLOADING, self._what, done=0)
        await t.client.upload(t.name, state, piece_name(session, 0), data, patience=PATIENCE)
        t.reporter.add(len(data))
        digest = hashlib.sha256(data).hexdigest()
        return Payload(state, session, 1, len(data), digest, compression)
