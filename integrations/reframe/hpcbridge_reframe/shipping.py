"""The store of contents on the cluster, and how new ones get there: one archive for all that is asked for at a time.

Contents are files called by their SHA-256, so what an earlier test or run has shipped is not shipped again. A small
archive is one upload that the login node unpacks; a large one goes by `System.put`, whatever the site has for it.
"""

from __future__ import annotations

import asyncio
import io
import os
import posixpath
import secrets
import shutil
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpcbridge.errors import (
    AmbiguousOutcome,
    CommandTimeout,
    HpcBridgeError,
    PathNotFound,
    ServerError,
    TooLarge,
    TransferError,
)
from hpcbridge_reframe.batching import Batch
from hpcbridge_reframe.tree import Content, blob_path

if TYPE_CHECKING:
    from hpcbridge import System

STORE = "store"
"""The store's directory, below the stage prefix on the cluster."""
SMALL = 4 << 20
"""Bytes of an archive that may go by one direct upload, if the server takes as much."""
PATIENCE = 900.0
"""Seconds for which an outage is waited out in the middle of a shipment."""


@dataclass(slots=True)
class Shipped:
    """What has been shipped: `bytes` of archives, contents (`blobs`), and in how many `archives`."""

    bytes: int = 0
    blobs: int = 0
    archives: int = 0


@dataclass(frozen=True, eq=False)
class _Order:
    contents: Mapping[str, Content]
    files: Mapping[str, bytes]


class Shipping:
    """Brings contents and files below `base` on the cluster; everything asked for at about the same time at once."""

    def __init__(self, system: System, base: str, root: str, account: str | None, scratch: Path) -> None:
        """`root`, below `base`, is ours alone; `scratch` is here, on the file system of the stage directories."""
        self.system = system
        self.base = base
        self.root = root
        self.account = account
        self.scratch = scratch
        self.shipped = Shipped()
        self._archive = f".hpcbridge-ship-{secrets.token_hex(8)}.tar.gz"
        self._is_there = False
        self._known: set[str] | None = None
        self._orders: Batch[_Order, None] = Batch(self._work)

    async def ship(self, contents: Mapping[str, Content], files: Mapping[str, bytes]) -> None:
        """Return when `contents` (by key) are in the store and `files` (by path below `base`) are in place.

        Raises HpcBridgeError, and OSError for a file here that changed or cannot be read.
        """
        await self._orders.ask(_Order(contents, files))

    async def _work(self, orders: Sequence[_Order]) -> list[Exception | None]:
        try:
            await self._send(orders)
        except OSError as error:
            if len(orders) == 1:
                return [error]
            # A file of one test that changed or cannot be read is not the others' trouble.
            return [outcome for order in orders for outcome in await self._work([order])]
        return [None] * len(orders)

    async def _send(self, orders: Sequence[_Order]) -> None:
        known = await self._contents_there()
        contents = {key: each for order in orders for key, each in order.contents.items() if key not in known}
        files = {path: data for order in orders for path, data in order.files.items()}
        if not contents and not files:
            return
        info = await self.system.info()
        most = min(SMALL, info.max_ops_file_size)
        if _size(contents, files) > most or not await self._unpacked_there(contents, files):
            if contents:
                await self._put(contents)
            for part in _parts(files, most):  # what is ours is no part of a tree that `put` carries
                if not await self._unpacked_there({}, part):
                    raise TransferError("the login node does not unpack what was shipped", system=self.system.name)
        known.update(contents)
        self.shipped.blobs += len(contents)
        self.shipped.archives += 1

    async def _contents_there(self) -> set[str]:
        """Keys of what is in the store. A size that differs from the key's is a file that was cut short."""
        if self._known is None:
            store = posixpath.join(self.base, STORE)
            try:
                entries = await self.system.ls(store, recursive=True)
            except PathNotFound:
                await self.system.mkdir(store)
                await self.system.client.chmod(self.system.name, store, "700")
                entries = []
            names = {entry.name.rpartition("/")[2]: entry.size for entry in entries if entry.is_file}
            self._known = {name for name, size in names.items() if name.endswith((f"-{size}", f"-{size}x"))}
        return self._known

    async def _unpacked_there(self, contents: Mapping[str, Content], files: Mapping[str, bytes]) -> bool:
        """By one upload that the login node unpacks; False when that takes longer than it allows."""
        data = await asyncio.to_thread(_archive, contents, files)
        client, path = self.system.client, posixpath.join(self.root, self._archive)
        self._is_there = True
        await client.upload(self.system.name, self.root, self._archive, data, patience=PATIENCE)
        try:
            await client.extract(self.system.name, path, self.base, patience=PATIENCE)
        except (CommandTimeout, TooLarge, AmbiguousOutcome, ServerError):
            return False
        self.shipped.bytes += len(data)
        return True

    async def tidy(self) -> None:
        """Remove the last archive; each has taken the place of the one before."""
        if self._is_there:
            with suppress(HpcBridgeError):
                await self.system.client.rm(self.system.name, posixpath.join(self.root, self._archive))

    async def _put(self, contents: Mapping[str, Content]) -> None:
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="ship-", dir=self.scratch))
        try:
            await asyncio.to_thread(_lay_out, folder, contents)
            result = await self.system.put(folder, self.base, account=self.account)
            for content in contents.values():
                content.check()
            self.shipped.bytes += result.bytes
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _size(contents: Mapping[str, Content], files: Mapping[str, bytes]) -> int:
    """Bytes of a tar file at most: every member has a block of its own, and padding."""
    content = sum(each.size for each in contents.values()) + sum(map(len, files.values()))
    return content + 1536 * (len(contents) + len(files)) + 10240


def _parts(files: Mapping[str, bytes], most: int) -> list[dict[str, bytes]]:
    """The files in groups of one archive each."""
    parts: list[dict[str, bytes]] = []
    for path, data in files.items():
        if not parts or _size({}, {**parts[-1], path: data}) > most:
            parts.append({})
        parts[-1][path] = data
    return parts


def _member(key: str) -> tuple[str, int]:
    # Links of tests point to them: what is written through a link must not change it for others.
    return posixpath.join(STORE, blob_path(key)), 0o555 if key.endswith("x") else 0o444


def _archive(contents: Mapping[str, Content], files: Mapping[str, bytes]) -> bytes:
    """A tar file, compressed, in memory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.GNU_FORMAT, compresslevel=3) as archive:
        made: set[str] = set()
        for path, mode, data in (
            *((*_member(key), content) for key, content in contents.items()),
            *((path, 0o644, Content(len(data), data=data)) for path, data in files.items()),
        ):
            _parents(archive, path, made)
            member = tarfile.TarInfo(path)
            member.mode, blob = mode, data.read()
            member.size = len(blob)
            archive.addfile(member, io.BytesIO(blob))
    return out.getvalue()


def _parents(archive: tarfile.TarFile, path: str, made: set[str]) -> None:
    parts = path.split("/")[:-1]
    for depth in range(1, len(parts) + 1):
        directory = "/".join(parts[:depth])
        if directory not in made:
            made.add(directory)
            member = tarfile.TarInfo(directory)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)


def _lay_out(folder: Path, contents: Mapping[str, Content]) -> None:
    """The same as a directory; what is here already is linked, not copied."""
    for key, content in contents.items():
        name, mode = _member(key)
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if content.path is None:
            target.write_bytes(content.read())
            target.chmod(mode)
            continue
        try:
            os.link(content.path, target, follow_symlinks=False)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(content.path, target)
            target.chmod(mode)
