"""Up in pieces: each by one direct upload into a hidden directory beside the target, joined by one job.

The staging directory's name comes from target, size and modification time, and a piece's name from the upload session,
so that an interrupted upload finds what is there by listing one directory. Pieces are written by the server piece by
piece and a reader can see half of one: only pieces of the right size count as sent, and the joining job compares the
SHA-256 of the whole. The session is part of the job's key, so a crash between two attempts never makes two jobs.
"""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
import re
import secrets
from base64 import b32encode
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from hpcbridge.errors import AlreadyExists, HpcBridgeError, IntegrityError, InvalidPath, NotFound
from hpcbridge.staging import keyed_jobs, s3_upload
from hpcbridge.staging.context import PATIENCE, Transfer, task_group
from hpcbridge.staging.joining import STAGE_PREFIX, Answer, Join, Verdict, parse_answer, parse_sums, piece_name
from hpcbridge.staging.local import LocalFile
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.plan import Verify, piece_count, piece_size
from hpcbridge.staging.progress import Phase

SENDERS = 4
"""Uploads in flight: OpenSSH lets a user have 10 sessions, and each holds a piece in memory."""
ATTEMPTS = 3
"""Joining jobs at most: the second and third after pieces were sent again."""
_PIECE = re.compile(r"([0-9a-f]{8})\.(\d{6})")
_ANSWER = re.compile(r"([0-9a-f]{8})\.answer-(\d+)")


@dataclass(slots=True)
class Stage:
    """The staging directory: who uploads there, which whole pieces are there, and how many jobs had their try."""

    directory: str
    session: str
    present: set[int] = field(default_factory=set)
    attempts: int = 0


async def put(t: Transfer, source: LocalFile, target: RemotePath) -> str | None:
    """Send `source` to `target`; returns the SHA-256 that both sides agree on, None when only the size was compared.

    Raises IntegrityError when the pieces arrive damaged again and again, InvalidPath when the target is a directory.
    """
    size = t.limits.piece
    stage = await open_stage(t, target, source, size)
    sender = _Sender(t, source, stage, size)
    digest = await sender.send()
    wanted = None if t.verify in (None, Verify.SIZE) else digest
    for _ in range(ATTEMPTS):
        answer = await join(t, source, target, stage, piece_count(source.size, size), wanted)
        if answer is not None and answer.verdict is Verdict.PUBLISHED:
            await keyed_jobs.remove_directory(t, stage.directory)
            return answer.sha256
        _refuse_hopeless(t, target, answer)
        await sender.repair(answer)
    raise t.error(
        f"the pieces of {target} arrived damaged {ATTEMPTS} times",
        kind=IntegrityError,
        path=str(target),
        hint=f"The target was left as it was; the pieces are kept in {stage.directory}",
    )


async def put_staged(t: Transfer, source: LocalFile, target: RemotePath) -> str | None:
    """Like `put`, but through the object store into the staging directory, as one piece, and published by one job."""
    stage = await open_stage(t, target, source, source.size)
    stage.session = stage.session if stage.present else secrets.token_hex(4)
    wanted = None if t.verify in (None, Verify.SIZE) else await source.sha256()
    for _ in range(ATTEMPTS):
        if not stage.present:
            await s3_upload.put(t, source, RemotePath(stage.directory, piece_name(stage.session, 0)), check=False)
        answer = await join(t, source, target, stage, 1, wanted)
        if answer is not None and answer.verdict is Verdict.PUBLISHED:
            await keyed_jobs.remove_directory(t, stage.directory)
            return answer.sha256
        _refuse_hopeless(t, target, answer)
        stage.present.clear()
    raise t.error(f"{target} arrived damaged {ATTEMPTS} times", kind=IntegrityError, path=str(target))


def stage_directory(target: RemotePath, size: int, mtime_ns: int, piece: int) -> str:
    """Where the pieces of this file go: the same for every attempt to send the same file to the same place."""
    identity = b"\0".join([target.encoded, f"{size} {mtime_ns} {piece}".encode()])
    name = b32encode(hashlib.sha256(identity).digest()[:10]).decode().lower()
    return posixpath.join(target.directory, STAGE_PREFIX + name)


def survey(names: Mapping[str, int], size: int, piece: int) -> tuple[str | None, set[int], int]:
    """What a listing (name -> bytes) tells: the session with most whole pieces, these, and its last job's number.

    (None, empty, 0) when nothing can be used.
    """
    found: dict[str, set[int]] = {}
    attempts: dict[str, int] = {}
    for name, length in names.items():
        if match := _PIECE.fullmatch(name):
            index = int(match[2])
            if index < piece_count(size, piece) and length == piece_size(size, piece, index):
                found.setdefault(match[1], set()).add(index)
        elif match := _ANSWER.fullmatch(name):
            attempts[match[1]] = max(attempts.get(match[1], 0), int(match[2]))
    if not found:
        return None, set(), 0
    session = max(found, key=lambda each: (len(found[each]), each))
    return session, found[session], attempts.get(session, 0)


async def open_stage(t: Transfer, target: RemotePath, source: LocalFile, piece: int) -> Stage:
    """Find the staging directory of an earlier attempt, or make it. Raises PathNotFound, PermissionDenied."""
    t.reporter.phase(Phase.CHECKING, "looking for pieces of an earlier attempt")
    directory = stage_directory(target, source.size, source.mtime_ns, piece)
    try:
        names = await listing(t, directory)
    except NotFound:
        with suppress(AlreadyExists):
            await t.client.mkdir(t.name, directory, parents=False, patience=PATIENCE)
        names = {}
    session, present, attempts = survey(names, source.size, piece)
    return Stage(directory, session or secrets.token_hex(4), present, attempts)


async def listing(t: Transfer, directory: str) -> dict[str, int]:
    """Name -> bytes of the files in a staging directory."""
    entries = await t.client.ls(t.name, directory, patience=PATIENCE)
    return {entry.name: entry.size for entry in entries if entry.is_file}


class _Sender:
    """Reads the file once, in order, and keeps `SENDERS` pieces in flight; memory does not grow with the file."""

    def __init__(self, t: Transfer, source: LocalFile, stage: Stage, piece: int) -> None:
        self._t = t
        self._source = source
        self._stage = stage
        self._piece = piece
        self._count = piece_count(source.size, piece)

    async def send(self) -> str:
        """Send what is missing; returns the SHA-256 of the whole file."""
        present = sum(piece_size(self._source.size, self._piece, index) for index in self._stage.present)
        resumed = f"{len(self._stage.present)} of {self._count} pieces were there" if present else ""
        self._t.reporter.phase(Phase.UPLOADING, resumed, done=present)
        digest = hashlib.sha256()
        await self._send(range(self._count), digest)
        self._source.check_unchanged()
        return digest.hexdigest()

    async def repair(self, answer: Answer | None) -> None:
        """Send again what is missing, short, or damaged by the sums that the joining job left."""
        names = await self._found()
        self._stage.present = survey(
            {name: size for name, size in names.items() if name.startswith(self._stage.session)},
            self._source.size,
            self._piece,
        )[1]
        if answer is not None and answer.verdict is Verdict.MISMATCH:
            self._stage.present -= await self._damaged()
        missing = [index for index in range(self._count) if index not in self._stage.present]
        lost = sum(piece_size(self._source.size, self._piece, index) for index in missing)
        self._t.reporter.phase(
            Phase.UPLOADING, f"sending {len(missing)} damaged pieces again", done=self._source.size - lost
        )
        await self._send(missing, None)

    async def _found(self) -> dict[str, int]:
        try:
            return await listing(self._t, self._stage.directory)
        except NotFound:
            await self._t.client.mkdir(self._t.name, self._stage.directory, parents=False, patience=PATIENCE)
            return {}

    async def _damaged(self) -> set[int]:
        path = posixpath.join(self._stage.directory, f"{self._stage.session}.sums")
        try:
            text = (await self._t.client.download(self._t.name, path, patience=PATIENCE)).decode(errors="replace")
        except HpcBridgeError:
            # Without the sums every piece is suspect.
            return set(range(self._count))
        sums = parse_sums(text)
        damaged = set()
        for index in range(self._count):
            length = piece_size(self._source.size, self._piece, index)
            local = await self._source.sha256(index * self._piece, length)
            if sums.get(piece_name(self._stage.session, index)) != local:
                damaged.add(index)
        return damaged

    async def _send(self, indices: Iterable[int], digest: hashlib._Hash | None) -> None:
        queue: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(1)
        async with task_group() as group:
            for _ in range(SENDERS):
                group.create_task(self._upload_from(queue))
            for index in indices:
                data = await asyncio.to_thread(self._read, index, digest)
                if index not in self._stage.present:
                    await queue.put((index, data))
                del data
            for _ in range(SENDERS):
                await queue.put(None)

    def _read(self, index: int, digest: hashlib._Hash | None) -> bytes:
        length = piece_size(self._source.size, self._piece, index)
        data = self._source.read(index * self._piece, length)
        if digest is not None:
            digest.update(data)
        return data

    async def _upload_from(self, queue: asyncio.Queue[tuple[int, bytes] | None]) -> None:
        while (item := await queue.get()) is not None:
            index, data = item
            name = piece_name(self._stage.session, index)
            await self._t.client.upload(self._t.name, self._stage.directory, name, data, patience=PATIENCE)
            self._stage.present.add(index)
            self._t.reporter.add(len(data))
            del item, data


async def join(
    t: Transfer, source: LocalFile, target: RemotePath, stage: Stage, count: int, sha256: str | None
) -> Answer | None:
    """Run the next joining job of this session; None when it died without an answer."""
    stage.attempts += 1
    plan = Join(stage.directory, stage.session, target, count, source.size, sha256, stage.attempts)
    job = keyed_jobs.spec(
        t, script=plan.script(), directory=stage.directory, label="hpcbridge-put", session=stage.session
    )
    t.reporter.phase(Phase.QUEUED, "submitting the joining job")
    # The directory, which is part of the job's name, stands for the file and its place.
    key = f"put {stage.session} {stage.attempts} {sha256 or 'size'} {t.account or ''}"
    text = await keyed_jobs.run(t, job, key, posixpath.join(stage.directory, plan.answer_name))
    return None if text is None else parse_answer(text)


def _refuse_hopeless(t: Transfer, target: RemotePath, answer: Answer | None) -> None:
    """Raise when another job would fail in the same way."""
    if answer is None or answer.verdict is not Verdict.FAILED:
        return
    what, _, words = answer.reason.partition(" ")
    if what == "directory":
        hint = "End the path with / to put the file inside it"
        raise t.error(f"{target} is a directory", kind=InvalidPath, path=str(target), hint=hint)
    if what == "publishing" or "No such file" not in words:
        raise t.error(f"the joining job failed while {what} {target}: {words}", path=str(target))
