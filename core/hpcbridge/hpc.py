"""The public face: `connect()` gives an `Hpc`, which gives a `System`, which gives a `Job`.

All three are light handles. Connections, tokens, limiters and watchers are shared by everything in the running event
loop that uses the same site and credential, so it costs nothing to connect again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from hpcbridge import _registry

if TYPE_CHECKING:
    from types import TracebackType

    from hpcbridge.credentials import Credential
    from hpcbridge.firecrest import FileEntry, FirecrestClient, JobRow, SystemInfo
    from hpcbridge.jobs.intents import IntentStore
    from hpcbridge.jobs.spec import JobSpec
    from hpcbridge.jobs.state import JobInfo
    from hpcbridge.jobs.watch import JobWatcher
    from hpcbridge.sites import Site
    from hpcbridge.staging import Progress, TransferResult


def connect(
    site: str | Site | None = None, *, credential: Credential | None = None, adapter: str = "core", **overrides: Any
) -> Hpc:
    """Open a deployment; nothing is sent yet.

    `site` is the name of a section of the configuration file, a `Site`, or None for the environment (FIRECREST_URL and
    so on). `overrides` are fields of `Site` (`url=`, `token_url=`, `client_id=`, `client_secret=`, `system=` …) and win
    over both. `adapter` names the caller in the User-Agent. Raises ConfigurationError.
    """
    from hpcbridge.sites import Site, load_site

    if isinstance(site, Site) and credential is not None and not overrides:
        return Hpc(site, credential, adapter=adapter)
    if isinstance(site, Site):
        fields = {name: getattr(site, name) for name in ("url", "token_url", "client_id", "system")}
        site, found = load_site(None, **{k: v for k, v in (fields | overrides).items() if v is not None})
    else:
        site, found = load_site(site, **overrides)
    return Hpc(site, credential or found, adapter=adapter)


class Hpc:
    """One deployment as one identity. Use as `async with`; works in any event loop, and after a fork."""

    def __init__(self, site: Site, credential: Credential, *, adapter: str = "core") -> None:
        """Prefer `connect()`."""
        self.site = site
        self.credential = credential
        self.adapter = adapter
        self._held: list[AbstractContextManager[_registry.Entry]] = []

    def __repr__(self) -> str:
        return f"Hpc({self.site.name or self.site.url})"

    async def __aenter__(self) -> Self:
        lease = self._lease()
        lease.__enter__()
        self._held.append(lease)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.pop().__exit__(None, None, None)

    def _lease(self) -> AbstractContextManager[_registry.Entry]:
        return _registry.lease(self.site, self.credential, self.adapter)

    @property
    def client(self) -> FirecrestClient:
        """The REST client of the running loop."""
        return _registry.current(self.site, self.credential, self.adapter).client

    async def systems(self, fresh: bool = False) -> list[SystemInfo]:
        """The systems behind this deployment, their health and limits; cached unless `fresh`."""
        with self._lease() as entry:
            return await entry.client.systems(fresh=fresh)

    def system(self, name: str | None = None) -> System:
        """One system by name; without a name the configured one (FIRECREST_SYSTEM), else the only one there is."""
        return System(self, name or self.site.system)


class System:
    """One cluster behind a deployment."""

    def __init__(self, hpc: Hpc, name: str | None) -> None:
        """Prefer `Hpc.system()`."""
        self.hpc = hpc
        self._name = name

    @property
    def name(self) -> str: ...

    @property
    def client(self) -> FirecrestClient: ...

    @property
    def watcher(self) -> JobWatcher: ...

    async def info(self, fresh: bool = False) -> SystemInfo: ...

    async def submit(self, spec: JobSpec, key: str | None = None, *, store: IntentStore | None = None) -> Job: ...

    def job(self, job_id: str, name: str | None = None) -> Job: ...

    async def jobs(self) -> list[JobRow]: ...

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
    ) -> TransferResult: ...

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
    ) -> TransferResult: ...

    async def ls(self, path: str) -> list[FileEntry]: ...

    async def stat(self, path: str) -> Any: ...

    async def mkdir(self, path: str, parents: bool = True) -> None: ...

    async def rm(self, path: str) -> None: ...

    async def checksum(self, path: str) -> str: ...

    async def read_bytes(self, path: str) -> bytes: ...

    async def home(self) -> str: ...


class Job:
    """One batch job on one system."""

    id: str
    name: str | None
    system: System

    async def info(self) -> JobInfo: ...

    async def wait(self, on_change: Callable[[JobInfo], None] | None = None, *, check: bool = False) -> JobInfo: ...

    async def cancel(self, verify: bool = True) -> JobInfo: ...

    def logs(self, follow: bool = False, *, stream: str = "stdout", offset: int = 0) -> AsyncIterator[bytes]: ...
