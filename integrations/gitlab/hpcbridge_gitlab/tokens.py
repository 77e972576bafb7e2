"""Access tokens kept between calls. Each stage is a new process: without this, each would ask the issuer for a token.

A file (0600, in the closed directory of records) per identity; a token lives for some minutes, and is thrown away a
minute before it ends. To ask the issuer costs more time than all else at a stage's start: it is imported when needed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hpcbridge.credentials.secret import Secret
from hpcbridge_gitlab.records import write_json

if TYPE_CHECKING:
    from hpcbridge.credentials.base import Credential
    from hpcbridge.sites import Site

_EARLY = 60.0
"""Seconds before its end; the server refuses tokens with less than 30 s left."""


class KeptToken:
    """A `Credential`: the site's own, behind a file."""

    def __init__(self, site: Site, folder: Path) -> None:
        """`folder` is closed (0700); nothing is read yet."""
        self._site = site
        label = json.dumps([site.url, site.token_url, site.client_id])
        self.identity = f"kept:{label}"
        self._path = folder / f"token-{hashlib.sha256(label.encode()).hexdigest()[:16]}.json"
        self._real: Credential | None = None
        self._token: Secret | None = None
        self._ends = 0.0

    def __repr__(self) -> str:
        return f"KeptToken({self._site.name})"

    async def access_token(self) -> str:
        """See `hpcbridge.credentials.base.Credential`."""
        if self._token is None:
            self._read()
        if self._token is not None and time.time() < self._ends - _EARLY:
            return self._token.reveal()
        token = Secret(await self._issuer().access_token())
        self._keep(token)
        return token.reveal()

    def invalidate(self, token: str) -> None:
        """See `hpcbridge.credentials.base.Credential`."""
        if self._token is not None and self._token.reveal() == token:
            self._token = None
            self._path.unlink(missing_ok=True)
        if self._real is not None:
            self._real.invalidate(token)

    def _issuer(self) -> Credential:
        if self._real is None:
            from hpcbridge.credentials.factory import credential_for

            self._real = credential_for(self._site)
        return self._real

    def _read(self) -> None:
        try:
            kept = json.loads(self._path.read_bytes())
            self._token, self._ends = Secret(kept["token"]), float(kept["ends"])
        except (OSError, ValueError, KeyError, TypeError):
            self._token = None

    def _keep(self, token: Secret) -> None:
        """Only a token that says when it ends."""
        self._token, self._ends = token, _end(token.reveal())
        if self._ends:
            write_json(self._path, {"token": token.reveal(), "ends": self._ends})


def _end(token: str) -> float:
    """The claim `exp` of a JWT; 0 for anything else."""
    try:
        body = token.split(".")[1]
        return float(json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["exp"])
    except (IndexError, ValueError, KeyError, TypeError):
        return 0.0
