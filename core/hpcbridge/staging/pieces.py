"""Pieces by direct upload into a hidden staging directory: resumed by one listing, repaired by their sums.

The staging directory's name comes from the target and the identity of what is sent, and a piece's name from the upload
session, so that an interrupted upload finds what is there by listing one directory. Pieces are written by the server
piece by piece and a reader can see half of one: only pieces of the right size count as sent, and the job that takes
them compares the SHA-256 of the whole. The session is part of the job's key, so a crash between two attempts never
makes two jobs.
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
from typing import TYPE_CHECKING

from hpcbridge.errors import AlreadyExists, HpcBridgeError, NotFound
from hpcbridge.staging import keyed_jobs
from hpcbridge.staging.context import PATIENCE, Transfer, task_group
from hpcbridge.staging.joining import STAGE_PREFIX, Answer, Verdict, parse_sums, piece_name
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.plan import piece_count, piece_size
from hpcbridge.staging.progress import Phase

if TYPE_CHECKING:
    from hpcbridge.staging.source import SourceFile

SENDERS = 4
"""Uploads in flight: OpenSSH lets a user have 10 sessions, and each holds a piece in memory."""
_PIECE = re.compile(r"([0-9a-f]{8})\.(\d{6})")
_ANSWER = re.compile(r"([0-9a-f]{8})\.answer-(\d+)")
_TRACE = re.compile(r"([0-9a-f]{8})\.(?:joined|log|answer-(\d+)(?:\.done)?)")


@dataclass(slots=True)
class Stage:
    """The staging directory: who uploads there, bytes per piece, which whole pieces are there, and jobs so far.

    `begun` is the session and number of an earlier attempt's job that has begun to use up its pieces, if any.
    """

    directory: str
    session: str
    piece: int
    present: set[int] = field(default_factory=set)
    attempts: int = 0
    begun: tuple[str, int] | None = None

    def renew(self) -> None:
        """Nothing that is there can be used: a session of its own begins."""
        self.session, self.present, self.attempts, self.begun = secrets.token_hex(4), set(), 0, None


def stage_directory(target: RemotePath, identity: str, piece: int, *, inside: bool = False) -> str:
    """Where the pieces go: the same for every attempt to send the same thing to the same place.

    Beside the target, or, where that cannot be written, `inside` it. The name's first half is the target's own, by
    which a job finds what was left of earlier uploads to it.
    """
    halves = (_short(target.encoded), _short(target.encoded + f"\0{identity} {piece}".encode()))
    return posixpath.join(str(target) if inside else target.directory, STAGE_PREFIX + "-".join(halves))


def _short(text: bytes) -> str:
    return b32encode(hashlib.sha256(text).digest()[:10]).decode().lower()


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


async def open_stage(
    t: Transfer,
    target: RemotePath,
    source: SourceFile,
    piece: int,
    *,
    inside: bool = False,
    parents: bool = False,
) -> Stage:
    """Make the staging directory for `source` in pieces of `piece` bytes, or find an earlier attempt's.

    `parents` makes the directories that lead there, too. Raises PathNotFound, PermissionDenied, and InvalidPath where
    no job could take the pieces.
    """
    t.reporter.phase(Phase.CHECKING, "looking for pieces of an earlier attempt")
    directory = stage_directory(target, source.identity, piece, inside=inside)
    keyed_jobs.require_runnable(t, directory)
    names: dict[str, int] = {}
    try:
        await t.client.mkdir(t.name, directory, parents=False, patience=PATIENCE)
    except AlreadyExists:
        names = await listing(t, directory)
    except NotFound:
        if not parents:
            raise
        await t.client.mkdir(t.name, directory, parents=True, patience=PATIENCE)
    session, present, attempts = survey(names, source.size, piece)
    whole = len(present) == piece_count(source.size, piece)
    begun = None if whole else job_begun(names)
    return Stage(directory, session or secrets.token_hex(4), piece, present, attempts, begun)


def job_begun(names: Iterable[str]) -> tuple[str, int] | None:
    """The session whose job has begun by what a listing tells, and the job's number; of several the last."""
    found = [match for match in map(_TRACE.fullmatch, names) if match]
    return max(((match[1], int(match[2] or 1)) for match in found), key=lambda each: each[1], default=None)


async def listing(t: Transfer, directory: str) -> dict[str, int]:
    """Name -> bytes of the files in a staging directory."""
    entries = await t.client.ls(t.name, directory, patience=PATIENCE)
    return {entry.name: entry.size for entry in entries if entry.is_file}


class PieceSender:
    """Reads the source once, in order, and keeps `SENDERS` pieces in flight; memory does not grow with its size."""

    def __init__(self, t: Transfer, source: SourceFile, stage: Stage) -> None:
        """Nothing is read yet."""
        self._t = t
        self._source = source
        self._stage = stage
        self._count = piece_count(source.size, stage.piece)

    async def send(self) -> str:
        """Send what is missing; returns the SHA-256 of the whole."""
        present = sum(self._length(index) for index in self._stage.present)
        resumed = f"{len(self._stage.present)} of {self._count} pieces were there" if present else ""
        self._t.reporter.phase(Phase.UPLOADING, resumed, done=present)
        digest = hashlib.sha256()
        await self._send(range(self._count), digest)
        await asyncio.to_thread(self._source.check_unchanged)
        return digest.hexdigest()

    async def repair(self, answer: Answer | None) -> None:
        """Send again what is missing, short, or damaged by the sums that the job left."""
        names = await self._found()
        own = {name: size for name, size in names.items() if name.startswith(self._stage.session)}
        self._stage.present = survey(own, self._source.size, self._stage.piece)[1]
        if answer is not None and answer.verdict is Verdict.MISMATCH:
            self._stage.present -= await self._damaged()
        missing = [index for index in range(self._count) if index not in self._stage.present]
        lost = sum(self._length(index) for index in missing)
        self._t.reporter.phase(
            Phase.UPLOADING, f"sending {len(missing)} damaged pieces again", done=self._source.size - lost
        )
        await self._send(missing, None)

    def _length(self, index: int) -> int:
        return piece_size(self._source.size, self._stage.piece, index)

    async def _found(self) -> dict[str, int]:
        try:
            return await listing(self._t, self._stage.directory)
        except NotFound:
            with suppress(AlreadyExists):
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
            local = await self._source.sha256(index * self._stage.piece, self._length(index))
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
        data = self._source.read(index * self._stage.piece, self._length(index))
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
