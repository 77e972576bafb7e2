"""Which parts of a tree are meant: patterns like gitignore's, in one form that Python and grep understand alike.

A pattern without a slash means a name at any depth; a slash at its start or within it ties it to the tree's root, and
one at its end means directories only. `*`, `?` and `[...]` stop at slashes, `**` does not. What lies below a directory
that matches, matches.

Each pattern becomes one expression that must match a *whole* path, where directories end with a slash: `a/b` is a file
or a link, `a/b/` a directory. It is written with what Python's `re` (on bytes) and `LC_ALL=C grep -zxaE` have in
common: no `.` or `[^...]`, which treat newlines differently, and no backslash within brackets.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from hpcbridge.errors import InvalidRequest
from hpcbridge.staging.trees.entries import Kind

OWN = (".hpcbridge", ".hpcbridge-*", ".*.hpcbridge-*")
"""Patterns for what is ours and never part of a tree: locks of jobs, staging and state directories, part files."""

_SLASH = ord("/")
_SPECIAL = frozenset(b".*+?()[{|^$\\")
"""Bytes that an expression must escape outside brackets; any other backslash is not portable."""
_AWKWARD = frozenset(b"[]^-\\")
"""Bytes that mean something within brackets, in one of the two languages at least."""
_ALL = frozenset(range(1, 256))
_ANY = b"[\x01-\xff]"
_ANY_BUT_SLASH = b"[\x01-.0-\xff]"
_HINT = "patterns are like gitignore's: *.tmp, /build/, data/**/raw, [a-c]?.dat"


class Expressions(NamedTuple):
    """What the patterns mean, one expression per line, for `LC_ALL=C grep -zxaE -f`; empty when there is none.

    To be matched against paths whose directories end with `/`.
    """

    include: bytes
    exclude: bytes


@dataclass(frozen=True)
class Filter:
    """What is kept of a tree.

    Args:
        include: when given, only files and links that match, and the directories that lead to them.
        exclude: never these, nor anything below them.
        max_file_size: bytes; larger files are left out.

    Raises InvalidRequest for a pattern that means nothing.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_file_size: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "include", tuple(self.include))
        object.__setattr__(self, "exclude", tuple(self.exclude))
        self.expressions()

    def keeps(self, path: bytes, kind: Kind, size: int = 0) -> bool:
        """Whether an entry is kept for its own sake; a directory that leads to one that is kept, is kept as well."""
        if self.max_file_size is not None and kind is Kind.FILE and size > self.max_file_size:
            return False
        return self.selects(path + b"/" if kind is Kind.DIRECTORY else path)

    def enters(self, path: bytes) -> bool:
        """Whether anything below the directory can be kept."""
        return self._excluded is None or self._excluded(path + b"/") is None

    def selects(self, path: bytes) -> bool:
        """Whether the patterns keep this path; one that ends with `/` is a directory's."""
        if self._excluded is not None and self._excluded(path) is not None:
            return False
        return self._included is None or self._included(path) is not None

    def expressions(self) -> Expressions:
        """The same in the node's language."""
        return Expressions(_lines(self.include), _lines(self.exclude))

    @cached_property
    def _included(self) -> Callable[[bytes], re.Match[bytes] | None] | None:
        return _matcher(self.include)

    @cached_property
    def _excluded(self) -> Callable[[bytes], re.Match[bytes] | None] | None:
        return _matcher(self.exclude)


def with_own(filter: Filter | None) -> Filter:
    """The filter, without what is ours on either side."""
    given = filter or Filter()
    return replace(given, exclude=(*given.exclude, *OWN))


def _lines(patterns: Iterable[str]) -> bytes:
    return b"\n".join(expression(pattern) for pattern in patterns)


def _matcher(patterns: tuple[str, ...]) -> Callable[[bytes], re.Match[bytes] | None] | None:
    if not patterns:
        return None
    return re.compile(b"|".join(b"(?:%s)" % expression(each) for each in patterns)).fullmatch


def expression(pattern: str) -> bytes:
    """One pattern as an expression. Raises InvalidRequest for a pattern that means nothing."""
    text = os.fsencode(pattern)
    names = _checked(pattern, text)
    directories = names[-1] == b""
    names = [name for name in names if name]
    tied = text.startswith(b"/") or len(names) > 1
    inside = names[-1] == b"**"
    while names and names[-1] == b"**":
        names.pop()
    if not names:
        return _ANY + b"*" + (b"/%s*" % _ANY if directories else b"")
    found = b"" if tied else b"(%s*/)?" % _ANY
    for index, name in enumerate(names):
        if name != b"**":
            found += _name(pattern, name) + (b"/" if index < len(names) - 1 else b"")
        elif index == 0 or names[index - 1] != b"**":
            found += b"(%s*/)?" % _ANY
    if inside:
        # Everything below, but not the directory itself.
        return found + b"/%s%s*" % (_ANY, _ANY) + (b"/%s*" % _ANY if directories else b"")
    return found + (b"/%s*" if directories else b"(/%s*)?") % _ANY


def _checked(pattern: str, text: bytes) -> list[bytes]:
    """The names between the slashes; the first is kept only if it is one, the last is empty after a final slash."""
    if pattern.startswith("!"):
        raise _bad(pattern, "cannot take back what another one excludes")
    if any(byte < 0x20 or byte == 0x7F for byte in text):
        raise _bad(pattern, "holds a control character; write ? for it")
    names = text.removeprefix(b"/").split(b"/")
    if not any(names):
        raise _bad(pattern, "is empty")
    if b"" in names[:-1] or b"." in names or b".." in names:
        raise _bad(pattern, "holds an empty name, '.' or '..', which no path in a tree has")
    return names


def _name(pattern: str, name: bytes) -> bytes:
    """The expression for one name of a pattern."""
    # No name is empty, not even where stars alone stand for it: `a/*` is not `a/` itself.
    found, at = b"" if name.strip(b"*") else _ANY_BUT_SLASH, 0
    while at < len(name):
        byte = name[at : at + 1]
        at += 1
        if byte == b"*":
            found += (_ANY if name[at : at + 1] == b"*" else _ANY_BUT_SLASH) + b"*"
            while name[at : at + 1] == b"*":
                at += 1
        elif byte == b"?":
            found += _ANY_BUT_SLASH
        elif byte == b"[":
            members, at = _brackets(pattern, name, at)
            found += _set(members)
        else:
            if byte == b"\\":
                byte, at = name[at : at + 1], at + 1
                if not byte:
                    raise _bad(pattern, "ends with a backslash")
            found += _literal(byte[0])
    return found


def _literal(byte: int) -> bytes:
    return b"\\%c" % byte if byte in _SPECIAL else b"%c" % byte


def _brackets(pattern: str, name: bytes, at: int) -> tuple[frozenset[int], int]:
    """The bytes that `[...]` stands for, and where it ends; `at` is behind the opening bracket."""
    members: set[int] = set()
    inverted = name[at : at + 1] in (b"!", b"^")
    at = start = at + inverted
    while True:
        if at >= len(name):
            raise _bad(pattern, "has a [ without its ]")
        if name[at] == ord("]") and at > start:
            break
        if name[at : at + 2] in (b"[:", b"[.", b"[="):
            raise _bad(pattern, "has a named character class; write its characters")
        first, at = _member(pattern, name, at)
        last = first
        if name[at : at + 1] == b"-" and name[at + 1 : at + 2] not in (b"", b"]"):
            last, at = _member(pattern, name, at + 1)
            if last < first:
                raise _bad(pattern, "has a range that runs backwards")
        members.update(range(first, last + 1))
    found = (_ALL - members if inverted else frozenset(members)) - {_SLASH}
    if not found:
        raise _bad(pattern, "has brackets that match nothing")
    return found, at + 1


def _member(pattern: str, name: bytes, at: int) -> tuple[int, int]:
    if name[at] == ord("\\"):
        at += 1
        if at >= len(name):
            raise _bad(pattern, "has a [ without its ]")
    return name[at], at + 1


def _set(members: frozenset[int]) -> bytes:
    """An expression for one byte of a set: ranges in brackets, with the awkward ones as alternatives beside them."""
    inside, outside = b"", []
    rest = sorted(members)
    while rest:
        length = next((i for i in range(1, len(rest)) if rest[i] != rest[0] + i), len(rest))
        first, last = rest[0], rest[length - 1]
        del rest[:length]
        while first <= last and first in _AWKWARD:
            outside.append(_literal(first))
            first += 1
        while first <= last and last in _AWKWARD:
            outside.append(_literal(last))
            last -= 1
        if first <= last:
            inside += b"%c" % first if first == last else b"%c-%c" % (first, last)
    alternatives = [b"[%s]" % inside] * bool(inside) + outside
    return alternatives[0] if len(alternatives) == 1 else b"(%s)" % b"|".join(alternatives)


def _bad(pattern: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"the pattern {pattern!r} {why}", hint=_HINT)
