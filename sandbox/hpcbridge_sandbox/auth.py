"""Bearer tokens as the REST interface checks them: 401 and 400 in the real server's words.

The real server checks signature, expiry, and 30 seconds of remaining life, and takes the user from the claim
``preferred_username``. It does not look at issuer or audience. A refused token is echoed in the header ``auth-token``.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jws import JWSRegistry, extract_compact

from hpcbridge_sandbox.errors import ApiError

if TYPE_CHECKING:
    from hpcbridge_sandbox.issuer import Issuer

MINIMUM_LIFE = 30.0
USERNAME_CLAIM = "preferred_username"
CACHE_SIZE = 1024


class TokenVerifier:
    """Verifies access tokens of one issuer; a token's signature is checked once and then remembered."""

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer
        self._claims: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def username(self, authorization: str | None) -> str:
        """Return the user named by an ``Authorization`` header.

        Raises:
            ApiError: 401 without a usable token; 400 for a good token that names nobody.
        """
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise ApiError(401, "Not authenticated", headers={"www-authenticate": "Bearer"})
        claims = self._claims.get(token)
        if claims is None:
            claims = self._verify(token)
            self._claims[token] = claims
            if len(self._claims) > CACHE_SIZE:
                self._claims.popitem(last=False)
        self._check_life(token, claims)
        name = claims.get(USERNAME_CLAIM)
        if not isinstance(name, str) or not name:
            raise ApiError(400, f"Authentication token '{USERNAME_CLAIM}' claim is missing")
        return name

    def _verify(self, token: str) -> dict[str, Any]:
        try:
            header = extract_compact(token.encode()).headers()
        except (JoseError, ValueError):
            raise _refused(token, "Access token is invalid.") from None
        key = self._issuer.keys.get(str(header.get("kid")))
        if key is None:
            raise _refused(token, "Token's public key not found.")
        try:
            return jwt.decode(token, key, registry=JWSRegistry(algorithms=["RS256"])).claims
        except (JoseError, ValueError):
            raise _refused(token, "Access token is invalid.") from None

    def _check_life(self, token: str, claims: dict[str, Any]) -> None:
        now = time.time()
        expiry, start = claims.get("exp"), claims.get("nbf", 0)
        if not isinstance(expiry, int | float) or not isinstance(start, int | float) or start > now + 1:
            raise _refused(token, "Access token is invalid.")
        if expiry <= now or self._issuer.is_withdrawn(claims):
            raise _refused(token, "Access token expired")
        if expiry - now < MINIMUM_LIFE:
            raise _refused(token, "Access token expires too soon (less than 30s remaining).")


def _refused(token: str, message: str) -> ApiError:
    # A header value is latin-1 without line ends; nothing else can arrive in an Authorization header.
    return ApiError(401, message, headers={"auth-token": token})
