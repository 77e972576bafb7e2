"""What the server asks of a path before any command runs."""

from __future__ import annotations

import os
from typing import Any

from fastapi import Request

from hpcbridge_sandbox.context import SystemCondition, find_system
from hpcbridge_sandbox.errors import ApiError

FILE_SYSTEMS = ("/home", "/scratch")
_NAMES = ("path", "sourcePath", "source_path")
_MISSING = "Unable to decode request and retreive the required path or source_path parameter."


async def requested_path(request: Request) -> str:
    """Return the path that a request is about: the query's ``path``, or the JSON body's under any of its names.

    Raises:
        ApiError: 400 without one, spelt as the real server spells it.
    """
    path: Any = request.query_params.get("path")
    if path is None and "json" in request.headers.get("content-type", "json"):
        try:
            body = await request.json()
        except (ValueError, RuntimeError):
            body = None
        if isinstance(body, dict):
            path = next((body[name] for name in _NAMES if name in body), None)
    if not isinstance(path, str):
        raise ApiError(400, _MISSING)
    return path


def check_path(condition: SystemCondition, path: str) -> None:
    """Check that ``path`` is absolute and inside a file system of this system; 400 or 503 otherwise."""
    if not path.startswith("/"):
        raise ApiError(400, f"The provided path ({path}) is not an absolute path.")
    normal = os.path.normpath(path)
    mount = next((mount for mount in FILE_SYSTEMS if normal == mount or normal.startswith(f"{mount}/")), None)
    # A byte that no file name can hold matches nothing either.
    if mount is None or not _can_be_a_name(path):
        raise ApiError(
            400,
            f"The provided path ({normal}) does not match any of the defined filesystem paths for the requested system "
            f"({condition.name}).",
        )
    if "filesystem" in condition.unhealthy:
        raise ApiError(503, f"The requested filesystem ({mount} on {condition.name}) is unhealthy.")


async def checked_query_path(request: Request, system_name: str) -> str:
    """Dependency: the query's ``path``, checked."""
    path = request.query_params.get("path")
    if path is None:
        raise ApiError(400, _MISSING)
    check_path(find_system(request, system_name), path)
    return path


async def checked_body_path(request: Request, system_name: str) -> str:
    """Dependency: the path of the query or the JSON body, checked."""
    path = await requested_path(request)
    check_path(find_system(request, system_name), path)
    return path


def _can_be_a_name(path: str) -> bool:
    try:
        return b"\0" not in path.encode("utf-8")
    except UnicodeEncodeError:
        return False
