"""Downloads: a file in one request, a directory or many files as one archive."""

from __future__ import annotations

import asyncio
import os
import posixpath
import re
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aiida.transports.transport import TransportPath, has_magic

from hpcbridge.errors import (
    CommandTimeout,
    HpcBridgeError,
    InvalidPath,
    InvalidRequest,
    NotFound,
    PathNotFound,
    PermissionDenied,
    TooLarge,
)
from hpcbridge.firecrest.paths import check_path
from hpcbridge_aiida.failures import remote
from hpcbridge_aiida.looking import Looking
from hpcbridge_aiida.owned import Kind
from hpcbridge_aiida.parcels import ARCHIVE_PREFIX
from hpcbridge_aiida.paths import absolute, carried, lineage, local_path
from hpcbridge_aiida.unpacking import contents, unpack, unpack_file

if TYPE_CHECKING:
    from hpcbridge.firecrest import FileEntry

FEW = 3
"""Files up to which one request each is no more than packing, fetching and removing an archive of them."""
MOST = 500
"""Files that one pattern names at most: it is part of a command line."""
_SIMPLE = re.compile(r"[A-Za-z0-9_.+,=@%/-]+", re.ASCII)
_SPECIAL = re.compile(r"[.+]")


class Downloads(Looking):
    """Files and trees, from there to here."""

    _fetched: dict[str, bytes]

    @remote
    async def get_async(
        self,
        remotepath: TransportPath,
        localpath: TransportPath,
        dereference: bool = True,
        overwrite: bool = True,
        ignore_nonexisting: bool = False,
        *_args: object,
        **_kwargs: object,
    ) -> None:
        """Fetch a file, a directory or all that matches a pattern; into `localpath` where that is a directory."""
        local = local_path(localpath)
        source = absolute(remotepath)
        if not has_magic(source):
            found = await self._get_one(source, local, dereference=dereference, overwrite=overwrite)
            if not found and not ignore_nonexisting:
                raise OSError(f"The remote path {source} does not exist")
            return
        if has_magic(local):
            raise ValueError("Pathname patterns are not allowed in the destination")
        matches = await self.glob_async(source)
        if len(matches) > 1 and not Path(local).is_dir():
            raise OSError("The local path is not a directory, or does not exist")
        for each in matches:
            await self._get_one(each, local, dereference=dereference, overwrite=overwrite)

    async def _get_one(self, source: str, local: str, *, dereference: bool, overwrite: bool) -> bool:
        """Whether there was anything: a file is fetched without asking first what it is."""
        inside = os.path.join(local, posixpath.basename(source)) if Path(local).is_dir() else local  # noqa: PTH118
        try:
            await self.getfile_async(source, inside, overwrite=overwrite)
        except FileNotFoundError:
            if not Path(inside).parent.is_dir():
                raise
            return False
        except IsADirectoryError:
            await self.gettree_async(source, local, dereference=dereference, overwrite=overwrite)
        return True

    @remote
    async def getfile_async(
        self,
        remotepath: TransportPath,
        localpath: TransportPath,
        dereference: bool = True,
        overwrite: bool = True,
        *_args: object,
        **_kwargs: object,
    ) -> None:
        """Fetch one file, links followed. Raises FileNotFoundError, IsADirectoryError."""
        local, source = Path(local_path(localpath)), absolute(remotepath)
        if local.is_file() and not overwrite:
            raise OSError("Destination already exists: not overwriting it")
        await self.session.settle(source)
        try:
            check_path(source)
        except InvalidPath:
            # No request can carry the name; a job of hpcbridge's can.
            await self.session.handle.get(source, local, resume=False)
            return
        try:
            data = await self._matching(source)
            if data is None:
                data = await self.client.download(self.system, source)
        except (TooLarge, CommandTimeout):
            await self.session.handle.get(source, local, account=self.session.endpoint.account or None)
            return
        except HpcBridgeError as error:
            await self._explain(source, error)
            raise
        await asyncio.to_thread(local.write_bytes, data)

    async def _matching(self, source: str) -> bytes | None:
        """The content of a file that a pattern has just matched with others: all of them are fetched as one archive."""
        if source not in self._fetched and source in self._matched:
            matched, self._matched = self._matched, {}
            wanted = _listable(matched, self.session.limits.download)
            if source in wanted and len(wanted) > FEW:
                self._fetched = await self._pack_files(wanted)
        return self._fetched.pop(source, None)

    async def _pack_files(self, paths: Sequence[str]) -> dict[str, bytes]:
        """The content of plain files by path; nothing where that is too much for a quick command."""
        root = posixpath.commonpath([posixpath.dirname(path) for path in paths])
        names = {posixpath.relpath(path, root): path for path in paths}
        pattern = "[.]/\\(" + "\\|".join(_SPECIAL.sub(r"[\g<0>]", name) for name in names) + "\\)"
        archive = posixpath.join(root, f"{ARCHIVE_PREFIX}{secrets.token_hex(8)}.tgz")
        await self.session.will_make(archive)
        try:
            await self.client.compress(self.system, posixpath.join(root, "."), archive, pattern=pattern)
            data = await self.client.download(self.system, archive)
        except (CommandTimeout, TooLarge, InvalidRequest, PermissionDenied):
            return {}  # one by one, then
        finally:
            self.session.remove_later(archive)
        content = await asyncio.to_thread(contents, data)
        return {names[name]: text for name, text in content.items() if name in names}

    async def _explain(self, path: str, error: HpcBridgeError) -> None:
        """Say of a refused download that it was one of a directory, where it was."""
        if isinstance(error, PathNotFound | PermissionDenied):
            return
        if "Is a directory" in error.message or await self.kind_of(path) is Kind.DIRECTORY:
            raise IsADirectoryError(f"{path} is a directory on {self.system}") from error

    @remote
    async def gettree_async(
        self,
        remotepath: TransportPath,
        localpath: TransportPath,
        dereference: bool = True,
        overwrite: bool = True,
        *_args: object,
        **_kwargs: object,
    ) -> None:
        """Fetch a directory: into `localpath` under its own name where that exists, else as that."""
        local = Path(local_path(localpath))
        source = absolute(remotepath)
        if local.exists() and not overwrite:
            raise OSError("Can't overwrite existing files")
        if local.is_file():
            raise OSError("Cannot copy a directory into a file")
        await self.session.settle(source)
        try:
            entries = await self.session.handle.ls(f"{source}/", hidden=True, recursive=True)
        except (NotFound, InvalidPath):
            raise OSError(f"Input remotepath is not a folder: {source}") from None
        if local.is_dir():
            local /= posixpath.basename(str(remotepath))
        await asyncio.to_thread(local.mkdir, parents=True, exist_ok=True)
        await self._fetch_tree(source, local, entries, dereference=dereference)

    async def _fetch_tree(self, source: str, local: Path, entries: Sequence[FileEntry], *, dereference: bool) -> None:
        plain = all(entry.is_file or entry.is_dir for entry in entries)
        files = [entry for entry in entries if entry.is_file]
        # A name with a backslash may be another one, in the listing's quoting: in an archive it is what it is.
        certain = all("\\" not in e.name and carried(posixpath.join(source, e.name)) for e in entries)
        if plain and certain and len(files) <= FEW and all(e.size <= self.session.limits.download for e in files):
            for entry in entries:
                if entry.is_dir:
                    (local / entry.name).mkdir(parents=True, exist_ok=True)
            for entry in files:
                (local / entry.name).parent.mkdir(parents=True, exist_ok=True)
                await self.getfile_async(posixpath.join(source, entry.name), local / entry.name)
            return
        data = None
        if sum(entry.size for entry in files) <= 20 * self.session.limits.download:
            data = await self._packed(source, dereference=dereference)
        if data is not None:
            await asyncio.to_thread(unpack, data, local, posixpath.basename(source))
        elif dereference and not plain:
            await self._fetch_dereferenced(source, local)
        else:
            await self.session.handle.get(source, local, account=self.session.endpoint.account or None)

    async def _packed(self, source: str, *, dereference: bool) -> bytes | None:
        """The directory as one compressed archive, or None where it is too much for quick commands."""
        if not carried(source):
            return None
        place = next((each for each in lineage(posixpath.dirname(source)) if self.session.is_trusted(each)), None)
        path = posixpath.join(place or await self.session.handle.home(), f"{ARCHIVE_PREFIX}{secrets.token_hex(8)}.tgz")
        await self.session.will_make(path)
        try:
            await self.client.compress(self.system, source, path, dereference=dereference)
            return await self.client.download(self.system, path)
        except (CommandTimeout, TooLarge):
            return None
        except (InvalidRequest, PermissionDenied) as error:
            raise OSError(f"{source} cannot be packed: {error}") from error
        finally:
            self.session.remove_later(path)

    async def _fetch_dereferenced(self, source: str, local: Path) -> None:
        """A large tree with links in it: packed by a job that follows them, then fetched by hpcbridge's own ways."""
        from hpcbridge_aiida import batch

        path = posixpath.join(await self.session.handle.home(), f"{ARCHIVE_PREFIX}{secrets.token_hex(8)}.tgz")
        await self.session.will_make(path)
        command = batch.tar_command(path, posixpath.dirname(source), [posixpath.basename(source)], "z", "h")
        try:
            outcome = await batch.run_command(await self.session.transfer(), command)
            if outcome.status != 0:
                raise OSError(f"{source} cannot be packed: {outcome.err.strip()}")
            with tempfile.TemporaryDirectory(prefix="hpcbridge-") as folder:
                archive = Path(folder, "tree.tgz")
                await self.session.handle.get(path, archive, account=self.session.endpoint.account or None)
                await asyncio.to_thread(unpack_file, archive, local, posixpath.basename(source))
        finally:
            self.session.remove_later(path)


def _listable(matched: dict[str, int], most: int) -> list[str]:
    """Those of the matched files whose names a pattern can hold, as long as they fit into one download."""
    wanted: list[str] = []
    size = 0
    for path, each in matched.items():
        if not _SIMPLE.fullmatch(path) or len(wanted) == MOST:
            continue
        size += each + 1024
        if size > most:
            return []
        wanted.append(path)
    return wanted
