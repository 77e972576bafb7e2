"""Credentials that need no person: client credentials, and tokens that somebody else provides."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from hpcbridge.credentials.issuer import Issuer
from hpcbridge.credentials.secret import Secret
from hpcbridge.credentials.sources import SecretSource
from hpcbridge.credentials.tokens import CachedCredential, Token, lifetime_of
from hpcbridge.errors import AuthenticationError, HpcBridgeError

_FILE_LIFETIME = 10.0
_COMMAND_LIFETIME = 60.0


class ClientCredentials(CachedCredential):
    """A service account: client id and secret (RFC 6749, 4.4)."""

    def __init__(self, issuer: Issuer) -> None:
        """`issuer` carries the client's id and the source of its secret."""
        super().__init__()
        self._issuer = issuer

    @property
    def identity(self) -> str:
        """Issuer and client."""
        return f"client_credentials:{self._issuer.name}:{self._issuer.client_id}"

    async def _fetch(self) -> Token:
        return (await self._issuer.fetch("client_credentials")).token


class TokenFile(CachedCredential):
    """A file that somebody else keeps up to date; read again every 10 s, or when the JWT in it is due."""

    def __init__(self, path: str | Path, *, site: str | None = None) -> None:
        """Nothing is read yet."""
        super().__init__()
        self._path = str(path)
        self._source = SecretSource("token_file", file=self._path, site=site)

    @property
    def identity(self) -> str:
        """The path."""
        return f"token_file:{self._path}"

    async def _fetch(self) -> Token:
        return _provided(await self._source.read(), _FILE_LIFETIME, self._source.description)


class TokenCommand(CachedCredential):
    """A command that prints a token, without a shell; run again when the JWT is due, or after a minute."""

    def __init__(self, command: Sequence[str], *, site: str | None = None) -> None:
        """Nothing is run yet."""
        super().__init__()
        self._command = tuple(command)
        self._source = SecretSource("token_command", command=self._command, site=site)

    @property
    def identity(self) -> str:
        """The program and a digest of its arguments, which might name secrets."""
        digest = hashlib.sha256("\0".join(self._command).encode()).hexdigest()[:12]
        return f"token_command:{self._command[0]}:{digest}"

    async def _fetch(self) -> Token:
        return _provided(await self._source.read(), _COMMAND_LIFETIME, self._source.description)


class TokenCallable(CachedCredential):
    """A function, asynchronous or not, that returns a token; its own cache holds unless the token is a JWT."""

    def __init__(self, function: Callable[[], str | Awaitable[str]], *, identity: str | None = None) -> None:
        """`identity` tells functions apart whose qualified name is the same (default: name and object)."""
        super().__init__()
        self._function = function
        name = getattr(function, "__qualname__", type(function).__qualname__)
        self._identity = identity or f"{name}:{id(function):x}"

    @property
    def identity(self) -> str:
        """The function's name."""
        return f"token_callable:{self._identity}"

    async def _fetch(self) -> Token:
        failure: HpcBridgeError
        try:
            answer = self._function()
            value = Secret(await answer if inspect.isawaitable(answer) else answer)
        except HpcBridgeError:
            raise
        except Exception as error:  # the function is not ours: its locals may hold the token, so nothing is chained
            failure = AuthenticationError(f"the token function failed with {type(error).__name__}")
        else:
            return _provided(value, 0.0, "the token function")
        raise failure


def _provided(value: Secret, otherwise: float, source: str) -> Token:
    """A token from elsewhere; one that is over already is an error rather than a 401.

    Raises:
        AuthenticationError: expired.
    """
    lifetime = lifetime_of(value.reveal(), -1.0)
    if lifetime == 0:
        raise AuthenticationError(f"the token from {source} has expired", hint="Renew it where it comes from")
    return Token(value, lifetime if lifetime > 0 else otherwise)
