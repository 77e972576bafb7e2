"""Clients, users, codes and refresh tokens, as Authlib asks for them and as SQLite keeps them."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from authlib.oauth2.rfc6749 import AuthorizationCodeMixin, ClientMixin, TokenMixin
from authlib.oauth2.rfc8628 import DEVICE_CODE_GRANT_TYPE, DeviceCredentialMixin

from hpcbridge_sandbox.store import Store

PUBLIC_CLIENT = "hpcbridge-cli"
"""The client without a secret that the login flows use."""
INTERACTIVE = ("authorization_code", "refresh_token", DEVICE_CODE_GRANT_TYPE)
SCOPES = ("openid", "profile", "email", "offline_access", "firecrest")
CODE_LIFETIME = 300
REFRESH_LIFETIME = 30 * 86400


def digest(secret: str) -> str:
    """Return what is stored in place of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass(frozen=True)
class Client(ClientMixin):  # type: ignore[misc]
    """An OAuth client: one per user (client credentials and every login flow), and the public one."""

    client_id: str
    secret_digest: str | None = field(repr=False)
    grant_types: tuple[str, ...]

    def get_client_id(self) -> str:
        """Return the id."""
        return self.client_id

    def get_default_redirect_uri(self) -> str | None:
        """No default: a login says where it wants to return to."""
        return None

    def get_allowed_scope(self, scope: str | None) -> str:
        """Return the scopes of the request that exist here."""
        return " ".join(name for name in (scope or "").split() if name in SCOPES)

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        """Accept any port and path on loopback (RFC 8252)."""
        parts = urlsplit(redirect_uri)
        return parts.scheme == "http" and parts.hostname in {"127.0.0.1", "::1", "localhost"}

    def check_client_secret(self, client_secret: str) -> bool:
        """Compare in constant time."""
        return self.secret_digest is not None and secrets.compare_digest(self.secret_digest, digest(client_secret))

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:  # noqa: ARG002 (Authlib's signature)
        """A client with a secret must show it; the public one has none."""
        return (method == "none") == (self.secret_digest is None)

    def check_response_type(self, response_type: str) -> bool:
        """Only the code flow."""
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        """Tell whether this client may use the grant."""
        return grant_type in self.grant_types


@dataclass(frozen=True)
class AuthorizationCode(AuthorizationCodeMixin):  # type: ignore[misc]
    """A code between the login page and the token endpoint; attribute names are Authlib's."""

    code: str
    client_id: str
    user: str
    redirect_uri: str
    scope: str
    nonce: str | None
    code_challenge: str | None
    code_challenge_method: str | None
    expires: float

    def get_redirect_uri(self) -> str:
        """Return the redirect URI of the request."""
        return self.redirect_uri

    def get_scope(self) -> str:
        """Return the granted scope."""
        return self.scope


@dataclass(frozen=True)
class RefreshToken(TokenMixin):  # type: ignore[misc]
    """A refresh token; ``family`` names the login that it descends from."""

    token_digest: str
    family: str
    client_id: str
    user: str
    scope: str
    used: bool
    expires: float

    def check_client(self, client: Client) -> bool:
        """Tell whether it was given to this client."""
        return self.client_id == client.client_id

    def get_scope(self) -> str:
        """Return the scope of the login."""
        return self.scope


@dataclass(frozen=True)
class DeviceCredential(DeviceCredentialMixin):  # type: ignore[misc]
    """A pending device login."""

    device_code: str
    user_code: str
    client_id: str
    scope: str
    expires: float
    approved: bool | None
    user: str | None

    def get_client_id(self) -> str:
        """Return the client's id."""
        return self.client_id

    def get_scope(self) -> str:
        """Return the requested scope."""
        return self.scope

    def get_user_code(self) -> str:
        """Return the code that the user types."""
        return self.user_code

    def is_expired(self) -> bool:
        """Tell whether it is too late."""
        return self.expires < time.time()


class Records:
    """The issuer's tables."""

    def __init__(self, store: Store) -> None:
        self._store = store
        store.table(
            """CREATE TABLE IF NOT EXISTS issuer_refresh (
                 token_digest TEXT PRIMARY KEY, family TEXT NOT NULL, client_id TEXT NOT NULL, user TEXT NOT NULL,
                 scope TEXT NOT NULL, used INTEGER NOT NULL, expires REAL NOT NULL)""",
            """CREATE TABLE IF NOT EXISTS issuer_device (
                 device_code TEXT PRIMARY KEY, user_code TEXT NOT NULL, client_id TEXT NOT NULL, scope TEXT NOT NULL,
                 expires REAL NOT NULL, approved INTEGER, user TEXT)""",
        )
        self.codes: dict[str, AuthorizationCode] = {}

    def add_refresh(self, token: str, family: str, client_id: str, user: str, scope: str) -> None:
        """Keep a new refresh token (its digest)."""
        self._store.execute(
            "INSERT INTO issuer_refresh VALUES (?, ?, ?, ?, ?, 0, ?)",
            (digest(token), family, client_id, user, scope, time.time() + REFRESH_LIFETIME),
        )

    def refresh(self, token: str) -> RefreshToken | None:
        """Find a refresh token, used or not; None when unknown or too old."""
        rows = self._store.query(
            "SELECT * FROM issuer_refresh WHERE token_digest = ? AND expires > ?", (digest(token), time.time())
        )
        return RefreshToken(**{**dict(rows[0]), "used": bool(rows[0]["used"])}) if rows else None

    def use_refresh(self, token: RefreshToken) -> None:
        """Mark it used: it is good once."""
        self._store.execute("UPDATE issuer_refresh SET used = 1 WHERE token_digest = ?", (token.token_digest,))

    def drop_family(self, family: str) -> None:
        """Withdraw every refresh token of a login."""
        self._store.execute("DELETE FROM issuer_refresh WHERE family = ?", (family,))

    def add_device(self, client_id: str, scope: str | None, data: Mapping[str, Any]) -> None:
        """Keep a pending device login."""
        self._store.execute(
            "INSERT INTO issuer_device VALUES (?, ?, ?, ?, ?, NULL, NULL)",
            (data["device_code"], data["user_code"], client_id, scope or "", time.time() + data["expires_in"]),
        )

    def device(self, *, device_code: str | None = None, user_code: str | None = None) -> DeviceCredential | None:
        """Find a device login by either of its codes."""
        column, value = ("device_code", device_code) if device_code else ("user_code", user_code)
        rows = self._store.query(f"SELECT * FROM issuer_device WHERE {column} = ?", (value,))  # noqa: S608 (own words)
        return DeviceCredential(**dict(rows[0])) if rows else None

    def answer_device(self, user_code: str, user: str, approved: bool) -> None:
        """Keep what the user said on the verification page."""
        self._store.execute(
            "UPDATE issuer_device SET approved = ?, user = ? WHERE user_code = ?", (int(approved), user, user_code)
        )

    def drop_device(self, device_code: str) -> None:
        """Forget a device login: its code is good once."""
        self._store.execute("DELETE FROM issuer_device WHERE device_code = ?", (device_code,))
