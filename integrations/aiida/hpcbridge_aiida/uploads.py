"""Uploads: into directories of our own making they are collected, anything else is sent at once."""

from __future__ import annotations

import asyncio
import glob
import os
import posixpath
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from aiida.transports.transport import TransportPath, has_magic

from hpcbridge.errors import AlreadyExists, InvalidPath, PathNotFound
from hpcbridge.firecrest.paths import check_name, check_path
from hpcbridge_aiida.failures import remote
from hpcbridge_aiida.looking import Looking
from hpcbridge_aiida.owned import Kind
from hpcbridge_aiida.paths import absolute, local_path
from hpcbridge_aiida.spool import Operation

if TYPE_CHECKING:
    from hpcbridge_aiida.parcels import Parcel

SCRIPT_MAX = 1_000_000
"""Bytes up to which a file that looks like a batch script is remembered until it is submitted."""
SEEN_MISSING = 30.0
"""Seconds for which a directory that was missing may be made by somebody else without that being an error."""


class Uploads(Looking):
    """Directories, files and trees, from here to there."""

    async def finish(self) -> None:
        """Send what this transport has collected; what we made is from now on anybody's to change."""
        session = self._session
        if session is None:
            return
        mine, self._touched = list(self._touched), set()
        wanted, self._wanted = self._wanted, set()
        await session.delivery.send(mine)
        await session.make_still_assumed(wanted)
        await session.drop(mine)
        await session.tidy()

    # -- directories -------------------------------------------------------------------------------------------------

    @remote
    async def makedirs_async(self, path: TransportPath, ignore_existing: bool = False) -> None:
        """Make a directory and those above it. Raises OSError where it exists, unless `ignore_existing`."""
        where = absolute(path)
        parcel, kind = self.owned(where)
        if kind is Kind.UNKNOWN:
            await self._make_elsewhere(where, ignore_existing=ignore_existing)
        elif kind is Kind.ABSENT and parcel is not None:
            await self._directory(parcel, where)
        elif not (kind.is_directory and ignore_existing):
            raise FileExistsError(f"{where} already exists on {self.system}")

    async def _make_elsewhere(self, path: str, *, ignore_existing: bool) -> None:
        session = self.session
        if ignore_existing and (session.is_trusted(path) or session.is_assumed(path)):
            return
        if ignore_existing and self.coalesce:
            self._assume(path)
            return
        if not ignore_existing:
            if not self._saw_missing(path) and await self.kind_of(path) is not Kind.ABSENT:
                raise FileExistsError(f"{path} already exists on {self.system}")
            session.asked(path)
            session.is_new(path)
        if not session.is_trusted(path):  # of those who have found it missing, one makes it
            await session.once("mkdir", path, lambda: self._made(path))

    async def _made(self, path: str) -> None:
        await self.client.mkdir(self.system, path, parents=True)
        self.session.have_been_made([path])

    def _assume(self, path: str) -> None:
        """`path` shall exist when this transport is closed, or is looked at."""
        check_path(path, self.system)
        self.session.assume(path)
        self._wanted.add(path)

    def _saw_missing(self, path: str) -> bool:
        """Whether `path_exists` has said a moment ago, and for this very call, that `path` is missing.

        Calculations that are uploaded side by side all find the work directory of a new computer missing, and all make
        it: one of them does, and for the others it is as they want it.
        """
        fresh = [each for each in self._missing.pop(path, []) if time.monotonic() - each < SEEN_MISSING]
        if len(fresh) > 1:
            self._missing[path] = fresh[1:]
        return bool(fresh)

    @remote
    async def mkdir_async(self, path: TransportPath, ignore_existing: bool = False) -> None:
        """Make a directory in one that exists. Raises OSError where it exists, unless `ignore_existing`."""
        where = absolute(path)
        parcel, kind = self.owned(where)
        if kind is Kind.ABSENT and parcel is not None:
            if not parcel.tree.kind(posixpath.dirname(where)).is_directory:
                raise FileNotFoundError(f"{posixpath.dirname(where)} does not exist on {self.system}")
            await self._directory(parcel, where)
        elif kind is not Kind.UNKNOWN:
            if not (kind.is_directory and ignore_existing):
                raise FileExistsError(f"{where} already exists on {self.system}")
        elif self.coalesce and self.session.is_assumed(posixpath.dirname(where)):
            # Its parent will be made with it: all there is to know is whether it is there already.
            found = Kind.ABSENT if self.session.is_first_in_new(where) else await self._peek(where)
            if found is Kind.ABSENT and ignore_existing:
                self._assume(where)  # others may make it and use it as well
            elif found is Kind.ABSENT:
                await self._own(where, made=False)
            elif not (ignore_existing and found is Kind.DIRECTORY):
                raise FileExistsError(f"{where} already exists on {self.system}")
        else:
            await self._make_now(where, ignore_existing=ignore_existing)

    async def _peek(self, path: str) -> Kind:
        """Like `kind_of`, without making the directories above first."""
        try:
            await self.client.stat(self.system, path, dereference=True)
        except PathNotFound:
            return Kind.ABSENT
        return await self.kind_of(path)

    async def _make_now(self, path: str, *, ignore_existing: bool) -> None:
        above = posixpath.dirname(path)
        await self.session.settle(path)
        try:
            await self.client.mkdir(self.system, path, parents=False)
        except AlreadyExists:
            if ignore_existing and await self.kind_of(path) is Kind.DIRECTORY:
                return
            raise
        except PathNotFound:
            if not self.session.is_trusted(above):
                raise
            # Somebody has removed the computer's work directory since we looked.
            self.session.forget(above)
            await self.client.mkdir(self.system, path, parents=True)
        self.session.have_been_made([path])
        if not ignore_existing:
            await self._own(path, made=True)

    async def _own_new(self, directory: str) -> None:
        """Where `directory` was asked for and is not there: have it made by the job that copies into it."""
        session = self.session
        if not (self.coalesce and session.is_assumed(directory)) or await self._peek(directory) is not Kind.ABSENT:
            return
        await self._own(directory, made=True)
        session.no_longer_assumed(directory)
        await session.parcels[directory].operation(Operation("mkdir", "", "", directory), Kind.DIRECTORY)

    async def _own(self, path: str, *, made: bool) -> None:
        """`path` did not exist, and is ours; it has been `made` already, or is to be."""
        from hpcbridge_aiida.parcels import Parcel

        session = self.session
        check_path(path, self.system)
        base = session.base_for(path)
        if base is None:
            # Nothing above it is known to exist: an archive could be put nowhere.
            base = posixpath.dirname(path)
            if not made:
                await self.client.mkdir(self.system, base, parents=True)
                session.have_been_made([base])
        if path in session.parcels:
            raise FileExistsError(f"{path} is being made already on {self.system}")
        parcel = session.parcels[path] = Parcel(session, path, base)
        self._touched.add(parcel)
        if not made:
            await parcel.directory(path)

    async def _directory(self, parcel: Parcel, path: str, mode: int = 0o755) -> None:
        """Make a directory in one of our own making."""
        self._touched.add(parcel)
        await self.session.before_change(path)
        if self.coalesce:
            await parcel.directory(path, mode)
            return
        await self.client.mkdir(self.system, path, parents=True)
        for each in (*parcel.tree.missing_above(path), path):
            parcel.tree.add(each, Kind.DIRECTORY)

    # -- files and trees ---------------------------------------------------------------------------------------------

    @remote
    async def put_async(
        self,
        localpath: TransportPath,
        remotepath: TransportPath,
        dereference: bool = True,
        overwrite: bool = True,
        ignore_nonexisting: bool = False,
        *_args: object,
        **_kwargs: object,
    ) -> None:
        """Copy a file, a directory or all that matches a pattern; `DIRECTORY/` stands for what is in it."""
        local, target = local_path(localpath), absolute(remotepath)
        if has_magic(local):
            if has_magic(target):
                raise ValueError("Pathname patterns are not allowed in the destination")
            found = sorted(await asyncio.to_thread(glob.glob, local))
            if len(found) > 1 and await self.kind_of(target) is not Kind.DIRECTORY:
                raise OSError("Remote destination is not a directory, or does not exist")
        else:
            found = [local]
        for each in found:
            if Path(each).is_dir():
                await self.puttree_async(each, target, dereference=dereference, overwrite=overwrite)
            elif Path(each).is_file():
                into = await self.kind_of(target) is Kind.DIRECTORY
                file = posixpath.join(target, posixpath.basename(each)) if into else target
                await self.putfile_async(each, file, overwrite=overwrite)
            elif not ignore_nonexisting:
                raise OSError(f"The local path {each} does not exist")

    @remote
    async def putfile_async(
        self,
        localpath: TransportPath,
        remotepath: TransportPath,
        dereference: bool = True,
        overwrite: bool = True,
        *_args: object,
        **_kwargs: object,
    ) -> None:
        """Copy the file `localpath` to the path `remotepath`, whose directory exists."""
        source, target = Path(local_path(localpath)), absolute(remotepath)
        if not source.exists():
            raise OSError(f"The local path {source} does not exist")
        parcel, kind = self.owned(target)
        if not overwrite and (kind if parcel and kind is not Kind.UNKNOWN else await self.kind_of(target)) is Kind.FILE:
            raise OSError("Destination already exists: not overwriting it")
        if parcel is None or kind in (Kind.UNKNOWN, Kind.LINK):
            await self.session.settle(target)
            await self._send(source, target)
            return
        if not parcel.tree.kind(posixpath.dirname(target)).is_directory:
            raise FileNotFoundError(f"{posixpath.dirname(target)} does not exist on {self.system}")
        if kind.is_directory:
            raise IsADirectoryError(f"{target} is a directory on {self.system}")
        await self._collect(parcel, source, target, 0o666)

    async def _collect(self, parcel: Parcel, source: Path, target: str, mode: int) -> None:
        """Put a file into a directory of our own making."""
        size = source.stat().st_size
        self._touched.add(parcel)
        await self.session.before_change(target)
        await self._remember(source, target, size)
        if parcel.has_operations:
            await self.session.delivery.send([parcel])
        empty_at_once = not self.coalesce and size == 0  # by itself it would take the server five seconds
        if (self.coalesce or empty_at_once or not _plain(target)) and size <= self.session.limits.upload - 4096:
            await parcel.file(target, source, mode)
            return
        await self.session.delivery.send([parcel])
        await self._send(source, target)
        parcel.tree.add(target, Kind.FILE)

    async def _send(self, source: Path, target: str) -> None:
        """Send one file now: in one request where it can be, as the server's limits want it otherwise."""
        size = source.stat().st_size
        self.session.scripts.pop(target, None)
        await self._remember(source, target, size)
        directory, name = posixpath.split(target)
        if 0 < size <= self.session.limits.upload and _plain(target):
            data = await asyncio.to_thread(source.read_bytes)
            await self.client.upload(self.system, directory, name, data)
        elif size == 0 or not _plain(target):
            await self._send_archived(source, target)
        else:
            await self.session.handle.put(source, target, account=self.session.endpoint.account or None)

    async def _send_archived(self, source: Path, target: str) -> None:
        """An empty file, or one whose name no request can carry: by an archive of its own."""
        from hpcbridge_aiida.parcels import Parcel

        directory = posixpath.dirname(target)
        parcel = Parcel(self.session, target, directory)
        try:
            await parcel.file(target, source, 0o666)
            await self.session.delivery.send([parcel])
        finally:
            await parcel.close()

    async def _remember(self, source: Path, target: str, size: int) -> None:
        """Keep what looks like a batch script: the submit will want it in a moment."""
        if 0 < size <= SCRIPT_MAX:
            with suppress(UnicodeDecodeError):
                data = await asyncio.to_thread(source.read_bytes)
                if data.startswith(b"#!") and b"#SBATCH" in data[:4096]:
                    self.session.keep_script(target, data.decode())

    @remote
    async def puttree_async(
        self,
        localpath: TransportPath,
        remotepath: TransportPath,
        dereference: bool = True,
        overwrite: bool = True,
        *_args: object,
        **_kwargs: object,
    ) -> None:
        """Copy a directory: into one that exists, under its own name; to a new path, as that."""
        local, target = local_path(localpath), absolute(remotepath)
        if not Path(local).exists():
            raise OSError(f"The local path {local} does not exist")
        if not Path(local).is_dir():
            raise ValueError(f"The local path {local} is not a folder")
        kind = await self.kind_of(target)
        if kind is not Kind.ABSENT and not overwrite:
            raise OSError("Can't overwrite existing files")
        if kind is Kind.FILE:
            raise OSError("Cannot copy a directory into a file")
        if kind is Kind.DIRECTORY and (name := os.path.split(local)[1]):
            target = posixpath.join(target, name)
            kind = await self.kind_of(target)
            if kind is Kind.FILE:
                raise OSError("Cannot copy a directory into a file")
        parcel = self.session.parcel_of(target)
        if parcel is None or parcel.tree.kind(target) in (Kind.UNKNOWN, Kind.LINK):
            await self._merge(Path(local), target, kind, dereference=dereference)
        else:
            await self._fill(parcel, Path(local), target, dereference=dereference)

    async def _merge(self, local: Path, target: str, kind: Kind, *, dereference: bool) -> None:
        """A tree into a directory that is not of our own making (or not yet there)."""
        if kind is Kind.ABSENT:
            if not self.coalesce:
                await self.client.mkdir(self.system, target, parents=True)
            await self._own(target, made=not self.coalesce)
            parcel = self.session.parcel_of(target)
            assert parcel is not None
            await self._fill(parcel, local, target, dereference=dereference)
            return
        from hpcbridge_aiida.parcels import Parcel

        await self.session.settle(target)
        parcel = Parcel(self.session, target, target)
        try:
            await self._fill(parcel, local, target, dereference=dereference)
            await self.session.delivery.send([parcel])
        finally:
            self._touched.discard(parcel)
            await parcel.close()

    async def _fill(self, parcel: Parcel, local: Path, target: str, *, dereference: bool) -> None:
        """What is in the directory `local` into the directory `target` of a parcel."""
        if not parcel.tree.kind(target).is_directory:
            await self._directory(parcel, target)
        for entry in sorted(await asyncio.to_thread(lambda: list(os.scandir(local))), key=lambda each: each.name):
            where = posixpath.join(target, entry.name)
            if entry.is_symlink() and not dereference:
                await parcel.link(where, os.readlink(entry.path))  # noqa: PTH115 (a Path would change the text)
            elif entry.is_dir():
                if not parcel.tree.kind(where).is_directory:
                    await self._directory(parcel, where, entry.stat().st_mode & 0o777)
                await self._fill(parcel, Path(entry.path), where, dereference=dereference)
            elif entry.is_file():
                await self._collect(parcel, Path(entry.path), where, entry.stat().st_mode & 0o777)
            else:
                raise OSError(f"{entry.path} is neither a file, a directory nor a link that leads to one")
        self._touched.add(parcel)


def _plain(path: str) -> bool:
    """Whether one upload can carry the file's name; the directory's was checked before."""
    try:
        check_path(path)
        check_name(posixpath.basename(path))
    except InvalidPath:
        return False
    return True
