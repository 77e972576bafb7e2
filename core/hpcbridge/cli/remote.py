"""Remote paths as they are typed: `/abs/path` or `system:/abs/path`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hpcbridge.cli.context import usage_error

_REMOTE = re.compile(r"(?:(?P<system>[A-Za-z0-9][A-Za-z0-9_.-]*):)?(?P<path>/.*)", re.DOTALL)


@dataclass(frozen=True)
class Remote:
    """A path on a system; `system` is None for the default one."""

    system: str | None
    path: str

    @property
    def name(self) -> str:
        """The last component."""
        return PurePosixPath(self.path).name

    @property
    def is_directory(self) -> bool:
        """Whether it is written as a directory (`/scratch/me/`)."""
        return self.path.endswith("/")

    def __truediv__(self, name: str) -> Remote:
        return Remote(self.system, f"{self.path.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return f"{self.system}:{self.path}" if self.system else self.path


def is_remote(text: str) -> bool:
    """Whether `text` can only be a remote path."""
    match = _REMOTE.fullmatch(text)
    return match is not None and match["system"] is not None


def parse_remote(text: str, argument: str) -> Remote:
    """Read a remote path; what cannot be one is an error of usage that says what was expected."""
    match = _REMOTE.fullmatch(text)
    if match is None:
        hint = f"{text!r} is not a remote path: write /absolute/path or system:/absolute/path"
        system, colon, path = text.partition(":")
        if colon and system and path and not path.startswith("/"):
            hint += f" (did you mean {system}:/{path}?)"
        elif Path(text).exists():
            hint += f" ({text!r} exists on this machine: are the two paths swapped?)"
        raise usage_error(hint, argument)
    return Remote(match["system"], match["path"])


def parse_remotes(texts: Sequence[str], argument: str) -> tuple[str | None, list[str]]:
    """Several remote paths on one system: its name (None for the default one), and the paths."""
    remotes = [parse_remote(text, argument) for text in texts]
    systems = {remote.system for remote in remotes}
    if len(systems) > 1:
        named = ", ".join(sorted(system or "the default one" for system in systems))
        raise usage_error(f"the paths are on several systems ({named}): one at a time; `get` and `put` copy", argument)
    return systems.pop() if systems else None, [remote.path for remote in remotes]
