"""A token, how long it may be used, and the cache that everybody shares.

FirecREST refuses tokens with less than 30 s left. A token therefore has three ages: fresh; due, when it is still good
and another one is fetched in the background; and spent. An issuer that is down for a moment goes unnoticed while a
token is due.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from concurrent.futures import Future
from dataclasses import dataclass, field

from hpcbridge.credentials.secret import Secret
from hpcbridge.errors import AuthenticationError, HpcBridgeError, Unavailable

SERVER_MINIMUM = 30.0
"""Seconds that a token must have left to be accepted."""

_SLACK = 2.0
_AHEAD = 60.0
_RETRY_ISSUER = 5.0
_REFUSED_FOR = 5.0


@dataclass(frozen=True, slots=True)
class Token:
    """An access token; `lifetime` in seconds from `obtained` (monotonic clock, before the request for it was sent)."""

    value: Secret
    lifetime: float
    obtained: float = field(default_factory=time.monotonic)

    @property
    def spent_at(self) -> float:
        """From when on it is not given out. Of a short-lived token, as much as possible is used."""
        beyond = self.lifetime - SERVER_MINIMUM
        # JWTs expire at whole seconds, so up to one second less is left than the issuer says.
        reserve = SERVER_MINIMUM + min(_SLACK, 0.5 * beyond) if beyond > 0 else 0.2 * self.lifetime
        return self.obtained + self.lifetime - reserve

    @property
    def due_at(self) -> float:
        """From when on another one is fetched ahead of need."""
        return self.spent_at - min(_AHEAD, (self.spent_at - self.obtained) / 3)


def lifetime_of(token: str, otherwise: float) -> float:
    """Seconds until the expiry that a JWT names; `otherwise` for anything else. Signatures are the server's job."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return max(0.0, float(claims["exp"]) - time.time())
    except (IndexError, KeyError, TypeError, ValueError):
        return otherwise


class CachedCredential(ABC):
    """Caches one token for all loops and threads of the process; one fetch at a time, however many callers."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._token: Token | None = None
        self._flight: tuple[int, Future[Token | HpcBridgeError | None]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._hold_until = 0.0
        self._refusal: tuple[float, HpcBridgeError] | None = None
        _all.add(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.identity})"

    @property
    @abstractmethod
    def identity(self) -> str:
        """Stable and not secret: two credentials with one identity are interchangeable."""

    @abstractmethod
    async def _fetch(self) -> Token:
        """Get another token.

        Raises:
            AuthenticationError: refused. Unavailable: no answer.
        """

    async def access_token(self) -> str:
        """A token that the server will still accept.

        Raises:
            AuthenticationError: the issuer refuses us; LoginRequired where only a new login helps.
            Unavailable: the issuer does not answer, and no token is left that could be used.
        """
        while True:
            with self._guard:
                token, now = self._token, time.monotonic()
                usable = token is not None and now < token.spent_at
                if token is not None and usable and (now < token.due_at or now < self._hold_until):
                    return token.value.reveal()
                if self._refusal is not None and now < self._refusal[0] and not usable:
                    raise copy.copy(self._refusal[1])
                flight = self._join()
            if token is not None and usable:
                return token.value.reveal()
            # The flight belongs to all: one caller's cancellation must not end it, nor lose a rotated refresh token.
            landed = await asyncio.shield(asyncio.wrap_future(flight))
            if isinstance(landed, Token):
                return landed.value.reveal()  # however short it lives
            if landed is not None:
                raise copy.copy(landed)

    def invalidate(self, token: str) -> None:
        """Forget `token`, which the server has refused; another one in the cache stays."""
        with self._guard:
            if self._token is not None and self._token.value.reveal() == token:
                self._token = None

    def _join(self) -> Future[Token | HpcBridgeError | None]:
        """The fetch under way, or a new one in this loop. Called with the guard held."""
        if self._flight is not None and self._flight[0] == os.getpid() and not self._flight[1].done():
            return self._flight[1]
        flight: Future[Token | HpcBridgeError | None] = Future()
        self._flight = (os.getpid(), flight)
        task = asyncio.get_running_loop().create_task(self._fly(flight))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return flight

    async def _fly(self, flight: Future[Token | HpcBridgeError | None]) -> None:
        outcome: Token | HpcBridgeError | None = None
        try:
            outcome = await self._fetch()
            with self._guard:
                self._token, self._refusal, self._hold_until = outcome, None, 0.0
        except HpcBridgeError as error:
            outcome = error.with_traceback(None)
            with self._guard:
                if isinstance(error, Unavailable):
                    self._hold_until = time.monotonic() + _RETRY_ISSUER
                else:  # asking again at once would only lock the account
                    self._refusal = (time.monotonic() + _REFUSED_FOR, error)
        except Exception as error:
            outcome = AuthenticationError(f"no token: {type(error).__name__}")
        finally:
            # Also when this loop ends under us: whoever waits in another one then takes over.
            flight.set_result(outcome)


_all: weakref.WeakSet[CachedCredential] = weakref.WeakSet()


def _renew_guards() -> None:
    for credential in _all:
        credential._guard = threading.Lock()


os.register_at_fork(after_in_child=_renew_guards)  # another thread of the parent may have held one
