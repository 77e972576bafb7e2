"""How long trouble of the site is waited out. All our requests may be repeated: reads, same content, same key."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from hpcbridge.errors import AmbiguousOutcome, AuthenticationError, PermissionDenied, ServerError, Unavailable

_T = TypeVar("_T")

PASSING = (Unavailable, AmbiguousOutcome, ServerError)
"""What may be otherwise the next time."""

REFUSALS = (AuthenticationError, PermissionDenied)
"""Also tried again for a while: an issuer being restarted answers so, too."""

REFUSED_FOR = 30.0


async def outlast(request: Callable[[], Awaitable[_T]], patience: float) -> _T:
    """Repeat a request until it succeeds, or `patience` seconds have passed. Raises what it raised last."""
    began = time.monotonic()
    pause = 0.5
    while True:
        try:
            return await request()
        except (*PASSING, *REFUSALS) as error:
            limit = min(patience, REFUSED_FOR) if isinstance(error, REFUSALS) else patience
            if time.monotonic() - began > limit:
                raise
            await asyncio.sleep(getattr(error, "retry_after", None) or pause)
            pause = min(pause * 2, 5.0)
