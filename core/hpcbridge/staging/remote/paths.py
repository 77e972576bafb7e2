"""Remote paths of files and directories alike: what they must look like, and which of them are too dear to remove."""

from __future__ import annotations

import os
import posixpath

from hpcbridge.errors import (
    AlreadyExists,
    Conflict,
    HpcBridgeError,
    InvalidPath,
    PathNotFound,
    PermissionDenied,
    TransferError,
)
from hpcbridge.firecrest import SystemInfo
from hpcbridge.firecrest.paths import check_path
from hpcbridge.staging.names import NAME_MAX, PATH_MAX


def absolute(path: str) -> str:
    """`path` without empty and `.` components and without a slash at its end.

    Raises InvalidPath for paths that are relative, climb with `..`, hold a NUL, or are too long.
    """
    if not path.startswith("/"):
        raise InvalidPath(f"{path!r} is not an absolute path", path=path, hint="Remote paths start with /")
    if "\0" in path:
        raise InvalidPath(f"{path!r} holds a NUL character", path=path, hint="No file system allows it")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidPath(f"{path!r} climbs with '..'", path=path, hint="Write the path without '..'")
    if len(os.fsencode(path)) > PATH_MAX or any(len(os.fsencode(part)) > NAME_MAX for part in parts):
        raise InvalidPath(f"{path[:60]!r} … is longer than a file system allows", path=path)
    return "/" + "/".join(parts)


def carried(path: str) -> bool:
    """Whether the server's commands can name `path`; see `firecrest.paths`."""
    try:
        check_path(path)
    except InvalidPath:
        return False
    return True


def inside(info: SystemInfo, path: str) -> str:
    """`path`, made plain by `absolute`. Raises InvalidPath outside the system's file systems: a job could go there."""
    path = absolute(path)
    if info.file_systems and info.file_system_of(path) is None:
        raise InvalidPath(
            f"{path} is in none of the system's file systems",
            system=info.name,
            path=path,
            hint="They are " + ", ".join(each.path for each in info.file_systems),
        )
    return path


def depth(info: SystemInfo, path: str) -> int | None:
    """How many components `path` is below its file system's root; None outside of all of them."""
    found = info.file_system_of(path)
    if found is None:
        return None
    return len([part for part in path.removeprefix(found.path.rstrip("/")).split("/") if part])


def base(path: str) -> str:
    """The last component."""
    return posixpath.basename(path.rstrip("/")) or "/"


_KINDS: tuple[tuple[str, type[HpcBridgeError]], ...] = (
    ("No such file or directory", PathNotFound),
    ("Permission denied", PermissionDenied),
    ("Operation not permitted", PermissionDenied),
    ("File exists", AlreadyExists),
    ("No space left", TransferError),
    ("quota exceeded", TransferError),
)


def failure(words: str, path: str, *, site: str, system: str) -> HpcBridgeError:
    """The error for what cp, mv, rm, mkdir or find said about `path`, in their own words."""
    kind = next((kind for text, kind in _KINDS if text in words), Conflict)
    return kind(words or "it failed without a word", site=site, system=system, path=path)
