"""The public face: `connect()` gives an `Hpc`, which gives a `System`, which gives a `Job`.

All three are light handles. Connections, tokens, limiters and watchers are shared by everything in the running event
loop that uses the same site and credential, so it costs nothing to connect again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from hpcbridge import _registry
from hpcbridge._output_paths import Stream, output_path

if TYPE_CHECKING:
    from types import TracebackType

    from hpcbridge.credentials import Credential
    from hpcbridge.errors import HpcBridgeError, JobFailed
    from hpcbridge.firecrest import FileEntry, FileStat, FirecrestClient, JobRow, SystemInfo
    from hpcbridge.jobs.intents import IntentStore
    from hpcbridge.jobs.spec import JobSpec
    from hpcbridge.jobs.state import JobInfo
    from hpcbridge.jobs.submit import Submitted
    from hpcbridge.jobs.watch import JobWatcher
    from hpcbridge.sites import Site
    from hpcbridge.staging import Progress, TransferResult

logger = logging.getLogger(__name__)


def connect(
    site: str | Site | None = None, *, credential: Credential | None = None, adapter: str = "core", **overrides: Any
) -> Hpc:
    """Open a deployment; nothing is sent yet.

    `site` is the name of a section of the configuration file, a `Site`, or None for the environment (FIRECREST_URL and
    so on). `overrides` are fields of `Site` (`url=`, `token_url=`, `client_id=`, `client_secret=`, `system=` …) and win
    over both. `adapter` names the caller in the User-Agent. Raises ConfigurationError.
    """
    from hpcbridge.sites import Site, hide_secrets, load_site, resolve_site

    overrides = hide_secrets(overrides)
    if isinstance(site, Site):
        if overrides:
            raise TypeError("a Site is complete: use dataclasses.replace to change it, or give its name")
        if credential is None:
            from hpcbridge.credentials.factory import credential_for

            credential = credential_for(site)
        return Hpc(replace(site, adapter=adapter), credential)
    if credential is not None:
        return Hpc(resolve_site(site, adapter=adapter, **overrides), credential)
    return Hpc(*load_site(site, adapter=adapter, **overrides))


class Hpc:
    """One deployment as one identity. Use as `async with`; works in any event loop, and after a fork."""

    def __init__(self, site: Site, credential: Credential) -> None:
        """Prefer `connect()`."""
        self.site = site
        self.credential = credential
        self._held: list[tuple[_registry.Entry, AbstractContextManager[_registry.Entry]]] = []

    def __repr__(self) -> str:
        return f"Hpc({self.site.name})"

    async def __aenter__(self) -> Self:
        lease = self._lease()
        self._held.append((lease.__enter__(), lease))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Other loops may be inside the same object: let go of what this one holds.
        loop = asyncio.get_running_loop()
        index = max(i for i, (entry, _) in enumerate(self._held) if entry.loop is loop)
        entry, lease = self._held.pop(index)
        lease.__exit__(None, None, None)
        await entry.rest()

    def _lease(self) -> AbstractContextManager[_registry.Entry]:
        return _registry.lease(self.site, self.credential)

    @property
    def client(self) -> FirecrestClient:
        """The REST client of the running loop."""
        return _registry.current(self.site, self.credential).client

    async def systems(self, fresh: bool = False) -> list[SystemInfo]:
        """The systems behind this deployment, their health and limits; cached unless `fresh`."""
        with self._lease() as entry:
            return await entry.client.systems(fresh=fresh)

    def system(self, name: str | None = None) -> System:
        """One system by name; without a name the configured one (FIRECREST_SYSTEM), else the only one there is."""
        return System(self, name or self.site.system or None)


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

    def _account(self, account: str | None) -> str | None:
        return account or self.hpc.site.account_for(self.name)

    async def info(self, fresh: bool = False) -> SystemInfo:
        """Scheduler, file systems, limits and health. Raises SystemNotFound."""
        async with self._use() as (entry, name):
            return await entry.client.system(name, fresh=fresh)

    async def submit(self, spec: JobSpec, key: str | None = None, *, store: IntentStore | None = None) -> Job:
        """Submit once: with a `key`, the same call again (here, later, after a crash) gives the same job.

        Without a key each call is a new job, still with at most one execution however the answer is lost. Where the
        spec names none, the working directory is the user's own and the account the site's default for the system.
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
            done = await submit_once(entry.client, name, spec, key, store=store, user=user)
        return Job(self, done.job_id, done.name, spec=spec, submitted=done, since=None if done.adopted else since)

    def job(self, job_id: str | int, name: str | None = None) -> Job:
        """A handle on a job that exists already; nothing is sent."""
        return Job(self, str(job_id), name)

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
    ) -> TransferResult:
        """Copy the file `local` to the absolute path `remote`.

        `route` is "direct", "chunked" or "s3", or None for the quickest the system offers. `verify` is "auto", "size",
        "sha256" or None. `atomic` publishes the file by one rename. `progress` is told phase and bytes. Raises
        TransferError, IntegrityError, PathNotFound, PermissionDenied, Unavailable.
        """
        from hpcbridge.staging import put_file

        async with self._use():
            return await put_file(
                self,
                Path(local),
                remote,
                route=route,
                verify=verify,
                atomic=atomic,
                progress=progress,
                account=self._account(account),
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
    ) -> TransferResult:
        """Copy the absolute path `remote` to the file `local`; see `put`.

        With `resume` an interrupted download goes on where it stopped.
        """
        from hpcbridge.staging import get_file

        async with self._use():
            return await get_file(
                self,
                remote,
                Path(local),
                route=route,
                verify=verify,
                resume=resume,
                progress=progress,
                account=self._account(account),
            )

    async def ls(self, path: str, *, hidden: bool = False) -> list[FileEntry]:
        """The entries of a directory, without `.` and `..`. Raises PathNotFound, PermissionDenied."""
        async with self._use() as (entry, name):
            entries = await entry.client.ls(name, path, hidden=hidden)
        return [each for each in entries if each.name not in (".", "..")]

    async def stat(self, path: str) -> FileStat:
        """Mode, size (bytes), owner and times of a path. Raises PathNotFound."""
        async with self._use() as (entry, name):
            return await entry.client.stat(name, path)

    async def mkdir(self, path: str, parents: bool = True) -> None:
        """Make a directory; with `parents` it may exist already."""
        async with self._use() as (entry, name):
            await entry.client.mkdir(name, path, parents=parents)

    async def rm(self, path: str) -> None:
        """Remove a file or a whole directory. Raises PathNotFound."""
        async with self._use() as (entry, name):
            await entry.client.rm(name, path)

    async def checksum(self, path: str) -> str:
        """SHA-256 of a file on the system, in hex."""
        async with self._use() as (entry, name):
            return await entry.client.checksum(name, path)

    async def read_bytes(self, path: str) -> bytes:
        """The whole content of a small file (up to the server's direct limit, about 3.9 MB). Raises TooLarge."""
        async with self._use() as (entry, name):
            return await entry.client.download(name, path)

    async def user(self) -> str:
        """The user's name on the system; asked for once, as it costs the login node three commands."""
        async with self._use() as (entry, name):
            return await self._user(entry, name)

    async def _user(self, entry: _registry.Entry, name: str, patience: float | None = None) -> str:
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


def _no_system(site: Site, names: Sequence[str] = ()) -> HpcBridgeError:
    from hpcbridge.errors import ConfigurationError

    there = f"; the site has {', '.join(names)}" if names else ""
    return ConfigurationError(
        f"no system was named{there}", site=site.name, hint="Set FIRECREST_SYSTEM or name one (`--system`, `system()`)"
    )


_LATE = timedelta(minutes=2)
"""For so long after a job's end its output may still arrive on the file system that the server reads."""


def _long_over(info: JobInfo) -> bool:
    return info.is_terminal and info.ended is not None and datetime.now(UTC) - info.ended > _LATE


class Job:
    """One batch job on one system."""

    def __init__(
        self,
        system: System,
        job_id: str,
        name: str | None = None,
        *,
        spec: JobSpec | None = None,
        submitted: Submitted | None = None,
        since: datetime | None = None,
    ) -> None:
        """Prefer `System.submit()` or `System.job()`."""
        self.system = system
        self.id = job_id
        self.name = name
        self.spec = spec
        self.adopted = submitted is not None and submitted.adopted
        """True when `submit` found the job that an earlier submit with the same key had made."""
        self._since = since
        self._array = submitted.array if submitted is not None else None
        self._env_path = submitted.env_path if submitted is not None else None

    def __repr__(self) -> str:
        return f"Job({self.id} on {self.system!r})"

    async def info(self) -> JobInfo:
        """State, exit code, signal, reason, times and nodes as of now. Raises JobNotFound."""
        async with self.system._use() as (entry, system):
            return await self._now(entry.watcher(system))

    async def wait(self, on_change: Callable[[JobInfo], None] | None = None, *, check: bool = False) -> JobInfo:
        """Wait until the job (every task of an array) has ended; outages are waited out.

        `on_change` is told every change of state. With `check` a job that did not end well raises JobFailed (TimeLimit,
        OutOfMemory …) with the last lines it wrote. Raises JobVanished.
        """
        async with self.system._use() as (entry, system):
            info = await self._end(entry.watcher(system), on_change)
            await self._remove_environment(entry.client, system)
            if check and not info.ok:
                from hpcbridge.jobs.logs import post_mortem

                failure = await post_mortem(entry.client, system, info)
                assert failure is not None
                raise failure
            return info

    async def _now(self, watcher: JobWatcher) -> JobInfo:
        return await watcher.info(self.id, name=self.name)

    async def _end(self, watcher: JobWatcher, on_change: Callable[[JobInfo], None] | None = None) -> JobInfo:
        return await watcher.wait(
            self.id, name=self.name, submitted_at=self._since, array=self._array, on_change=on_change
        )

    async def _remove_environment(self, client: FirecrestClient, system: str) -> None:
        """Remove the private file of `env` values; it stays (mode 0600, in the work directory) when that fails."""
        from hpcbridge.errors import HpcBridgeError, PathNotFound

        if self._env_path is None:
            return
        path, self._env_path = self._env_path, None
        try:
            await client.rm(system, path)
        except PathNotFound:
            return
        except HpcBridgeError as error:
            logger.warning("the environment file of job %s stays on the system: %s", self.id, error)

    async def cancel(self, verify: bool = True) -> JobInfo:
        """End the job; with `verify` wait until the scheduler says that it has ended.

        Cancelling a job that has ended already is no error: its end is returned. One task of an array cannot be
        cancelled: FirecREST knows arrays as a whole. Raises JobNotFound, PermissionDenied, InvalidRequest.
        """
        from hpcbridge.errors import HpcBridgeError, InvalidRequest

        array, is_task, _ = self.id.partition("_")
        if is_task:
            raise InvalidRequest(
                "FirecREST cancels whole arrays, not single tasks",
                job_id=self.id,
                hint=f"To end all of its tasks: cancel {array}",
            )
        async with self.system._use() as (entry, system):
            watcher = entry.watcher(system)
            try:
                await entry.client.cancel(system, self.id)
            except HpcBridgeError as refusal:
                # The server answers 500 for finished, unknown and foreign jobs alike: look which it is.
                info = await self._now(watcher)
                if not info.is_terminal:
                    raise refusal from None
                return info
            if verify:
                return await self._end(watcher)
            return await self._now(watcher)

    async def output_path(self, stream: Stream = "stdout") -> str:
        """The absolute path of the file that holds standard output ("stdout") or standard error ("stderr")."""
        async with self.system._use() as (entry, system):
            return await output_path(entry.client, system, self.id, stream, spec=self.spec, name=self.name)

    async def logs(self, follow: bool = False, *, stream: Stream = "stdout", offset: int = 0) -> AsyncIterator[bytes]:
        """The bytes of a stream from `offset` on, each once; with `follow` until the job has ended and all is read.

        Of a whole array the tasks' streams come one after the other; to follow, name a task (`120_1`). Raises
        InvalidRequest for a whole array with `follow`.
        """
        from hpcbridge.errors import InvalidRequest
        from hpcbridge.jobs.logs import follow as follow_file

        async with self.system._use() as (entry, system):
            info = await self._now(entry.watcher(system))
            if info.tasks and follow:
                raise InvalidRequest(
                    "an array has one log per task",
                    job_id=self.id,
                    hint=f"Name one: {', '.join(task.job_id for task in info.tasks[:3])} …",
                )
            for part in [Job(self.system, task.job_id, self.name, spec=self.spec) for task in info.tasks] or [self]:
                path = await part.output_path(stream)
                late = follow and not _long_over(info)
                ended = asyncio.ensure_future(self._end(entry.watcher(system))) if late else None
                try:
                    async for chunk in follow_file(entry.client, system, path, until=ended, offset=offset):
                        yield chunk
                finally:
                    if ended is not None:
                        ended.cancel()

    async def post_mortem(self) -> JobFailed | None:
        """The error that tells how a failed job ended, with the last lines it wrote; None when it ended well."""
        from hpcbridge.jobs.logs import post_mortem

        async with self.system._use() as (entry, system):
            return await post_mortem(entry.client, system, await self._now(entry.watcher(system)))
