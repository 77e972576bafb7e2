"""What a remote path allows: whether staging may go there, and which routes can name it."""

from __future__ import annotations

import stat
from dataclasses import replace

from hpcbridge.errors import InvalidPath, PathNotFound
from hpcbridge.staging.context import PATIENCE, Transfer
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.plan import Limits, Route


def is_inside(t: Transfer, path: str) -> bool:
    """Whether a path is in one of the system's file systems, or the system names none."""
    return not t.info.file_systems or t.info.file_system_of(path) is not None


def require_inside(t: Transfer, path: RemotePath) -> None:
    """Raise InvalidPath outside the system's file systems.

    The server checks this for some calls only, and a job would write anywhere.
    """
    if not is_inside(t, str(path)):
        there = ", ".join(each.path for each in t.info.file_systems)
        message = f"{path} is in none of the system's file systems"
        raise t.error(message, kind=InvalidPath, path=str(path), hint=f"They are {there}")


async def require_directory(t: Transfer, directory: str) -> None:
    """Raise PathNotFound where there is no directory to put a file into."""
    try:
        found = await t.client.stat(t.name, directory, dereference=True, patience=PATIENCE)
    except PathNotFound:
        message = f"the directory {directory} does not exist"
    else:
        if stat.S_ISDIR(found.mode):
            return
        message = f"{directory} is not a directory"
    raise t.error(message, kind=PathNotFound, path=directory, hint=f"Make it: hpcbridge mkdir -p {directory}")


def usable_limits(t: Transfer, directory: str, wanted: str | None) -> Limits:
    """The limits for files in `directory`: without the server's own jobs where it breaks their scripts.

    Raises InvalidPath where such a route is `wanted`.
    """
    if RemotePath(directory, "data").scripts_carry_it:
        return t.limits
    if wanted in (Route.S3, Route.STREAMER):
        hint = "Leave the route out, or choose a directory without white space and shell characters"
        raise t.error(
            "the server's transfer scripts cannot name this directory", kind=InvalidPath, path=directory, hint=hint
        )
    return replace(t.limits, s3=False, streamer=False)
