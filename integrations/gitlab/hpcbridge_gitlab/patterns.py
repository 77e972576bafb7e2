"""Which files an uploader of gitlab-runner packs, by its arguments.

A superset is enough, because the real program chooses again: its patterns are those of doublestar (`**`, `{a,b}`, `*`
that does not cross a slash), a path that is a directory means all below it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

_OPTIONS_WITHOUT_VALUE = frozenset({"--untracked", "--verbose"})


@dataclass(frozen=True)
class Wanted:
    """`--path`, `--exclude` and `--untracked` of an uploader."""

    paths: tuple[str, ...]
    untracked: bool

    @classmethod
    def of(cls, words: list[str], directory: str) -> Wanted:
        """From an uploader's arguments, called in `directory`; no other argument is looked at."""
        paths, untracked = [], False
        rest = iter(words[1:])
        for word in rest:
            name, equals, value = word.partition("=")
            if name == "--untracked":
                untracked = value.lower() != "false"
            elif name == "--path":
                paths.append(_relative(value if equals else next(rest, ""), directory))
        return cls(tuple(path for path in paths if path), untracked)

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        return [re.compile(translate(path) + r"(?:/.*)?", re.DOTALL) for path in self.paths]

    def choose(self, names: Iterable[bytes], tracked: frozenset[bytes]) -> tuple[list[bytes], list[str]]:
        """The names to bring, and the paths that none of them matches."""
        chosen, met = [], set()
        for name in names:
            text = name.decode("utf-8", "surrogateescape").rstrip("/")
            hits = {number for number, pattern in enumerate(self._patterns) if pattern.fullmatch(text)}
            met |= hits
            if hits or (self.untracked and name not in tracked and not name.endswith(b"/")):
                chosen.append(name)
        return chosen, [path for number, path in enumerate(self.paths) if number not in met]


def _relative(path: str, directory: str) -> str:
    if path.startswith("/"):
        path = posixpath.relpath(path, directory)
    path = posixpath.normpath(path)
    return "**" if path == "." else "" if path.startswith("../") or path == ".." else path


def translate(pattern: str) -> str:
    """A doublestar pattern as a regular expression."""
    out, i, depth = [], 0, 0
    while i < len(pattern):
        c = pattern[i]
        i += 1
        if c == "*":
            if pattern.startswith("*", i):
                i += 1
                if pattern.startswith("/", i):
                    i += 1
                    out.append("(?:.*/)?")
                else:
                    out.append(".*")
            else:
                out.append("[^/]*")
        elif c == "?":
            out.append("[^/]")
        elif c == "[" and (end := pattern.find("]", i + 1)) > 0:
            inside = pattern[i:end].replace("\\", "\\\\")
            out.append(f"[{'^' + inside[1:] if inside[0] in '!^' else inside}]")
            i = end + 1
        elif c == "{" and "}" in pattern[i:]:
            depth += 1
            out.append("(?:")
        elif c == "}" and depth:
            depth -= 1
            out.append(")")
        elif c == "," and depth:
            out.append("|")
        elif c == "\\" and i < len(pattern):
            out.append(re.escape(pattern[i]))
            i += 1
        else:
            out.append(re.escape(c))
    return "".join(out)
