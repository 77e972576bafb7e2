"""Events of one start: kept for whoever opens the page late, told to whoever watches it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any


class Progress:
    """A list of events that grows until it is closed.

    Attributes:
        closed: whether the start is over.
    """

    def __init__(self) -> None:
        """No event yet."""
        self._events: list[dict[str, Any]] = []
        self.closed = False
        self._news = asyncio.Event()

    def tell(self, progress: int, message: str) -> None:
        """Add an event, unless it says what the last one said."""
        event = {"progress": progress, "message": message}
        if not self._events or self._events[-1] != event:
            self._events.append(event)
            self._wake()

    @property
    def last(self) -> str:
        """What was told last."""
        return str(self._events[-1]["message"]) if self._events else ""

    def close(self) -> None:
        """The start is over."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """All events from the first on, until the start is over."""
        index = 0
        while True:
            while index < len(self._events):
                yield self._events[index]
                index += 1
            if self.closed:
                return
            await self._news.wait()
