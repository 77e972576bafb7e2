"""One cluster: its jobs and its files."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hpcbridge import _registry
from hpcbridge.job import Job

if TYPE_CHECKING:
    from hpcbridge.errors import HpcBridgeError
    from hpcbridge.firecrest import FileEntry, FileStat, FirecrestClient, JobRow, SystemInfo
    from hpcbridge.hpc import Hpc
    from hpcbridge.jobs.intents import IntentStore
    from hpcbridge.jobs.spec import JobSpec
    from hpcbridge.jobs.watch import JobWatcher
    from hpcbridge.sites import Site
    from hpcbridge.staging import Progress, TransferResult
    from hpcbridge.staging.context import Transfer
    from hpcbridge.staging.remote.operations import Usage
    from hpcbridge.staging.trees.results import TreeResult


class System:
    """One cluster behind a deployment."""

    def __init__(self, hpc: Hpc, name: str | None) -> None:
        """Prefer `Hpc.system()`."""
        self.hpc = hpc
        self._name = name

    def __repr__(self) -> str:
        return f"System({self._name or 'the default one'} at {self.hpc.site.name})"

    @property
    def name(self) -> str:
        """The system's name. Raises ConfigurationError when none was given and none has been looked up (`resolve`)."""
        if self._name is None:
            raise _no_system(self.hpc.site)
        return self._name

    async def resolve(self) -> str:
        """The system's name; without one, that of the only system there is.

        Raises ConfigurationError where the site has several (their names are in the message) or none.
        """
        if self._name is None:
            names = [info.name for info in await self.hpc.systems()]
            if len(names) != 1:
                raise _no_system(self.hpc.site, names)
            self._name = names[0]
        return self._name

    @property
    def client(self) -> FirecrestClient:
        """The REST client of the running loop."""
        return self.hpc.client

    @property
    def watcher(self) -> JobWatcher:
        """The one JobWatcher of this system in the running loop."""
        return _registry.current(self.hpc.site, self.hpc.credential).watcher(self.name)

    @asynccontextmanager
    async def _use(self) -> AsyncIterator[tuple[_registry.Entry, str]]:
        with self.hpc._lease() as entry:
            yield entry, await self.resolve()

    @asynccontextmanager
    async def _remote(
        self, account: str | None = None, progress: Callable[[Progress], None] | None = None
    ) -> AsyncIterator[Transfer]:
        from hpcbridge.staging.remote import jobs

        async with self._use():
            yield await jobs.context(self, account=account, progress=progress)

    def _account(self, account: str | None) -> str | None:
        return account or self.hpc.site.account_for(self.name)

    async def info(self, fresh: bool = False) -> SystemInfo:
        """Scheduler, file systems, limits and health. Raises SystemNotFound."""
        async with self._use() as (entry, name):
            return await entry.client.system(name, fresh=fresh)

    async def submit(
        self, spec: JobSpec, key: str | None = None, *, store: IntentStore | None = None, look_first: bool = False
    ) -> Job:
        """Submit once: with a `key`, the same call again (here, later, after a crash) gives the same job.

        Without a key each call is a new job, still with at most one execution however the answer is lost. Where the
        spec names none, the working directory is the user's own and the account the site's default for the system.
        With `look_first` a job that another machine has submitted is found by two requests, instead of by a second job
        that finds the first one's lock when it starts.
        Raises SubmitRejected, KeyConflict, InvalidSpec, Unavailable.
        """
        from hpcbridge.jobs.submit import SubmitPolicy, submit_once

        async with self._use() as (entry, name):
            patience = SubmitPolicy().patience
            user = await self._user(entry, name, patience)
            filled = {
                "workdir": spec.workdir or await self._home(entry, name, patience),
                "account": self._account(spec.account),
            }
            spec = spec.replace(**{field: value for field, value in filled.items() if value})
            since = datetime.now(UTC)
            done = await submit_once(entry.client, name, spec, key, store=store, user=user, look_first=look_first)
        return Job(self, done.job_id, done.name, spec=spec, submitted=done, since=None if done.adopted else since)

    def job(self, job_id: str | int, name: str | None = None) -> Job:
        """A handle on a job that exists already; nothing is sent."""
        return Job(self, str(job_id), name)

    async def find(self, key: str, *, workdir: str | None = None, name: str = "job") -> Job | None:
        """The job of an earlier submit with the same key, work directory and name (label); None where none shows (yet).

        Nothing is submitted. `submit` with the same key gives that job in any case; this is for what has to be known
        before, such as whether its files may still be changed.
        """
        from hpcbridge.jobs.names import job_name
        from hpcbridge.jobs.submit import find

        async with self._use() as (entry, system):
            user = await self._user(entry, system)
            workdir = workdir or await self._home(entry, system)
            full = job_name(name, site=self.hpc.site.url, system=system, user=user, workdir=workdir, key=key)
            job_id = await find(entry.client, system, full, workdir)
        return Job(self, job_id, full) if job_id is not None else None

    async def jobs(self) -> list[JobRow]:
        """The user's jobs as the scheduler lists them: all live ones and those of the last day (or week, by server)."""
        async with self._use() as (entry, name):
            return await entry.client.jobs(name)

    async def put(
        self,
        local: str | Path,
        remote: str,
        *,
        route: str | None = None,
        verify: str | None = "auto",
        atomic: bool = False,
        progress: Callable[[Progress], None] | None = None,
        account: str | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        max_file_size: int | None = None,
        max_size: int | None = None,
        dry_run: bool = False,
    ) -> TransferResult | TreeResult:
        """Copy the file or directory `local` to the absolute path `remote`.

        Of a directory, the content becomes the content of `remote` (never `remote`/NAME), merged into what is there:
        one archive, published by rename. `include` and `exclude` are patterns like gitignore's, `max_file_size`
        (bytes) leaves larger files out; both are for directories. `max_size` (bytes) refuses more than that as a whole.
        With `dry_run` nothing is sent; the result of a directory lists what would be.

        `route` is a name of `hpcbridge.staging.Route`, or None for the quickest that the system offers. `verify` is
        "auto", "size", "sha256" or None. `atomic` publishes a file by one rename, as a directory always is. `progress`
        is told phase and bytes. Raises TransferError, IntegrityError, TooLarge, PathNotFound, PermissionDenied,
        Unavailable.
        """
        from hpcbridge.staging import either

        chosen = either.Choice(tuple(include), tuple(exclude), max_file_size, max_size, dry_run=dry_run)
        options = {"route": route, "verify": verify, "progress": progress}
        async with self._use():
            return await either.put(
                self, Path(local), remote, chosen, atomic=atomic, account=self._account(account), **options
            )

    async def get(
        self,
        remote: str,
        local: str | Path,
        *,
        route: str | None = None,
        verify: str | None = "auto",
        resume: bool = True,
        progress: Callable[[Progress], None] | None = None,
        account: str | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        max_file_size: int | None = None,
        max_size: int | None = None,
        dry_run: bool = False,
    ) -> TransferResult | TreeResult:
        """Copy the file or directory `remote` (absolute) to the path `local`; see `put`.

        With `resume` an interrupted download goes on where it stopped.
        """
        from hpcbridge.staging import either

        chosen = either.Choice(tuple(include), tuple(exclude), max_file_size, max_size, dry_run=dry_run)
        options = {"route": route, "verify": verify, "progress": progress}
        async with self._use():
            return await either.get(
                self, remote, Path(local), chosen, resume=resume, account=self._account(account), **options
            )

    async def sync(
        self,
        local: str | Path,
        remote: str,
        *,
        direction: Literal["up", "down"] = "up",
        delete: bool = False,
        route: str | None = None,
        progress: Callable[[Progress], None] | None = None,
        account: str | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        max_file_size: int | None = None,
        max_size: int | None = None,
        dry_run: bool = False,
    ) -> TreeResult:
        """Make the directory `remote` like `local` ("up"), or `local` like `remote` ("down"), sending what differs.

        What is on the receiving side alone stays, unless `delete`; what the patterns leave out stays in any case. See
        `put` for the rest.
        """
        from hpcbridge.staging import either

        chosen = either.Choice(tuple(include), tuple(exclude), max_file_size, max_size, dry_run=dry_run)
        async with self._use():
            return await either.sync(
                self,
                Path(local),
                remote,
                chosen,
                direction=direction,
                delete=delete,
                route=route,
                progress=progress,
                account=self._account(account),
            )

    async def ls(self, path: str, *, hidden: bool = False, recursive: bool = False) -> list[FileEntry]:
        """The entries of a directory, without `.` and `..`; with `recursive` of the whole tree, names relative to it.

        A file gives itself. Names hold what C's quoting has left of them where the login node runs under a C locale;
        a directory over the server's limit (about 20,000 entries) is listed by a job. Raises PathNotFound,
        PermissionDenied.
        """
        from hpcbridge.staging.remote import listing

        async with self._remote() as t:
            return await listing.entries(t, path, hidden=hidden, recursive=recursive)

    async def glob(self, pattern: str) -> list[str]:
        """The paths that match, sorted: `*`, `?`, `[…]`, and `**` for any number of directories, as in a shell.

        Raises PathNotFound when there is none.
        """
        from hpcbridge.staging.remote import globs

        async with self._remote() as t:
            return [found.path for found in await globs.expand(t, pattern)]

    async def stat(self, path: str) -> FileStat:
        """Mode, size (bytes), owner and times of a path. Raises PathNotFound."""
        async with self._use() as (entry, name):
            return await entry.client.stat(name, path)

    async def mkdir(self, path: str | Sequence[str], parents: bool = True) -> None:
        """Make directories; with `parents` each may exist already."""
        from hpcbridge.staging.remote import operations

        async with self._remote() as t:
            failures = await operations.make(t, _paths(path), parents=parents)
        operations.raise_failures(failures, len(_paths(path)))

    async def rm(
        self,
        path: str | Sequence[str],
        *,
        recursive: bool = True,
        missing_ok: bool = False,
        preserve_root: bool = True,
        progress: Callable[[Progress], None] | None = None,
        account: str | None = None,
    ) -> None:
        """Remove files and, unless `recursive` is off, directories with all they hold.

        The root of a file system and your own directory are refused unless `preserve_root` is off. Removals that take
        longer than the server's five seconds, names that no request can carry, and more than 200 paths go by one job.
        Raises PathNotFound (not with `missing_ok`), PermissionDenied; SomeFailed for several paths.
        """
        from hpcbridge.staging.remote import operations

        async with self._remote(account, progress) as t:
            failures = await operations.remove(
                t, _paths(path), recursive=recursive, missing_ok=missing_ok, preserve_root=preserve_root
            )
        operations.raise_failures(failures, len(_paths(path)))

    async def cp(
        self,
        source: str | Sequence[str],
        destination: str,
        *,
        recursive: bool = False,
        progress: Callable[[Progress], None] | None = None,
        account: str | None = None,
    ) -> None:
        """Copy on the system, as `cp` does, by one job; a `destination` that is a directory means inside it.

        Each new file or tree appears by one rename; a directory that exists is merged into. Raises PathNotFound,
        PermissionDenied, Conflict; SomeFailed for several sources.
        """
        from hpcbridge.staging.remote import operations

        async with self._remote(account, progress) as t:
            failures = await operations.copy(t, _paths(source), destination, recursive=recursive)
        operations.raise_failures(failures, len(_paths(source)))

    async def mv(
        self,
        source: str | Sequence[str],
        destination: str,
        *,
        progress: Callable[[Progress], None] | None = None,
        account: str | None = None,
    ) -> None:
        """Move or rename on the system, as `mv` does, by one job; see `cp`."""
        from hpcbridge.staging.remote import operations

        async with self._remote(account, progress) as t:
            failures = await operations.move(t, _paths(source), destination)
        operations.raise_failures(failures, len(_paths(source)))

    async def du(
        self, path: str, *, progress: Callable[[Progress], None] | None = None, account: str | None = None
    ) -> Usage:
        """Bytes and numbers of files, directories and links under `path`, and the same of each directory in it.

        By one recursive listing, or by a job where that is over the server's limits.
        """
        from hpcbridge.staging.remote import operations

        async with self._remote(account, progress) as t:
            return await operations.usage(t, path)

    async def read(
        self, path: str, *, progress: Callable[[Progress], None] | None = None, account: str | None = None
    ) -> AsyncGenerator[bytes]:
        """The bytes of a file of any size, in order, in constant memory; more than one direct download costs a job.

        Raises PathNotFound, PermissionDenied, IsDirectory; IntegrityError after the last byte when what was read is not
        what is there.
        """
        from hpcbridge.staging.remote import reading

        async with self._remote(account, progress) as t, aclosing(reading.read(t, path)) as blocks:
            async for block in blocks:
                yield block

    async def checksum(self, path: str) -> str:
        """SHA-256 of a file on the system, in hex."""
        async with self._use() as (entry, name):
            return await entry.client.checksum(name, path)

    async def read_bytes(self, path: str) -> bytes:
        """The whole content of a small file (up to the server's direct limit, about 3.9 MB). Raises TooLarge."""
        async with self._use() as (entry, name):
            return await entry.client.download(name, path)

    async def user(self, known: str | None = None) -> str:
        """The user's name on the system; asked for once, as it costs the login node three commands.

        `known` is what an earlier process was told for the same identity: then nothing is asked.
        """
        async with self._use() as (entry, name):
            if known:
                entry.users.setdefault(name, known)
            return await self._user(entry, name)

    async def _user(self, entry: _registry.Entry, name: str, patience: float | None = None) -> str:
        async with entry.users_turn:  # who asks meanwhile waits for the answer that is under way
            if name not in entry.users:
                entry.users[name] = (await entry.client.userinfo(name, patience=patience)).name
            return entry.users[name]

    async def home(self) -> str:
        """The user's own directory: `<file system>/<user>` on the default file system, else on the first that has one.

        Raises ConfigurationError when there is none.
        """
        async with self._use() as (entry, name):
            return await self._home(entry, name)

    async def _home(self, entry: _registry.Entry, name: str, patience: float | None = None) -> str:
        if name not in entry.homes:
            entry.homes[name] = await self._find_home(entry, name, patience)
        return entry.homes[name]

    async def _find_home(self, entry: _registry.Entry, name: str, patience: float | None) -> str:
        from hpcbridge.errors import ConfigurationError, InvalidRequest, NotFound, PermissionDenied

        user = await self._user(entry, name, patience)
        info = await entry.client.system(name, patience=patience)
        tried = []
        for file_system in sorted(info.file_systems, key=lambda each: not each.default_work_dir):
            path = f"{file_system.path.rstrip('/')}/{user}"
            tried.append(path)
            with suppress(NotFound, PermissionDenied, InvalidRequest):
                await entry.client.stat(name, path, patience=patience)
                return path
        raise ConfigurationError(
            f"no directory of your own was found (tried {', '.join(tried) or 'nothing: no file systems'})",
            site=self.hpc.site.name,
            system=name,
            hint="Name one (`--workdir`, `workdir=`)",
        )


def _paths(given: str | Sequence[str]) -> Sequence[str]:
    return [given] if isinstance(given, str) else given


def _no_system(site: Site, names: Sequence[str] = ()) -> HpcBridgeError:
    from hpcbridge.errors import ConfigurationError

    there = f"; the site has {', '.join(names)}" if names else ""
    return ConfigurationError(
        f"no system was named{there}", site=site.name, hint="Set FIRECREST_SYSTEM or name one (`--system`, `system()`)"
    )
