"""Which remote paths can travel through the server's shell commands, and which names need a job instead.

The server wraps every path into a shell command between single quotes (measured: a `'` in a path is 500, or changes the
command), a multipart upload renames silently (`a"b` arrives as `a%22b`, a newline as `%0A`, each with 204), and the
scripts of the server's transfer jobs hold paths unquoted and HTML-escaped, so that white space and shell characters
break them. A file whose *own* name has such a character is staged under a plain name and given its real name by our
job, to which the name travels as base64. A *directory* that no call can name is refused before anything is sent.
"""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass

from hpcbridge.errors import InvalidPath

NAME_MAX = 255
"""Bytes in one name; Linux file systems, Lustre and GPFS included."""
PATH_MAX = 4095
"""Bytes in a whole path, the terminating NUL apart."""


_SAFE_IN_SCRIPTS = re.compile(r"[\w./+=:,@%^-]+")


def _breaks_a_command(text: str) -> bool:
    # Surrogates are file names that are not UTF-8: no JSON or URL can carry them.
    return any(c == "'" or ord(c) < 0x20 or ord(c) == 0x7F or 0xD800 <= ord(c) <= 0xDFFF for c in text)


def _is_renamed_by_multipart(name: str) -> bool:
    return any(c in '"\\' for c in name) or name != name.strip() or name.startswith("-")


@dataclass(frozen=True, slots=True)
class RemotePath:
    """An absolute path on a system, taken apart: `directory` (no trailing slash, `/` apart) and `name`."""

    directory: str
    name: str

    def __str__(self) -> str:
        """The whole path."""
        return posixpath.join(self.directory, self.name)

    @property
    def commands_carry_it(self) -> bool:
        """Whether `stat`, `download` and the server's transfer jobs can name this path."""
        return not _breaks_a_command(self.name)

    @property
    def upload_carries_it(self) -> bool:
        """Whether a direct upload arrives under this name."""
        return self.commands_carry_it and not _is_renamed_by_multipart(self.name)

    @property
    def scripts_carry_it(self) -> bool:
        """Whether the server's own transfer scripts can name this path: unquoted, and HTML-escaped, in a shell."""
        return _SAFE_IN_SCRIPTS.fullmatch(str(self)) is not None

    @property
    def encoded(self) -> bytes:
        """The path as the bytes the file system sees."""
        return os.fsencode(str(self))


def parse_remote(path: str, default_name: str | None = None) -> RemotePath:
    """Take a remote path apart; one that ends with `/` means *in* that directory, under `default_name`.

    Raises InvalidPath for paths that are relative, climb with `..`, are too long, hold a NUL, name no file, or lead
    through a directory that no call of the server can name.
    """
    if not path.startswith("/"):
        raise InvalidPath(f"{path!r} is not an absolute path", path=path, hint="remote paths start with /")
    if "\0" in path:
        raise InvalidPath(f"{path!r} holds a NUL character", path=path, hint="no file system allows it")
    if path.endswith("/") and default_name:
        path += default_name
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidPath(f"{path!r} climbs with '..'", path=path, hint="write the path without '..'")
    if not parts or path.endswith(("/", "/.")):
        raise InvalidPath(f"{path!r} names no file", path=path, hint="add the file's name")
    remote = RemotePath("/" + "/".join(parts[:-1]), parts[-1])
    _refuse_too_long(remote, path)
    if _breaks_a_command(remote.directory):
        raise InvalidPath(
            f"the directory {remote.directory!r} has a quote, a control character or bytes that are not UTF-8",
            path=path,
            hint="the server cannot name such a directory; choose another one for the file",
        )
    return remote


def _refuse_too_long(remote: RemotePath, path: str) -> None:
    if len(remote.encoded) > PATH_MAX:
        raise InvalidPath(f"the path is longer than {PATH_MAX} bytes", path=path)
    for part in str(remote).split("/"):
        if len(os.fsencode(part)) > NAME_MAX:
            raise InvalidPath(f"the name {part!r} is longer than {NAME_MAX} bytes", path=path)
