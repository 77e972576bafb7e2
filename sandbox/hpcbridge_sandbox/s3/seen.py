"""What the object store was asked for: one line of JSON per request for a part or an object, for tests that count.

Fields: ``method``, ``path`` (bucket and key), ``agent`` (first word of the client's User-Agent), ``part`` (number),
``received`` and ``sent`` (bytes of bodies; of requests that broke off, too).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LIMIT = 16 << 20
"""Bytes after which nothing more is noted: a sandbox may run for weeks."""


class CountedBody:
    """A request body that counts what is read of it."""

    def __init__(self, body: Any) -> None:
        self._body = body
        self.count = 0

    def read(self, *size: int) -> bytes:
        """As of a file."""
        return self._counted(self._body.read(*size))

    def readline(self, *size: int) -> bytes:
        """As of a file."""
        return self._counted(self._body.readline(*size))

    def _counted(self, data: bytes) -> bytes:
        self.count += len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


def seen_path(rules: str | Path) -> Path:
    """The list's file, beside that of the rules."""
    return Path(rules).with_name("requests.jsonl")


def note(rules: str, environ: dict[str, Any], *, part: int | None = None, received: int = 0, sent: int = 0) -> None:
    """Add a request to the list."""
    agent = environ.get("HTTP_USER_AGENT", "").partition("/")[0]
    about = {"method": environ["REQUEST_METHOD"], "path": environ["PATH_INFO"], "agent": agent}
    line = json.dumps({**about, "part": part, "received": received, "sent": sent})
    with seen_path(rules).open("a") as file:
        if file.tell() < LIMIT:
            file.write(line + "\n")


def read_seen(rules: str | Path) -> list[dict[str, Any]]:
    """The requests so far."""
    path = seen_path(rules)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def forget_seen(rules: str | Path) -> None:
    """Begin anew."""
    seen_path(rules).unlink(missing_ok=True)
