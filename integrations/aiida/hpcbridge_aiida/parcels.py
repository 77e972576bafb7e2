"""Directories under way: what AiiDA puts into a new directory is collected, and sent as one archive.

Flushes are shared: while one is under way, those that are asked for meanwhile wait and then go together, whatever the
number of calculations. Nothing is lost when a worker is killed, because what is collected is on disk (`spool`).
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import posixpath
import secrets
import shlex
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from hpcbridge.errors import CommandTimeout, HpcBridgeError, PathNotFound
from hpcbridge_aiida import batch
from hpcbridge_aiida.failures import plain
from hpcbridge_aiida.owned import Kind, OwnedTree
from hpcbridge_aiida.paths import is_within
from hpcbridge_aiida.spool import BLOCK, END, Operation, Record, SpoolFile

if TYPE_CHECKING:
    from hpcbridge_aiida.sessions import Session

log = logging.getLogger(__name__)

ARCHIVE_PREFIX = ".hpcbridge-aiida-"
"""Names of archives on the cluster, there for as long as it takes to unpack them."""


class Parcel:
    """A directory `root` of our own making, and what is to be sent there. `tree` says what is in it."""

    def __init__(self, session: Session, root: str, base: str) -> None:
        """Nothing is on disk before something is put."""
        self.session, self.base = session, base
        self.tree = OwnedTree(root)
        self.scripts: dict[str, str] = {}
        self._spool: SpoolFile | None = None
        self.turn = asyncio.Lock()

    @classmethod
    async def left_behind(cls, session: Session, root: str) -> Parcel | None:
        """What a worker that was killed had collected for `root`, to be sent now; None if nothing."""
        spool = await asyncio.to_thread(SpoolFile.reopen, session.spool_path(root))
        if spool is None:
            return None
        parcel = cls(session, root, spool.record.base)
        parcel._spool = spool
        return parcel

    @property
    def root(self) -> str:
        """Absolute path of the directory."""
        return self.tree.root

    @property
    def spool(self) -> SpoolFile:
        """The archive under way; there is one."""
        assert self._spool is not None
        return self._spool

    @property
    def pending(self) -> bool:
        """Whether anything is to be sent or done."""
        return self._spool is not None and self._spool.pending

    async def directory(self, path: str, mode: int = 0o755) -> None:
        """Make a directory, and those above it within the root that are missing."""
        missing = [*self.tree.missing_above(path), path]
        for each in missing:
            await self._do(SpoolFile.directory, each, mode)
            self.tree.add(each, Kind.DIRECTORY)

    async def link(self, path: str, target: str) -> None:
        """Make a symbolic link."""
        await self._do(SpoolFile.link, path, target)
        self.tree.add(path, Kind.LINK)

    async def file(self, path: str, source: Path, mode: int) -> None:
        """Copy a local file."""
        await self._do(SpoolFile.file, path, source, mode)
        self.tree.add(path, Kind.FILE)

    async def operation(self, operation: Operation, kind: Kind) -> None:
        """Have `operation` make its target, after everything that was put before."""
        await self._do(SpoolFile.operation, operation)
        self.tree.add(operation.target, kind)

    async def change_mode(self, path: str, mode: int) -> bool:
        """Change the mode of what is still to be sent; False when it is not."""
        return self._spool is not None and await self._do(SpoolFile.change_mode, path, mode)

    @property
    def has_operations(self) -> bool:
        """Whether something is to be done that a later file must not overtake."""
        return self._spool is not None and bool(self._spool.record.operations)

    def reads(self, path: str) -> bool:
        """Whether something that waits to be done reads what is at, in or above `path`."""
        waiting = self._spool.record.operations if self._spool is not None else ()
        return any(is_within(path, each.source) or is_within(each.source, path) for each in waiting if each.source)

    async def close(self) -> None:
        """Forget it; there is nothing left to be sent."""
        spool, self._spool = self._spool, None
        if spool is not None:
            await asyncio.to_thread(spool.discard)

    async def _do(self, action: object, *arguments: object) -> bool:
        async with self.turn:
            return bool(await asyncio.to_thread(self._act, action, arguments))

    def _act(self, action: object, arguments: tuple[object, ...]) -> object:
        if self._spool is None:
            self._spool = SpoolFile(self.session.spool_path(self.root), Record(self.root, self.base))
        return action(self._spool, *arguments)  # type: ignore[operator]


class Delivery:
    """Sends parcels; all that are asked for while it is busy go together."""

    def __init__(self, session: Session) -> None:
        """Nothing is under way."""
        self._session = session
        self._wanted: dict[Parcel, asyncio.Future[None]] = {}
        self._sending: dict[Parcel, asyncio.Future[None]] = {}
        self._runner: asyncio.Task[None] | None = None

    async def send(self, parcels: Iterable[Parcel]) -> None:
        """Until everything that was put into `parcels` by now is on the cluster. Raises the first failure."""
        futures = [self._want(parcel) for parcel in parcels if parcel.pending]
        outcomes = await asyncio.gather(*map(asyncio.shield, futures), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _want(self, parcel: Parcel) -> asyncio.Future[None]:
        if parcel in self._sending and not self._sending[parcel].done():
            return self._sending[parcel]
        if parcel not in self._wanted:
            self._wanted[parcel] = asyncio.get_running_loop().create_future()
        if self._runner is None or self._runner.done():
            self._runner = self._session.spawn(self._run())
        return self._wanted[parcel]

    async def _run(self) -> None:
        while self._wanted:
            self._sending, self._wanted = self._wanted, {}
            bases: dict[str, list[Parcel]] = {}
            for parcel in self._sending:
                bases.setdefault(parcel.base, []).append(parcel)
            await asyncio.gather(*(self._together(base, parcels) for base, parcels in bases.items()))
            self._sending = {}

    async def _together(self, base: str, parcels: list[Parcel]) -> None:
        """All of `parcels` at once; where that fails, each on its own, so that none suffers for another."""
        try:
            await self._deliver(base, parcels)
        except Exception as error:
            if len(parcels) > 1 and isinstance(error, HpcBridgeError | OSError):
                log.info("sending %s directories together failed, now one by one: %s", len(parcels), error)
                await asyncio.gather(*(self._together(base, [parcel]) for parcel in parcels))
                return
            for parcel in parcels:
                self._settle(parcel, error)
            return
        for parcel in parcels:
            self._settle(parcel, None)

    def _settle(self, parcel: Parcel, error: BaseException | None) -> None:
        future = self._sending[parcel]
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
            future.exception()  # whoever asked may have gone

    async def _deliver(self, base: str, parcels: list[Parcel]) -> None:
        async with AsyncExitStack() as stack:
            for parcel in parcels:  # whoever puts something meanwhile waits, and is part of the next
                await stack.enter_async_context(parcel.turn)
            for archive in await asyncio.to_thread(_archives, parcels, self._session.limits.upload):
                await self._unpack(base, archive)
            await self._operate([each for parcel in parcels for each in parcel.spool.record.operations])
            for parcel in parcels:
                await asyncio.to_thread(parcel.spool.sent)
        self._session.have_been_made([posixpath.dirname(parcel.root) for parcel in parcels])

    async def _operate(self, operations: Sequence[Operation]) -> None:
        if not operations:
            return
        failures = await batch.run_operations(await self._session.transfer(), operations)
        if failures:
            words = "; ".join(f"{operations[index].source}: {text}" for index, text in failures.items())
            raise OSError(f"{len(failures)} of {len(operations)} copies and links failed: {words}")

    async def _unpack(self, base: str, archive: bytes) -> None:
        """Upload one archive and unpack it below `base`."""
        session = self._session
        name = f"{ARCHIVE_PREFIX}{secrets.token_hex(8)}.tar.gz"
        path = posixpath.join(base, name)
        await session.will_make(path)
        try:
            await session.client.upload(session.system, base, name, archive)
        except PathNotFound:
            # Somebody has removed the work directory of the computer since we looked.
            session.forget(base)
            await session.client.mkdir(session.system, base, parents=True)
            session.have_been_made([base])
            await session.client.upload(session.system, base, name, archive)
        try:
            await session.client.extract(session.system, path, base, compression="gzip")
        except PathNotFound as error:
            raise plain(OSError(str(error))) from error
        except CommandTimeout:
            # More than the server's quick command can do in its five seconds, or a file system that is slow today.
            await self._unpack_by_job(path, base)
        finally:
            session.remove_later(path)

    async def _unpack_by_job(self, path: str, base: str) -> None:
        command = f"tar -xzf {shlex.quote(path)} -C {shlex.quote(base)}"
        outcome = await batch.run_command(await self._session.transfer(), command)
        if outcome.status != 0:
            raise OSError(f"what was uploaded to {base} could not be unpacked: {outcome.err.strip()}")


def _archives(parcels: Sequence[Parcel], limit: int) -> list[bytes]:
    """The parcels' members as compressed archives of at most `limit` bytes each, in order."""
    archives: list[bytes] = []
    waiting: list[bytes] = []
    size = 0
    for parcel in parcels:
        for block in parcel.spool.blocks():
            if waiting and size + len(block) > limit - 64 * BLOCK:
                archives.append(gzip.compress(b"".join(waiting) + END, 1))
                waiting, size = [], 0
            waiting.append(block)
            size += len(block)
    if waiting:
        archives.append(gzip.compress(b"".join(waiting) + END, 1))
    return archives
