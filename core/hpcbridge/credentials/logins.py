"""Credentials of a person: a refresh token, and the two ways to come to one, device code and browser."""

from __future__ import annotations

import asyncio
import html
import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from hpcbridge.credentials.issuer import Grant, Issuer
from hpcbridge.credentials.secret import Secret
from hpcbridge.credentials.store import Login, LoginStore, MemoryStore
from hpcbridge.credentials.tokens import SERVER_MINIMUM, CachedCredential, Token
from hpcbridge.errors import AuthenticationError, HpcBridgeError, LoginRequired, Unavailable

_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_BROWSER_PATIENCE = 300.0
_SHARE_ABOVE = SERVER_MINIMUM + 10.0


class RefreshToken(CachedCredential):
    """A login that lasts: refreshes from its store, and hands rotated tokens back to it."""

    def __init__(
        self,
        issuer: Issuer,
        store: LoginStore | None = None,
        *,
        refresh_token: Secret | str | None = None,
        on_rotation: Callable[[str], Awaitable[None] | None] | None = None,
    ) -> None:
        """Either a store, or a refresh token and a function that is told each new one before it is used."""
        super().__init__()
        self._issuer = issuer
        if isinstance(refresh_token, str):
            refresh_token = Secret(refresh_token)
        self._store: LoginStore = store or MemoryStore(Login(refresh_token) if refresh_token else None)
        self._on_rotation = on_rotation

    @property
    def identity(self) -> str:
        """Issuer, client and, where the login is in a file, the file."""
        where = getattr(self._store, "path", None) or f"{id(self._store):x}"
        return f"login:{self._issuer.name}:{self._issuer.client_id}:{where}"

    async def _fetch(self) -> Token:
        async with self._store.lock():
            login = self._store.load()
            if login is None:
                raise LoginRequired("nobody has logged in", path=self._issuer.name)
            refused = self._refused
            if login.access_token and login.remaining > _SHARE_ABOVE and login.access_token != refused:
                return Token(login.access_token, login.remaining)  # another process has refreshed in the meantime
            if login.refresh_token is None:
                raise LoginRequired("the login has ended and cannot be renewed", path=self._issuer.name)
            grant = await self._issuer.fetch("refresh_token", refresh_token=login.refresh_token)
            await self._keep(grant, login.refresh_token)
            return grant.token

    _refused: Secret | None = None

    def invalidate(self, token: str) -> None:
        """Forget `token`, also where another process might offer it again."""
        self._refused = Secret(token)
        super().invalidate(token)

    async def _keep(self, grant: Grant, previous: Secret | None = None) -> None:
        refresh = grant.refresh_token or previous
        expires = time.time() + grant.token.obtained + grant.token.lifetime - time.monotonic()
        self._store.save(Login(refresh, grant.token.value, expires))
        if self._on_rotation is not None and refresh is not None and refresh != previous:
            told = self._on_rotation(refresh.reveal())
            if inspect.isawaitable(told):
                await told

    async def _logged_in(self, grant: Grant) -> None:
        async with self._store.lock():
            await self._keep(grant)
        with self._guard:
            self._token, self._refusal = grant.token, None

    def logout(self) -> None:
        """Forget the login on this machine."""
        self._store.forget()
        with self._guard:
            self._token = None


@dataclass(frozen=True, slots=True)
class DevicePrompt:
    """What to show a person: open `url` and enter `user_code`, or open `complete_url`; `expires_in` seconds."""

    url: str
    user_code: str
    complete_url: str | None
    expires_in: float


class DeviceCode(RefreshToken):
    """Login on another device (RFC 8628), for machines without a browser; afterwards as RefreshToken."""

    async def login(self, prompt: Callable[[DevicePrompt], Any]) -> None:
        """Ask the issuer for a code, show it with `prompt`, wait until the person has answered.

        Raises:
            AuthenticationError: declined, or not answered in time.
        """
        url = await self._issuer.endpoint("device_authorization_endpoint")
        started = time.monotonic()
        answer = await self._issuer.post(url, scope=self._issuer.scope or "openid")
        expires = float(answer.get("expires_in") or 600)
        shown = prompt(
            DevicePrompt(
                url=str(answer.get("verification_uri") or answer.get("verification_url")),
                user_code=str(answer["user_code"]),
                complete_url=answer.get("verification_uri_complete"),
                expires_in=expires,
            )
        )
        if inspect.isawaitable(shown):
            await shown
        code = Secret(str(answer.pop("device_code")))
        await self._logged_in(await self._poll(code, float(answer.get("interval") or 5), started + expires))

    async def _poll(self, code: Secret, interval: float, deadline: float) -> Grant:
        while time.monotonic() < deadline:
            await asyncio.sleep(interval)
            try:
                return await self._issuer.fetch(_DEVICE_GRANT, device_code=code)
            except Unavailable as error:
                if getattr(error, "oauth_error", None) == "slow_down":
                    interval += 5
            except LoginRequired:
                break
        raise AuthenticationError("nobody answered in time", path=self._issuer.name, hint="Log in again")


class AuthorizationCodePKCE(RefreshToken):
    """Login in a browser on this machine (RFC 8252: code with PKCE, redirect to the loopback interface)."""

    async def login(self, open_browser: Callable[[str], Any], *, port: int = 0) -> None:
        """Give the issuer's page to `open_browser` and wait for the browser to come back to 127.0.0.1.

        Raises:
            AuthenticationError: declined, a forged answer, or none within five minutes.
        """
        from authlib.common.security import generate_token

        verifier, state = Secret(generate_token(64)), generate_token(32)
        answered: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(_Redirect(answered, state).serve, "127.0.0.1", port)
        async with server:
            redirect = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/callback"
            opened = open_browser(await self._authorization_url(redirect, verifier, state))
            if inspect.isawaitable(opened):
                await opened
            failure: HpcBridgeError
            try:
                async with asyncio.timeout(_BROWSER_PATIENCE):
                    answer = await answered
            except TimeoutError:
                failure = AuthenticationError("nobody logged in within five minutes", path=self._issuer.name)
            else:
                await self._exchange(answer, redirect, verifier)
                return
        raise failure

    async def _authorization_url(self, redirect: str, verifier: Secret, state: str) -> str:
        from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
        from authlib.oauth2.rfc7636 import create_s256_code_challenge

        uri: str = prepare_grant_uri(
            await self._issuer.endpoint("authorization_endpoint"),
            client_id=self._issuer.client_id,
            response_type="code",
            redirect_uri=redirect,
            scope=self._issuer.scope or "openid",
            state=state,
            code_challenge=create_s256_code_challenge(verifier.reveal()),
            code_challenge_method="S256",
        )
        return uri

    async def _exchange(self, answer: dict[str, str], redirect: str, verifier: Secret) -> None:
        if "code" not in answer:
            reason = answer.get("error_description") or answer.get("error") or "no code"
            raise AuthenticationError(f"the issuer did not log you in: {reason}", path=self._issuer.name)
        code = Secret(answer.pop("code"))
        grant = await self._issuer.fetch("authorization_code", code=code, redirect_uri=redirect, code_verifier=verifier)
        await self._logged_in(grant)


class _Redirect:
    """The loopback end of a browser login: takes one redirect that carries our state, and says thank you."""

    _LONGEST = 16384

    def __init__(self, answered: asyncio.Future[dict[str, str]], state: str) -> None:
        self._answered = answered
        self._state = state

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of the browser's."""
        try:
            async with asyncio.timeout(10):
                line = (await reader.readuntil(b"\r\n")).decode("ascii", "replace")
                status, text = self._take(line.split(" ")[1] if line.count(" ") >= 2 else "")
                body = f"<!doctype html><title>hpcbridge</title><p>{html.escape(text)}</p>".encode()
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
                    "Referrer-Policy: no-referrer\r\nConnection: close\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return  # not our browser
        finally:
            writer.close()

    def _take(self, target: str) -> tuple[str, str]:
        from authlib.common.urls import url_decode

        parts = urlsplit(target)
        try:
            answer = dict(url_decode(parts.query)) if parts.query else {}
        except ValueError:
            answer = {}
        if parts.path != "/callback" or answer.get("state") != self._state:
            return "404 Not Found", "Nothing here."
        if not self._answered.done():
            self._answered.set_result(answer)
        return "200 OK", "You may close this page." if "code" in answer else "You were not logged in."
