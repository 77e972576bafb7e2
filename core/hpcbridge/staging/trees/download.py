"""`get_tree`: a directory from the cluster, as one archive that a job packs, received, checked, unpacked and published.

A journal knows where the archive is on the cluster and how far its way went, so that the same call after a crash
receives the rest of the same archive: it is neither packed again nor left behind. An archive shows the tree as it was
when it was packed; one that is older than `FRESH` is packed anew.
"""

from __future__ import annotations

import asyncio
import gzip
import posixpath
import secrets
import stat
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcbridge.errors import (
    HpcBridgeError,
    IntegrityError,
    InvalidPath,
    NotFound,
    PathNotFound,
    PermissionDenied,
    TooLarge,
    TransferError,
)
from hpcbridge.staging.context import PATIENCE, Transfer, TransferSystem, in_thread
from hpcbridge.staging.estimates import cut_up_to
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.partfile import PartFile, PrefixSha256, Source, part_path
from hpcbridge.staging.places import is_inside, require_inside, usable_limits
from hpcbridge.staging.plan import RANGE, Direction, Route, Verify, verification
from hpcbridge.staging.progress import Phase, Progress, Reporter
from hpcbridge.staging.routes import choose, figures_of, remember
from hpcbridge.staging.trees.entries import Kind
from hpcbridge.staging.trees.packing import STAGE_PREFIX, Pack, Packed, parse_listing, parse_packed
from hpcbridge.staging.trees.patterns import Filter
from hpcbridge.staging.trees.results import Action, Change, TreeResult
from hpcbridge.staging.trees.upload import parse_tree
from hpcbridge.staging.trees.workplace import Workplace

if TYPE_CHECKING:
    from hpcbridge.staging.journal import Journal

FRESH = 3600.0
"""Seconds for which an interrupted download goes on with the archive that was packed for it."""
ATTEMPTS = 2
"""Packing jobs at most: a second one when the first ended without an answer."""
LIMIT = "60"
"""Time limit of the packing job in minutes, where the site sets none: nobody knows beforehand how large the tree is."""


async def get_tree(
    system: TransferSystem,
    remote: str,
    local: str | Path,
    *,
    filter: Filter | None = None,
    route: str | None = None,
    verify: str | None = "auto",
    resume: bool = True,
    progress: Callable[[Progress], None] | None = None,
    account: str | None = None,
    max_size: int | None = None,
    dry_run: bool = False,
) -> TreeResult:
    """Copy the content of the directory `remote` into the directory `local`, which is made where it is missing.

    A new `local` appears by one rename, complete and checked. Into an existing one everything is moved by renames, each
    file whole and nothing through a link; what is there under other names stays.

    Args:
        system: a `hpcbridge.System`.
        remote: absolute path of a directory; it stands for the tree's root.
        local: stands for the tree's root, too. Missing directories above it are made.
        filter: what is kept; everything by default.
        route: "chunked", "s3" or "streamer"; None takes pieces as long as they are quicker than a second job.
        verify: "size" compares the archive's size only; anything else its SHA-256, which costs nothing here.
        resume: go on with what an interrupted download left, within an hour of its packing.
        progress: told phases and the archive's bytes; an exception it raises ends the transfer, what arrived is kept.
        account: charged for the jobs of the transfer.
        max_size: bytes of the files' content; more is TooLarge, before anything is packed.
        dry_run: let a job list what would be received, and receive nothing.

    Raises:
        InvalidPath, InvalidRequest, AlreadyExists (a file in the way): refused before anything was received.
        PathNotFound, PermissionDenied: the remote directory, or something in it, cannot be read.
        Conflict: another process is receiving into the same directory.
        TransferError: the transfer failed; IntegrityError: the archive is damaged, or tried to leave its directory.
        Unavailable: the server stayed away for longer than a transfer waits (15 minutes).
    """
    begun, checked = time.monotonic(), verification(verify)
    source = parse_tree(remote)
    place = await asyncio.to_thread(Workplace.of, Path(local))
    info = await system.client.system(system.name, patience=PATIENCE)
    t = Transfer(system, info, place.target, Reporter(progress), checked, account)
    require_inside(t, source)
    mode = await directory_mode(t, source)
    request = _Request(t, source, filter or Filter(), route, max_size, cut_up_to(t.limits, await figures_of(t)))
    if dry_run:
        return await _listed(request, begun)
    from hpcbridge.staging.journal import Journal

    with Journal.of(t, "tree-get", str(place.staged)) as journal:
        download = _Download(request, place, mode, journal)
        result = await download.run(resume=resume)
    t.reporter.phase(Phase.DONE, done=result.bytes)
    result = replace(result, seconds=time.monotonic() - begun)
    await remember(t, Route(result.route or Route.CHUNKED), Direction.DOWN)
    return result


async def directory_mode(t: Transfer, source: RemotePath) -> int:
    """The permission bits of the remote directory. Raises PathNotFound, InvalidPath for a file."""
    t.reporter.phase(Phase.CHECKING, "looking at the remote directory")
    found = await t.client.stat(t.name, str(source), dereference=True, patience=PATIENCE)
    if not stat.S_ISDIR(found.mode):
        raise t.error(f"{source} is not a directory", kind=InvalidPath, path=str(source), hint="Fetch it as a file")
    return found.mode & 0o777


class _Request:
    """What is asked for, and the packing job that it takes."""

    def __init__(
        self, t: Transfer, source: RemotePath, filter: Filter, route: str | None, max_size: int | None, cut: int
    ) -> None:
        """`cut`: bytes up to which the job cuts the archive, too, whatever else there is.

        Raises what `choose` raises for a route that does not exist, or that the system does not offer.
        """
        self.t = t
        self.source = source
        self.filter = filter
        self.max_size = max_size
        self._cut = cut
        self.wanted = None if route is None else choose(1, t.limits, direction=Direction.DOWN, wanted=route).route

    def about(self) -> dict[str, Any]:
        """What makes it another request, as the journal has it."""
        filter = [list(each) if isinstance(each, tuple) else each for each in astuple(self.filter)]
        return {
            "remote": str(self.source),
            "filter": filter,
            "route": self.wanted,
            "piece": self.t.limits.download,
            "account": self.t.account,
            "max_size": self.max_size,
        }

    def most(self, stage: str) -> int | None:
        """Bytes up to which an archive in `stage` is cut, None: it is cut whatever its size."""
        limits = usable_limits(self.t, stage, self.wanted)
        if self.wanted in (Route.DIRECT, Route.CHUNKED) or not (limits.s3 or limits.streamer):
            return None
        return 0 if self.wanted else self._cut

    def plan(self, stage: str, session: str, most: int | None, *, listing: bool = False) -> Pack:
        """The job, in a staging directory on the system."""
        return Pack(stage, session, self.source, self.filter, self.t.limits.download, most, self.max_size, listing)

    def places(self) -> list[str]:
        """Directories in which the staging directory can be made, if they allow it: beside the source, and in it."""
        from hpcbridge.staging import keyed_jobs

        t, source = self.t, self.source
        beside = [source.directory] if source.directory != "/" and is_inside(t, source.directory) else []
        by_script = self.wanted in (Route.S3, Route.STREAMER)
        return [
            each
            for each in (*beside, str(source))
            if keyed_jobs.can_run_in(t, each) and (not by_script or RemotePath(each, "x").scripts_carry_it)
        ]

    async def pack(self, plan: Pack) -> str | None:
        """Run the job; returns its answer, None when it ended without one. Raises like `get_tree`."""
        from hpcbridge.staging import keyed_jobs

        t = self.t
        job = keyed_jobs.spec(
            t, script=plan.script(), directory=plan.stage, label="hpcbridge-get", session=plan.session
        )
        if job.time is not None:
            job = job.model_copy(update={"time": LIMIT})
        t.reporter.phase(Phase.QUEUED, "submitting the packing job")
        text = await keyed_jobs.run(t, job, f"tree {plan.session}", posixpath.join(plan.stage, plan.answer_name))
        if text is not None and (reason := parse_packed(text).reason):
            raise self.failure(reason)
        return text

    def failure(self, reason: str) -> HpcBridgeError:
        """The error that stands for the job's own words."""
        what, _, words = reason.partition(" ")
        path = str(self.source)
        if what == "large":
            message = f"{path} holds {words.strip()} bytes, more than {self.max_size}"
            return self.t.error(message, kind=TooLarge, path=path)
        kind: type[HpcBridgeError] = TransferError
        if "Permission denied" in words:
            kind = PermissionDenied
        elif what == "listing" and "No such file" in words:
            kind = PathNotFound
        elif what == "listing" and "Not a directory" in words:
            kind = InvalidPath
        hint = "Exclude what cannot be read" if kind is PermissionDenied else None
        return self.t.error(f"the job that packs {path} failed while {what}: {words}", kind=kind, path=path, hint=hint)


async def _make_stage(request: _Request, note: Callable[[str], None]) -> str:
    """Make a staging directory in the first place that allows it; `note` is told its path before."""
    from hpcbridge.staging import keyed_jobs

    t = request.t
    for place in request.places():
        stage = posixpath.join(place, STAGE_PREFIX + secrets.token_hex(8))
        note(stage)
        try:
            await keyed_jobs.make_directory(t, stage)
        except PermissionDenied:
            continue
        return stage
    stage = await keyed_jobs.private_path(t)
    note(stage)
    await keyed_jobs.make_directory(t, stage)
    return stage


async def _listed(request: _Request, begun: float) -> TreeResult:
    """What a dry run hands back."""
    from hpcbridge.staging import keyed_jobs

    t = request.t
    stage = await _make_stage(request, lambda _: None)
    try:
        plan = request.plan(stage, secrets.token_hex(4), None, listing=True)
        text = await request.pack(plan)
        if text is None:
            raise t.error("the job that lists the tree ended without an answer", path=str(request.source))
        packed = parse_packed(text)
        pieces = [
            await t.client.download(t.name, posixpath.join(stage, plan.piece_name(index)), patience=PATIENCE)
            for index in range(packed.pieces)
        ]
    finally:
        await keyed_jobs.remove_directory(t, stage)
    entries = sorted(parse_listing(gzip.decompress(b"".join(pieces))), key=lambda entry: entry.path)
    return TreeResult(
        None,
        packed.bytes,
        packed.files,
        packed.directories,
        packed.links,
        time.monotonic() - begun,
        skipped=list(packed.notes),
        changes=[Change(entry.path, Action.COPY, entry.kind, entry.size) for entry in entries],
    )


class _Download:
    """One archive on its way, and what its journal knows of it.

    The first line has the request, the staging directory and the session. Then: `answer` of the packing job and the
    time (s since 1970) it was read `at`; `unpacked`, the counts of files, directories and links, when the tree is
    whole in its hidden directory; `published`.
    """

    def __init__(self, request: _Request, place: Workplace, mode: int, journal: Journal) -> None:
        self._request = request
        self._t = request.t
        self._place = place
        self._mode = mode
        self._journal = journal

    async def run(self, *, resume: bool) -> TreeResult:
        taken_up = resume and await self._taken_up()
        while True:
            if not taken_up:
                await self._begin()
            try:
                return await self._finish()
            except HpcBridgeError as error:
                # What an earlier attempt had packed is damaged, or somebody has removed it.
                broken = isinstance(error, IntegrityError | NotFound)
                if broken or isinstance(error, InvalidPath | PermissionDenied | TooLarge):
                    await self._discard()
                if not (broken and taken_up):
                    raise
            taken_up = False

    async def _taken_up(self) -> bool:
        """Whether an earlier attempt can be gone on with."""
        about = self._request.about()
        if not self._journal.about or {name: self._journal.about.get(name) for name in about} != about:
            return False
        if self._journal.noted("published"):
            return False
        answers = self._journal.noted("answer")
        if answers and time.time() - float(answers[-1]["at"]) > FRESH:
            return False
        if not answers:
            from hpcbridge.staging import keyed_jobs

            # Noted before it was made; its job may have answered since.
            try:
                await keyed_jobs.make_directory(self._t, self._journal.about["stage"])
            except (NotFound, PermissionDenied):
                return False
        return True

    async def _begin(self) -> None:
        """Clear an earlier attempt away, and make a staging directory, after noting its name."""
        await self._discard()
        about, session = self._request.about(), secrets.token_hex(4)

        def note(stage: str) -> None:
            # What was learned of the site since must not make another job of it.
            self._journal.start(**about, stage=stage, session=session, most=self._request.most(stage))

        await _make_stage(self._request, note)

    async def _discard(self) -> None:
        """Remove the archive on the system, and what has arrived of it."""
        from hpcbridge.staging import keyed_jobs

        if self._journal.about:
            await keyed_jobs.remove_directory(self._t, self._journal.about["stage"])
            await asyncio.to_thread(self._clear)
            self._journal.remove()

    def _clear(self) -> None:
        part_path(self._place.staged).unlink(missing_ok=True)
        part_path(self._place.staged).with_name(part_path(self._place.staged).name + ".json").unlink(missing_ok=True)
        self._place.clear()

    async def _finish(self) -> TreeResult:
        packed = await self._packed()
        t = self._t
        t.size = t.reporter.total = packed.size
        await asyncio.to_thread(self._place.prepare)
        if not self._journal.noted("unpacked"):
            # Half a tree, where an earlier attempt was killed while it unpacked.
            await asyncio.to_thread(self._place.clear)
            counts = await self._receive(packed)
            self._journal.add(unpacked=counts)
        t.reporter.phase(Phase.VERIFYING, "publishing the tree", done=packed.size)
        await in_thread(self._publish)
        self._journal.add(published=True)
        files, directories, links = self._journal.noted("unpacked")[-1]["unpacked"]
        await self._discard()
        route = self._route(packed)
        return TreeResult(
            route.value,
            packed.size,
            files,
            directories,
            links,
            0.0,
            skipped=list(packed.notes),
            sha256=packed.sha256 if self._hashing else None,
        )

    @property
    def _hashing(self) -> bool:
        return self._t.verify not in (None, Verify.SIZE)

    @property
    def _plan(self) -> Pack:
        about = self._journal.about
        return self._request.plan(about["stage"], about["session"], about["most"])

    def _route(self, packed: Packed) -> Route:
        if packed.pieces:
            return Route.CHUNKED
        return self._request.wanted or (Route.S3 if self._t.limits.s3 else Route.STREAMER)

    async def _packed(self) -> Packed:
        """What the job answered; runs it, once."""
        if answers := self._journal.noted("answer"):
            return parse_packed(answers[-1]["answer"])
        for _ in range(ATTEMPTS):
            text = await self._request.pack(self._plan)
            if text is not None:
                self._journal.add(answer=text, at=time.time())
                return parse_packed(text)
            about = {**self._journal.about, "session": secrets.token_hex(4)}
            about.pop("format", None)
            self._journal.start(**about)
        raise self._t.error(
            f"the job that packs {self._request.source} ended {ATTEMPTS} times without an answer",
            path=str(self._request.source),
            hint="Look at the site's limits for transfer jobs: time, memory, quota",
        )

    async def _receive(self, packed: Packed) -> list[int]:
        """Receive and unpack; returns counts of files, directories and links."""
        t, plan = self._t, self._plan
        source = Source(t.site, t.name, f"{plan.source} {plan.session}", packed.size, 0)
        step = plan.piece if packed.pieces else RANGE
        part = await asyncio.to_thread(PartFile.open, self._place.staged, source, step)
        try:
            if packed.pieces:
                from hpcbridge.staging.cut_download import receive_pieces

                await receive_pieces(
                    t,
                    part,
                    lambda index: posixpath.join(plan.stage, plan.piece_name(index)),
                    packed.sha256 if self._hashing else None,
                    what=str(plan.source),
                )
            else:
                await self._receive_whole(part, packed)
        finally:
            part.close()
        t.reporter.phase(Phase.VERIFYING, "unpacking the archive", done=packed.size)
        return await in_thread(self._unpack, packed)

    async def _receive_whole(self, part: PartFile, packed: Packed) -> None:
        # The job has told the digest: the server need not be asked for it again. The streamer tells it in any case.
        for_nothing = self._route(packed) is Route.STREAMER and self._hashing
        plain = replace(self._t, verify=Verify.AUTO if for_nothing else Verify.SIZE)
        plain.size = packed.size
        archive = RemotePath(self._plan.stage, self._plan.archive_name)
        if self._route(packed) is Route.S3:
            from hpcbridge.staging import s3_download

            await s3_download.get(plain, archive, part)
        else:
            from hpcbridge.staging import streamer

            await streamer.get(plain, archive, part)
        if self._hashing:
            self._t.reporter.phase(Phase.VERIFYING)
            hashing = PrefixSha256(part)
            await hashing.follow()
            if hashing.digest != packed.sha256:
                part.forget()
                raise self._t.error(f"{archive} arrived damaged", kind=IntegrityError, path=str(archive))

    def _unpack(self, packed: Packed) -> list[int]:
        from hpcbridge.staging.trees.extract import extract

        # The job's own words bound what a small archive may become; headers, long names and padding come on top.
        entries = packed.files + packed.directories + packed.links
        most = None if self._request.max_size is None else self._request.max_size + (64 << 10) * (entries + 16)
        try:
            with part_path(self._place.staged).open("rb") as stream:
                found = extract(stream, self._place.fresh(), max_size=most, compression=packed.compression)
        except BaseException:
            # The archive is kept; half a tree beside it would only need more room.
            self._place.clear()
            raise
        counts = Counter(entry.kind for entry in found)
        return [counts[Kind.FILE], counts[Kind.DIRECTORY], counts[Kind.LINK]]

    def _publish(self) -> None:
        from hpcbridge.staging.trees.extract import publish

        if not self._place.staged.exists():
            return  # an earlier attempt was killed after it had
        new = not self._place.target.exists()
        if new:
            self._place.staged.chmod(self._mode | 0o700)
        publish(self._place.staged, self._place.target)
        if new and self._mode & 0o700 != 0o700:
            self._place.target.chmod(self._mode)
