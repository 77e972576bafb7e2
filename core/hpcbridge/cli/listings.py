"""What `ls` finds for each operand, and how it is printed."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpcbridge.cli import output
from hpcbridge.cli.sizes import human
from hpcbridge.errors import InvalidPath, NotFound, PathNotFound, PermissionDenied
from hpcbridge.firecrest import FileEntry
from hpcbridge.staging.context import Transfer
from hpcbridge.staging.remote import listing
from hpcbridge.staging.remote.globs import Found

COLUMNS = ("mode", "user", "group", "size", "modified", "name")
_KINDS = {"-": "file", "d": "directory", "l": "link", "b": "block device", "c": "device", "p": "pipe", "s": "socket"}


@dataclass(frozen=True)
class Listing:
    """What one operand gave: the entries of a directory, or (`is_itself`) the operand's own."""

    path: str
    entries: tuple[FileEntry, ...]
    is_itself: bool = False


async def look(t: Transfer, found: Found, *, hidden: bool, recursive: bool, directory: bool, long: bool) -> Listing:
    """List one operand as `ls` does: a link to a directory is followed without -l, and shown with it."""
    if directory:
        return Listing(found.path, (await _itself(t, found),), is_itself=True)
    if found.entry is not None and not found.entry.is_dir and not found.entry.is_link:
        return Listing(found.path, (replace(found.entry, name=found.path),), is_itself=True)
    entries = await listing.entries(t, found.path, hidden=hidden, recursive=recursive)
    if len(entries) == 1 and entries[0].name.startswith("/"):
        if entries[0].is_link and not long:
            try:
                there = await listing.entries(t, f"{found.path}/", hidden=hidden, recursive=recursive)
            except (NotFound, InvalidPath, PermissionDenied):
                pass
            else:
                return Listing(found.path, tuple(there))
        return Listing(found.path, (replace(entries[0], name=found.path),), is_itself=True)
    return Listing(found.path, tuple(entries))


async def _itself(t: Transfer, found: Found) -> FileEntry:
    if found.entry is not None:
        return replace(found.entry, name=found.path)
    parent, name = posixpath.split(found.path)
    for entry in await listing.entries(t, f"{parent.rstrip('/')}/", hidden=True):
        if entry.name == name:
            return replace(entry, name=found.path)
    raise PathNotFound(f"ls: cannot access '{found.path}': No such file or directory", system=t.name, path=found.path)


def records(each: Listing) -> list[dict[str, Any]]:
    """What `ls --json` prints for one operand."""
    return [
        {
            "name": posixpath.basename(entry.name) if each.is_itself else entry.name,
            "path": posixpath.join(each.path, entry.name),
            "kind": _KINDS.get(entry.kind, entry.kind),
            "size": entry.size,
            "permissions": entry.permissions,
            "user": entry.user,
            "group": entry.group,
            "modified": entry.modified,
            "link_target": entry.link_target,
        }
        for entry in each.entries
    ]


def print_listings(listings: Sequence[Listing], *, long: bool, readable: bool, several: bool) -> None:
    """Files first, then each directory under its own heading, as `ls` does."""
    own = [entry for each in listings if each.is_itself for entry in each.entries]
    directories = [each for each in listings if not each.is_itself]
    if own:
        _print(own, long=long, readable=readable, empty="")
    for index, each in enumerate(directories):
        if several:
            if own or index:
                output.print_line("")
            output.print_line(f"{each.path}:")
        _print(each.entries, long=long, readable=readable, empty=f"{each.path} is empty.")


def _print(entries: Sequence[FileEntry], *, long: bool, readable: bool, empty: str) -> None:
    if long:
        rows = [
            (e.kind + e.permissions, e.user, e.group, human(e.size) if readable else e.size, e.modified, _shown(e))
            for e in entries
        ]
        output.print_table(COLUMNS, rows, empty=empty)
    elif output.stdout_is_terminal():
        output.print_columns([_marked(entry) for entry in entries], empty=empty)
    else:
        for entry in entries:
            output.print_line(entry.name)


def _shown(entry: FileEntry) -> str:
    return f"{entry.name} -> {entry.link_target}" if entry.is_link else _marked(entry)


def _marked(entry: FileEntry) -> str:
    return f"{entry.name}/" if entry.is_dir and output.stdout_is_terminal() else entry.name
