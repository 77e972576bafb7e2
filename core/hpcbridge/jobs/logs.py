"""Logs: follow a remote file by byte offset, and the post-mortem of a failed job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpcbridge.errors import JobFailed
    from hpcbridge.firecrest import FirecrestClient
    from hpcbridge.jobs.state import JobInfo


def follow(
    client: FirecrestClient,
    system: str,
    path: str,
    *,
    until: asyncio.Event | Awaitable[object] | None = None,
    offset: int = 0,
) -> AsyncIterator[bytes]:
    """The bytes of a remote file from `offset` on, each once, as they come, until `until` and the file's end.

    None: to its present end.
    """
    raise NotImplementedError


async def post_mortem(
    client: FirecrestClient, system: str, info: JobInfo, *, output: str | None = None, lines: int = 20
) -> JobFailed | None:
    """The error for a job that ended badly, with its state, reason and the last lines it wrote.

    None when it ended well.
    """
    raise NotImplementedError
