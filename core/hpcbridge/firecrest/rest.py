"""The rest of the interface, through pyfirecrest's v2 asynchronous client.

pyfirecrest knows endpoints and parameters; everything else is ours: it is given an object in place of its httpx
client that hands each request to our session, so limiter, retries, token, time-outs and errors are the same as on the
hot path. Its own retries are off, and it never sees a token: the session adds it. Its constructor and `_session` are
private matters of a pinned version; a test watches both.
"""

from __future__ import annotations

from typing import Any

import httpx

from hpcbridge.firecrest.answers import explain, explain_once
from hpcbridge.http.session import HttpSession

_ONCE = frozenset({"attach_to_job"})
"""Methods that must not be repeated blindly."""


def preload() -> None:
    """Import pyfirecrest now: half a second that an event loop would otherwise stand still at the first call."""
    import firecrest.v2  # noqa: F401


class Rest:
    """Calls methods of pyfirecrest's AsyncFirecrest by name; imports it on first use."""

    def __init__(self, session: HttpSession) -> None:
        """Imports nothing yet."""
        self._session = session

    async def call(self, method: str, system: str, *arguments: Any, about: dict[str, Any] | None = None) -> Any:
        """Call `method(system, *arguments)` and return its result."""
        from firecrest.v2 import AsyncFirecrest

        client = AsyncFirecrest(self._session.site.url, authorization=_NoAuthorization(), verify=False)
        await client.close_session()  # the one it made for itself
        client.num_retries_rate_limit = 0
        # Its messages name URLs; ours are logged by httpx, redacted.
        client.disable_client_logging = True
        requests: Any = _Requests(self._session, {"system": system, **(about or {})}, once=method in _ONCE)
        client._session = requests
        return await getattr(client, method)(system, *arguments)


class _NoAuthorization:
    """What pyfirecrest asks for headers: none, because the session adds the token on the way out."""

    async def auth_headers(self) -> dict[str, str]:
        return {}


class _Requests:
    """Quacks like the part of httpx.AsyncClient that pyfirecrest uses."""

    is_closed = False

    def __init__(self, session: HttpSession, about: dict[str, Any], *, once: bool) -> None:
        self._session = session
        self._about = about
        self._once = once

    async def get(self, url: str, **options: Any) -> httpx.Response:
        return await self.request("GET", url, **options)

    async def put(self, url: str, **options: Any) -> httpx.Response:
        return await self.request("PUT", url, **options)

    async def post(self, url: str, **options: Any) -> httpx.Response:
        return await self.request("POST", url, **options)

    async def request(self, method: str, url: str, *, timeout: Any = None, **options: Any) -> httpx.Response:
        base = self._session.site.url
        if not url.startswith(base + "/"):
            raise ValueError(f"not a URL of the site: {url}")
        content = {name: value for name, value in options.items() if value is not None}
        return await self._session.request(
            method,
            url[len(base) :],
            safe=not self._once,
            explain=explain_once if self._once else explain,
            about=self._about,
            timeout=timeout,
            **content,
        )
