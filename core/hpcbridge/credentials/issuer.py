"""The OpenID issuer: discovery and the token endpoint, spoken by Authlib, with our errors and nothing chained.

Frames of Authlib and httpx hold client secrets and form bodies, so errors are made outside of `except` blocks.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import ssl
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from hpcbridge import __version__
from hpcbridge.credentials.secret import Secret
from hpcbridge.credentials.sources import SecretSource
from hpcbridge.credentials.tokens import Token, lifetime_of
from hpcbridge.errors import AuthenticationError, ConfigurationError, HpcBridgeError, LoginRequired, Unavailable
from hpcbridge.http import redaction

if TYPE_CHECKING:
    from authlib.integrations.httpx_client import AsyncOAuth2Client

T = TypeVar("T")

DEFAULT_LIFETIME = 300.0
"""Seconds, for a token whose issuer does not say."""

_TIMEOUT = 10.0
_WHERE = "Check AUTH_TOKEN_URL (token_url) and the network"
_WELL_KNOWN = "/.well-known/openid-configuration"
_LOGIN_ENDED = frozenset({"invalid_grant", "expired_token", "interaction_required", "login_required"})
_PASSING = frozenset(
    {
        "temporarily_unavailable",
        "server_error",
        "slow_down",
        "authorization_pending",
        "too_many_requests",
        "rate_limit_exceeded",
    }
)
"""Refusals that the next attempt may not get (RFC 6749 and 8628, and what gateways say with 429)."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What the token endpoint gave."""

    token: Token
    refresh_token: Secret | None


def preload() -> Any:
    """Authlib's client (a class), and what httpx loads when it first connects.

    It takes half a second, for which an event loop would stand still.
    """
    with suppress(ImportError):  # private, but what anyio itself loads
        import_module("anyio._backends._asyncio")
    import_module("httpcore")
    with warnings.catch_warnings():  # Authlib prefers httpx's successor and says so at each import
        import authlib.deprecate  # noqa: F401 (puts its own filter first)

        warnings.simplefilter("ignore")
        from authlib.integrations.httpx_client import AsyncOAuth2Client

    return AsyncOAuth2Client


class Issuer:
    """One issuer as one client. `options(url)` are httpx's for that URL: the site's TLS and proxy."""

    def __init__(
        self,
        client_id: str,
        *,
        token_url: str | None = None,
        issuer: str | None = None,
        secret: SecretSource | None = None,
        client_auth: str | None = None,
        scope: str | None = None,
        audience: str | None = None,
        options: Callable[[str], dict[str, Any]] | None = None,
        site: str | None = None,
    ) -> None:
        """Nothing is sent yet; `client_auth` is RFC 6749's client_secret_post (default) or client_secret_basic."""
        if not (token_url or issuer):
            raise ConfigurationError("no token URL", site=site, hint="Set AUTH_TOKEN_URL, or token_url or issuer")
        self.client_id = client_id
        self.site = site
        self._token_url = token_url
        self._issuer = issuer
        self._secret = secret
        self._client_auth = client_auth or ("client_secret_post" if secret else "none")
        self._scope = scope
        self._audience = audience
        self._options = options or (lambda _url: {})
        self._metadata: dict[str, str] | None = None

    def __repr__(self) -> str:
        return f"Issuer({self.name}, client_id={self.client_id})"

    @property
    def name(self) -> str:
        """Its URL, as configured."""
        return str(self._token_url or self._issuer)

    @property
    def scope(self) -> str | None:
        """The scope that is asked for."""
        return self._scope

    async def endpoint(self, name: str) -> str:
        """A URL from the discovery document, `device_authorization_endpoint` for one; the token URL needs no discovery.

        Raises:
            ConfigurationError: there is no discovery document, or it has no such endpoint.
        """
        if name == "token_endpoint" and self._token_url:
            return self._token_url
        if self._metadata is None:
            self._metadata = await self._discover()
        if not (url := self._metadata.get(name)):
            raise ConfigurationError(f"the issuer has no {name}", site=self.site, path=self.name)
        return str(url)

    async def fetch(self, grant_type: str, **form: Any) -> Grant:
        """Ask the token endpoint; values of `form` may be Secret.

        Raises:
            AuthenticationError: refused; LoginRequired if only a new login helps. Its `oauth_error` is RFC 6749's code.
            Unavailable: no usable answer.
        """
        url = await self.endpoint("token_endpoint")
        started = time.monotonic()
        extra = {"audience": self._audience} if self._audience else {}
        if self._scope and grant_type == "client_credentials":
            extra["scope"] = self._scope

        async def ask(client: AsyncOAuth2Client) -> dict[str, Any]:
            revealed = {name: value.reveal() if isinstance(value, Secret) else value for name, value in form.items()}
            return dict(await client.fetch_token(url, grant_type=grant_type, **revealed, **extra))

        answer = await self._with_client(url, ask)
        return self._grant_of(answer, started)

    async def post(self, url: str, **form: str) -> dict[str, Any]:
        """POST a form as this client (device authorization); returns the JSON object."""

        async def ask(client: AsyncOAuth2Client) -> dict[str, Any]:
            data = {"client_id": self.client_id, **form}
            auth = client.client_auth(self._client_auth)
            response = await client.request("POST", url, data=data, withhold_token=True, auth=auth)
            body = response.json()
            if not isinstance(body, dict) or "error" in body or response.status_code >= 400:
                raise client.oauth_error_class(
                    error=str(dict(body).get("error") or f"http_{response.status_code}"),
                    description=dict(body).get("error_description"),
                )
            return body

        return await self._with_client(url, ask)

    # ----------------------------------------------------------------------------------------------------------------

    def _grant_of(self, answer: dict[str, Any], started: float) -> Grant:
        access = answer.get("access_token")
        if not isinstance(access, str) or not access:
            raise AuthenticationError(
                "the issuer's answer holds no access token", site=self.site, path=self.name, hint=_WHERE
            )
        try:
            lifetime = float(answer["expires_in"])
        except (KeyError, TypeError, ValueError):
            lifetime = lifetime_of(access, DEFAULT_LIFETIME)
        refresh = answer.get("refresh_token")
        return Grant(Token(Secret(access), lifetime, started), Secret(refresh) if isinstance(refresh, str) else None)

    async def _with_client(self, url: str, ask: Callable[[AsyncOAuth2Client], Any]) -> dict[str, Any]:
        redaction.install()
        secret = await self._secret.read() if self._secret else None
        failure: HpcBridgeError
        try:
            client = await _in_a_thread(self._client, url, secret)
            async with asyncio.timeout(3 * _TIMEOUT), client:
                result: dict[str, Any] = await ask(client)
                return result
        except (TypeError, AttributeError, NameError):
            raise  # a mistake of ours, not an answer
        except Exception as error:
            failure = self._explain(error)
        raise failure

    def _client(self, url: str, secret: Secret | None) -> AsyncOAuth2Client:
        client: AsyncOAuth2Client = preload()(
            client_id=self.client_id,
            client_secret=secret.reveal() if secret else None,
            token_endpoint_auth_method=self._client_auth,
            headers={"user-agent": f"hpcbridge/{__version__}"},
            timeout=_TIMEOUT,
            **self._options(url),
        )
        return client

    def _explain(self, error: Exception) -> HpcBridgeError:
        """Our error for Authlib's OAuthError, httpx's (of whichever generation Authlib uses) and unreadable answers."""
        text = redaction.redact(str(error)).partition("\n")[0] or type(error).__name__
        code = getattr(error, "error", None)
        if isinstance(code, str) and not isinstance(error, HpcBridgeError):
            return self._refused(code, getattr(error, "description", None))
        if isinstance(error, HpcBridgeError):
            return error
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429):
            return AuthenticationError(f"the issuer refuses: {text}", site=self.site, path=self.name, status=status)
        seen: BaseException | None = error
        while seen is not None:
            if isinstance(seen, ssl.SSLCertVerificationError):
                hint = "If the issuer has a certificate authority of its own, name its PEM file as ca_file"
                return ConfigurationError(
                    f"the issuer's certificate is not trusted: {seen}", site=self.site, path=self.name, hint=hint
                )
            seen = seen.__cause__ or seen.__context__
        return Unavailable(f"the issuer does not answer: {text}", site=self.site, path=self.name, hint=_WHERE)

    def _refused(self, code: str, description: str | None) -> HpcBridgeError:
        if code in _PASSING:
            refusal: HpcBridgeError = Unavailable(f"the issuer answers {code}", site=self.site, path=self.name)
        else:
            kind = LoginRequired if code in _LOGIN_ENDED else AuthenticationError
            text = redaction.redact(f"the issuer refuses: {code}" + (f" ({description})" if description else ""))
            hint = "Check the client id and its secret" if code in ("invalid_client", "unauthorized_client") else None
            refusal = kind(text, site=self.site, path=self.name, hint=hint)
        refusal.oauth_error = code  # type: ignore[attr-defined]
        return refusal

    async def _discover(self) -> dict[str, str]:
        import httpx

        tried = self._issuer.rstrip("/") + _WELL_KNOWN if self._issuer else None
        failure: HpcBridgeError | None = None
        for url in [tried] if tried else list(_discovery_urls(str(self._token_url))):
            try:
                options = await _in_a_thread(self._options, url)
                async with httpx.AsyncClient(timeout=_TIMEOUT, **options) as client:
                    response = await client.get(url)
                    if response.status_code == 200:
                        found: dict[str, str] = response.json()
                        return found
            except (httpx.HTTPError, ValueError) as error:
                failure = self._explain(error)
        if failure is not None:
            raise failure
        hint = "Check AUTH_TOKEN_URL, or set issuer where the document is elsewhere"
        raise ConfigurationError("no discovery document", site=self.site, path=self.name, hint=hint)


async def _in_a_thread(make: Callable[..., T], *arguments: Any) -> T:
    """Make what the event loop would stand still for.

    The first client takes a third of a second, and each as long as it takes to read the authorities' certificates.
    """
    run = functools.partial(contextvars.copy_context().run, make, *arguments)
    try:
        made = asyncio.get_running_loop().run_in_executor(None, run)
    except RuntimeError:  # the interpreter is on its way out, and gives no more threads
        return make(*arguments)
    return await made


def _discovery_urls(token_url: str) -> list[str]:
    """Where issuers keep the document, seen from their token endpoint: Keycloak's realm, or any parent path."""
    parts = urlsplit(token_url)
    base, segments = f"{parts.scheme}://{parts.netloc}", [item for item in parts.path.split("/") if item]
    parents = ["/".join(["", *segments[:depth]]) for depth in range(len(segments) - 1, -1, -1)]
    return [base + parent + _WELL_KNOWN for parent in parents]
