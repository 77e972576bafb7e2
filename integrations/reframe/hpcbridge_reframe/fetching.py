"""Listings and contents of stage directories on the cluster, for all tests that end at about the same time."""

from __future__ import annotations

import asyncio
import io
import posixpath
import re
import secrets
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hpcbridge.errors import CommandTimeout, HpcBridgeError, InvalidPath, NotFound, ServerError, TooLarge
from hpcbridge_reframe.batching import Batch

if TYPE_CHECKING:
    from hpcbridge import System
    from hpcbridge.firecrest import FileEntry

DIRECT = 3_900_000
"""Bytes of a file up to which one request brings it, on any server."""
TOGETHER = 3
"""Directories below one parent, or files, from which on they are asked for together."""
CROWDED = 3000
"""Entries of a parent's last listing above which its directories are listed one by one."""
ARCHIVE = 3_000_000
"""Bytes of contents in one archive, and of its pattern, that the server's limits certainly take."""
PATTERN = 60_000

Refusal = (TooLarge, InvalidPath, CommandTimeout, ServerError)
"""What says that it has to be done otherwise."""


@dataclass(frozen=True)
class Wanted:
    """Files of a stage directory, with their sizes in bytes."""

    directory: str
    files: Mapping[str, int]


class Fetching:
    """Asks for many directories and files with few requests."""

    def __init__(self, system: System, root: str) -> None:
        """`root` is the mirror of the stage prefix; archives are made there."""
        self.system = system
        self.root = root
        self._sizes: dict[str, int] = {}
        self._archive = f".hpcbridge-bring-{secrets.token_hex(8)}.tar.gz"
        self._is_there = False
        self._listings: Batch[str, list[FileEntry]] = Batch(self._list)
        self._contents: Batch[Wanted, dict[str, bytes]] = Batch(self._fetch)

    async def listing(self, directory: str) -> list[FileEntry]:
        """Everything in a directory, at any depth, hidden or not. Raises PathNotFound."""
        return await self._listings.ask(directory)

    async def contents(self, directory: str, files: Mapping[str, int]) -> dict[str, bytes]:
        """The contents of `files`, as far as that goes; what is missing has to be fetched otherwise."""
        return await self._contents.ask(Wanted(directory, files)) if files else {}

    async def tidy(self) -> None:
        """Remove the last archive; each has taken the place of the one before."""
        if self._is_there:
            with suppress(HpcBridgeError):
                await self.system.client.rm(self.system.name, posixpath.join(self.root, self._archive))

    # -- listings ------------------------------------------------------------------------------------------------------

    async def _list(self, directories: Sequence[str]) -> list[list[FileEntry] | Exception]:
        below: dict[str, list[str]] = {}
        for each in directories:
            below.setdefault(posixpath.dirname(each), []).append(each)
        found: dict[str, list[FileEntry] | Exception] = {}
        single = []
        for parent, children in below.items():
            if len(children) >= TOGETHER and self._sizes.get(parent, 0) < CROWDED:
                found |= await self._list_parent(parent, children)
            else:
                single += children
        answers = await asyncio.gather(*map(self._list_one, single))
        found |= dict(zip(single, answers, strict=True))
        return [found[each] for each in directories]

    async def _list_one(self, directory: str) -> list[FileEntry] | Exception:
        try:
            return await self.system.ls(directory, hidden=True, recursive=True)
        except HpcBridgeError as error:
            return error

    async def _list_parent(self, parent: str, children: list[str]) -> dict[str, list[FileEntry] | Exception]:
        entries = await self._list_one(parent)
        if isinstance(entries, Exception):
            return {child: await self._list_one(child) for child in children}
        self._sizes[parent] = len(entries)
        found: dict[str, list[FileEntry]] = {}
        for entry in entries:
            name, _, rest = entry.name.partition("/")
            inside = found.setdefault(name, [])
            if rest:
                inside.append(replace(entry, name=rest))
        names = {child: posixpath.basename(child) for child in children}
        return {
            child: found[name] if name in found else await self._list_one(child)  # with the server's own words
            for child, name in names.items()
        }

    # -- contents ------------------------------------------------------------------------------------------------------

    async def _fetch(self, wanted: Sequence[Wanted]) -> list[dict[str, bytes] | Exception]:
        paths = {f"{each.directory}/{name}": size for each in wanted for name, size in each.files.items()}
        there: dict[str, bytes] = {}
        for group in self._groups(paths):
            there |= await self._fetch_together(group)
        rest = [path for path in paths if path not in there]
        for path, data in zip(rest, await asyncio.gather(*map(self._fetch_one, rest)), strict=True):
            if data is not None:
                there[path] = data
        return [
            {name: there[path] for name in each.files if (path := f"{each.directory}/{name}") in there}
            for each in wanted
        ]

    def _groups(self, paths: Mapping[str, int]) -> list[list[str]]:
        """Paths that may come in one archive each: of plain names and small."""
        groups: list[list[str]] = [[]]
        size = length = 0
        for path, bytes_ in paths.items():
            if bytes_ > ARCHIVE or not re.fullmatch(r"[\w./=@,:~%-]+", path, re.ASCII):
                continue
            size, length = size + bytes_ + 1024, length + len(path) + 10
            if size > ARCHIVE or length > PATTERN:
                groups.append([])
                size, length = bytes_ + 1024, len(path) + 10
            groups[-1].append(path)
        return [group for group in groups if len(group) >= TOGETHER]

    async def _fetch_together(self, paths: list[str]) -> dict[str, bytes]:
        """By one archive that the login node makes; nothing when it does not."""
        client, name = self.system.client, self.system.name
        short = {path[len(self.root) + 1 :]: path for path in paths}
        # The server looks below the directory above the path that is named, with find's own kind of expressions.
        pattern = r"\./\(" + r"\|".join(map(_expression, short)) + r"\)"
        archive = posixpath.join(self.root, self._archive)
        try:
            self._is_there = True
            await client.compress(name, posixpath.join(self.root, "x"), archive, pattern=pattern)
            data = await client.download(name, archive)
        except (*Refusal, NotFound):
            return {}
        return await asyncio.to_thread(_members, data, short)

    async def _fetch_one(self, path: str) -> bytes | None:
        try:
            return await self.system.read_bytes(path)
        except (*Refusal, NotFound):
            return None


def _expression(path: str) -> str:
    return path.replace(".", r"\.")


def _members(data: bytes, names: Mapping[str, str]) -> dict[str, bytes]:
    """Contents of plain files with these names; the archive is not believed in anything else."""
    found = {}
    with suppress(tarfile.TarError, EOFError, OSError), tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as archive:
        for member in archive:
            path = names.get(member.name.removeprefix("./"))
            stream = archive.extractfile(member) if path is not None and member.isreg() else None
            if path is not None and stream is not None:
                found[path] = stream.read()
    return found
