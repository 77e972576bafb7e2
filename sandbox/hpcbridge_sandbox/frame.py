"""What every request passes through before the application sees it: headers, faults, and the closing of connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hpcbridge_sandbox.errors import ApiError

if TYPE_CHECKING:
    from hpcbridge_sandbox.context import Sandbox
    from hpcbridge_sandbox.faults import Outage, Rule

CLOSING_DELAY = 0.01
REST_PREFIXES = ("/status", "/compute", "/filesystem")
BODILESS = frozenset({204, 304})
"""Statuses whose answers have no body (RFC 9110 section 6.4.1)."""
GATEWAY_PAGE = b"<html><head><title>503 Service Temporarily Unavailable</title></head></html>\n"


class ConnectionClosed(Exception):
    """Tells the HTTP server to close this connection; never an error of the sandbox."""


class _Quiet(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], ConnectionClosed))


logging.getLogger("uvicorn.error").addFilter(_Quiet())


class Frame:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, sandbox: Sandbox) -> None:
        self._app, self._sandbox = app, sandbox

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        root = self._sandbox.settings.root_path
        path: str = scope["path"]
        if root and not (path == root or path.startswith(f"{root}/")):
            await _answer(send, ApiError(404, "Not Found"), self._headers(scope))
            return
        path = path.removeprefix(root)
        if not path.startswith(REST_PREFIXES):
            await self._app(scope, receive, self._with_headers(scope, send))
            return
        # The real server lower-cases every path: system names may be written with capitals.
        path = path.lower()
        scope["path"] = root + path
        self._sandbox.faults.note(scope["method"], path)
        await self._serve(scope, receive, send, path)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        faults = self._sandbox.faults
        outage = faults.outage
        if outage is not None:
            await self._outage(outage, receive, send)
            return
        if faults.latency:
            await asyncio.sleep(faults.latency)
        headed = self._with_headers(scope, send)
        after: Rule | None = None
        for rule in faults.matching(scope["method"], path):
            match rule.kind:
                case "latency":
                    await asyncio.sleep(rule.seconds or 0)
                case "status":
                    await _answer(headed, ApiError(rule.status, rule.message, headers=rule.headers))
                    return
                case "hang":
                    await _wait_for_client(receive, rule.seconds)
                    _close(send)
                case "drop_before":
                    _close(send)
                case _:
                    after = rule
        if after is None:
            await self._app(scope, receive, headed)
            if scope.get("state", {}).get("close_connection"):
                # The real server writes a traceback first: late enough that a client has pooled the connection.
                await asyncio.sleep(CLOSING_DELAY)
                raise ConnectionClosed
            return
        await self._work_silently(scope, receive)
        if after.kind == "drop_after":
            _close(send)
        await _answer(headed, ApiError(after.status, after.message, headers=after.headers))

    async def _outage(self, outage: Outage, receive: Receive, send: Send) -> None:
        if outage.kind == "503":
            headers = [(b"content-type", b"text/html"), (b"content-length", str(len(GATEWAY_PAGE)).encode())]
            if outage.retry_after is not None:
                headers.append((b"retry-after", str(outage.retry_after).encode()))
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": GATEWAY_PAGE})
            return
        if outage.kind == "hang":
            waiting = asyncio.ensure_future(_wait_for_client(receive, None))
            over = asyncio.ensure_future(self._sandbox.faults.outage_over())
            await asyncio.wait({waiting, over}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            over.cancel()
        _close(send)

    async def _work_silently(self, scope: Scope, receive: Receive) -> None:
        async def swallow(message: Message) -> None:
            """The client is not to learn what happened."""

        with contextlib.suppress(ConnectionClosed):
            await self._app(scope, receive, swallow)

    def _headers(self, scope: Scope) -> dict[str, str]:
        given = dict(scope["headers"])
        headers: dict[str, str] = {"f7t-appversion": self._sandbox.settings.server_version}
        for name in ("x-request-id", "x-correlation-id"):
            value = given.get(name.encode(), b"").decode("latin-1")
            headers[name] = value or uuid.uuid4().hex
        return headers

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        headers = self._headers(scope)
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["request_id"] = headers["x-request-id"]

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                if state.get("close_connection"):
                    _serve_no_more(send)
                extra = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        return headed


async def _answer(send: Send, error: ApiError, headers: dict[str, str] | None = None) -> None:
    body = b"" if error.status in BODILESS else json.dumps(error.body(None)).encode()
    described = {"content-type": "application/json", "content-length": str(len(body))} if body else {}
    pairs = {**described, **error.headers, **(headers or {})}
    await send(
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def _wait_for_client(receive: Receive, seconds: float | None) -> None:
    """Wait until the client gives up, or ``seconds`` have passed."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while (await receive())["type"] != "http.disconnect":
                pass


def _serve_no_more(send: Send) -> None:
    """Take no further request from this connection: the real server is about to close it."""
    cycle = getattr(send, "__self__", None)
    if cycle is not None:
        cycle.on_response = lambda: None


def _close(send: Send) -> None:
    """Close the connection without an answer. ASGI knows no such thing, so uvicorn's own transport is used."""
    cycle = getattr(send, "__self__", None)
    if cycle is not None:
        cycle.disconnected = True
        cycle.transport.abort()
    raise ConnectionClosed
