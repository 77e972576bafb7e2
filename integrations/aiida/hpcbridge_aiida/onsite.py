"""On the system alone: copies, renames, links, archives, removals, modes. What has no quick call is a batch job."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from aiida.transports import Transport
from aiida.transports.transport import TransportPath, has_magic

from hpcbridge.errors import NotFound
from hpcbridge_aiida.failures import plain, remote
from hpcbridge_aiida.looking import before_magic
from hpcbridge_aiida.owned import Kind
from hpcbridge_aiida.paths import absolute, carried, is_within
from hpcbridge_aiida.spool import Operation
from hpcbridge_aiida.uploads import Uploads

if TYPE_CHECKING:
    from hpcbridge.firecrest import FileStat

_FORMATS = {"tar": "", "tar.gz": "z", "tar.bz2": "j", "tar.xz": "J"}
NO_SHELL = (
    "There is no shell over FirecREST to run {command!r}. Use the transport's own methods for files, a calculation for "
    "programs, and the scheduler plugin hpcbridge.slurm for jobs"
)


class BatchCommand(str):
    """A shell command of our own, which may run as a batch job: archives have no other way."""

    __slots__ = ()


class OnSite(Uploads):
    """What changes files without moving them between here and there."""

    # -- copies and links --------------------------------------------------------------------------------------------

    @remote
    async def copy_async(
        self,
        remotesource: TransportPath,
        remotedestination: TransportPath,
        dereference: bool = False,
        recursive: bool = True,
        preserve: bool = False,
    ) -> None:
        """Copy files or directories, with patterns, as `cp` does.

        Into a directory of our own making it is done later, with all that was put there, by one job. Raises
        FileNotFoundError only where there is no source.
        """
        if not str(remotesource):
            raise ValueError("remotesource must be a non empty string")
        if not str(remotedestination):
            raise ValueError("remotedestination must be a non empty string")
        if has_magic(str(remotedestination)):
            raise ValueError("Pathname patterns are not allowed in the destination")
        source, target = absolute(remotesource), absolute(remotedestination)
        if source == target:
            raise ValueError("Cannot copy from itself to itself")
        found = await self._sources(source)
        try:
            await self._copy_all(found, target, dereference=dereference, recursive=recursive, preserve=preserve)
        except FileNotFoundError as error:
            raise plain(error) from error

    async def _sources(self, source: str) -> dict[str, Kind]:
        kinds = {source: Kind.UNKNOWN}
        if has_magic(source):
            await self.session.settle(before_magic(source))
            try:
                kinds = dict(await self.expand(source))
            except NotFound:
                kinds = {}
        for path in [path for path, kind in kinds.items() if kind is Kind.UNKNOWN]:
            kinds[path] = await self._kind_there(path)
        missing = [path for path, kind in kinds.items() if kind is Kind.ABSENT]
        if missing or not kinds:
            raise FileNotFoundError(f"Source not found: {', '.join(missing) or source} on {self.system}")
        return kinds

    async def _kind_there(self, path: str) -> Kind:
        await self.session.settle(path)
        return await self.kind_of(path)

    async def _copy_all(
        self, found: dict[str, Kind], target: str, *, dereference: bool, recursive: bool, preserve: bool
    ) -> None:
        await self._own_new(posixpath.dirname(target))
        into = await self.kind_of(target)
        if len(found) > 1 and into is not Kind.DIRECTORY:
            raise OSError("Can't copy more than one file to a path that is not a directory")
        operations = []
        for source, kind in found.items():
            if kind is Kind.DIRECTORY and not recursive:
                raise OSError(f"{source} is a directory, which is copied recursively or not at all")
            if kind is Kind.DIRECTORY and into is Kind.FILE:
                raise OSError(f"Cannot copy the directory {source} onto the file {target}")
            whole = posixpath.join(target, posixpath.basename(source)) if into is Kind.DIRECTORY else target
            if kind is Kind.DIRECTORY and is_within(whole, source):
                raise OSError(f"Cannot copy the directory {source} into itself")
            options = _cp_options(kind, dereference=dereference, recursive=recursive, preserve=preserve)
            operations.append((Operation("cp", options, source, whole), kind))
        await self._do(operations)

    async def _do(self, operations: Sequence[tuple[Operation, Kind]]) -> None:
        """Have `operations` done: later, where their targets are in a directory of our own making, else now."""
        now = []
        for operation, kind in operations:
            parcel = self.session.parcel_of(operation.target)
            parent = posixpath.dirname(operation.target)
            if parcel is not None and parcel.tree.kind(operation.target) is Kind.ABSENT:
                if not parcel.tree.kind(parent).is_directory:
                    raise OSError(f"{parent} does not exist on {self.system}")
                self._touched.add(parcel)
                await parcel.operation(operation, Kind.OPAQUE if kind is Kind.DIRECTORY else kind)
            else:
                now.append(operation)
        if not now:
            return
        from hpcbridge_aiida import batch

        await self.session.settle(*(each.target for each in now))
        failures = await batch.run_operations(await self.session.transfer(), now)
        self._changed(*(each.target for each in now))
        if failures:
            words = "; ".join(f"{now[index].source}: {text}" for index, text in failures.items())
            raise OSError(f"{len(failures)} of {len(now)} file operations failed on {self.system}: {words}")

    def _changed(self, *paths: str) -> None:
        for path in paths:
            self.session.forget(path)

    @remote
    async def copyfile_async(
        self,
        remotesource: TransportPath,
        remotedestination: TransportPath,
        dereference: bool = False,
        preserve: bool = False,
    ) -> None:
        """Copy one file; a link as a link unless `dereference`."""
        await self._copy_exactly(remotesource, remotedestination, dereference, preserve, recursive=False)

    @remote
    async def copytree_async(
        self,
        remotesource: TransportPath,
        remotedestination: TransportPath,
        dereference: bool = False,
        preserve: bool = False,
    ) -> None:
        """Copy a directory: into one that exists, under its own name; to a new path, as that."""
        await self._copy_exactly(remotesource, remotedestination, dereference, preserve, recursive=True)

    async def _copy_exactly(
        self, source: TransportPath, target: TransportPath, dereference: bool, preserve: bool, *, recursive: bool
    ) -> None:
        if not str(source) or not str(target):
            raise ValueError("remotesource and remotedestination must be non empty strings")
        if not recursive and not dereference:
            found = await self.stat(absolute(source), dereference=False)
            if found is not None and _is_link(found):
                await self._do([(Operation("cp", "-P", absolute(source), absolute(target)), Kind.LINK)])
                return
        await self.copy_async(source, target, dereference, recursive, preserve)

    @remote
    async def symlink_async(self, remotesource: TransportPath, remotedestination: TransportPath) -> None:
        """Make a symbolic link, or one in the directory `remotedestination` for each path that matches a pattern."""
        source, target = str(remotesource), absolute(remotedestination)
        if not has_magic(source):
            await self._link(source, target)
            return
        if has_magic(target):
            raise ValueError("`remotedestination` cannot have patterns")
        for each in await self.glob_async(source):
            await self._link(each, posixpath.join(target, posixpath.basename(each)))

    async def _link(self, source: str, target: str) -> None:
        parcel, kind = self.owned(target)
        if parcel is not None and kind is Kind.ABSENT:
            if not parcel.tree.kind(posixpath.dirname(target)).is_directory:
                raise FileNotFoundError(f"{posixpath.dirname(target)} does not exist on {self.system}")
            if self.coalesce and not parcel.has_operations:
                self._touched.add(parcel)
                await self.session.before_change(target)
                await parcel.link(target, source)
                return
        elif kind is not Kind.UNKNOWN:
            raise FileExistsError(f"{target} already exists on {self.system}")
        await self.session.settle(target)
        if source.startswith("/") and carried(source) and carried(target):
            await self.client.symlink(self.system, source, target)
        else:
            await self._do([(Operation("ln", "", source, target), Kind.LINK)])
        if parcel is not None:
            parcel.tree.add(target, Kind.LINK)

    @remote
    async def rename_async(self, oldpath: TransportPath, newpath: TransportPath) -> None:
        """Rename by one job. Raises OSError where there is no source, or already something at the destination."""
        if not str(oldpath) or not str(newpath):
            raise ValueError("oldpath and newpath must be non-empty strings")
        source, target = absolute(oldpath), absolute(newpath)
        if await self._lstat(source) is None:
            raise FileNotFoundError(f"Source {source} does not exist on {self.system}")
        if await self._lstat(target) is not None:
            raise FileExistsError(f"Destination {target} already exists on {self.system}: destination exists")
        await self._release(source)
        from hpcbridge_aiida import batch

        failures = await batch.run_operations(await self.session.transfer(), [Operation("mv", "", source, target)])
        self._changed(source, target)
        if failures:
            raise OSError(f"Cannot rename {source} to {target} on {self.system}: {failures[0]}")

    async def _lstat(self, path: str) -> FileStat | None:
        return await self.stat(path, dereference=False)

    async def _release(self, path: str) -> None:
        """Send what is under way at `path`, and know nothing of it any more."""
        parcels = self.session.parcels_at(path)
        await self.session.settle(path)
        await self.session.drop(parcels)
        self._touched.difference_update(parcels)

    # -- removals and modes ------------------------------------------------------------------------------------------

    @remote
    async def remove_async(self, path: TransportPath) -> None:
        """Remove a file or a link. Raises OSError for a directory."""
        where = absolute(path)
        found = await self._lstat(where)
        if found is None:
            raise FileNotFoundError(f"No such file: {where} on {self.system}")
        if _is_directory(found):
            raise IsADirectoryError(f"{where} is a directory on {self.system}: use rmdir or rmtree")
        await self._remove(where)

    @remote
    async def rmdir_async(self, path: TransportPath) -> None:
        """Remove an empty directory. Raises OSError where it is not empty, or none."""
        where = absolute(path)
        found = await self._lstat(where)
        if found is None:
            raise FileNotFoundError(f"No such directory: {where} on {self.system}")
        if not _is_directory(found):
            raise NotADirectoryError(f"{where} is not a directory on {self.system}")
        if await self.entries(where):
            raise OSError(f"{where} is not empty on {self.system}")
        await self._remove(where)

    @remote
    async def rmtree_async(self, path: TransportPath) -> None:
        """Remove a directory with all it holds, or a file; nothing there is no error."""
        where = absolute(path)
        try:
            await self._remove(where)
        except FileNotFoundError:
            return
        except NotFound:
            return

    async def _remove(self, path: str) -> None:
        await self._release(path)
        self._changed(path)
        await self.session.handle.rm(path, missing_ok=False, account=self.session.endpoint.account or None)

    @remote
    async def chmod_async(self, path: TransportPath, mode: int, follow_symlinks: bool = True) -> None:
        """Change the permission bits. Raises OSError for a path that is empty or missing."""
        if not str(path):
            raise OSError("Input path is an empty argument.")
        where = absolute(path)
        parcel, kind = self.owned(where)
        if (
            parcel is not None
            and kind in (Kind.FILE, Kind.DIRECTORY)
            and await parcel.change_mode(where, mode & 0o7777)
        ):
            self._touched.add(parcel)
            return
        await self.session.settle(where)
        await self.client.chmod(self.system, where, f"{mode & 0o7777:o}")

    async def chown_async(self, path: TransportPath, uid: int, gid: int) -> None:
        """Change owner and group, where the site lets the user."""
        where = absolute(path)
        await self.session.settle(where)
        await self.client.chown(self.system, where, str(uid), str(gid))

    # -- archives ----------------------------------------------------------------------------------------------------

    @remote
    async def compress_async(
        self,
        format: str,
        remotesources: TransportPath | list[TransportPath],
        remotedestination: TransportPath,
        root_dir: TransportPath,
        overwrite: bool = True,
        dereference: bool = False,
    ) -> None:
        """Pack paths (with patterns) into an archive, with names relative to `root_dir`, by one job."""
        target, root = absolute(remotedestination), absolute(root_dir)
        if await self.kind_of(root) is not Kind.DIRECTORY:
            raise OSError(f"The relative root {root_dir} does not exist, or is not a directory.")
        there = await self.kind_of(target)
        if there is Kind.DIRECTORY:
            raise OSError(f"The remote destination {remotedestination} is a directory, should include a filename.")
        if there is not Kind.ABSENT and not overwrite:
            raise OSError(f"The remote destination {remotedestination} already exists.")
        if format not in _FORMATS:
            raise ValueError(f"Unsupported compression format: {format}")
        listed = remotesources if isinstance(remotesources, list) else [remotesources]
        names = [_relative(path, root) for each in listed for path in await self._to_pack(each)]
        await self.makedirs_async(posixpath.dirname(target), ignore_existing=True)
        await self.session.settle(target, *(posixpath.join(root, name) for name in names))
        self._changed(target)
        await self._pack(format, names, target, root, dereference=dereference)

    async def _to_pack(self, source: TransportPath) -> list[str]:
        if has_magic(str(source)):
            return await self.glob_async(source, ignore_nonexisting=False)
        where = absolute(source)
        if await self.stat(where, dereference=False) is None:
            raise OSError(f"The remote path {source} does not exist")
        return [where]

    async def _pack(self, kind: str, names: Sequence[str], target: str, root: str, *, dereference: bool) -> None:
        from hpcbridge_aiida import batch

        command = batch.tar_command(target, root, names, _FORMATS[kind], "h" if dereference else "")
        status, out, err = await self.exec_command_wait_async(BatchCommand(command))
        if status != 0:
            self.logger.error("Problem executing tar. Exit code: %s, stdout: %r, stderr: %r", status, out, err)
            raise OSError(f"Error while creating the tar archive. Exit code: {status}. {str(err).strip()}")

    @remote
    async def extract_async(
        self,
        remotesource: TransportPath,
        remotedestination: TransportPath,
        overwrite: bool = True,
        strip_components: int = 0,
    ) -> None:
        """Unpack an archive (of any of the formats) into a directory, which is made if missing."""
        if not overwrite:
            # The kind of error that aiida-core's own transports raise.
            raise NotImplementedError(f"extract replaces what is there: give a new directory, not {remotedestination}")
        source, target = absolute(remotesource), absolute(remotedestination)
        if await self.kind_of(source) is Kind.ABSENT:
            raise OSError(f"The remote path {remotesource} does not exist")
        await self.makedirs_async(target, ignore_existing=True)
        await self._release(source)
        await self._release(target)
        quoted = [shlex.quote(each) for each in (source, target)]
        command = f"tar --strip-components {int(strip_components)} -xf {quoted[0]} -C {quoted[1]}"
        status, out, err = await self.exec_command_wait_async(BatchCommand(command))
        self._changed(target)
        if status != 0:
            self.logger.error("Problem executing tar. Exit code: %s, stdout: %r, stderr: %r", status, out, err)
            raise OSError(f"Error while extracting the tar archive. Exit code: {status}. {str(err).strip()}")

    # -- commands ----------------------------------------------------------------------------------------------------

    @remote
    async def exec_command_wait_async(
        self,
        command: str,
        stdin: str | None = None,
        encoding: str = "utf-8",
        workdir: TransportPath | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> tuple[int, str, str]:
        """Refuse, and say what to use instead: FirecREST has no shell.

        Archives, and `which PROGRAM` (by which aiida-shell finds programs), run as a batch job each.
        """
        from hpcbridge_aiida import batch

        words = shlex.split(command) if not isinstance(command, BatchCommand) else []
        if not isinstance(command, BatchCommand) and not (len(words) == 2 and words[0] == "which"):
            raise NotImplementedError(NO_SHELL.format(command=command))
        outcome = await batch.run_command(await self.session.transfer(), str(command), stdin or "")
        return outcome.status, outcome.out, outcome.err

    @remote
    async def copy_from_remote_to_remote_async(
        self,
        transportdestination: Transport,
        remotesource: TransportPath,
        remotedestination: TransportPath,
        **kwargs: Any,
    ) -> None:
        """Copy files or directories to another computer, through this one."""
        from aiida.common.folders import SandboxFolder

        dereference = kwargs.pop("dereference", True)
        options = {name: kwargs.pop(name) for name in ("overwrite", "ignore_nonexisting") if name in kwargs}
        kwargs.pop("callback", None)
        if kwargs:
            self.logger.error("Unknown parameters passed to copy_from_remote_to_remote: %s", ", ".join(kwargs))
        with SandboxFolder() as sandbox:
            await self.get_async(remotesource, str(sandbox.abspath), dereference=dereference)
            for name in sandbox.get_content_list():
                await transportdestination.put_async(str(sandbox.get_abs_path(name)), remotedestination, **options)


def _relative(path: str, root: str) -> str:
    try:
        return str(PurePosixPath(path).relative_to(root))
    except ValueError:
        raise OSError(f"{path} is not below the relative root {root}") from None


def _cp_options(kind: Kind, *, dereference: bool, recursive: bool, preserve: bool) -> str:
    options = ["-p"] * preserve
    if kind is Kind.DIRECTORY and recursive:
        options.append("-RL" if dereference else "-RH")
    return " ".join(options)


def _is_directory(found: FileStat) -> bool:
    return found.mode & 0o170000 == 0o040000


def _is_link(found: FileStat) -> bool:
    return found.mode & 0o170000 == 0o120000
