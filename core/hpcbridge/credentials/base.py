"""What the HTTP layer asks of a credential."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Credential(Protocol):
    """Gives bearer tokens. One credential may serve several event loops and threads at once."""

    @property
    def identity(self) -> str:
        """Stable and not secret: two credentials with one identity are interchangeable."""

    async def access_token(self) -> str:
        """A token that the server will still accept: cached, fetched once whatever the number of callers.

        Raises:
            AuthenticationError: the issuer refuses us; LoginRequired where only a new login helps.
            Unavailable: the issuer does not answer. Nothing was sent to the server.
        """

    def invalidate(self, token: str) -> None:
        """The server answered 401 to `token`: never give it out again. Another token in the cache stays."""
