"""`put_tree`: a directory to the cluster, as one archive and one job that unpacks, checks and publishes it.

The archive exists only while it is read, so nothing is written here; where it compresses well, a temporary file holds
it. It is staged beside the target under a name made of the archive's identity, so that the same call after a crash
finds the pieces that are there.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import stat
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hpcbridge.errors import (
    AlreadyExists,
    NotFound,
    PermissionDenied,
    TooLarge,
    TransferError,
)
from hpcbridge.staging.context import PATIENCE, Transfer, TransferSystem
from hpcbridge.staging.joining import Answer, parse_answer
from hpcbridge.staging.names import RemotePath, parse_remote
from hpcbridge.staging.places import is_inside, require_inside, usable_limits
from hpcbridge.staging.plan import Direction, Route, verification
from hpcbridge.staging.progress import Phase, Progress, Reporter
from hpcbridge.staging.routes import remember, route_for
from hpcbridge.staging.trees.archive import Archive
from hpcbridge.staging.trees.entries import Entry, Kind, Member, Skipped
from hpcbridge.staging.trees.patterns import Filter, with_own
from hpcbridge.staging.trees.results import Action, Change, TreeResult
from hpcbridge.staging.trees.scan import scan

if TYPE_CHECKING:
    from hpcbridge.staging.delivery import Delivery
    from hpcbridge.staging.pieces import Stage
    from hpcbridge.staging.source import SourceFile

PER_ENTRY = 250_000
"""Bytes that an entry counts for in the job's time limit: a slow file system makes 200 files in a second."""


async def put_tree(
    system: TransferSystem,
    local: str | Path | Sequence[Member],
    remote: str,
    *,
    filter: Filter | None = None,
    route: str | None = None,
    verify: str | None = "auto",
    progress: Callable[[Progress], None] | None = None,
    account: str | None = None,
    max_size: int | None = None,
    dry_run: bool = False,
) -> TreeResult:
    """Copy the content of the directory `local` into the directory `remote`, which is made where it is missing.

    A new `remote` appears by one rename, complete and checked. Into an existing one everything is moved by renames,
    each file whole; what is there under other names stays.

    Args:
        system: a `hpcbridge.System`.
        local: a directory, or members from anywhere, parents first.
        remote: absolute path; it stands for the tree's root. Missing directories above it are made.
        filter: what is kept; everything by default.
        route: "chunked", "s3" or "streamer"; None takes the quickest.
        verify: "size" compares the archive's size only; anything else its SHA-256, which costs nothing here.
        progress: told phases and the archive's bytes; an exception it raises ends the transfer.
        account: charged for the jobs of the transfer.
        max_size: bytes of the files' content; more is TooLarge.
        dry_run: send nothing, and say what would be sent.

    Raises:
        InvalidPath, InvalidRequest, TooLarge, AlreadyExists (a file in the target's place): refused before anything was
            sent. PathNotFound, PermissionDenied: part of the local tree cannot be read.
        TransferError: the transfer failed, as for a full disk, or something in the way in the target; nothing of the
            tree is visible then, or (in the middle of renames) only whole files. IntegrityError: it arrived damaged.
        Unavailable: the server stayed away for longer than a transfer waits (15 minutes).
    """
    begun, checked = time.monotonic(), verification(verify)
    target = parse_tree(remote)
    contents = asyncio.ensure_future(asyncio.to_thread(_contents, local, filter))
    try:
        info = await system.client.system(system.name, patience=PATIENCE)
        t = Transfer(system, info, Path(), Reporter(progress), checked, account)
        t.reporter.phase(Phase.CHECKING, "looking through the tree")
        require_inside(t, target)
        exists = False if dry_run else await _directory_exists(t, target)
    finally:
        content = await contents
    content.refuse_larger(max_size)
    if dry_run:
        return content.result(None, content.bytes, time.monotonic() - begun, changes=True)
    chosen, size, sha256 = await _Upload(t, content, target, exists=exists, wanted=route).run()
    t.reporter.phase(Phase.DONE, done=size)
    seconds = time.monotonic() - begun
    await remember(t, chosen, Direction.UP)
    return content.result(chosen.value, size, seconds, sha256=sha256)


def parse_tree(remote: str) -> RemotePath:
    """The root of a remote tree, with or without a slash at its end.

    Raises InvalidPath for what `parse_remote` refuses, and for a name that no directory of a call can have.
    """
    target = parse_remote(remote.rstrip("/") or "/")
    # Refuses the quotes and control characters that a *directory* must not have.
    parse_remote(posixpath.join(str(target), "x"))
    return target


async def _directory_exists(t: Transfer, target: RemotePath) -> bool:
    """Whether the target is there already. Raises AlreadyExists for a file in its place."""
    try:
        found = await t.client.stat(t.name, str(target), dereference=True, patience=PATIENCE)
    except NotFound:
        return False
    if not stat.S_ISDIR(found.mode):
        raise t.error(
            f"{target} is a file", kind=AlreadyExists, path=str(target), hint="A directory needs another place"
        )
    return True


@dataclass(frozen=True, slots=True)
class _Contents:
    """What is to be sent: `mode` is that of a new target (None: as the umask has it)."""

    members: Sequence[Member]
    name: str
    mode: int | None = None
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Bytes in the files, holes included."""
        return sum(member.entry.size for member in self.members)

    def refuse_larger(self, limit: int | None) -> None:
        if limit is not None and self.bytes > limit:
            raise TooLarge(f"{self.name} holds {self.bytes} bytes, more than {limit}", path=self.name)

    def result(
        self, route: str | None, size: int, seconds: float, *, changes: bool = False, sha256: str | None = None
    ) -> TreeResult:
        kinds = Counter(member.entry.kind for member in self.members)
        entries: list[Entry] = [member.entry for member in self.members] if changes else []
        return TreeResult(
            route,
            size,
            kinds[Kind.FILE],
            kinds[Kind.DIRECTORY],
            kinds[Kind.LINK],
            seconds,
            skipped=self.skipped,
            changes=[Change(entry.path, Action.COPY, entry.kind, entry.size) for entry in entries],
            sha256=sha256,
        )


def _contents(local: str | Path | Sequence[Member], filter: Filter | None) -> _Contents:
    kept = with_own(filter)
    if not isinstance(local, str | Path):
        members = [each for each in local if kept.keeps(each.entry.path, each.entry.kind, each.entry.size)]
        return _Contents(members, "the members")
    root = Path(local)
    found = scan(root, kept, hashing=False)
    return _Contents(found.members, os.fspath(root), stat.S_IMODE(root.stat().st_mode) & 0o777, found.skipped)


class _Upload:
    """One archive on its way."""

    def __init__(
        self, t: Transfer, contents: _Contents, target: RemotePath, *, exists: bool, wanted: str | None
    ) -> None:
        self._t = t
        self._contents = contents
        self._target = target
        self._exists = exists
        self._wanted = wanted

    async def run(self) -> tuple[Route, int, str | None]:
        """Route, bytes and SHA-256 of the archive."""
        from hpcbridge.staging import delivery
        from hpcbridge.staging.trees.compressing import compressed

        t = self._t
        async with AsyncExitStack() as stack:
            archive = await asyncio.to_thread(Archive, self._contents.members, self._contents.name)
            source: SourceFile = await asyncio.to_thread(compressed, archive)
            stack.callback(source.close)
            t.size = t.reporter.total = source.size
            route = await route_for(
                t,
                source.size,
                direction=Direction.UP,
                wanted=self._wanted,
                needs_job=True,
                limits=usable_limits(t, str(self._target), self._wanted),
            )
            stage = await self._open(source, delivery.stage_piece(t, source, route))
            delivered = await delivery.deliver(t, source, stage, route)
            compression = getattr(source, "compression", "")

            async def run(delivered: Delivery) -> Answer | None:
                return await self._unpack(delivered, source.size, compression)

            answer = await delivery.take(t, delivered, run, self._refuse, self._target)
            return route, source.size, answer.sha256

    async def _open(self, source: SourceFile, piece: int) -> Stage:
        """Beside the target, or inside it where the directory that holds it is not ours."""
        from hpcbridge.staging.pieces import open_stage

        t, target = self._t, self._target
        if target.directory != "/" and is_inside(t, target.directory):
            try:
                return await open_stage(t, target, source, piece, parents=not self._exists)
            except PermissionDenied:
                if not self._exists:
                    raise
        return await open_stage(t, target, source, piece, inside=True, parents=not self._exists)

    async def _unpack(self, delivered: Delivery, size: int, compression: str) -> Answer | None:
        """Run the next unpacking job of this session; None when it died without an answer."""
        from hpcbridge.staging import keyed_jobs
        from hpcbridge.staging.trees.unpacking import Unpack

        t, stage = self._t, delivered.stage
        plan = Unpack(
            stage.directory,
            stage.session,
            self._target,
            delivered.count,
            size,
            delivered.sha256,
            compression,
            self._contents.mode,
            stage.attempts,
        )
        job = keyed_jobs.spec(
            t,
            script=plan.script(),
            directory=stage.directory,
            label="hpcbridge-put",
            session=stage.session,
            work=size + len(self._contents.members) * PER_ENTRY,
        )
        t.reporter.phase(Phase.QUEUED, "submitting the unpacking job")
        # The directory, which is part of the job's name, stands for the tree and its place.
        about = f"{delivered.sha256 or 'size'} {plan.mode} {t.account or ''}"
        key = f"tree {stage.session} {stage.attempts} {about}"
        text = await keyed_jobs.run(t, job, key, posixpath.join(stage.directory, plan.answer_name))
        return None if text is None else parse_answer(text)

    def _refuse(self, answer: Answer) -> None:
        """Another job would fail in the same way."""
        what, _, words = answer.reason.partition(" ")
        target = str(self._target)
        if what == "target":
            raise self._t.error(f"{target} cannot become a directory: {words}", kind=AlreadyExists, path=target)
        if what == "in_the_way":
            raise self._t.error(
                f"in {target}, these are in the way: {words}",
                kind=AlreadyExists,
                path=target,
                hint="A directory does not replace a file or link, nor the other way round; nothing was changed",
            )
        denied = "Permission denied" in words or "Operation not permitted" in words
        raise self._t.error(
            f"the job that unpacks the tree failed while {what} {target}: {words}",
            kind=PermissionDenied if denied else TransferError,
            path=target,
        )
