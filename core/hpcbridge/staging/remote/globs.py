"""Patterns of remote paths as a shell reads them, matched against the server's listings.

`*`, `?` and `[…]` do not cross a slash and do not match a leading dot; `**` as a whole component is any number of
directories, links not followed. A backslash takes a pattern character literally. As in a shell, directories that may
not be read match nothing, and a pattern without a match that is the exact name of a file is that file.
"""

from __future__ import annotations

import asyncio
import posixpath
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from hpcbridge.errors import InvalidPath, NotFound, PathNotFound, PermissionDenied
from hpcbridge.firecrest import FileEntry
from hpcbridge.staging.context import Transfer
from hpcbridge.staging.remote import listing
from hpcbridge.staging.remote.paths import absolute, carried, inside

_MAGIC = re.compile(r"[*?\[]")
_ESCAPED = re.compile(r"\\([*?\[\]\\])")
_BRACKET = re.compile(r"\[(?:([!^])|(?![!^]))(\][^\]]*|[^\]]+)\]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Found:
    """A path that a pattern matched, and its entry in the listing; None for a path that was written out."""

    path: str
    entry: FileEntry | None = None


def has_magic(path: str) -> bool:
    """Whether `path` is a pattern."""
    return _MAGIC.search(_ESCAPED.sub("", path)) is not None


async def expand(t: Transfer, pattern: str) -> list[Found]:
    """The paths that `pattern` matches, sorted; a path without pattern characters is returned unseen.

    Raises PathNotFound when nothing matches, InvalidPath outside the file systems.
    """
    if not has_magic(pattern):
        return [Found(inside(t.info, _literal(pattern)))]
    components = absolute(pattern)[1:].split("/")
    first = next(index for index, component in enumerate(components) if has_magic(component))
    inside(t.info, "/".join(["", *map(_literal, components[:first])]))
    search = _Search(t)
    found = await search.matches("/", components) or await search.existing([pattern])
    if not found and search.refused is not None:
        raise search.refused
    if not found:
        hint = "Patterns are matched on the cluster; quote them, and look with `hpcbridge ls DIRECTORY`"
        raise PathNotFound("nothing matches", site=t.site, system=t.name, path=pattern, hint=hint)
    return sorted(found, key=lambda each: each.path)


def _literal(component: str) -> str:
    return _ESCAPED.sub(r"\1", component)


class _Search:
    """One expansion: walks from directory to directory, side by side within the client's limiter."""

    def __init__(self, t: Transfer) -> None:
        self._t = t
        self.refused: PermissionDenied | None = None

    async def matches(self, directory: str, components: Sequence[str]) -> list[Found]:
        """What matches `components` below `directory`."""
        first = next((index for index, component in enumerate(components) if has_magic(component)), None)
        if first is None:
            return await self.existing([posixpath.join(directory, *map(_literal, components))])
        directory = posixpath.join(directory, *map(_literal, components[:first]))
        component, rest = components[first], components[first + 1 :]
        if component == "**":
            return await self._in_tree(directory, components[first:])
        found = await self._in_directory(directory, component)
        if not rest:
            return found
        ways = [each.path for each in found if each.entry is None or each.entry.is_dir or each.entry.is_link]
        return await _all(lambda way: self.matches(way, rest), ways)

    async def existing(self, paths: Sequence[str]) -> list[Found]:
        """Those of `paths` that are there."""

        async def look(path: str) -> list[Found]:
            if not carried(path):
                there = await self._listed(posixpath.dirname(path), hidden=True, recursive=False)
                return [Found(path, entry) for entry in there if entry.name == posixpath.basename(path)]
            try:
                await self._t.client.stat(self._t.name, path)
            except (NotFound, InvalidPath):
                return []
            except PermissionDenied as error:
                self.refused = error
                return []
            return [Found(inside(self._t.info, path))]

        return await _all(look, paths)

    async def _in_directory(self, directory: str, component: str) -> list[Found]:
        expression = _compiled(_component(component), component)
        there = await self._listed(directory, hidden=component.startswith("."), recursive=False)
        return [Found(posixpath.join(directory, e.name), e) for e in there if expression.fullmatch(e.name)]

    async def _in_tree(self, directory: str, components: Sequence[str]) -> list[Found]:
        expression = _compiled(_expression(components), "/".join(components))
        hidden = any(component.startswith(".") for component in components)
        there = await self._listed(directory, hidden=hidden, recursive=True)
        return [Found(posixpath.join(directory, e.name), e) for e in there if expression.fullmatch(e.name)]

    async def _listed(self, directory: str, *, hidden: bool, recursive: bool) -> list[FileEntry]:
        # With a slash, so that the way leads through links.
        path = f"{directory.rstrip('/')}/"
        try:
            return await listing.entries(self._t, path, hidden=hidden, recursive=recursive, exact=True)
        except (NotFound, InvalidPath):  # not there, or no directory
            return []
        except PermissionDenied as error:
            self.refused = error
            return []


async def _all(function: Callable[[str], Awaitable[list[Found]]], paths: Sequence[str]) -> list[Found]:
    return [found for part in await asyncio.gather(*map(function, paths)) for found in part]


def _compiled(expression: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(expression, re.DOTALL)
    except re.error as error:
        raise InvalidPath(f"{pattern!r} is not a pattern: {error}", path=pattern) from None


def _component(pattern: str) -> str:
    """The regular expression of one component, with the shell's rule for leading dots."""
    expression, index = "" if pattern.startswith(".") else r"(?!\.)", 0
    while index < len(pattern):
        character, bracket = pattern[index], _BRACKET.match(pattern, index)
        if bracket:
            expression += f"[{'^/' if bracket[1] else ''}{_in_brackets(bracket[2])}]"
            index = bracket.end()
            continue
        if character == "\\" and index + 1 < len(pattern):
            index += 1
            expression += re.escape(pattern[index])
        else:
            expression += {"*": "[^/]*", "?": "[^/]"}.get(character) or re.escape(character)
        index += 1
    return expression


def _in_brackets(text: str) -> str:
    return re.sub(r"([\\\[\]&~|^])", r"\\\1", text)


def _expression(components: Sequence[str]) -> str:
    """The regular expression of relative paths; the first component is `**`."""
    parts, last = [], len(components) - 1
    for index, component in enumerate(components):
        if component == "**":
            parts.append(r"(?!\.)[^/]+(?:/(?!\.)[^/]+)*" if index == last else r"(?:(?!\.)[^/]+/)*")
        else:
            parts.append(_component(component) + ("" if index == last else "/"))
    return "".join(parts)
