"""The public face: `connect()` gives an `Hpc`, which gives a `System`, which gives a `Job`.

All three are light handles. Connections, tokens, limiters and watchers are shared by everything in the running event
loop that uses the same site and credential, so it costs nothing to connect again.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from hpcbridge import _registry
from hpcbridge.job import Job
from hpcbridge.system import System

if TYPE_CHECKING:
    from types import TracebackType

    from hpcbridge.credentials import Credential
    from hpcbridge.firecrest import FirecrestClient, SystemInfo
    from hpcbridge.sites import Site

__all__ = ["Hpc", "Job", "System", "connect"]


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
    """One deployment as one identity. Use as `async with`; works in any event loop, and after a fork.

    Where no block of code can hold it, for as long as a loop lives for one, there are `open` and `aclose`.
    """

    def __init__(self, site: Site, credential: Credential) -> None:
        """Prefer `connect()`."""
        self.site = site
        self.credential = credential
        self._held: list[tuple[_registry.Entry, AbstractContextManager[_registry.Entry]]] = []

    def __repr__(self) -> str:
        return f"Hpc({self.site.name})"

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def open(self) -> Self:
        """Keep connections, token and watchers of the running loop until the matching `aclose`.

        Nothing is sent. Whoever never comes to `aclose` loses nothing: all of it goes with its loop.
        """
        lease = self._lease()
        self._held.append((lease.__enter__(), lease))
        return self

    async def aclose(self) -> None:
        """Let go of what one `open` in the running loop keeps; without one, there is nothing to do."""
        # Other loops may be inside the same object: let go of what this one holds.
        loop = asyncio.get_running_loop()
        index = max((i for i, (entry, _) in enumerate(self._held) if entry.loop is loop), default=None)
        if index is None:
            return
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
