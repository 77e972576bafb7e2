"""Logs: follow a remote file by byte offset, and the post-mortem of a failed job.

What the server offers: `download` is byte-exact but reads the whole file and ends near 3.9 MB; `tail` from a byte on
starts exactly but answers at most 5 MiB, with U+FFFD for what does not decode; `view` slices characters. So small
files are downloaded, longer ones read by `tail`, and text is taken only as far as it is certainly what the file holds.
Beyond the limit of `download`, bytes that are not UTF-8 come as U+FFFD, or exactly but only after the end, by a job
(`rest`); everything else is exact.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpcbridge.errors import (
    AmbiguousOutcome,
    HpcBridgeError,
    JobFailed,
    LostRace,
    PathNotFound,
    ServerError,
    TooLarge,
    Unavailable,
)
from hpcbridge.jobs.finder import lock_owner
from hpcbridge.jobs.guard import CANNOT_LOCK_EXIT, Places
from hpcbridge.jobs.names import is_ours
from hpcbridge.jobs.state import LOST_RACE_EXIT, JobInfo

if TYPE_CHECKING:
    from hpcbridge.firecrest import FirecrestClient

log = logging.getLogger(__name__)

SMALL = 256 * 1024
"""Bytes up to which a file is simply downloaded whenever it has grown."""

TAIL_MAX = 4 * 1024 * 1024
"""Bytes asked for by one `tail`; the server's own limit is 5 MiB."""

VIEW = 1024 * 1024
"""Bytes of one `view` window; reads at its multiples start at exactly that byte."""

_ANCHOR = 64
"""Bytes before the offset that are read again, to see that the file is still the same one."""

_UNKNOWN = "\ufffd"


@dataclass(frozen=True, slots=True)
class FollowPolicy:
    """Pauses between looks, in seconds: they grow from `first` to `longest` while nothing comes.

    After the job's end a file that is not there may still appear for `settle`, and one that is there is complete when
    it has not grown for `quiet` (shared file systems are late).
    """

    first: float = 1.0
    longest: float = 10.0
    growth: float = 1.5
    settle: float = 6.0
    quiet: float = 2.0


async def follow(
    client: FirecrestClient,
    system: str,
    path: str,
    *,
    until: asyncio.Event | Awaitable[object] | None = None,
    offset: int = 0,
    policy: FollowPolicy | None = None,
    rest: Callable[[int], AsyncIterator[bytes]] | None = None,
) -> AsyncIterator[bytes]:
    """The bytes of a remote file from `offset` on, each once, as they come.

    Args:
        client: the REST client.
        system: name of the cluster.
        path: absolute path of the file; it need not exist yet, and may never.
        until: the end of what writes it (an event, or an awaitable such as a job's `wait`); after it the file is read
            to its end. None: only what is there now.
        offset: bytes to leave out, as counted by an earlier `follow`.
        policy: pauses.
        rest: the file's bytes from an offset on, whatever they are. With it no byte is replaced: what no request can
            give exactly is kept back until the end, and then read by it.

    A file that shrinks or is replaced (a requeued job) is read from its start. Outages are waited out. Raises
    PermissionDenied, InvalidPath, TooLarge (a backlog of more than 4 MiB that is not text: fetch the file instead).
    """
    policy = policy or FollowPolicy()
    reader = _Reader(client, system, path, offset, exact=rest is not None)
    end = _End(until)
    pause, quiet_since = policy.first, None
    clock = asyncio.get_running_loop().time
    try:
        while True:
            over = end.reached  # before the read: what was written until then is in it
            grown, enough = False, policy.quiet
            try:
                async for chunk in reader.news(last=over):
                    grown = True
                    yield chunk
                heard = True
            except PathNotFound:
                heard, enough = True, policy.settle
            except (Unavailable, AmbiguousOutcome, ServerError) as error:
                log.debug("follow %s: %s", path, error)
                heard = False
                if until is None:
                    raise
            if until is None:
                break
            now = clock()
            if grown or not over or not heard:
                quiet_since = None
            elif quiet_since is None:
                quiet_since = now
            elif now - quiet_since >= enough:
                break
            pause = policy.first if grown else min(pause * policy.growth, policy.longest)
            await end.wait(min(pause, max(enough / 2, 0.05)) if over else pause)
        if reader.held and rest is not None:
            async for chunk in rest(reader.offset):
                yield chunk
    finally:
        await end.close()


class _End:
    """Whether the writer has ended, as an event or an awaitable says it."""

    def __init__(self, until: asyncio.Event | Awaitable[object] | None) -> None:
        self._event = until if isinstance(until, asyncio.Event) else asyncio.Event()
        self._task: asyncio.Future[object] | None = None
        self._own = False
        if until is None:
            self._event.set()
        elif not isinstance(until, asyncio.Event):
            self._own = not isinstance(until, asyncio.Future)
            self._task = asyncio.ensure_future(until)
            # However it ends, it has ended: whoever else awaits it learns how.
            self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future[object]) -> None:
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not complain
        self._event.set()

    @property
    def reached(self) -> bool:
        return self._event.is_set()

    async def wait(self, seconds: float) -> None:
        """Sleep, or less if the end comes."""
        if self.reached:
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()

    async def close(self) -> None:
        if self._own and self._task is not None and not self._task.done():
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, HpcBridgeError):
                await self._task


class _Reader:
    """Reads what is new in one file."""

    def __init__(self, client: FirecrestClient, system: str, path: str, offset: int, *, exact: bool) -> None:
        self._client, self._system, self._path = client, system, path
        self.offset = offset
        self.held = False
        self._exact = exact
        self._anchor = b""
        self._inode: int | None = None
        self._shrunk = False
        self._binary = False
        self._too_large = False

    async def news(self, *, last: bool) -> AsyncIterator[bytes]:
        """What has come since the last time.

        `last`: there will be no more, so do not hold back an unfinished character.
        """
        stat = await self._client.stat(self._system, self._path, dereference=True, patience=0, polling=True)
        size = stat.size
        if self._inode not in (None, stat.ino):
            self._restart()
        self._inode = stat.ino or None
        if size < self.offset:
            # Believed at the second sight: another login node may show an older size.
            if not self._shrunk:
                self._shrunk = True
                return
            self._restart()
        self._shrunk = False
        while self.offset < size and not self.held:
            data, length = await self._read(size, last=last)
            if not data:
                return
            self.offset += length
            # Replaced bytes are no witness of what the file holds.
            self._anchor = (self._anchor + data)[-_ANCHOR:] if length == len(data) else b""
            yield data

    def _restart(self) -> None:
        self.offset, self._anchor, self._shrunk, self._binary, self.held = 0, b"", False, False, False

    async def _read(self, size: int, *, last: bool) -> tuple[bytes, int]:
        """The next bytes and how many of the file's they stand for; none when the next ones are not certain yet."""
        if (size <= SMALL or self._binary) and not self._too_large:
            try:
                return _exact(await self._download())
            except TooLarge:
                self._too_large = True
        if size - self.offset > TAIL_MAX:
            return _exact(await self._window(size))
        try:
            data = await self._tail(last=last)
        except TooLarge:  # it has grown by megabytes since its size was asked for
            return _exact(await self._window(size))
        if data is None:
            self._binary = True
            return await (self._replaced(size) if self._too_large else self._read(size, last=last))
        return _exact(data)

    async def _download(self) -> bytes:
        data = await self._client.download(self._system, self._path, patience=0, polling=True)
        if not self._same(data[max(0, self.offset - len(self._anchor)) : self.offset]):
            self._restart()
        return data[self.offset :]

    def _same(self, before: bytes) -> bool:
        """Whether the bytes before the offset are those that we have read.

        Else the file was truncated and has grown again.
        """
        return not self._anchor or before == self._anchor

    async def _tail(self, *, last: bool) -> bytes | None:
        """By `tail`, as far as it is certain; None when undecodable bytes are next."""
        anchor = _whole_characters(self._anchor)
        start = self.offset - len(anchor)
        content = await self._client.tail(
            self._system, self._path, bytes_=start + 1, skip_heading=True, patience=0, polling=True
        )
        text = content.content
        clean = text.partition(_UNKNOWN)[0]
        data = clean.encode()
        if anchor and not data.startswith(anchor):
            self._restart()
            return b""
        data = data[len(anchor) :]
        if data or clean == text:
            return data
        # An unfinished character at the very end is completed by the next write; nothing completes it after the last
        # one.
        unfinished = len(text) - len(clean) <= 3 and text.strip(_UNKNOWN) == clean
        return b"" if unfinished and not last else None

    async def _window(self, size: int) -> bytes:
        """A backlog that is too long for `tail`: windows by `view`, which start exactly at their own multiples."""
        if not self._too_large:
            try:
                return await self._download()
            except TooLarge:
                self._too_large = True
        start = self.offset - self.offset % VIEW
        text = await self._client.view(self._system, self._path, offset=start, size=VIEW, patience=0, polling=True)
        # The window may begin inside a character: each of its remaining bytes (at most 3) has come as one U+FFFD.
        whole = text.lstrip(_UNKNOWN)
        broken = len(text) - len(whole)
        data = _to_boundary(whole.partition(_UNKNOWN)[0].encode(), VIEW - broken)
        skip = self.offset - start - broken
        known = data[max(0, skip - len(self._anchor)) : max(0, skip)]
        if broken > 3 or not 0 <= skip < len(data) or not self._anchor.endswith(known):
            if self._exact:
                self.held = True
                return b""
            raise TooLarge(
                f"{size - self.offset} bytes that are not text wait to be read",
                system=self._system,
                path=self._path,
                hint="Fetch the file instead (`hpcbridge get`)",
            )
        return data[skip:]

    async def _replaced(self, size: int) -> tuple[bytes, int]:
        """Undecodable bytes in a file too large for `download`: with U+FFFD in their place, once the file is quiet."""
        if self._exact:
            self.held = True
            return b"", 0
        content = await self._client.tail(
            self._system, self._path, bytes_=self.offset + 1, skip_heading=True, patience=0, polling=True
        )
        stat = await self._client.stat(self._system, self._path, dereference=True, patience=0, polling=True)
        if stat.size != size:
            return b"", 0
        log.warning("%s is not UTF-8 and too large for an exact read; some bytes are replaced", self._path)
        return content.content.encode(), size - self.offset


def _exact(data: bytes) -> tuple[bytes, int]:
    return data, len(data)


def _whole_characters(data: bytes) -> bytes:
    """The longest end of `data` that begins at a character and decodes."""
    for start in range(min(4, len(data))):
        with contextlib.suppress(UnicodeDecodeError):
            data[start:].decode()
            return data[start:]
    return b""


def _to_boundary(data: bytes, size: int) -> bytes:
    """The first `size` bytes of UTF-8, and the rest of the character that the last of them begins."""
    while size < len(data) and data[size] & 0xC0 == 0x80:
        size += 1
    return data[:size]


async def post_mortem(
    client: FirecrestClient, system: str, info: JobInfo, *, output: str | None = None, lines: int = 20
) -> JobFailed | None:
    """The error for a job that ended badly, with state, reason and the last lines it wrote; None when it ended well.

    `output` is the file to look at; without it those that the controller remembers, standard error first. That nothing
    can be read is no error here: then the state alone is told. A job that left because another holds its key's lock
    gives LostRace.
    """
    failed = next((task for task in info.tasks if not task.ok and task.is_terminal), info)
    tail = await _last_lines(client, system, failed, output, lines)
    context = {"site": client.session.site.name, "system": system}
    if failed.exit_code == LOST_RACE_EXIT and is_ours(info.name) and info.workdir:
        with contextlib.suppress(HpcBridgeError):
            owner = await lock_owner(client, system, Places(info.workdir, info.name).lock)
            if owner not in (None, info.job_id):
                return LostRace(f"Job {info.job_id} lost to job {owner}", info=info, tail=tail, **context)
    failure = info.failure(tail, **context)
    if failure is not None and failed.exit_code == CANNOT_LOCK_EXIT and is_ours(info.name):
        failure.hint = "Nothing was run: see whether the work directory exists on the node and can be written to"
    return failure


async def _last_lines(
    client: FirecrestClient, system: str, info: JobInfo, output: str | None, lines: int
) -> str | None:
    """The last lines of the first of the job's files that has any."""
    try:
        paths = [output] if output else await _streams(client, system, info)
    except HpcBridgeError as error:
        log.debug("post-mortem of %s: %s", info.job_id, error)
        return None
    for path in paths:
        with contextlib.suppress(HpcBridgeError):
            content = (await client.tail(system, path, lines=lines)).content
            if content.strip():
                return f"Last lines of {path}:\n{content}"
    return None


async def _streams(client: FirecrestClient, system: str, info: JobInfo) -> list[str]:
    metadata = await client.metadata(system, info.job_id.partition("_")[0])
    index = info.job_id.rpartition("_")[2] if "_" in info.job_id else ""
    paths = []
    for path in (metadata.standard_error, metadata.standard_output):
        if path and path != "/dev/null" and path not in paths:
            paths.append(path.replace("%a", index))
    return paths
