"""What outlives a worker: our name on a system, and the directories that calculations are uploaded to.

It spares the next worker's first calculation two questions. What is wrong by now does no harm: a work directory that
has gone is made again, and the name counts for the same subject of the same issuer only. Everything here blocks, and is
run in threads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

FORMAT = 1
"""Version of the file's format; one of a later version counts as none."""
ROOTS_KEPT = 20


class Known:
    """One small file for each system and identity; it is read once."""

    def __init__(self, path: Path) -> None:
        """Read it, where there is one."""
        self._path = path
        data: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            data = json.loads(path.read_bytes())
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            data = {}
        self._subject = str(data.get("subject", ""))
        self._user = str(data.get("user", ""))
        self.roots = [str(each) for each in data.get("roots", ())]

    def user(self, token: str) -> str | None:
        """Our name, if that token's subject was told it."""
        same = self._subject and self._subject == subject_of(token)
        return self._user if same and self._user else None

    def learn_user(self, token: str, name: str) -> None:
        """The system calls that token's subject `name`. What was known of another one is forgotten."""
        subject = subject_of(token)
        if not subject or (subject, name) == (self._subject, self._user):
            return
        if subject != self._subject:
            self.roots = []
        self._subject, self._user = subject, name
        self._save()

    def learn_root(self, directory: str) -> None:
        """Calculations are uploaded to new directories in `directory`."""
        if directory not in self.roots:
            self.roots = [*self.roots, directory][-ROOTS_KEPT:]
            self._save()

    def _save(self) -> None:
        data = {"format": FORMAT, "subject": self._subject, "user": self._user, "roots": self.roots}
        new = self._path.with_suffix(f".{os.getpid()}-{secrets.token_hex(4)}")
        with suppress(OSError):  # it only spares questions
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new.write_text(json.dumps(data))
            new.replace(self._path)


def subject_of(token: str) -> str:
    """Whom a token is about, as a digest of issuer and subject; "" where the token does not tell."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        about = json.dumps([claims["iss"], claims["sub"], claims.get("preferred_username")])
    except (IndexError, KeyError, TypeError, ValueError):
        return ""
    return hashlib.sha256(about.encode()).hexdigest()
