"""Which paths and names may be sent at all: the server builds shell commands from them.

A single quote ends the server's own quoting, control characters break its parsing of `ls`, multipart uploads rename
quotes silently, and a leading dash becomes an option. Such names travel inside archives or not at all.
"""

from __future__ import annotations

import re

from hpcbridge.errors import InvalidPath

_BAD = re.compile(r"['\x00-\x1f\x7f]")
_HINT = "Rename it, or put it into an archive"


def check_path(path: str, system: str | None = None) -> str:
    """`path` itself, if it can be sent.

    Raises:
        InvalidPath: not absolute, or with a single quote, a control character or undecodable bytes.
    """
    if not path.startswith("/"):
        raise InvalidPath("a remote path must be absolute", path=path, system=system, hint="It begins with /")
    _check(path, path, system)
    return path


def check_name(name: str, system: str | None = None) -> str:
    """`name` itself, if a file of this name can be uploaded directly: one path component, no quotes, no leading dash.

    Raises:
        InvalidPath: says which rule is broken.
    """
    if not name or "/" in name or name in (".", ".."):
        raise InvalidPath("a file name must be one path component", path=name, system=system)
    if name.startswith("-"):
        raise InvalidPath("a file name must not begin with a dash", path=name, system=system, hint=_HINT)
    if '"' in name:
        raise InvalidPath("a file name must not contain a double quote", path=name, system=system, hint=_HINT)
    _check(name, name, system)
    return name


def _check(text: str, path: str, system: str | None) -> None:
    if found := _BAD.search(text):
        what = "a single quote" if found.group() == "'" else f"the control character {found.group()!r}"
        raise InvalidPath(f"a remote path must not contain {what}", path=repr(path), system=system, hint=_HINT)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidPath("a remote path must be UTF-8", path=repr(path), system=system, hint=_HINT) from None
