"""From a failed request to our error: what a status or a broken connection means, whatever the words."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from hpcbridge.errors import (
    AmbiguousOutcome,
    AuthenticationError,
    CommandTimeout,
    ConfigurationError,
    Conflict,
    HpcBridgeError,
    InvalidRequest,
    NotFound,
    NotSent,
    PermissionDenied,
    RateLimited,
    ServerError,
    TooLarge,
    Unavailable,
)
from hpcbridge.http.redaction import redact

About = Mapping[str, Any]
"""What a request is about: `site`, `system`, `path`, `job_id`, `request_id`, as the errors take it."""

Explain = Callable[[httpx.Response, About], HpcBridgeError]
"""Turns an answer of 300 or more into an error; rooms that know the server's words bring their own."""

_LONGEST_MESSAGE = 2000
_SHORT_LIVED = "The issuer's tokens live less than the 30 s that the server wants: ask the site to lengthen them"

_NOTHING_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from Retry-After (seconds or a date) or RateLimit-Reset (seconds; epoch at some gateways)."""
    for name in ("retry-after", "ratelimit-reset", "x-ratelimit-reset"):
        text = headers.get(name)
        if text is None:
            continue
        try:
            seconds = float(text)
        except ValueError:
            try:
                seconds = parsedate_to_datetime(text).timestamp() - time.time()
            except ValueError:
                continue
        else:
            if seconds > 1e9:
                seconds -= time.time()
        return max(0.0, seconds)
    return None


def body_of(response: httpx.Response) -> Mapping[str, Any]:
    """FirecREST's error body {errorType, message, data, causedBy, user}; empty where it is something else."""
    try:
        body = json.loads(response.content)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def message_of(response: httpx.Response) -> str:
    """What the server says, with its causes, free of secrets and of a gateway's whole HTML page."""
    body = body_of(response)
    text = _fields_of(body) or str(body.get("message") or "").strip()
    causes = [str(cause).strip() for cause in body.get("causedBy") or () if cause]
    text = ": ".join([text, *(cause for cause in causes if cause != text)]) if text else "; ".join(causes)
    if not text:
        plain = "html" not in response.headers.get("content-type", "") and response.text.strip()
        text = plain or response.reason_phrase or "no message"
    return redact(text[:_LONGEST_MESSAGE])


def _fields_of(body: Mapping[str, Any]) -> str:
    """A validation error field by field; its own message is pydantic's, with the whole input."""
    data = body.get("data")
    fields = data.get("fields") if isinstance(data, dict) else None
    named = [item for item in fields or () if isinstance(item, dict)]
    return "; ".join(f"{item.get('location')} {item.get('name')}: {item.get('message')}" for item in named)


def explain_status(response: httpx.Response, about: About) -> HpcBridgeError:
    """The error for an answer by its status alone."""
    status, text = response.status_code, message_of(response)
    context: dict[str, Any] = {**about, "status": status}
    if 300 <= status < 400:
        hint = "Check the site's URL: scheme, host and path prefix"
        return ConfigurationError(f"redirected, which FirecREST does not do: {text}", **context, hint=hint)
    if status == 401:
        short = _SHORT_LIVED if "expires too soon" in text else None
        return AuthenticationError(f"the server does not accept the token: {text}", **context, hint=short)
    if status == 429:
        return RateLimited(f"too many requests: {text}", **context, retry_after=retry_after(response.headers))
    if status in (424, 425, 502, 503, 504):
        return Unavailable(text, **context, retry_after=retry_after(response.headers))
    kinds: dict[int, type[HpcBridgeError]] = {
        403: PermissionDenied,
        404: NotFound,
        408: CommandTimeout,
        409: Conflict,
        413: TooLarge,
        501: InvalidRequest,
    }
    if kind := kinds.get(status):
        return kind(text, **context)
    return (InvalidRequest if 400 <= status < 500 else ServerError)(text, **context)


def explain_failure(error: Exception, about: About, *, safe: bool) -> HpcBridgeError:
    """The error for a request without an answer: NotSent, else Unavailable if safe to repeat, else AmbiguousOutcome.

    The text of `error` goes into the message; the exception itself must not be chained, because the frames of httpx
    and httpcore hold request headers.
    """
    text = redact(str(error)) or type(error).__name__
    if certificate := _caused_by(error, ssl.SSLCertVerificationError):
        hint = "If the site has a certificate authority of its own, name its PEM file as ca_file"
        return ConfigurationError(
            f"the site's certificate is not trusted: {redact(str(certificate))}", **about, hint=hint
        )
    if isinstance(error, _NOTHING_SENT):
        what = "cannot find the host" if _caused_by(error, socket.gaierror) else "cannot connect"
        return NotSent(f"{what}: {text}", **about, hint="Check the site's URL, the network and the proxy")
    what = "no answer in time" if isinstance(error, httpx.TimeoutException | TimeoutError) else "connection lost"
    if safe:
        return Unavailable(f"{what}: {text}", **about)
    return AmbiguousOutcome(f"{what}: {text}", **about)


def _caused_by(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    while error is not None:
        if isinstance(error, kind):
            return error
        error = error.__cause__ or error.__context__
    return None
