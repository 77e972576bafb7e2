"""What one process shares while it talks to one deployment as one identity.

An `Entry` holds the HTTP session (connections, limiter, circuit breaker), the credential with its cached token, the
FirecREST client and one JobWatcher per system. Entries are found by (process, running event loop, site, credential):
a thousand tasks of one loop share one entry, a second loop or a forked child makes its own.

An entry goes when it has been idle for `LINGER` seconds, and in any case with its loop: each is tied to an asynchronous
generator, and a loop that shuts down (`asyncio.run`, `asyncio.Runner`, anyio, pytest-asyncio) closes its generators
while it can still run the clean-up.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpcbridge.credentials import Credential
    from hpcbridge.firecrest import FirecrestClient
    from hpcbridge.http import HttpSession
    from hpcbridge.jobs.watch import JobWatcher
    from hpcbridge.sites import CredentialSettings, Site

LINGER = 30.0
"""Seconds that an entry nobody uses is kept, so that short-lived users of one loop share connections and token."""

Key = tuple[int, int, "Site", "CredentialSettings", str]


class Entry:
    """The shared parts for one (process, loop, site, credential); made by `lease` and `current`."""

    def __init__(self, key: Key, site: Site, credential: Credential) -> None:
        """Make the parts; nothing is sent before the first request."""
        from hpcbridge.firecrest import FirecrestClient
        from hpcbridge.http import HttpSession

        self.key = key
        self.site = site
        self.credential = credential
        self.loop = asyncio.get_running_loop()
        self.session: HttpSession = HttpSession(site, credential)
        self.client: FirecrestClient = FirecrestClient(self.session)
        self.users: dict[str, str] = {}
        self.users_turn = asyncio.Lock()
        self.homes: dict[str, str] = {}
        self._watchers: dict[str, JobWatcher] = {}
        self._holders = 0
        self._idle: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self._life = self._close_with_loop()
        # The first step registers the generator with the running loop; it stops at its `yield` without suspending.
        with suppress(StopIteration):
            self._life.__anext__().send(None)

    def watcher(self, system: str) -> JobWatcher:
        """The one JobWatcher of `system`, whatever the number of jobs."""
        from hpcbridge.jobs.watch import JobWatcher

        if system not in self._watchers:
            self._watchers[system] = JobWatcher(self.client, system)
        return self._watchers[system]

    def hold(self) -> None:
        """Keep the entry until the matching `release`."""
        self._holders += 1
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def release(self) -> None:
        """Let go; the last one starts the idle clock."""
        self._holders -= 1
        if self._holders == 0 and not self.loop.is_closed():
            self._idle = self.loop.call_later(LINGER, self._expire)

    async def rest(self) -> None:
        """Close the connections when nobody holds the entry; token, limiter and watchers stay for the next one."""
        if self._holders == 0:
            await self.session.aclose()

    def forget(self) -> None:
        """Be found no more."""
        if _entries.get(self.key) is self:
            del _entries[self.key]

    def _expire(self) -> None:
        self.forget()
        self._closing = self.loop.create_task(self._life.aclose())

    async def _close_with_loop(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self.forget()
            if self._idle is not None:
                self._idle.cancel()
            for watcher in self._watchers.values():
                await watcher.aclose()
            await self.session.aclose()


_entries: dict[Key, Entry] = {}
_inherited: list[Entry] = []


def current(site: Site, credential: Credential) -> Entry:
    """The entry of the running loop, made when there is none.

    Raises RuntimeError outside a running event loop.
    """
    loop = asyncio.get_running_loop()
    # The settings, too: whoever corrects a wrong secret must not get the session that was made with it.
    key = (os.getpid(), id(loop), site, site.credentials, credential.identity)
    entry = _entries.get(key)
    # A new loop may get the address of one that has gone.
    if entry is None or entry.loop is not loop:
        _drop_closed_loops()
        entry = _entries[key] = Entry(key, site, credential)
        entry.hold()
        entry.release()
    return entry


@contextmanager
def lease(site: Site, credential: Credential) -> Iterator[Entry]:
    """The running loop's entry, kept open at least as long as the `with` block."""
    entry = current(site, credential)
    entry.hold()
    try:
        yield entry
    finally:
        entry.release()


def _drop_closed_loops() -> None:
    for entry in list(_entries.values()):
        if entry.loop.is_closed():
            entry.forget()


def _after_fork_in_child() -> None:
    # The parent's connections must neither be used nor closed here: keep them, unreachable, until the child ends.
    _inherited.extend(_entries.values())
    _entries.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
