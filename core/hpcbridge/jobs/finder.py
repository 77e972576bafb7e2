"""Look-ups by name, shared: however many submits are in doubt, one listing at a time answers all of them."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING

from hpcbridge.errors import HpcBridgeError, ServerError, TooLarge

if TYPE_CHECKING:
    from hpcbridge.firecrest import FirecrestClient
    from hpcbridge.firecrest.models import JobRow

_GATHER = 0.05
"""Seconds for which a look-up waits for others to join it."""

_FILTER = 235
"""Characters of the server's name filter."""

_MOST_FILTERED = 3
"""Filtered listings that are still cheaper than one of everything."""


class Finder:
    """Looks jobs up by name on one system."""

    def __init__(self, client: FirecrestClient, system: str) -> None:
        self._client = weakref.ref(client)
        self._system = system
        self._turn = asyncio.Lock()
        self._names: set[str] = set()
        self._windows: set[str] = set()
        self._next: asyncio.Task[dict[str, list[JobRow]]] | None = None

    async def rows(self, name: str, window: str) -> list[JobRow]:
        """The rows named `name` in a listing that begins after this call. Raises what the listing raises."""
        self._names.add(name)
        self._windows.add(window)
        if self._next is None:
            self._next = asyncio.create_task(self._look())
        # Shielded: one submit that is cancelled must not take the others' answer away.
        return (await asyncio.shield(self._next)).get(name, [])

    async def _look(self) -> dict[str, list[JobRow]]:
        async with self._turn:
            await asyncio.sleep(_GATHER)
            names, windows = sorted(self._names), self._windows
            # From here on the listing is under way: later callers need a later one.
            self._names, self._windows, self._next = set(), set(), None
            return await self._list(names, max(windows, key=WINDOWS.index))

    async def _list(self, names: list[str], window: str) -> dict[str, list[JobRow]]:
        client = self._client()
        if client is None:
            raise RuntimeError("the client is gone")
        found: dict[str, list[JobRow]] = {}
        chunks = _chunks(names)
        if len(chunks) > _MOST_FILTERED:
            try:
                for row in await client.jobs(self._system, time_window=window, patience=0):
                    found.setdefault(row.name, []).append(row)
            except (TooLarge, ServerError):
                found.clear()  # too much to list, or a row that breaks the listing: ask for less at a time
            else:
                return found
        for chunk in chunks:
            for row in await client.jobs(self._system, names=chunk, time_window=window, patience=0):
                found.setdefault(row.name, []).append(row)
        return found


WINDOWS = ("1h", "8h", "24h", "3d", "7d")
"""How far servers from 2.5.7 on can look back for jobs that have ended, shortest first."""

_HOURS = (1, 8, 24, 72, 168)


def window_for(age: float) -> str:
    """The shortest window that holds a job submitted `age` seconds ago.

    With an hour to spare for clocks that differ.
    """
    hours = age / 3600 + 1
    return next((window for window, length in zip(WINDOWS, _HOURS, strict=True) if hours < length), WINDOWS[-1])


def _chunks(names: list[str]) -> list[list[str]]:
    chunks: list[list[str]] = []
    for name in names:
        if chunks and len(",".join((*chunks[-1], name))) <= _FILTER:
            chunks[-1].append(name)
        else:
            chunks.append([name])
    return chunks


_finders: weakref.WeakKeyDictionary[FirecrestClient, dict[str, Finder]] = weakref.WeakKeyDictionary()


def finder(client: FirecrestClient, system: str) -> Finder:
    """The one finder of a client and system. Clients belong to one event loop, so finders do."""
    return _finders.setdefault(client, {}).setdefault(system, Finder(client, system))


async def lock_owner(client: FirecrestClient, system: str, lock: str) -> str | None:
    """The job id that holds a lock (see `guard`), None when nobody does.

    Raises HpcBridgeError when it cannot be told.
    """
    from hpcbridge.errors import PathNotFound

    try:
        entries = await client.ls(system, lock)
    except PathNotFound:
        return None
    return next((entry.link_target for entry in entries if entry.link_target), None)


__all__ = ["WINDOWS", "Finder", "HpcBridgeError", "finder", "lock_owner", "window_for"]
