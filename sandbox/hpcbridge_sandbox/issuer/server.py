"""The OAuth 2.0 protocol itself, done by Authlib; here are its grants over the sandbox's records."""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from authlib.oauth2 import AuthorizationServer, OAuth2Request
from authlib.oauth2.rfc6749 import InvalidRequestError, OAuth2Payload, grants
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc8628 import DeviceAuthorizationEndpoint, DeviceCodeGrant

from hpcbridge_sandbox.issuer.models import (
    CODE_LIFETIME,
    AuthorizationCode,
    Client,
    DeviceCredential,
    Records,
    RefreshToken,
)

Answer = tuple[int, Any, list[tuple[str, str]]]
"""Status, JSON body or text, headers."""


class Payload(OAuth2Payload):  # type: ignore[misc]
    """Parameters of a request, from the query and the form."""

    def __init__(self, query: list[tuple[str, str]], form: list[tuple[str, str]]) -> None:
        self._pairs = [*query, *form]

    @cached_property
    def data(self) -> dict[str, str]:
        """First value of each parameter."""
        return {name: values[0] for name, values in self.datalist.items()}

    @cached_property
    def datalist(self) -> dict[str, list[str]]:
        """All values of each parameter."""
        values: defaultdict[str, list[str]] = defaultdict(list)
        for name, value in self._pairs:
            values[name].append(value)
        return values


class Request(OAuth2Request):  # type: ignore[misc]
    """An HTTP request as Authlib reads it."""

    def __init__(
        self,
        method: str,
        uri: str,
        headers: Mapping[str, str],
        query: list[tuple[str, str]],
        form: list[tuple[str, str]],
    ) -> None:
        super().__init__(method=method, uri=uri, headers=headers)
        self._args, self._form = dict(query), dict(form)
        self.payload = Payload(query, form)

    @property
    def args(self) -> dict[str, str]:
        """Query parameters."""
        return self._args

    @property
    def form(self) -> dict[str, str]:
        """Form parameters."""
        return self._form


class Server(AuthorizationServer):  # type: ignore[misc]
    """Authlib's authorization server over `Records`.

    Args:
        records: the issuer's tables.
        clients: every client by id.
        mint: makes ``(access token, lifetime)`` for a user and scope.
        identify: makes an ID token for a user, client and nonce.
        device_page: URL of the verification page.
    """

    def __init__(
        self, records: Records, clients: Mapping[str, Client], mint: Any, identify: Any, device_page: Any
    ) -> None:
        super().__init__()
        self.records, self.clients, self.identify, self.device_page = records, clients, identify, device_page
        self.lifetime = 0.0
        self.device_polls: dict[str, float] = {}
        generator = BearerTokenGenerator(mint, lambda **_: secrets.token_urlsafe(32), lambda *_: int(self.lifetime))
        self.register_token_generator("default", generator)
        self.register_grant(ClientCredentials)
        self.register_grant(Code, [Pkce(required=True)])
        self.register_grant(Refresh)
        self.register_grant(Device)
        self.register_endpoint(DeviceAuthorization)

    def query_client(self, client_id: str) -> Client | None:
        """Find a client."""
        return self.clients.get(client_id)

    def save_token(self, token: dict[str, Any], request: OAuth2Request) -> None:
        """Keep the refresh token and add the ID token, both only for a user's own login."""
        if request.user is None:
            return
        old = getattr(request, "refresh_token", None)
        family = old.family if old is not None else secrets.token_hex(8)
        client_id = request.client.client_id
        if "refresh_token" in token:
            scope = token.get("scope") or ""
            self.records.add_refresh(token["refresh_token"], family, client_id, request.user, scope)
        if "openid" in (token.get("scope") or "").split():
            code = getattr(request, "authorization_code", None)
            token["id_token"] = self.identify(request.user, client_id, code.nonce if code is not None else None)

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Nobody listens."""

    def create_oauth2_request(self, request: Request) -> Request:
        """Return the request: the routes make it themselves."""
        return request

    def handle_response(self, status: int, body: Any, headers: list[tuple[str, str]]) -> Answer:
        """Return the answer for the routes to send."""
        return status, body, headers


class Pkce(CodeChallenge):  # type: ignore[misc]
    """PKCE with S256 only (RFC 9700); a challenge without a method is taken as S256."""

    SUPPORTED_CODE_CHALLENGE_METHOD: ClassVar[list[str]] = ["S256"]
    DEFAULT_CODE_CHALLENGE_METHOD = "S256"


class ClientCredentials(grants.ClientCredentialsGrant):  # type: ignore[misc]
    """A user's client acts for the user; its id is the user's name."""

    TOKEN_ENDPOINT_AUTH_METHODS: ClassVar[list[str]] = ["client_secret_basic", "client_secret_post"]


class Code(grants.AuthorizationCodeGrant):  # type: ignore[misc]
    """Authorization code, with PKCE required of the public client."""

    TOKEN_ENDPOINT_AUTH_METHODS: ClassVar[list[str]] = ["client_secret_basic", "client_secret_post", "none"]

    def validate_authorization_request(self) -> str:
        """Ask the public client for PKCE before the login, not after it."""
        redirect_uri: str = super().validate_authorization_request()
        if self.request.client.secret_digest is None and "code_challenge" not in self.request.payload.data:
            raise InvalidRequestError("This client must send a 'code_challenge'.")
        return redirect_uri

    def save_authorization_code(self, code: str, request: Request) -> None:
        """Keep the code for five minutes."""
        data = request.payload.data
        self.server.records.codes[code] = AuthorizationCode(
            code=code,
            client_id=request.client.client_id,
            user=request.user,
            redirect_uri=request.payload.redirect_uri or "",
            scope=request.client.get_allowed_scope(request.payload.scope),
            nonce=data.get("nonce"),
            code_challenge=data.get("code_challenge"),
            code_challenge_method=data.get("code_challenge_method"),
            expires=time.time() + CODE_LIFETIME,
        )

    def query_authorization_code(self, code: str, client: Client) -> AuthorizationCode | None:
        """Find a code that is still good."""
        found: AuthorizationCode | None = self.server.records.codes.get(code)
        if found is None or found.client_id != client.client_id or found.expires < time.time():
            return None
        return found

    def delete_authorization_code(self, authorization_code: AuthorizationCode) -> None:
        """A code is good once."""
        self.server.records.codes.pop(authorization_code.code, None)

    def authenticate_user(self, authorization_code: AuthorizationCode) -> str:
        """Return who logged in."""
        return authorization_code.user


class Refresh(grants.RefreshTokenGrant):  # type: ignore[misc]
    """Refresh with rotation: every refresh token is good once, and its reuse ends the whole login."""

    TOKEN_ENDPOINT_AUTH_METHODS: ClassVar[list[str]] = ["client_secret_basic", "client_secret_post", "none"]
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token: str) -> RefreshToken | None:
        """Find it; a used one shows that somebody else holds a copy, so its family is withdrawn (RFC 9700)."""
        found: RefreshToken | None = self.server.records.refresh(refresh_token)
        if found is not None and found.used:
            self.server.records.drop_family(found.family)
            return None
        return found

    def authenticate_user(self, refresh_token: RefreshToken) -> str:
        """Return whose it is."""
        return refresh_token.user

    def revoke_old_credential(self, refresh_token: RefreshToken) -> None:
        """Mark it used."""
        self.server.records.use_refresh(refresh_token)


class Device(DeviceCodeGrant):  # type: ignore[misc]
    """Device code (RFC 8628)."""

    def query_device_credential(self, device_code: str) -> DeviceCredential | None:
        """Find the pending login."""
        found: DeviceCredential | None = self.server.records.device(device_code=device_code)
        return found

    def query_user_grant(self, user_code: str) -> tuple[str, bool] | None:
        """Return who answered on the verification page, and what."""
        found = self.server.records.device(user_code=user_code)
        if found is None or found.approved is None:
            return None
        return found.user, bool(found.approved)

    def should_slow_down(self, credential: DeviceCredential) -> bool:
        """Ask for five more seconds when a client polls faster than the interval that it was told."""
        now = time.monotonic()
        last = self.server.device_polls.get(credential.device_code, float("-inf"))
        self.server.device_polls[credential.device_code] = now
        return bool(now - last < DeviceAuthorization.INTERVAL - 0.5)

    def create_token_response(self) -> Answer:
        """Answer, and forget the device code: it is good once."""
        answer: Answer = super().create_token_response()
        self.server.records.drop_device(self.request.credential.device_code)
        return answer


class DeviceAuthorization(DeviceAuthorizationEndpoint):  # type: ignore[misc]
    """Where a device login begins."""

    INTERVAL = 1
    EXPIRES_IN = 600

    def get_verification_uri(self) -> str:
        """Return the page where the user types the code."""
        page: str = self.server.device_page()
        return page

    def save_device_credential(self, client_id: str, scope: str | None, data: Mapping[str, Any]) -> None:
        """Keep the pending login."""
        self.server.records.add_device(client_id, scope, data)
