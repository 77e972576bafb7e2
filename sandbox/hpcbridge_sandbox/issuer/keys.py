"""The issuer's signing key and the tokens it signs."""

from __future__ import annotations

import secrets
import time
from typing import Any

from joserfc import jwt
from joserfc.jwk import RSAKey

from hpcbridge_sandbox.store import Store

ALGORITHM = "RS256"


class SigningKey:
    """One RSA key, kept in the store so that a restarted sandbox still accepts its tokens."""

    def __init__(self, store: Store) -> None:
        kept = store.get("issuer_key")
        if kept is None:
            key = RSAKey.generate_key(2048, {"use": "sig", "alg": ALGORITHM, "kid": secrets.token_hex(8)})
            kept = key.as_dict(private=True)
            store.put("issuer_key", kept)
        self._key = RSAKey.import_key(kept)
        self.kid: str = kept["kid"]

    @property
    def public(self) -> RSAKey:
        """The key as a verifier holds it."""
        return RSAKey.import_key(self._key.as_dict(private=False))

    def jwks(self) -> dict[str, Any]:
        """Return the JSON Web Key Set with the public key."""
        return {"keys": [self._key.as_dict(private=False)]}

    def sign(self, claims: dict[str, Any], lifetime: float, *, kind: str = "JWT") -> str:
        """Return ``claims`` as a signed JWT, with issue time, expiry after ``lifetime`` seconds and an id added."""
        now = int(time.time())
        complete = {**claims, "iat": now, "exp": int(now + lifetime), "jti": secrets.token_hex(12)}
        return jwt.encode({"alg": ALGORITHM, "kid": self.kid, "typ": kind}, complete, self._key)
