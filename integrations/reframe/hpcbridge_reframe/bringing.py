"""What a job has left in its stage directory, brought back: only what is new or differs from what was shipped."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpcbridge.staging.trees.entries import Kind
from hpcbridge.staging.trees.patterns import Filter
from hpcbridge_reframe.fetching import DIRECT, Fetching
from hpcbridge_reframe.paths import TEXT_MAX, PathMap
from hpcbridge_reframe.restage import FOLDER
from hpcbridge_reframe.tree import Entry, Known, key_of, signature

if TYPE_CHECKING:
    from hpcbridge import System
    from hpcbridge.firecrest import FileEntry

EACH = 200
"""Files of one stage directory, all together below `SUM` bytes, that need no job of ours to pack them."""
SUM = 12_000_000
LATE = (0.5, 1.0, 2.0, 4.0)
"""Pauses, in seconds, after which a job's standard output is looked for again: file systems show it late."""


class Bringing:
    """Brings one stage directory up to date with its mirror on the cluster."""

    def __init__(self, system: System, root: str, filter: Filter, account: str | None, scratch: Path) -> None:
        """`root` is the mirror of the stage prefix, `scratch` a directory here, on its file system."""
        self.system = system
        self.fetching = Fetching(system, root)
        self.filter = filter
        self.account = account
        self.scratch = scratch

    async def bring(
        self, local: Path, remote: str, map: PathMap, known: dict[str, Known], marker: str, outputs: tuple[str, ...]
    ) -> set[str]:
        """Make `local` what `remote` is now, and `known` with it; returns the keys of the files that came.

        `marker` is the name of the layout whose end shows by a file's time; `outputs` are files that must be there, and
        may be late. Raises HpcBridgeError, OSError.
        """
        entries, since = await self._listing(remote, marker, outputs)
        wanted = {path: entry for path, entry in entries.items() if self._differs(entry, known.get(path), since)}
        gone = [path for path in known if path not in entries and known[path].entry.kind is not Kind.DIRECTORY]
        if not since:  # a job that never began has removed nothing: it was never there
            gone = []
        files = {path: entry for path, entry in wanted.items() if entry.kind is Kind.FILE}
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="bring-", dir=self.scratch))
        try:
            await self._fetch(remote, files, folder)
            arrival = _Arrival(local, folder, map, known)
            return await asyncio.to_thread(arrival.publish, wanted, gone)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _listing(self, remote: str, marker: str, outputs: tuple[str, ...]) -> tuple[dict[str, Entry], int]:
        """Every entry that is kept, and when the layout ended (s since 1970, the cluster's clock; 0: it has not)."""
        for pause in (*LATE, None):
            found = await self.fetching.listing(remote)
            names = {entry.name for entry in found}
            if pause is None or all(name in names for name in outputs):
                break
            await asyncio.sleep(pause)
        done = next((e for e in found if e.name == f"{FOLDER}/{marker}.staged"), None)
        since = int(done.modified.timestamp()) if done is not None and done.modified is not None else 0
        return {
            path: entry for path, entry in map(_entry, found) if entry is not None and self._kept(path, entry)
        }, since

    def _kept(self, path: str, entry: Entry) -> bool:
        encoded = os.fsencode(path)
        above = encoded.split(b"/")[:-1]
        entered = all(self.filter.enters(b"/".join(above[: depth + 1])) for depth in range(len(above)))
        return entered and self.filter.keeps(encoded, entry.kind, entry.size)

    @staticmethod
    def _differs(entry: Entry, known: Known | None, since: int) -> bool:
        if known is None or known.entry.kind is not entry.kind:
            return True
        before = known.entry
        if entry.kind is Kind.LINK:
            return entry.target != before.target
        if entry.kind is Kind.DIRECTORY:
            return entry.mode != before.mode
        # What was written in the very second of the layout's end may be younger than it.
        return (entry.size, entry.mtime, entry.mode) != (
            before.size,
            before.mtime,
            before.mode,
        ) or entry.mtime >= since > 0

    async def _fetch(self, remote: str, files: Mapping[str, Entry], folder: Path) -> None:
        """Contents of `files` into `folder`, under the same names; empty ones need no request."""
        full = {path: entry for path, entry in files.items() if entry.size}
        small = {path: entry.size for path, entry in full.items() if entry.size <= DIRECT}
        if len(small) <= EACH and sum(small.values()) <= SUM:
            for path, data in (await self.fetching.contents(remote, small)).items():
                await asyncio.to_thread(_write, folder / path, data)
                del full[path]
        if full:
            names = [f"/{_literal(path)}" for path in full]
            await self.system.get(remote, folder, include=names, account=self.account)


@dataclass(frozen=True)
class _Arrival:
    """What was fetched, on its way into the stage directory."""

    local: Path
    folder: Path
    map: PathMap
    known: dict[str, Known]

    def publish(self, wanted: Mapping[str, Entry], gone: list[str]) -> set[str]:
        for path in gone:
            _remove(self.local / path)
            del self.known[path]
        keys = set()
        for path, entry in sorted(wanted.items()):
            target = self.local / path
            if entry.kind is Kind.DIRECTORY:
                if target.is_symlink() or not target.is_dir():
                    _remove(target)
                    target.mkdir(parents=True)
                with suppress(OSError):
                    target.chmod(entry.mode | 0o700)
                self.known[path] = Known(entry)
                continue
            _remove(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            if entry.kind is Kind.LINK:
                target.symlink_to(self.map.here(entry.target) or entry.target)
                self.known[path] = Known(entry, signature(target.lstat()))
                continue
            entry = self._file(path, entry, target)
            keys.add(entry.key)
        return keys

    def _file(self, path: str, entry: Entry, target: Path) -> Entry:
        """Put one file into its place, with the paths of this side in it."""
        source = self.folder / path
        if not source.exists():
            if entry.size:
                raise OSError(f"{path} was listed on the cluster, and did not come")
            source.parent.mkdir(parents=True, exist_ok=True)
            source.touch()
        size = source.stat().st_size
        if size <= TEXT_MAX:
            data = source.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            here = self.map.backward(data)
            if here is not data and here != data:
                source.write_bytes(here)
        else:
            with source.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        source.chmod(entry.mode | stat.S_IWUSR | stat.S_IRUSR)
        os.utime(source, (entry.mtime, entry.mtime))
        source.replace(target)
        if target.stat().st_mode & 0o777 != entry.mode:
            target.chmod(entry.mode)
        entry = Entry(Kind.FILE, entry.mode, size, entry.mtime, key_of(digest, size, entry.mode))
        self.known[path] = Known(entry, signature(target.stat()))
        return entry


def _entry(found: FileEntry) -> tuple[str, Entry | None]:
    mtime = int(found.modified.timestamp()) if found.modified is not None else 0
    if found.is_dir:
        return found.name, Entry(Kind.DIRECTORY, _mode(found.permissions))
    if found.is_link:
        return found.name, Entry(Kind.LINK, target=found.link_target or "")
    if found.is_file:
        return found.name, Entry(Kind.FILE, _mode(found.permissions), found.size, mtime)
    return found.name, None


def _mode(permissions: str) -> int:
    """`rwxr-x---` (or with set-id and sticky letters) as a number."""
    bits = 0
    for place, letter in enumerate(permissions[:9]):
        if letter not in "-ST":
            bits |= 1 << (8 - place)
    return bits


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _literal(path: str) -> str:
    """A pattern that means this path and no other."""
    return "".join(f"\\{letter}" if letter in "\\*?[" else letter for letter in path)
