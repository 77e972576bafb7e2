"""A hub user's token: out of the auth_state of their login, refreshed when due, the rotated token written back.

A refresh token is good once, and the hub refreshes too (`Authenticator.refresh_user`): whoever comes second with a used
one ends the login. So both take turns, one user at a time, and what the issuer gave is stored before the turn ends.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import TYPE_CHECKING, Any

from hpcbridge.credentials import Issuer, Secret
from hpcbridge.credentials.sources import SecretSource
from hpcbridge.credentials.tokens import SERVER_MINIMUM, CachedCredential, Token, lifetime_of
from hpcbridge.errors import ConfigurationError, LoginRequired

if TYPE_CHECKING:
    from hpcbridge.credentials.issuer import Grant

log = logging.getLogger(__name__)

_USABLE = SERVER_MINIMUM + 10.0
"""Seconds that a stored token must have left to be taken as it is."""


class AuthStateCredential(CachedCredential):
    """The credential of one hub user. `authenticator` is an OAuthenticator, or has its `client_id` and `token_url`."""

    def __init__(self, user: Any, authenticator: Any) -> None:
        """Nothing is read yet."""
        super().__init__()
        self._user = user
        self._authenticator = authenticator
        self._refused: Secret | None = None
        self._unsaved: dict[str, Any] | None = None
        share_refresh(authenticator)

    @property
    def identity(self) -> str:
        """The user's name in the hub."""
        return f"jupyterhub:{self._user.name}"

    def follow(self, user: Any) -> None:
        """The hub has made a new wrapper for the same user."""
        self._user = user

    def invalidate(self, token: str) -> None:
        """The server refused `token`, so the copy in auth_state is no good either."""
        self._refused = Secret(token)
        super().invalidate(token)

    async def _fetch(self) -> Token:
        async with turn(self._authenticator, self._user.name):
            state = self._unsaved or await self._user.get_auth_state()
            if not state:
                raise LoginRequired(
                    f"the hub keeps no token of {self._user.name}",
                    hint="Log out of the hub and in again; if that does not help, its administrator has to set "
                    "enable_auth_state and JUPYTERHUB_CRYPT_KEY",
                )
            stored = Secret(str(state.get("access_token") or ""))
            left = lifetime_of(stored.reveal(), 0.0)
            if stored and left > _USABLE and stored != self._refused:
                return Token(stored, left)
            if not state.get("refresh_token"):
                raise LoginRequired(f"the login of {self._user.name} has ended", hint="Log out of the hub and in again")
            grant = await self._issuer().fetch("refresh_token", refresh_token=Secret(str(state["refresh_token"])))
            await self._keep(state, grant)
            return grant.token

    async def _keep(self, state: dict[str, Any], grant: Grant) -> None:
        """Write what the issuer gave back into auth_state; where the database fails, at least not lose it."""
        fresh: dict[str, Any] = {"access_token": grant.token.value.reveal()}
        if grant.refresh_token is not None:
            fresh["refresh_token"] = grant.refresh_token.reveal()
        response = {**(state.get("token_response") or {}), **fresh, "expires_in": int(grant.token.lifetime)}
        self._unsaved = {**state, **fresh, "token_response": response}
        try:
            await self._user.save_auth_state(self._unsaved)
        except Exception as error:
            log.error("the renewed token of %s could not be stored: %s", self._user.name, type(error).__name__)
        else:
            self._unsaved = None

    def _issuer(self) -> Issuer:
        authenticator = self._authenticator
        client_id, token_url = getattr(authenticator, "client_id", ""), getattr(authenticator, "token_url", "")
        if not (client_id and token_url):
            raise ConfigurationError(
                f"{type(authenticator).__name__} has no client_id and token_url, so tokens cannot be renewed",
                hint="Use oauthenticator's GenericOAuthenticator, or credential='site'",
            )
        secret = getattr(authenticator, "client_secret", "") or None
        return Issuer(
            client_id,
            token_url=token_url,
            secret=SecretSource("client_secret", value=Secret(secret)) if secret else None,
            client_auth="client_secret_basic" if secret and getattr(authenticator, "basic_auth", False) else None,
        )


_turns: weakref.WeakKeyDictionary[Any, dict[str, asyncio.Lock]] = weakref.WeakKeyDictionary()


def turn(authenticator: Any, name: str) -> asyncio.Lock:
    """The lock under which the tokens of one user are renewed."""
    return _turns.setdefault(authenticator, {}).setdefault(name, asyncio.Lock())


def share_refresh(authenticator: Any) -> None:
    """Have the hub's own `refresh_user` take turns with ours, and store its result before its turn ends.

    The hub stores it too, but only after its handler has gone on; by then we might have used the old one.
    """
    original = getattr(authenticator, "refresh_user", None)
    if original is None or getattr(original, "shared_by_hpcbridge", False):
        return

    async def refresh_user(user: Any, handler: Any = None, **kwargs: Any) -> Any:
        async with turn(authenticator, user.name):
            answer = await original(user, handler, **kwargs)
            state = answer.get("auth_state") if isinstance(answer, dict) else None
            if state:
                before = await user.get_auth_state()
                if (before or {}).get("refresh_token") != state.get("refresh_token"):
                    await user.save_auth_state(state)
            return answer

    refresh_user.shared_by_hpcbridge = True  # type: ignore[attr-defined]
    authenticator.refresh_user = refresh_user


_credentials: weakref.WeakKeyDictionary[Any, dict[str, AuthStateCredential]] = weakref.WeakKeyDictionary()


def credential_of(user: Any, authenticator: Any) -> AuthStateCredential:
    """The one credential of a user, so that all of their servers share one token and one refresh."""
    known = _credentials.setdefault(authenticator, {})
    if user.name not in known:
        known[user.name] = AuthStateCredential(user, authenticator)
    credential = known[user.name]
    credential.follow(user)
    return credential
