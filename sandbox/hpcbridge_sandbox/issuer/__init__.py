"""A real OpenID Connect issuer: discovery, JWKS, RS256, and the four grants that a client of a computing centre meets.

Client credentials (a client per user), authorization code with PKCE and a login page, refresh with rotation, and device
code. Users log in with their name and secret. Keys and refresh tokens outlive a restart.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from joserfc.jwk import RSAKey

from hpcbridge_sandbox.issuer.keys import SigningKey
from hpcbridge_sandbox.issuer.models import INTERACTIVE, PUBLIC_CLIENT, Client, Records, digest
from hpcbridge_sandbox.issuer.server import Server
from hpcbridge_sandbox.settings import Settings
from hpcbridge_sandbox.store import Store

PATH = "/auth"

__all__ = ["PATH", "PUBLIC_CLIENT", "Issuer"]


class Issuer:
    """The issuer of one sandbox.

    Attributes:
        keys: public keys by key id, as a verifier needs them.
        lifetime: seconds that the next access tokens live (the control URL may change it).
        url: the issuer's identifier; set once the port is known.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self._store = store
        self._signing = SigningKey(store)
        self.keys: Mapping[str, RSAKey] = {self._signing.kid: self._signing.public}
        self.records = Records(store)
        self.url = ""
        self._generation: int = store.get("token_generation", 0)
        self.secrets = {entry.name: digest(entry.secret) for entry in settings.users}
        clients = {
            name: Client(name, secret, ("client_credentials", *INTERACTIVE)) for name, secret in self.secrets.items()
        }
        clients[PUBLIC_CLIENT] = Client(PUBLIC_CLIENT, None, INTERACTIVE)
        self.server = Server(self.records, clients, self._mint, self._identify, lambda: f"{self.url}/device")
        self.server.lifetime = settings.token_lifetime

    @property
    def lifetime(self) -> float:
        """Seconds that the next access tokens live."""
        return self.server.lifetime

    @lifetime.setter
    def lifetime(self, seconds: float) -> None:
        self.server.lifetime = seconds

    def withdraw_tokens(self) -> None:
        """Refuse every access token given out so far, as expired."""
        self._generation += 1
        self._store.put("token_generation", self._generation)

    def is_withdrawn(self, claims: Mapping[str, Any]) -> bool:
        """Tell whether `withdraw_tokens` was called after this token was made."""
        return int(claims.get("gen", self._generation)) < self._generation

    def check_password(self, name: str, password: str) -> bool:
        """Tell whether a user's name and secret fit."""
        client = self.server.clients.get(name)
        return client is not None and client.check_client_secret(password)

    def jwks(self) -> dict[str, Any]:
        """Return the JSON Web Key Set."""
        return self._signing.jwks()

    def access_token(self, user: str, scope: str = "", client_id: str | None = None, **claims: Any) -> str:
        """Return a signed access token; ``claims`` override the usual ones (None removes one)."""
        usual = {
            "iss": self.url,
            "sub": user,
            "aud": "account",
            "azp": client_id or user,
            "typ": "Bearer",
            "scope": scope,
            "preferred_username": user,
            "gen": self._generation,
        }
        wanted = {name: value for name, value in {**usual, **claims}.items() if value is not None}
        return self._signing.sign(wanted, self.lifetime, kind="at+jwt")

    def _mint(self, *, client: Client, grant_type: str, user: str | None, scope: str | None) -> str:  # noqa: ARG002
        # With client credentials the client's id is the user's name.
        return self.access_token(user or client.client_id, scope or "", client.client_id)

    def _identify(self, user: str, client_id: str, nonce: str | None) -> str:
        claims = {
            "iss": self.url,
            "sub": user,
            "aud": client_id,
            "preferred_username": user,
            "auth_time": int(time.time()),
        }
        if nonce:
            claims["nonce"] = nonce
        return self._signing.sign(claims, self.lifetime)
