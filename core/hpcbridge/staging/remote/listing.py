"""What is in a directory, with the names that the files have.

The server's `ls` prints names in C's quoting, in the login node's locale: under a C locale an `é` arrives as
`\\303\\251`, a newline always as `\\n`, and a name that really holds a backslash looks the same (measured). Octal
escapes above ASCII that spell UTF-8 are read as such; a name that stays in doubt is asked for by `stat`, or the
directory is listed by a job of ours. So is one whose listing is over the server's limit of 5 MiB (20,000 entries).
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from hpcbridge.errors import CommandTimeout, NotFound, TooLarge
from hpcbridge.firecrest import FileEntry
from hpcbridge.staging.context import Transfer
from hpcbridge.staging.remote import jobs
from hpcbridge.staging.remote.paths import carried, failure
from hpcbridge.staging.remote.scripts import Records

MOST_LOOKS = 20
"""Names of one directory that are asked for one by one; with more in doubt, one job lists them all."""

_OCTAL = re.compile(r"(?:\\[23][0-7]{2})+")


def readable(name: str) -> str:
    """A name from the server's listing with octal escapes that spell UTF-8 undone: `gr\\303\\266n` is `grön`."""

    def character(match: re.Match[str]) -> str:
        try:
            return bytes(int(code, 8) for code in match[0].split("\\")[1:]).decode()
        except UnicodeDecodeError:
            return match[0]

    return _OCTAL.sub(character, name)


def as_read(entries: Sequence[FileEntry]) -> list[FileEntry]:
    """Entries of a listing with readable names and link targets, without `.` and `..`."""
    return [
        replace(entry, name=readable(entry.name), link_target=entry.link_target and readable(entry.link_target))
        for entry in entries
        if entry.name not in (".", "..")
    ]


async def entries(
    t: Transfer, directory: str, *, hidden: bool = False, recursive: bool = False, exact: bool = False
) -> list[FileEntry]:
    """The entries of `directory`, or of the whole tree with names relative to it; a file gives itself, its whole path.

    Without `exact` a name with a backslash may be another one. Raises PathNotFound, PermissionDenied.
    """
    if not carried(directory):
        return await by_job(t, directory, hidden=hidden, recursive=recursive)
    try:
        raw = await t.client.ls(t.name, directory, hidden=hidden, recursive=recursive)
    except (TooLarge, CommandTimeout):
        return await by_job(t, directory, hidden=hidden, recursive=recursive)
    read = as_read(raw)
    if exact and not await _certain(t, directory, raw, read):
        return await by_job(t, directory, hidden=hidden, recursive=recursive)
    return read


async def _certain(t: Transfer, directory: str, raw: Sequence[FileEntry], read: Sequence[FileEntry]) -> bool:
    """Whether every name of `read` is the name of a file."""
    if not any("\\" in entry.name for entry in raw):
        return True
    names = Counter(entry.name for entry in read)
    doubtful = {after.name for after in read if "\\" in after.name}
    doubtful |= {readable(before.name) for before in raw if "\\" in before.name}
    if len(doubtful) > MOST_LOOKS or any(names[name] > 1 for name in doubtful):
        return False

    async def exists(name: str) -> bool:
        path = posixpath.join(directory, name)
        if not carried(path):
            return False
        try:
            await t.client.stat(t.name, path)
        except NotFound:
            return False
        return True

    return all(await asyncio.gather(*map(exists, doubtful)))


async def by_job(t: Transfer, directory: str, *, hidden: bool = False, recursive: bool = False) -> list[FileEntry]:
    """Like `entries`, by a job: every name as it is (what is not UTF-8 as surrogates, as `os.fsdecode` gives it)."""
    work = Records(os.fsencode(directory), recursive=recursive)
    found, said = await jobs.records(t, work, "ls")
    if said and not found:
        raise failure(said, directory, site=t.site, system=t.name)
    read = sorted((_entry(record) for record in found), key=lambda entry: entry.name)
    return [entry for entry in read if hidden or not _is_hidden(entry.name)]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or "/." in name


def _entry(record: bytes) -> FileEntry:
    mode, size, modified, user, group, rest = record.split(b" ", 5)
    name, _, target = rest.partition(b"//")
    letters = mode.decode()
    return FileEntry(
        name=os.fsdecode(name),
        kind=letters[0],
        size=int(size),
        permissions=letters[1:],
        user=os.fsdecode(user),
        group=os.fsdecode(group),
        modified=datetime.fromtimestamp(int(modified.partition(b".")[0]), UTC),
        link_target=os.fsdecode(target) if letters[0] == "l" else None,
    )
