"""Takes credentials out of a clone before it leaves this host.

The runner's script writes the job's token into `.git/config`, and users' hooks and submodules may add more. The node
needs none of it: sources come and go through this host. Git itself reads the files; they are written anew.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from hpcbridge_gitlab.records import write_text
from hpcbridge_gitlab.verdicts import Cause, Stop

_DROPPED = re.compile(r"credential\..*|include(if)?\..*|http\.(.*\.)?(extraheader|cookiefile)", re.DOTALL)
"""Keys that are secrets, and includes: the runner's own included file holds some, and does not travel."""

_OF_A_WEB_URL = re.compile(r"(https?://)[^/\s@]*@", re.IGNORECASE)
_PASSWORD = re.compile(r"(\w+://[^/\s@:]*):[^/\s@]*@")
_NOTHING_OF_OURS = frozenset({"objects", "refs", "logs", "hooks", "info"})


def strip(builds: Path) -> None:
    """Rewrite the configuration of every clone below `builds`, submodules and work trees included. Raises Stop."""
    for path in _files(builds):
        if path.is_symlink():
            path.unlink()  # git makes none; it could name any file of this host
        else:
            write_text(path, "".join(map(_entry, _entries(path))))


def _files(builds: Path) -> Iterator[Path]:
    for folder, names, _ in os.walk(builds):
        git = Path(folder) / ".git"
        if ".git" in names and not git.is_symlink():
            names.clear()  # a clone: nothing below it is another one of the runner's
            for inside, below, files in os.walk(git):
                below[:] = [name for name in below if name not in _NOTHING_OF_OURS]
                yield from (Path(inside) / name for name in files if name in ("config", "config.worktree"))


def _entries(path: Path) -> Iterator[tuple[str, str | None]]:
    """Keys and values that may leave; None for a key without a value."""
    command = ["git", "config", "--file", str(path), "--no-includes", "--list", "--null"]
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise Stop(Cause.LOST, f"git cannot read {path.name} of the clone, so that its credentials cannot be removed")
    for item in os.fsdecode(done.stdout).split("\0")[:-1]:
        key, newline, value = item.partition("\n")
        if not _DROPPED.fullmatch(key):
            yield _without(key), _without(value) if newline else None


def _without(text: str) -> str:
    return _PASSWORD.sub(r"\1@", _OF_A_WEB_URL.sub(r"\1", text))


def _entry(item: tuple[str, str | None]) -> str:
    key, value = item
    section, _, rest = key.partition(".")
    subsection, _, name = rest.rpartition(".")
    head = f"[{section} {_quoted(subsection)}]" if subsection else f"[{section}]"
    return f"{head}\n\t{name}\n" if value is None else f"{head}\n\t{name} = {_quoted(value)}\n"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
