"""What a remote path allows: whether staging may go there, and which routes can name it."""

from __future__ import annotations

from dataclasses import replace

from hpcbridge.errors import InvalidPath
from hpcbridge.staging.context import Transfer
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
        raise t.error(f"{path} is in none of the system's file systems", kind=InvalidPath, path=str(path), hint=there)


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
