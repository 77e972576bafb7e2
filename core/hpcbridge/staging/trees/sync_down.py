"""`sync_down`: bring a local directory up to date with one on the system, receiving only what changed.

What the client has goes up as a manifest, or as edits of the one that it sent last time. A job compares it with the
tree, and packs what differs (`comparing`); here it is unpacked, checked and published (`arriving`).
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import posixpath
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hpcbridge.errors import (
    Conflict,
    HpcBridgeError,
    IntegrityError,
    NotFound,
    PathNotFound,
    PermissionDenied,
    TooLarge,
    TransferError,
)
from hpcbridge.staging.context import PATIENCE, Transfer, TransferSystem, in_thread
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.places import require_inside
from hpcbridge.staging.plan import Verify
from hpcbridge.staging.progress import Phase, Progress, Reporter
from hpcbridge.staging.trees.arriving import Arrival
from hpcbridge.staging.trees.download import directory_mode
from hpcbridge.staging.trees.entries import Kind, Manifest, Skipped
from hpcbridge.staging.trees.hashes import HashCache
from hpcbridge.staging.trees.listing import identity, rows
from hpcbridge.staging.trees.patterns import Filter, with_own
from hpcbridge.staging.trees.records import Record
from hpcbridge.staging.trees.results import Action, TreeResult
from hpcbridge.staging.trees.scan import Scan, scan
from hpcbridge.staging.trees.sync_up import edits, pack, record_of, whole
from hpcbridge.staging.trees.upload import parse_tree
from hpcbridge.staging.trees.workplace import Workplace

if TYPE_CHECKING:
    from hpcbridge.staging.trees.answers import Answer, Archived
    from hpcbridge.staging.trees.jobscript import Payload
    from hpcbridge.staging.trees.statedir import Sender

JOBS = 5
"""Jobs of one sync at most: the first, and one after each surprise."""
MINUTES = 60
"""Time limit of the job, where the site sets none: nobody knows beforehand how large the tree is."""


async def sync_down(
    system: TransferSystem,
    remote: str,
    local: str | Path,
    *,
    filter: Filter | None = None,
    delete: bool = False,
    route: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    account: str | None = None,
    max_size: int | None = None,
    dry_run: bool = False,
) -> TreeResult:
    """Make the directory `local` hold what the directory `remote` holds, receiving only what changed.

    What was changed here gets the remote's content again, also where it is newer; what is here under other names stays,
    unless `delete`. Content that is here already is not sent. Every entry appears by one rename, whole and with its
    SHA-256 compared. What changes over there while it is packed stays as it was here, and is among `skipped`.

    Args:
        system: a `hpcbridge.System`.
        remote: absolute path of a directory; it stands for the tree's root.
        local: stands for the tree's root, too; it is made where it is missing.
        filter: what is kept; everything by default. What it does not keep is neither received nor deleted.
        delete: remove what is here, is not there, and is kept by the filter.
        route: of large archives: "chunked", "s3" or "streamer"; None takes the quickest.
        progress: told phases and the archive's bytes; an exception it raises ends the sync.
        account: charged for the jobs.
        max_size: bytes of the remote files' content; more is TooLarge.
        dry_run: change nothing, and say what would change.

    Raises:
        InvalidPath, InvalidRequest, TooLarge: refused before anything was received. PathNotFound, PermissionDenied:
            either tree, or part of it, cannot be read or written.
        AlreadyExists: a file is in the local tree's place, or a directory with files of its own where a file shall be.
        Conflict: another sync into this directory is going on, or one of the remote tree.
        TransferError: it failed; the next sync goes on. IntegrityError: it arrived damaged.
        Unavailable: the server stayed away for longer than a transfer waits (15 minutes).
    """
    from hpcbridge.staging.journal import Journal

    begun = time.monotonic()
    source = parse_tree(remote)
    place = await asyncio.to_thread(_workplace, Path(local))
    info = await system.client.system(system.name, patience=PATIENCE)
    t = Transfer(system, info, place.target, Reporter(progress), Verify.AUTO, account)
    t.reporter.phase(Phase.CHECKING, "looking through the tree")
    require_inside(t, source)
    kept = with_own(filter)
    # A journal is also what two syncs into one directory cannot both hold.
    with Journal.of(t, "tree-sync", str(place.target)):
        here = await asyncio.to_thread(_look, place.target, kept)
        sync = _Sync(t, source, place, here, kept, route, progress, max_size, delete=delete, dry=dry_run)
        result = await sync.run()
    t.reporter.phase(Phase.DONE)
    return replace(result, seconds=time.monotonic() - begun)


def _workplace(local: Path) -> Workplace:
    """Apart from that of a download, which may want to go on with what it has unpacked."""
    place = Workplace.of(local)
    return replace(place, staged=place.staged.with_name(f"{place.staged.name.removesuffix('-tree')}-sync"))


def _look(root: Path, filter: Filter) -> Scan:
    if not root.exists():
        return Scan(Manifest(), [], [], 0)
    return scan(root, filter, hashing=True, cache=HashCache.of(root))


@dataclass(slots=True)
class _Sync:
    """One sync."""

    t: Transfer
    source: RemotePath
    place: Workplace
    here: Scan
    filter: Filter
    wanted: str | None
    progress: Callable[[Progress], None] | None
    max_size: int | None
    delete: bool
    dry: bool
    session: str = field(default_factory=lambda: secrets.token_hex(4))
    attempt: int = 0
    state: str = ""

    async def run(self) -> TreeResult:
        from hpcbridge.staging.trees.statedir import Sender

        kept = record_of(self.t, "down", self.source)
        record = await asyncio.to_thread(kept.load)
        rows_here = await asyncio.to_thread(rows, self.here.manifest)
        self.state = await self._state(record)
        answer = await self._compared(Sender(self.t, None, "the list of what is here"), record, rows_here)
        assert answer.archive is not None
        try:
            result = await self._arrive(answer.archive)
        finally:
            await asyncio.to_thread(self.place.clear)
        await asyncio.to_thread(kept.save, Record(self.state, tuple(rows_here)))
        return result

    async def _state(self, record: Record | None) -> str:
        """Where digests of the tree are remembered: where `sync_up` does, if it has been here."""
        from hpcbridge.staging.trees.statedir import open_reading_state

        if record is not None:
            return record.state
        up = await asyncio.to_thread(record_of(self.t, "up", self.source).load)
        if up is not None:
            return up.state
        # Nothing is made beside a directory that does not exist.
        await directory_mode(self.t, self.source)
        return await open_reading_state(self.t, self.source)

    async def _compared(self, sender: Sender, record: Record | None, rows_here: list[bytes]) -> Answer:
        """The answer of a job that knows what is here."""
        from hpcbridge.staging.trees.answers import Verdict
        from hpcbridge.staging.trees.statedir import open_reading_state

        members = whole(rows_here) if record is None else edits(record.rows, rows_here)
        payload: Payload | None = None
        for _ in range(JOBS):
            try:
                if members:
                    payload, members = await pack(sender, members, str(self.place.target), self.state), []
                answer = await self._job(payload, identity(rows_here))
            except NotFound:
                self.state = await open_reading_state(self.t, self.source)
                members = whole(rows_here)
                continue
            if answer is None:
                self.state = await open_reading_state(self.t, self.source)
            elif answer.verdict is Verdict.PACKED:
                return answer
            elif answer.verdict in (Verdict.BASE, Verdict.DAMAGED):
                members = whole(rows_here)
            else:
                raise self._failure(answer)
        raise self.t.error("the jobs that compare the trees ended without an answer", path=str(self.source))

    async def _job(self, payload: Payload | None, goal: str) -> Answer | None:
        from hpcbridge.staging.trees.comparing import Compare
        from hpcbridge.staging.trees.statedir import run_job

        self.attempt += 1
        plan = Compare(
            self.state,
            self.session,
            self.attempt,
            self.source,
            goal,
            self.filter,
            payload,
            dry=self.dry,
            most=self.max_size,
        )
        return await run_job(self.t, plan, self.here.bytes, MINUTES)

    def _failure(self, answer: Answer) -> HpcBridgeError:
        from hpcbridge.staging.trees.answers import Verdict

        source, path = self.source, str(self.source)
        if answer.verdict is Verdict.BUSY:
            message = f"another sync is working on {source} (job {answer.reason})"
            return self.t.error(message, kind=Conflict, path=path, hint="Try later")
        if answer.verdict is Verdict.TARGET:
            return self.t.error(f"{source} is no directory: {answer.reason}", kind=PathNotFound, path=path)
        if answer.verdict is Verdict.LARGE:
            message = f"{source} holds {answer.reason} bytes, more than {self.max_size}"
            return self.t.error(message, kind=TooLarge, path=path)
        what, _, words = answer.reason.partition(" ")
        denied = "Permission denied" in words
        return self.t.error(
            f"the job that compares {source} failed while {what}: {words}",
            kind=PermissionDenied if denied else TransferError,
            path=path,
            hint="Exclude what cannot be read" if denied else None,
        )

    async def _arrive(self, archive: Archived) -> TreeResult:
        """Receive, unpack, check and publish."""
        await asyncio.to_thread(self.place.prepare)
        route = await self._receive(archive)
        self.t.reporter.phase(Phase.VERIFYING, "comparing what arrived", done=archive.size)
        arrival = Arrival(
            self.place.staged,
            self.place.target,
            self.here.manifest,
            self.filter,
            archive.unsteady,
            self.delete,
            dry=self.dry,
        )
        await in_thread(arrival.plan)
        if not self.dry:
            await in_thread(arrival.publish)
        return self._result(arrival, archive, route)

    async def _receive(self, archive: Archived) -> str | None:
        """Unpack the archive into the hidden directory; returns the route that it took apart from the answer."""
        from hpcbridge.staging.files import get_file

        if archive.data is not None:
            if hashlib.sha256(archive.data).hexdigest() != archive.sha256:
                raise self._damaged()
            await in_thread(self._unpack, io.BytesIO(archive.data))
            return None
        remote = posixpath.join(self.state, archive.name)
        local = self.place.staged.with_name(f"{self.place.staged.name}.archive")
        received = await get_file(
            self.t.system,
            remote,
            local,
            route=self.wanted,
            verify="size",
            progress=self.progress,
            account=self.t.account,
        )
        try:
            await in_thread(self._unpack_file, local, archive.sha256)
        finally:
            await asyncio.to_thread(local.unlink, missing_ok=True)
        with suppress(HpcBridgeError):
            await self.t.client.rm(self.t.name, remote, patience=PATIENCE)
        return received.route

    def _unpack_file(self, local: Path, sha256: str) -> None:
        with local.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                raise self._damaged()
            stream.seek(0)
            self._unpack(stream)

    def _unpack(self, stream: io.BufferedIOBase) -> None:
        from hpcbridge.staging.trees.extract import extract

        extract(stream, self.place.fresh())

    def _damaged(self) -> HpcBridgeError:
        return self.t.error("what was packed arrived damaged", kind=IntegrityError, path=str(self.source))

    def _result(self, arrival: Arrival, archive: Archived, route: str | None) -> TreeResult:
        skipped = [Skipped(path, "not a file, directory or link") for path in arrival.odd]
        skipped += [Skipped(path, "larger than the limit") for path in arrival.large]
        skipped += [Skipped(path, "changed while it was being packed; it is as it was") for path in arrival.skipped]
        brought = [each.kind for each in arrival.changes if each.action in (Action.COPY, Action.MOVE)]
        copied = sum(each.size for each in arrival.changes if each.action is Action.COPY)
        deleted = sum(each.action is Action.DELETE for each in arrival.changes)
        there = len(self.here.manifest) + arrival.added - len(arrival.missing)
        return TreeResult(
            route or ("direct" if brought else None),
            copied if self.dry else archive.size,
            brought.count(Kind.FILE),
            brought.count(Kind.DIRECTORY),
            brought.count(Kind.LINK),
            0.0,
            skipped=[*self.here.skipped, *skipped],
            deleted=deleted,
            unchanged=there - (len(arrival.changes) - deleted) - len(arrival.skipped),
            changes=arrival.changes,
        )
