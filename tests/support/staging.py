"""What the staging tests share: a system of a sandbox, and files to move."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import hpcbridge
from support.sandbox import SandboxProcess


@asynccontextmanager
async def connected(sandbox: SandboxProcess, user: str = "alice") -> AsyncIterator[hpcbridge.System]:
    """The sandbox's system as `user` sees it."""
    env = sandbox.client_env(user)
    options = {
        "url": env["FIRECREST_URL"],
        "token_url": env["AUTH_TOKEN_URL"],
        "client_id": env["FIRECREST_CLIENT_ID"],
        "client_secret": env["FIRECREST_CLIENT_SECRET"],
        "system": env["FIRECREST_SYSTEM"],
    }
    async with hpcbridge.connect(**options) as hpc:
        system = hpc.system()
        await system.resolve()
        yield system


def random_file(path: Path, size: int) -> Path:
    """A file of `size` random bytes, written in blocks."""
    with path.open("wb") as file:
        for offset in range(0, size, 1 << 20):
            file.write(os.urandom(min(1 << 20, size - offset)))
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a local file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clear_leftovers(sandbox: SandboxProcess, user: str = "alice") -> None:
    """Remove what earlier tests have left on purpose: evidence of failures, half uploads."""
    home = sandbox.host_path(f"/home/{user}")
    for name in leftovers(sandbox, user):
        path = home / name
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def leftovers(sandbox: SandboxProcess, user: str = "alice") -> list[str]:
    """What staging should not leave in the user's own directory: hidden directories, logs of transfer jobs."""
    home = sandbox.host_path(f"/home/{user}")
    return sorted(str(p.relative_to(home)) for p in home.rglob(".*") if p.name.startswith((".hpcbridge-", ".f7t_")))
