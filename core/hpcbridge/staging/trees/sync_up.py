"""`sync_up`: bring a directory on the system up to date with a local one, sending only what changed.

The client compares the local tree with the manifest that it left there (`records`), and sends edits and new content in
one archive. The job finds out whether that suffices (`applying`); if the tree is not what the record says, it tells
what it lacks, and a second archive brings that.
"""

from __future__ import annotations

import asyncio
import secrets
import stat
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hpcbridge.errors import (
    AlreadyExists,
    Conflict,
    HpcBridgeError,
    IntegrityError,
    PathNotFound,
    PermissionDenied,
    TooLarge,
    TransferError,
)
from hpcbridge.staging.context import PATIENCE, Transfer, TransferSystem
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.places import require_inside
from hpcbridge.staging.plan import Verify
from hpcbridge.staging.progress import Phase, Progress, Reporter
from hpcbridge.staging.trees.archive import Archive
from hpcbridge.staging.trees.entries import Entry, Kind, Member
from hpcbridge.staging.trees.hashes import HashCache
from hpcbridge.staging.trees.listing import identity, joined, path_of, rows
from hpcbridge.staging.trees.patterns import Filter, with_own
from hpcbridge.staging.trees.records import Record, RecordFile
from hpcbridge.staging.trees.results import Action, Change, TreeResult
from hpcbridge.staging.trees.scan import Scan, scan
from hpcbridge.staging.trees.upload import parse_tree

if TYPE_CHECKING:
    from hpcbridge.staging.trees.answers import Answer
    from hpcbridge.staging.trees.jobscript import Payload
    from hpcbridge.staging.trees.statedir import Sender

NOTHING = "-"
"""In the place of a manifest's name: none is kept there."""
JOBS = 6
"""Jobs of one sync at most: the first, one after each surprise, and those after damage on the way."""
AT_ONCE = 4 << 20
"""Bytes of content that are sent unasked where it is not known what is there: asking costs a job."""


async def sync_up(
    system: TransferSystem,
    local: str | Path,
    remote: str,
    *,
    filter: Filter | None = None,
    delete: bool = False,
    route: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    account: str | None = None,
    max_size: int | None = None,
    dry_run: bool = False,
) -> TreeResult:
    """Make the directory `remote` hold what the directory `local` holds, sending only what changed.

    What was changed over there since the last sync gets the local content again; what is there under other names stays,
    unless `delete`. Content that is there already, under whatever name, is not sent. Every entry appears by one rename,
    whole and with its SHA-256 compared; a sync that is interrupted at any point is finished by the next.

    Args:
        system: a `hpcbridge.System`.
        local: a directory.
        remote: absolute path; it stands for the tree's root. Missing directories are made.
        filter: what is kept; everything by default. What it does not keep is neither sent nor deleted.
        delete: remove what is there, is not here, and is kept by the filter.
        route: of large archives: "chunked", "s3" or "streamer"; None takes the quickest.
        progress: told phases and the archive's bytes; an exception it raises ends the sync.
        account: charged for the jobs.
        max_size: bytes of the local files' content; more is TooLarge.
        dry_run: change nothing, and say what would change.

    Raises:
        InvalidPath, InvalidRequest, TooLarge: refused before anything was sent. PathNotFound, PermissionDenied: part of
            the local tree cannot be read, or the target not be written.
        AlreadyExists: a file is in the target's place, or something that was not sent from here is in a directory whose
            place a file shall take.
        Conflict: another sync into this tree is going on.
        TransferError: it failed, as when a file changed while it was sent; the next sync goes on. IntegrityError: what
            was sent arrived damaged again and again.
        Unavailable: the server stayed away for longer than a transfer waits (15 minutes).
    """
    begun = time.monotonic()
    target = parse_tree(remote)
    root = Path(local)
    kept = with_own(filter)
    looking = asyncio.ensure_future(asyncio.to_thread(_look, root, kept))
    try:
        info = await system.client.system(system.name, patience=PATIENCE)
        t = Transfer(system, info, root, Reporter(progress), Verify.AUTO, account)
        t.reporter.phase(Phase.CHECKING, "looking through the tree")
        require_inside(t, target)
    finally:
        found, mode = await looking
    if max_size is not None and found.bytes > max_size:
        raise TooLarge(f"{root} holds {found.bytes} bytes, more than {max_size}", path=str(root))
    result = await _Sync(t, target, found, kept, mode, route, delete=delete, dry=dry_run).run()
    t.reporter.phase(Phase.DONE)
    return replace(result, seconds=time.monotonic() - begun)


def _look(root: Path, filter: Filter) -> tuple[Scan, int]:
    found = scan(root, filter, hashing=True, cache=HashCache.of(root))
    return found, stat.S_IMODE(root.stat().st_mode) & 0o777


def record_of(t: Transfer, way: str, target: RemotePath) -> RecordFile:
    """The record of syncs `way` with this tree."""
    session = t.client.session
    return RecordFile.of(way, session.site.url, session.credential.identity, t.name, str(target))


@dataclass(slots=True)
class _Sync:
    """One sync: jobs until the tree is as wanted."""

    t: Transfer
    target: RemotePath
    found: Scan
    filter: Filter
    mode: int
    wanted: str | None
    delete: bool
    dry: bool
    session: str = field(default_factory=lambda: secrets.token_hex(4))
    attempt: int = 0
    state: str = ""
    base: str = NOTHING
    rows: list[bytes] = field(default_factory=list)
    told: bool = False
    sent: set[bytes] = field(default_factory=set)
    before: dict[bytes, set[bytes]] = field(default_factory=dict)
    """Digests of the files that were left there -> their paths."""
    latest: int = 0

    async def run(self) -> TreeResult:
        from hpcbridge.staging.trees.answers import Verdict
        from hpcbridge.staging.trees.statedir import Sender, open_state

        t = self.t
        self.rows = await asyncio.to_thread(rows, self.found.manifest)
        kept = record_of(t, "up", self.target)
        record = await asyncio.to_thread(kept.load)
        if record is None and self.dry and not await self._exists():
            return self._all_new()
        members = await self._first(record)
        self.state = record.state if record else await open_state(t, self.target)
        sender, payload = Sender(t, self.wanted), None
        answer: Answer | None = None
        for _ in range(JOBS):
            try:
                if members:
                    payload, members = await pack(sender, members, str(t.local), self.state), []
                answer = await self._job(payload)
            except PathNotFound:
                # The state directory is gone, and with it what was sent.
                self.state = await open_state(t, self.target)
                members = self._everything()
                continue
            if answer is None:
                self.state = await open_state(t, self.target)
            elif answer.verdict in (Verdict.APPLIED, Verdict.DRY):
                if answer.verdict is Verdict.APPLIED:
                    await asyncio.to_thread(kept.save, Record(self.state, tuple(self.rows)))
                return self._result(answer, sender)
            else:
                members, payload = self._next(answer), None
        raise self._gave_up(answer)

    def _next(self, answer: Answer) -> list[Member]:
        """What the job has to be sent before another one; raises what ends the sync."""
        from hpcbridge.staging.trees.answers import Verdict

        if answer.verdict is Verdict.WANT:
            return self._lacking(answer)
        if answer.verdict is Verdict.DAMAGED:
            return self._everything()
        if answer.verdict is Verdict.LATE:
            # Somebody else was quicker, or has another clock; what was sent waits there.
            self.latest = int(answer.reason)
            return []
        if answer.verdict is not Verdict.BASE:
            raise self._failure(answer)
        # What was sent waits there; only the supposition was wrong. Unless that was right.
        again, self.base = answer.reason == self.base, answer.reason
        if self.told and not again:
            return []
        self.told = True
        return self._everything() if again else whole(self.rows)

    def _everything(self) -> list[Member]:
        """All that was sent so far, and the whole manifest."""
        self.told = True
        return [*whole(self.rows), *self._content(() if self.dry else self.sent)]

    async def _exists(self) -> bool:
        t = self.t
        try:
            found = await t.client.stat(t.name, str(self.target), dereference=True, patience=PATIENCE)
        except PathNotFound:
            return False
        if not stat.S_ISDIR(found.mode):
            raise t.error(f"{self.target} is a file", kind=AlreadyExists, path=str(self.target))
        return True

    async def _first(self, record: Record | None) -> list[Member]:
        """What is sent at first: edits of what the record says is there, with new content; or everything."""
        if record is not None:
            for row in record.rows:
                self.before.setdefault(row[:64], set()).add(path_of(row))
            fresh = set(self.rows).difference(record.rows)
            self.base = identity(record.rows)
            self.sent = {path_of(row) for row in fresh if row[64:65] != b"f" or row[:64] not in self.before}
            return [*edits(record.rows, self.rows), *self._content(() if self.dry else self.sent)]
        if not self.dry and self.found.bytes > AT_ONCE and await self._exists():
            self.told = True
            return whole(self.rows)
        self.sent = {entry.path for entry in self.found.manifest}
        return self._everything()

    def _lacking(self, answer: Answer) -> list[Member]:
        lacking = {e.path for e in self.found.manifest if e.kind is Kind.FILE} if answer.paths is None else answer.paths
        if again := sorted(self.sent.intersection(lacking)):
            name = self.t.local / Path(again[0].decode("utf-8", "surrogateescape"))
            raise TransferError(
                f"{name} changed while it was being sent", path=str(name), hint="Nothing was changed; sync again"
            )
        self.sent.update(lacking)
        return self._content(lacking)

    def _content(self, paths: Collection[bytes]) -> list[Member]:
        """Members for these paths, and for the directories that lead to them."""
        leading = {
            b"/".join(parts[:depth]) for parts in (p.split(b"/") for p in paths) for depth in range(1, len(parts))
        }
        taken = leading.union(paths)
        return [_below(member) for member in self.found.members if member.entry.path in taken]

    async def _job(self, payload: Payload | None) -> Answer | None:
        from hpcbridge.staging.trees.applying import Apply
        from hpcbridge.staging.trees.statedir import run_job

        self.attempt += 1
        plan = Apply(
            self.state,
            self.session,
            self.attempt,
            self.target,
            identity(self.rows),
            self.filter,
            payload,
            base=self.base,
            delete=self.delete,
            dry=self.dry,
            mode=self.mode,
            born=max(time.time_ns(), self.latest + 1),
        )
        return await run_job(self.t, plan, self.found.bytes + self.t.size)

    def _failure(self, answer: Answer) -> HpcBridgeError:
        from hpcbridge.staging.trees.answers import Verdict

        error, target = partial(self.t.error, path=str(self.target)), self.target
        if answer.verdict is Verdict.BUSY:
            return error(f"another sync is working on {target} (job {answer.reason})", kind=Conflict, hint="Try later")
        if answer.verdict is Verdict.TARGET:
            return error(f"{target} cannot become a directory: {answer.reason}", kind=AlreadyExists)
        if answer.verdict is Verdict.CONFLICT:
            names = ", ".join(path.decode(errors="replace") for path in (answer.paths or ())[:5])
            return error(
                f"in {target}, a file shall take the place of a directory that holds what was not sent from here: "
                f"{names}",
                kind=AlreadyExists,
                hint="Nothing was changed; move it away, or delete what is not here (`delete=True`, `--delete`)",
            )
        what, _, words = answer.reason.partition(" ")
        denied = "Permission denied" in words or "Operation not permitted" in words
        return error(
            f"the job that brings {target} up to date failed while {what}: {words}",
            kind=PermissionDenied if denied else TransferError,
        )

    def _gave_up(self, answer: Answer | None) -> HpcBridgeError:
        if answer is None:
            return self.t.error(
                "the jobs that bring the tree up to date ended without an answer", path=str(self.target)
            )
        return self.t.error(
            f"what was sent to {self.target} arrived damaged, or it does not stop changing",
            kind=IntegrityError,
            path=str(self.target),
        )

    def _all_new(self) -> TreeResult:
        changes = [Change(e.path, Action.COPY, e.kind, e.size) for e in self.found.manifest]
        return _counted(changes, None, self.found.bytes, self.found, 0)

    def _result(self, answer: Answer, sender: Sender) -> TreeResult:
        manifest, size = self.found.manifest, sender.bytes
        if answer.paths is None:
            # Too many to tell: what was sent, and not what became of it there.
            known = [entry for entry in manifest if entry.path in self.sent]
            changes = [Change(e.path, Action.COPY, e.kind, e.size) for e in known]
            return _counted(changes, sender.route, size, self.found, answer.deletions)
        changes, touched = [], set(answer.touched)
        for path in (*answer.added, *answer.changed, *answer.touched):
            entry = manifest.get(path)
            assert entry is not None
            action = Action.CHANGE if path in touched else self._action(entry)
            changes.append(Change(path, action, entry.kind, entry.size))
        changes += [Change(path, Action.DELETE, Kind.FILE) for path in answer.deleted]
        if self.dry:
            size = sum(change.size for change in changes if change.action is Action.COPY)
        return _counted(changes, None if self.dry else sender.route, size, self.found, answer.deletions)

    def _action(self, entry: Entry) -> Action:
        if entry.kind is not Kind.FILE or entry.path in self.sent:
            return Action.COPY
        # A dry run sends nothing, and so learns of nothing that is lacking: what was changed there has to be sent.
        elsewhere = self.before.get((entry.sha256 or "").encode(), set()) - {entry.path}
        return Action.COPY if self.dry and not elsewhere else Action.MOVE


def _counted(changes: list[Change], route: str | None, size: int, found: Scan, deleted: int) -> TreeResult:
    brought = [change for change in changes if change.action in (Action.COPY, Action.MOVE)]
    kinds = [change.kind for change in brought]
    touched = sum(change.action is Action.CHANGE for change in changes)
    return TreeResult(
        route,
        size,
        kinds.count(Kind.FILE),
        kinds.count(Kind.DIRECTORY),
        kinds.count(Kind.LINK),
        0.0,
        skipped=found.skipped,
        deleted=deleted,
        unchanged=len(found.manifest) - len(brought) - touched,
        changes=changes,
    )


def whole(here: Iterable[bytes]) -> list[Member]:
    """What tells a job the whole manifest."""
    return [_data(b"full", joined(here))]


def edits(before: Iterable[bytes], here: Iterable[bytes]) -> list[Member]:
    """What tells it by its difference to the one that the job has kept; nothing where there is none."""
    old, new = set(before), set(here)
    if old == new:
        return []
    return [_data(b"gone", joined(sorted(old - new))), _data(b"new", joined(sorted(new - old)))]


async def pack(sender: Sender, members: list[Member], name: str, state: str) -> Payload:
    """Send members to the state directory, as one archive."""
    from hpcbridge.staging.trees.compressing import compressed

    archive = await asyncio.to_thread(Archive, members, name)
    source = await asyncio.to_thread(compressed, archive)
    try:
        return await sender.send(source, state)
    finally:
        source.close()


def _data(name: bytes, data: bytes) -> Member:
    return Member(Entry(name, Kind.FILE, 0o600, len(data)), data=data)


def _below(member: Member) -> Member:
    entry = replace(member.entry, path=b"tree/" + member.entry.path)
    return replace(member, entry=entry)
