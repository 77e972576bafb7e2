"""Paths as AiiDA gives them, remote and local."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from aiida.transports.transport import TransportPath

from hpcbridge.errors import InvalidPath


def absolute(path: TransportPath) -> str:
    """`path` made plain. Raises OSError where it is empty or relative: there is no working directory over there."""
    text = str(path)
    if not text:
        raise OSError("The remote path must be a non empty string")
    if not text.startswith("/"):
        raise OSError(f"The remote path must be an absolute path, not {text!r}")
    plain = posixpath.normpath(text)
    return "/" + plain.lstrip("/")


def local_path(path: TransportPath) -> str:
    """A path of this machine as text, a slash at its end kept. Raises ValueError where it is empty or relative."""
    text = str(path)
    if not text:
        raise ValueError("The localpath must be a non empty string")
    if not text.startswith("/"):
        raise ValueError("The localpath must be an absolute path")
    return text


def lineage(path: str) -> Iterator[str]:
    """`path` and all that is above it, deepest first, without the root."""
    while path != "/":
        yield path
        path = posixpath.dirname(path)


def is_within(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or below it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def carried(path: str) -> bool:
    """Whether a request can name `path` at all; else it travels in archives and jobs."""
    from hpcbridge.firecrest.paths import check_path

    try:
        check_path(path)
    except InvalidPath:
        return False
    return True
