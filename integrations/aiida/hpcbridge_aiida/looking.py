"""Looking: what is there, without changing it."""

from __future__ import annotations

import fnmatch
import posixpath
import stat
import time
from typing import TYPE_CHECKING, Any

from aiida.transports.transport import TransportPath, has_magic

from hpcbridge.errors import InvalidPath, NotFound, PathNotFound
from hpcbridge_aiida.base import Part
from hpcbridge_aiida.failures import remote
from hpcbridge_aiida.owned import Kind
from hpcbridge_aiida.paths import absolute, carried

if TYPE_CHECKING:
    from aiida.transports.util import FileAttribute

    from hpcbridge.firecrest import FileEntry, FileStat


class Looking(Part):
    """Attributes, listings, patterns, names."""

    async def kind_of(self, path: str) -> Kind:
        """FILE, DIRECTORY or ABSENT, links followed; what we made ourselves is known, the rest is asked for."""
        _, kind = self.owned(path)
        if kind in (Kind.FILE, Kind.ABSENT) or kind.is_directory:
            return Kind.DIRECTORY if kind is Kind.OPAQUE else kind
        if self.session.is_assumed(path):
            return Kind.DIRECTORY
        found = await self.stat(path)
        if found is None:
            self.session.is_missing(path)
            return Kind.ABSENT
        if stat.S_ISDIR(found.mode):
            self.session.have_been_made([path])
            return Kind.DIRECTORY
        return Kind.FILE

    async def stat(self, path: str, *, dereference: bool = True) -> FileStat | None:
        """What the system says of `path` now; None where there is nothing."""
        await self.session.settle(path)
        if not carried(path):
            return await self._listed(path)
        try:
            return await self.client.stat(self.system, path, dereference=dereference)
        except PathNotFound:
            return None
        except InvalidPath as error:
            if "Not a directory" in error.message:
                return None
            raise

    async def _listed(self, path: str) -> FileStat | None:
        """The same of a path that no request can carry, from the listing of its directory; links are not followed."""
        directory, name = posixpath.split(path)
        if await self.kind_of(directory) is not Kind.DIRECTORY:
            return None
        return next((_stat(entry) for entry in await self.entries(directory) if entry.name == name), None)

    @remote
    async def isdir_async(self, path: TransportPath) -> bool:
        """Whether `path` is a directory, or a link to one."""
        return bool(str(path)) and await self.kind_of(absolute(path)) is Kind.DIRECTORY

    @remote
    async def isfile_async(self, path: TransportPath) -> bool:
        """Whether `path` is a file, or a link to one."""
        return bool(str(path)) and await self.kind_of(absolute(path)) is Kind.FILE

    @remote
    async def path_exists_async(self, path: TransportPath) -> bool:
        """Whether there is anything at `path`.

        Every upload asks this of the computer's work directory: where that was there within minutes, it is not asked
        for again.
        """
        where = absolute(path)
        if self.session.parcel_of(where) is None and self.session.is_work_root(where):
            return True
        kind = await self.session.once("kind", where, lambda: self.kind_of(where))
        if kind is Kind.ABSENT:
            self._missing.setdefault(where, []).append(time.monotonic())
        elif kind is Kind.DIRECTORY:
            self.session.asked(where)
        return kind is not Kind.ABSENT

    @remote
    async def get_attribute_async(self, path: TransportPath) -> FileAttribute:
        """Size, owner, mode and times of `path` itself, as lstat gives them. Raises FileNotFoundError."""
        where = absolute(path)
        found = await self.stat(where, dereference=False)
        if found is None:
            raise FileNotFoundError(f"No such file or directory: {where} on {self.system}")
        return _attribute(found)

    async def entries(self, path: str) -> list[FileEntry]:
        """The entries of a directory, hidden ones included. Raises OSError where it is none."""
        from hpcbridge.staging.remote import listing

        await self.session.settle(path)
        # With a slash, so that a link to a directory is followed and a file is an error.
        return await listing.entries(await self.session.transfer(), f"{path.rstrip('/')}/", hidden=True, exact=True)

    @remote
    async def listdir_async(self, path: TransportPath = ".", pattern: str | None = None) -> list[str]:
        """Names in a directory, without `.` and `..`; with `pattern` those that match, in any depth it names."""
        where = absolute(path)
        if not pattern:
            return [entry.name for entry in await self.entries(where)]
        if pattern.startswith("/"):
            return await self.glob_async(pattern)
        if "/" in pattern or "**" in pattern:
            return [posixpath.relpath(each, where) for each in await self.glob_async(posixpath.join(where, pattern))]
        return [entry.name for entry in await self.entries(where) if _matches(entry.name, pattern)]

    @remote
    async def listdir_withattributes_async(
        self, path: TransportPath = ".", pattern: str | None = None
    ) -> list[dict[str, Any]]:
        """Name, attributes and `isdir` of each entry, by one listing."""
        where = absolute(path)
        await self.session.settle(where)
        entries = await self.client.ls(self.system, f"{where.rstrip('/')}/", hidden=True, numeric=True)
        return [
            {
                "name": entry.name,
                "attributes": _attribute(_stat(entry)),
                "isdir": await self._leads_to_directory(where, entry),
            }
            for entry in entries
            if entry.name not in (".", "..") and (not pattern or _matches(entry.name, pattern))
        ]

    async def _leads_to_directory(self, directory: str, entry: FileEntry) -> bool:
        if not entry.is_link:
            return entry.is_dir
        return await self.kind_of(posixpath.join(directory, entry.name)) is Kind.DIRECTORY

    @remote
    async def glob_async(self, pathname: TransportPath, ignore_nonexisting: bool = True) -> list[str]:
        """The paths that match, sorted; none is [] unless `ignore_nonexisting` is off, then OSError."""
        pattern = absolute(pathname)
        await self.session.settle(before_magic(pattern))
        try:
            if has_magic(pattern):
                return [path for path, _ in await self.expand(pattern)]
            if await self.stat(pattern, dereference=False) is not None:
                return [pattern]
        except NotFound:
            pass
        if ignore_nonexisting:
            return []
        raise OSError(f"Either the remote path {pathname} does not exist, or a matching file/folder not found.")

    async def expand(self, pattern: str) -> list[tuple[str, Kind]]:
        """The paths that match, and what the listing tells each to be. Raises PathNotFound where there is none."""
        from hpcbridge.staging.remote import globs

        found = await globs.expand(await self.session.transfer(), pattern)
        # What was looked for together is fetched together: `downloads` packs it.
        self._matched = {each.path: each.entry.size for each in found if each.entry and each.entry.is_file}
        return [(each.path, _kind(each.entry)) for each in found]

    @remote
    async def whoami_async(self) -> str:
        """Our name on the system, asked for once."""
        return await self.session.user()

    @remote
    async def normalize_async(self, path: TransportPath = ".") -> str:
        """`path` without `.`, `..` and doubled slashes; symbolic links are not looked at."""
        return absolute(path)


def _kind(entry: FileEntry | None) -> Kind:
    if entry is None or not (entry.is_file or entry.is_dir):
        return Kind.UNKNOWN
    return Kind.FILE if entry.is_file else Kind.DIRECTORY


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) and (not name.startswith(".") or pattern.startswith("."))


def before_magic(pattern: str) -> str:
    """The directory that a pattern is looked for in."""
    parts = pattern.split("/")
    first = next((index for index, part in enumerate(parts) if has_magic(part)), len(parts))
    return "/".join(parts[:first]) or "/"


_TYPES = {"d": stat.S_IFDIR, "l": stat.S_IFLNK, "-": stat.S_IFREG, "b": stat.S_IFBLK, "c": stat.S_IFCHR}
_BITS = (0o400, 0o200, 0o100, 0o040, 0o020, 0o010, 0o004, 0o002, 0o001)


def _stat(entry: FileEntry) -> FileStat:
    """What a line of a listing tells; owners are names there."""
    from hpcbridge.firecrest import FileStat

    letters = entry.permissions[-9:] if len(entry.permissions) >= 9 else "-" * 9
    bits = sum(bit for letter, bit in zip(letters, _BITS, strict=True) if letter not in "-ST")
    when = int(entry.modified.timestamp()) if entry.modified else 0
    owner, group = (int(each) if each.isdigit() else 0 for each in (entry.user, entry.group))
    return FileStat(_TYPES.get(entry.kind, 0) | bits, entry.size, owner, group, when, when, when)


def _attribute(found: FileStat) -> FileAttribute:
    from aiida.transports.util import FileAttribute  # brings Paramiko

    fields = ("size", "uid", "gid", "mode", "atime", "mtime")
    attribute: FileAttribute = FileAttribute({f"st_{name}": getattr(found, name) for name in fields})
    return attribute
