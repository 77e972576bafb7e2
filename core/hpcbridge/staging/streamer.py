"""Over the streamer: one WebSocket connection to a job of the server's, which writes or reads the file.

Facts of firecrest-streamer 0.0.20 and 0.0.21, which shape this:

- What its own client sends as the end, `{"type": "eof", …}` in a binary frame, is taken for data: files arrive with 98
  bytes too many. As a text frame, spelt without spaces, it is understood: the streamer compares the SHA-256 in it and
  removes the file when they differ. On the way down the same bytes follow the data, and tell the SHA-256.
- A connection that breaks leaves a part of the file at its target: uploads go to a name of ours, and are published by a
  job (`delivery`).
- It never goes on where it stopped: every attempt begins at the first byte.
- It ends with its connection; one that nobody connects to waits for as long as its site says (`waitTimeout`, a day by
  default), within its job's time limit.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import stat
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hpcbridge.errors import (
    AlreadyExists,
    HpcBridgeError,
    IntegrityError,
    InvalidPath,
    NotFound,
    TooLarge,
    TransferError,
)
from hpcbridge.firecrest.models import TransferJob
from hpcbridge.staging import asking, digests, server_jobs
from hpcbridge.staging.context import PATIENCE, Transfer, given_up, in_thread
from hpcbridge.staging.journal import Entry, Journal
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.partfile import PartFile
from hpcbridge.staging.plan import Verify
from hpcbridge.staging.progress import Phase
from hpcbridge.staging.streamer_link import CHUNK, Damaged, Link, Lost, connect, require_library

if TYPE_CHECKING:
    from hpcbridge.firecrest import Stream
    from hpcbridge.staging.source import SourceFile

ATTEMPTS = 3
"""Times a file is sent or received whose connection breaks, or that arrives damaged."""


async def put(
    t: Transfer, source: SourceFile, target: RemotePath, *, check: bool = True, place: str | None = None
) -> str | None:
    """Send `source` to `target`; returns the SHA-256 both sides agree on, None when only the size was compared.

    A file that is at `target` already is removed first, and half a file can be seen there until the end: meant for
    names of our own in a staging directory. `check=False` leaves the comparison to a job that is to come, and returns
    the SHA-256 of what was sent. `place` is what a killed upload is found by, so that its job is ended, where the
    target's name differs from one to the next.

    Raises TransferError when the streamer cannot be reached or fails, IntegrityError when the file arrives damaged
    again and again, TooLarge before anything is sent, InvalidPath for a path that its script cannot name, Conflict when
    another process sends to the same target.
    """
    require_library()
    _refuse(t, source, target)
    with Journal.of(t, "streamer-put", place or str(target)) as journal:
        return await _Upload(t, source, target, journal, check=check).run()


def _refuse(t: Transfer, source: SourceFile, target: RemotePath) -> None:
    _refuse_path(t, target)
    most = t.limits.inbound // CHUNK * CHUNK
    if source.size > most:
        hint = "Leave the route out and the best one is taken"
        raise t.error(f"{source.size} bytes are over the streamer's {most}", kind=TooLarge, path=source.name, hint=hint)


def _refuse_path(t: Transfer, path: RemotePath) -> None:
    if not path.scripts_carry_it:
        hint = "White space and shell characters break it; leave the route out"
        raise t.error("the streamer's script cannot name this path", kind=InvalidPath, path=str(path), hint=hint)


class _Streamed(ABC):
    """One file's way over the streamer: as often as needed, each time with a job of its own.

    The journal has nothing to go on with. It knows the job, which would wait for its client for hours, so that a later
    attempt ends it after this process was killed.
    """

    name: str
    """What the server calls the job."""

    def __init__(self, t: Transfer, path: RemotePath, journal: Journal) -> None:
        self._t = t
        self._path = path
        self._journal = journal

    async def run(self) -> str | None:
        """Returns the SHA-256 both sides agree on."""
        await self._clear_earlier()
        fault = Lost()
        try:
            for _ in range(ATTEMPTS):
                stream = await self._place()
                try:
                    agreed = await self._carry(stream)
                except Lost as error:
                    fault = error
                    await self._give_up(stream)
                except BaseException:
                    await self._give_up(stream)
                    raise
                else:
                    await server_jobs.remove_logs(self._t, stream.job)
                    return agreed
        finally:
            await self._forget()
        kind = IntegrityError if isinstance(fault, Damaged) else TransferError
        message = f"{self._path} did not arrive whole in {ATTEMPTS} attempts: {fault}"
        raise self._t.error(message, kind=kind, path=str(self._path))

    async def _clear_earlier(self) -> None:
        """End the job of a process that was killed."""
        told = asking.answer(self._journal)
        if told is not None:
            await server_jobs.abandon(self._t, TransferJob.from_json(told["transferJob"]))
        if self._journal.about:
            await asking.clear(self._t, self._journal, self.name, self._journal.about["path"])
            self._journal.remove()

    async def _place(self) -> Stream:
        """A streamer that waits for us."""
        self._t.reporter.phase(Phase.CHECKING, "asking for a streamer")
        found: Stream | None = None

        async def request() -> Entry:
            nonlocal found
            found = await self._request()
            return {"transferJob": server_jobs.dump(found.job)}

        await asking.ask(self._journal, {"path": str(self._path)}, request)
        assert found is not None
        return found

    @abstractmethod
    async def _request(self) -> Stream: ...

    @abstractmethod
    async def _carry(self, stream: Stream) -> str | None:
        """Raises Lost where another attempt may fare better."""

    async def _give_up(self, stream: Stream) -> None:
        """End the job, and remove its logs."""
        await server_jobs.abandon(self._t, stream.job)
        await self._forget()

    async def _forget(self) -> None:
        """The job that answered is done with; those of lost answers are ended."""
        await asking.clear(self._t, self._journal, self.name, str(self._path))
        self._journal.remove()


class _Upload(_Streamed):
    name = server_jobs.INGRESS

    def __init__(self, t: Transfer, source: SourceFile, target: RemotePath, journal: Journal, *, check: bool) -> None:
        super().__init__(t, target, journal)
        self._source = source
        self._check = check

    async def _request(self) -> Stream:
        t, path = self._t, str(self._path)
        try:
            return await t.client.stream_upload(t.name, path, account=t.account, patience=PATIENCE)
        except AlreadyExists:
            found = await t.client.stat(t.name, path, patience=PATIENCE)
            if stat.S_ISDIR(found.mode):
                raise t.error(f"{path} is a directory", kind=InvalidPath, path=path) from None
            await t.client.rm(t.name, path, patience=PATIENCE)
        return await t.client.stream_upload(t.name, path, account=t.account, patience=PATIENCE)

    async def _carry(self, stream: Stream) -> str | None:
        digest = await _send(self._t, self._source, stream)
        return await _compared(self._t, self._source, self._path, digest) if self._check else digest

    async def _give_up(self, stream: Stream) -> None:
        await super()._give_up(stream)
        # The server had made sure that nothing was there: what is there now, our job has written.
        with suppress(HpcBridgeError):
            await self._t.client.rm(self._t.name, str(self._path), patience=server_jobs.ABANDON_PATIENCE)


class _Download(_Streamed):
    name = server_jobs.EGRESS

    def __init__(self, t: Transfer, remote: RemotePath, part: PartFile, journal: Journal) -> None:
        super().__init__(t, remote, journal)
        self._part = part

    async def _request(self) -> Stream:
        t = self._t
        return await t.client.stream_download(t.name, str(self._path), account=t.account, patience=PATIENCE)

    async def _carry(self, stream: Stream) -> str | None:
        part = self._part
        part.forget()
        agreed = await _receive(self._t, self._path, stream, part)
        for index in range(part.count):
            part.mark(index)
        return agreed


async def _compared(t: Transfer, source: SourceFile, target: RemotePath, digest: str) -> str | None:
    try:
        return await digests.check(t, target, source.size, digest if digests.wanted(t) else None)
    except (IntegrityError, NotFound) as error:
        # Where the digests differ, the streamer has removed the file itself.
        raise Damaged(error.message) from None


async def _send(t: Transfer, source: SourceFile, stream: Stream) -> str:
    """Send everything; returns the SHA-256 of what was sent."""
    link = await connect(t, stream)
    try:
        t.reporter.phase(Phase.UPLOADING, done=0)
        count = -(-source.size // CHUNK)
        # Binary: the streamer decodes it, and a text frame has nothing to decode.
        await link.send(json.dumps({"type": "init", "num_chunks": count, "file_size": source.size}).encode())
        digest = hashlib.sha256()
        async for chunk in _chunks(source, digest):
            await link.send(chunk)
            t.reporter.add(len(chunk))
        source.check_unchanged()
        await link.send(_END % digest.hexdigest())
        await link.ended()
    except BaseException:
        link.abort()
        raise
    return digest.hexdigest()


_END = '{"type":"eof","sha256_hash":"%s"}'
"""As text, and in this very spelling: its beginning is compared as it stands."""


async def _chunks(source: SourceFile, digest: hashlib._Hash) -> AsyncIterator[bytes]:
    """The source in messages, one read ahead."""

    def read(offset: int) -> bytes:
        data = source.read(offset, min(CHUNK, source.size - offset))
        digest.update(data)
        return data

    ahead: asyncio.Future[bytes] | None = None
    try:
        for offset in range(0, source.size, CHUNK):
            data = await (ahead or in_thread(read, offset))
            following = offset + CHUNK
            ahead = asyncio.ensure_future(in_thread(read, following)) if following < source.size else None
            yield data
    finally:
        await given_up(ahead)


async def get(t: Transfer, remote: RemotePath, part: PartFile) -> str | None:
    """Fill `part` with `remote`; returns the SHA-256 both sides agree on, None when only the size was compared.

    Always from the first byte on: what the part file holds is not used. Raises TransferError when the streamer cannot
    be reached or fails, IntegrityError when the file has changed or arrives damaged again and again, InvalidPath for a
    path that its script cannot name.
    """
    require_library()
    _refuse_path(t, remote)
    with Journal.of(t, "streamer-get", str(remote), str(part.target)) as journal:
        return await _Download(t, remote, part, journal).run()


async def _receive(t: Transfer, remote: RemotePath, stream: Stream, part: PartFile) -> str | None:
    """Receive everything; returns the SHA-256, None where it was not to be compared."""
    link = await connect(t, stream)
    hashing = t.verify not in (None, Verify.SIZE)
    size = part.source.size
    try:
        announced = _message(await link.receive())
        if announced.get("file_size") != size:
            message = f"the streamer announces {announced.get('file_size')} bytes where the file had {size}"
            raise t.error(message, kind=IntegrityError, path=str(remote), hint="The file changed; fetch it again")
        t.reporter.phase(Phase.DOWNLOADING, done=0)
        digest = hashlib.sha256() if hashing else None
        end = await _fill(t, link, part, digest)
        await link.close()
    except BaseException:
        link.abort()
        raise
    theirs = end.get("sha256_hash")
    if digest is None:
        return None
    t.reporter.phase(Phase.VERIFYING)
    if theirs is None and digests.wanted(t):
        theirs = await digests.remote_sha256(t, remote)
    if theirs is not None and theirs != digest.hexdigest():
        raise Damaged("its SHA-256 is not that of the file on the system")
    return theirs


async def _fill(t: Transfer, link: Link, part: PartFile, digest: hashlib._Hash | None) -> dict[str, Any]:
    """Write what comes; returns the message at the end, {} where there is none."""

    def write(offset: int, data: bytes) -> None:
        part.write(offset, data)
        if digest is not None:
            digest.update(data)

    position, size = 0, part.source.size
    while (message := await link.receive()) is not None:
        # By count, not by its look: a file may hold the same words.
        if position == size or isinstance(message, str):
            return _message(message)
        if position + len(message) > size:
            raise Damaged("more bytes came than were announced")
        await in_thread(write, position, message)
        position += len(message)
        t.reporter.add(len(message))
    if position < size:
        raise Damaged(f"it ended after {position} of {size} bytes")
    return {}


def _message(text: bytes | str | None) -> dict[str, Any]:
    """A message that is JSON. Raises Lost for any other, and for none."""
    try:
        found = json.loads(text or b"")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Lost("the streamer said something that is not of its protocol")
    return found
