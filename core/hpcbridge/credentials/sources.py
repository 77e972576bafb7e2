"""Where secrets and ready-made tokens come from: a value, a file, an environment variable or a command.

References are read again at each use, so that a rotated secret needs no restart.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from hpcbridge.credentials.secret import Secret
from hpcbridge.errors import AuthenticationError, ConfigurationError

_COMMAND_TIMEOUT = 30.0


class SecretSource:
    """One of `value`, `file`, `env` or `command`; `key` names the setting in errors."""

    def __init__(
        self,
        key: str,
        *,
        value: Secret | None = None,
        file: str | None = None,
        env: str | None = None,
        command: Sequence[str] | None = None,
        site: str | None = None,
    ) -> None:
        """Nothing is read yet."""
        if sum(item is not None for item in (value, file, env, command)) != 1:
            raise ConfigurationError(f"{key} must be given in exactly one way", site=site)
        self._key = key
        self._value = value
        self._file = file
        self._env = env
        self._command = tuple(command) if command is not None else None
        self._site = site

    def __repr__(self) -> str:
        return f"SecretSource({self.description})"

    @property
    def description(self) -> str:
        """Where it is read from; not the secret."""
        if self._command is not None:
            return f"command {self._command[0]}"
        return f"file {self._file}" if self._file else f"variable {self._env}" if self._env else "argument"

    async def read(self) -> Secret:
        """The value, without surrounding white space.

        Raises:
            ConfigurationError: missing, unreadable or empty.
            AuthenticationError: the command failed.
        """
        if self._value is not None:
            return self._value
        found = await self._run() if self._command is not None else self._read()
        if not found:
            raise ConfigurationError(f"{self._key}: {self.description} is empty", site=self._site)
        return found

    def _read(self) -> Secret:
        if self._env is not None:
            if self._env not in os.environ:
                raise ConfigurationError(f"{self._key}: the variable {self._env} is not set", site=self._site)
            return Secret(os.environ[self._env].strip())
        try:
            return Secret(Path(str(self._file)).expanduser().read_text().strip())
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise ConfigurationError(f"{self._key}: {reason}", site=self._site, path=self._file) from None

    async def _run(self) -> Secret:
        assert self._command is not None
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise ConfigurationError(
                f"{self._key}: the command {self._command[0]} cannot be run: {error.strerror}", site=self._site
            ) from None
        try:
            async with asyncio.timeout(_COMMAND_TIMEOUT):
                answer = [Secret(item.decode(errors="replace").strip()) for item in await process.communicate()]
        except TimeoutError:
            raise AuthenticationError(
                f"{self._key}: the command {self._command[0]} gave nothing within {_COMMAND_TIMEOUT:.0f} s",
                site=self._site,
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode != 0:
            # Its words may name secrets: only that it failed.
            raise AuthenticationError(
                f"{self._key}: the command {self._command[0]} ended with {process.returncode}",
                site=self._site,
                hint="Run it by hand to see what it says",
            )
        return answer[0]
