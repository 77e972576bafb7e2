"""Where a login is kept between runs: one 0600 file per site and client under the XDG state directory.

Issuers rotate refresh tokens: each may be used once, and a second use can end the login. So whoever refreshes holds
the file's lock, across processes, and writes the new token down before anybody uses what came with it. The access
token is kept too: processes share it instead of rotating at every start.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hpcbridge.credentials.secret import Secret
from hpcbridge.errors import ConfigurationError, Unavailable

FORMAT = 1
_LOCK_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Login:
    """What a login leaves behind. `expires_at`: epoch seconds at which the access token expires."""

    refresh_token: Secret | None
    access_token: Secret | None = None
    expires_at: float = 0.0

    @property
    def remaining(self) -> float:
        """Seconds that the access token has left."""
        return self.expires_at - time.time() if self.access_token else 0.0


class LoginStore(Protocol):
    """Keeps one login. Hosts with a secret store of their own bring theirs."""

    def lock(self) -> Any:
        """An asynchronous context manager: who refreshes is alone."""

    def load(self) -> Login | None:
        """The login, or None."""

    def save(self, login: Login) -> None:
        """Replace it, durably: the old refresh token is worthless from now on."""

    def forget(self) -> None:
        """Log out."""


class MemoryStore:
    """For one process, and for tests: nothing is written."""

    def __init__(self, login: Login | None = None) -> None:
        """`login` is where to begin."""
        self._login = login

    @asynccontextmanager
    async def lock(self) -> AsyncIterator[None]:
        """The credential's single flight is enough."""
        yield

    def load(self) -> Login | None:
        """The login, or None."""
        return self._login

    def save(self, login: Login) -> None:
        """Replace it."""
        self._login = login

    def forget(self) -> None:
        """Log out."""
        self._login = None


def logins_directory() -> Path:
    """Where logins are kept, under the XDG state directory; whether it exists or not."""
    import platformdirs

    return Path(platformdirs.user_state_path("hpcbridge")) / "logins"


class FileStore:
    """One JSON file, readable by its owner only."""

    def __init__(self, path: Path) -> None:
        """Nothing is read yet; the directory is made when needed, for its owner only."""
        self.path = path

    @classmethod
    def for_site(cls, url: str, client_id: str) -> FileStore:
        """The user's file for a site and client, under the XDG state directory."""
        name = hashlib.sha256(f"{url}\0{client_id}".encode()).hexdigest()[:24]
        return cls(logins_directory() / f"{name}.json")

    def __repr__(self) -> str:
        return f"FileStore({self.path})"

    @asynccontextmanager
    async def lock(self) -> AsyncIterator[None]:
        """Exclusive across processes and, by flock's rules, across openings in one process.

        Raises:
            Unavailable: another process has held it for a minute.
        """
        self._make_directory()
        descriptor = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + _LOCK_PATIENCE
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise Unavailable("another process holds the login's lock", path=str(self.path))
                await asyncio.sleep(0.05)
            yield
        finally:
            os.close(descriptor)  # lets go of the lock

    def load(self) -> Login | None:
        """The login, or None.

        Raises:
            ConfigurationError: the file is not ours to read, open to others, or of a newer format.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"the login cannot be read: {error.strerror}", path=str(self.path)) from None
        with os.fdopen(descriptor) as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & 0o077:
                hint = "Others may have read it: run `hpcbridge login` again after removing it"
                raise ConfigurationError("the login's file is open to others", path=str(self.path), hint=hint)
            content = file.read()
        return self._parse(content)

    def _parse(self, content: str) -> Login | None:
        try:
            data = json.loads(content)
        except ValueError:
            data = None
        if not isinstance(data, dict) or not isinstance(data.get("format"), int):
            hint = "Remove it and run `hpcbridge login`"
            raise ConfigurationError("the login's file is damaged", path=str(self.path), hint=hint)
        if data["format"] > FORMAT:
            raise ConfigurationError("the login was written by a newer hpcbridge", path=str(self.path))
        return Login(_secret(data.get("refresh_token")), _secret(data.get("access_token")), float(data["expires_at"]))

    def save(self, login: Login) -> None:
        """Replace the file atomically and durably."""
        self._make_directory()
        data = {
            "format": FORMAT,
            "refresh_token": login.refresh_token.reveal() if login.refresh_token else None,
            "access_token": login.access_token.reveal() if login.access_token else None,
            "expires_at": login.expires_at,
        }
        descriptor, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=".login-")  # 0600 by definition
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(data, file)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(self.path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def forget(self) -> None:
        """Log out."""
        self.path.unlink(missing_ok=True)

    def _make_directory(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)


def _secret(value: object) -> Secret | None:
    return Secret(value) if isinstance(value, str) and value else None


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
