"""Our errors as the hub shows them: what a user reads, and what an administrator finds in the log."""

from __future__ import annotations

import html
from typing import Any

from tornado import web

from hpcbridge.errors import (
    AmbiguousOutcome,
    AuthenticationError,
    ConfigurationError,
    HpcBridgeError,
    JobFailed,
    PermissionDenied,
    SubmitRejected,
    Unavailable,
)

_REASONS: tuple[tuple[type[HpcBridgeError], str, int], ...] = (
    (SubmitRejected, "rejected", 400),
    (JobFailed, "job", 500),
    (AuthenticationError, "login", 403),
    (PermissionDenied, "permission", 403),
    (Unavailable, "unavailable", 503),
    (AmbiguousOutcome, "unavailable", 503),
    (ConfigurationError, "configuration", 500),
)
"""Kind of error -> the `reason` label of the hub's metrics, and the page's HTTP status."""


def explained(error: Exception) -> web.HTTPError:
    """What `start` raises for `error`; its page shows the message, and a job's last lines as they are."""
    if not isinstance(error, HpcBridgeError):
        return spawn_error(str(error), reason="options", status=400)
    reason, status = next(((word, code) for kind, word, code in _REASONS if isinstance(error, kind)), ("error", 500))
    tail = getattr(error, "tail", None)
    message = str(error).removesuffix(f"\n{tail.rstrip()}") if tail else str(error)
    shown = html.escape(message) + (f"<pre>{html.escape(tail)}</pre>" if tail else "")
    return spawn_error(message, reason=reason, status=status, shown=shown)


def late(seconds: float, last: str) -> web.HTTPError:
    """What `start` raises when the hub has waited for `seconds`; `last` is how far it has come."""
    message = f"The server did not start within {seconds:g} seconds, and its job is cancelled. {last}".rstrip()
    return spawn_error(message, reason="timeout", status=504)


def spawn_error(message: str, *, reason: str, status: int, shown: str = "") -> web.HTTPError:
    """JupyterHub 6's SpawnException, or what 5 has in its place."""
    made: Any
    try:
        from jupyterhub.spawner import SpawnException
    except ImportError:
        made = web.HTTPError(status, message)
        made.reason = reason
    else:
        made = SpawnException(message, reason=reason, message_html=shown, status_code=status)
    # The page of a start that has failed asks for these, in both.
    made.jupyterhub_message = message
    if shown:
        made.jupyterhub_html_message = shown
    return made  # type: ignore[no-any-return]
