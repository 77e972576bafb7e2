"""Paths here and paths there: what a shipped text calls a directory must be its name on the cluster, and back."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

TEXT_MAX = 16 << 20
"""Bytes of a file in which paths are looked for; what is larger is data."""

_SYSTEM = (
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/opt",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
)
"""What a cluster has of its own: a link there stays as it is."""


@dataclass(frozen=True)
class PathMap:
    """Directories with another name on the cluster: `pairs` of absolute paths here and there, the first that fits."""

    pairs: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, stage: str, remote: str, others: Mapping[str, str]) -> PathMap:
        """The stage prefix, and whatever else is mapped; longer paths first."""
        pairs = {stage: remote, **{here.rstrip("/"): there.rstrip("/") for here, there in others.items()}}
        return cls(tuple(sorted(pairs.items(), key=lambda pair: -len(pair[0]))))

    def forward(self, text: bytes) -> bytes:
        """The text as it must read on the cluster; what is no text stays as it is."""
        return _replaced(text, self._forward) if _is_text(text) else text

    def backward(self, text: bytes) -> bytes:
        """The text as it must read here."""
        return _replaced(text, self._backward) if _is_text(text) else text

    def there(self, path: str) -> str | None:
        """The name on the cluster of a path here, None when it has none."""
        for here, there in self.pairs:
            if path == here or path.startswith(f"{here}/"):
                return there + path[len(here) :]
        return None

    def here(self, path: str) -> str | None:
        """The reverse."""
        for here, there in self.pairs:
            if path == there or path.startswith(f"{there}/"):
                return here + path[len(there) :]
        return None

    @cached_property
    def _forward(self) -> tuple[re.Pattern[bytes], dict[bytes, bytes]]:
        return _pattern({os.fsencode(here): os.fsencode(there) for here, there in self.pairs})

    @cached_property
    def _backward(self) -> tuple[re.Pattern[bytes], dict[bytes, bytes]]:
        return _pattern({os.fsencode(there): os.fsencode(here) for here, there in self.pairs})


def _pattern(names: dict[bytes, bytes]) -> tuple[re.Pattern[bytes], dict[bytes, bytes]]:
    longest = sorted(names, key=len, reverse=True)
    # `/a/stage` is not meant in `/a/stage2`, `/a/stage-old` or `/a/stage.d`, but in `/a/stage.` at a sentence's end.
    return re.compile(b"(?:%s)(?![\\w-]|\\.\\w)" % b"|".join(map(re.escape, longest))), names


def _replaced(text: bytes, how: tuple[re.Pattern[bytes], dict[bytes, bytes]]) -> bytes:
    pattern, names = how
    return pattern.sub(lambda match: names[match[0]], text)


def _is_text(data: bytes) -> bool:
    return b"\0" not in data


def is_of_the_system(path: str) -> bool:
    """Whether a path is of the sort that every machine has of its own."""
    return any(path == each or path.startswith(f"{each}/") for each in _SYSTEM)


DEPTH = 4
"""Stage directories are `<stage prefix>/<system>/<partition>/<environment>/<test>`."""


def stage_directories_in(text: bytes, stage: str) -> set[str]:
    """Existing stage directories that a text names, relative to the prefix `stage`."""
    found = re.findall(re.escape(os.fsencode(stage)) + rb"((?:/[^/\s\0\"'`;:,()|<>$*?]+){%d})" % DEPTH, text)
    names = {os.fsdecode(each[1:]) for each in set(found)}
    return {name for name in names if Path(stage, name).is_dir()}


def stage_directory_of(path: str, stage: str) -> str | None:
    """The stage directory, relative to the prefix `stage`, that a path lies in."""
    relative = os.path.relpath(path, stage)
    parts = relative.split("/")
    if parts[0] == ".." or len(parts) < DEPTH:
        return None
    return "/".join(parts[:DEPTH])
