"""cp, mv, rm, mkdir and du of files that are on the cluster already.

Each takes many paths (as they are; patterns are expanded by `globs.expand`) and says of each what became of it: a
failure does not stop the others.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hpcbridge.errors import (
    AlreadyExists,
    CommandTimeout,
    Conflict,
    HpcBridgeError,
    InvalidPath,
    NotFound,
    PathNotFound,
    PermissionDenied,
    SomeFailed,
    TooLarge,
)
from hpcbridge.staging.context import Transfer
from hpcbridge.staging.remote import jobs, listing
from hpcbridge.staging.remote.paths import carried, depth, failure, inside
from hpcbridge.staging.remote.scripts import Changes, Records, Verb

BY_REQUEST = 200
"""Paths up to which one request each is less than a job."""


async def copy(t: Transfer, sources: Sequence[str], destination: str, *, recursive: bool = False) -> None:
    """Copy on the cluster as `cp` does, in one job; a `destination` that is a directory means inside it.

    Each new file or tree appears under its name by one rename; a directory that exists is merged into. Raises
    SomeFailed, and the one error where there is one source.
    """
    await _carry(t, Verb.COPY, sources, destination, recursive=recursive)


async def move(t: Transfer, sources: Sequence[str], destination: str) -> None:
    """Move on the cluster as `mv` does, in one job: by rename, to another file system by a hidden copy and a rename.

    A `destination` that is a directory means inside it. Raises like `copy`.
    """
    await _carry(t, Verb.MOVE, sources, destination)


async def _carry(t: Transfer, verb: Verb, sources: Sequence[str], destination: str, *, recursive: bool = False) -> None:
    sources = [inside(t.info, source) for source in sources]
    # A slash at the end says "a directory": what does not exist is then no new name.
    several = len(sources) > 1 or destination.endswith("/")
    target = inside(t.info, destination)
    if verb is Verb.MOVE:
        for source in sources:
            refuse_precious(t, source, await _own(t, [source]), "moved")
    work = Changes(verb, [*map(os.fsencode, sources)], os.fsencode(target), recursive=recursive, several=several)
    await _change(t, work, sources)


async def _change(t: Transfer, work: Changes, paths: Sequence[str]) -> None:
    answer = await jobs.change(t, work, work.verb.value)
    raise_failures(
        {
            paths[index]: failure(words, paths[index], site=t.site, system=t.name)
            for index, words in answer.failures.items()
        },
        len(paths),
    )


def raise_failures(failures: dict[str, HpcBridgeError], total: int) -> None:
    """Raise the only error of a single path, or SomeFailed; nothing when there is none."""
    if not failures:
        return
    if total == 1:
        raise next(iter(failures.values()))
    raise SomeFailed(f"{len(failures)} of {total} paths failed", failures=failures)


async def remove(
    t: Transfer,
    paths: Sequence[str],
    *,
    recursive: bool = False,
    missing_ok: bool = False,
    preserve_root: bool = True,
) -> None:
    """Remove files and, if `recursive`, directories with all they hold.

    By a request each, by one job for what takes longer than the server's five seconds, for names that no request can
    carry, and for many. Unless `preserve_root` is off, the root of a file system and the user's own directory on it
    are refused. Raises like `copy`.
    """
    paths = list(dict.fromkeys(inside(t.info, path) for path in paths))
    own = await _own(t, paths) if preserve_root else set()
    for path in paths:
        refuse_precious(t, path, own, "removed", preserve_root=preserve_root)
    if recursive:  # what is in a directory goes with it
        whole = set(paths)
        paths = [path for path in paths if not any(above in whole for above in _parents(path))]
    quick = [path for path in paths if carried(path)] if len(paths) <= BY_REQUEST else []
    outcomes = await asyncio.gather(*(_remove_one(t, path, recursive=recursive) for path in quick))
    failures = {path: error for path, error in zip(quick, outcomes, strict=True) if error is not None}
    slow = [path for path in paths if path not in quick or isinstance(failures.get(path), CommandTimeout)]
    failures = {path: error for path, error in failures.items() if path not in slow}
    if slow:
        options = " ".join(["-r"] * recursive + ["-f"] * missing_ok)
        work = Changes(Verb.REMOVE, [*map(os.fsencode, slow)], options=options)
        answer = await jobs.change(t, work, "rm")
        for index, words in answer.failures.items():
            failures[slow[index]] = failure(words, slow[index], site=t.site, system=t.name)
    if missing_ok:
        failures = {path: error for path, error in failures.items() if not isinstance(error, NotFound)}
    raise_failures(failures, len(paths))


def _parents(path: str) -> list[str]:
    found = []
    while (path := posixpath.dirname(path)) != "/":
        found.append(path)
    return found


async def _remove_one(t: Transfer, path: str, *, recursive: bool) -> HpcBridgeError | None:
    try:
        # The server's command is `rm -r`, always.
        if not recursive and stat.S_ISDIR((await t.client.stat(t.name, path)).mode):
            return t.error(f"cannot remove '{path}': Is a directory", kind=Conflict, path=path, hint=_RECURSIVE)
        await t.client.rm(t.name, path)
    except (PathNotFound, PermissionDenied, InvalidPath, AlreadyExists, CommandTimeout) as error:
        return error
    return None


_RECURSIVE = "-r removes directories with all they hold"


async def _own(t: Transfer, paths: Sequence[str]) -> set[str]:
    """The user's own directories, one per file system; looked up only where one of `paths` may be such."""
    if not any(depth(t.info, path) == 1 for path in paths):
        return set()
    user = posixpath.basename(await t.system.home())
    return {posixpath.join(each.path, user) for each in t.info.file_systems}


def refuse_precious(t: Transfer, path: str, own: set[str], verb: str, *, preserve_root: bool = True) -> None:
    """Raise InvalidPath for the root of a file system, or the user's own directory, itself."""
    what = ""
    if depth(t.info, path) == 0 or any(each.path.startswith(f"{path}/") for each in t.info.file_systems):
        what = "the root of a file system"
    elif path in own:
        what = "your own directory"
    if what and preserve_root:
        hint = (
            "Name what is in it; --no-preserve-root (preserve_root=False) if you mean it" if verb == "removed" else ""
        )
        raise t.error(f"{path} is {what}: it is not {verb}", kind=InvalidPath, path=path, hint=hint or None)


async def make(t: Transfer, paths: Sequence[str], *, parents: bool = False) -> None:
    """Make directories; with `parents` those above, too, and one that exists is fine. Raises like `copy`."""
    paths = [inside(t.info, path) for path in paths]
    quick, odd = [each for each in paths if carried(each)], [each for each in paths if not carried(each)]

    async def one(path: str) -> HpcBridgeError | None:
        try:
            await t.client.mkdir(t.name, path, parents=parents)
        except (PathNotFound, PermissionDenied, InvalidPath, AlreadyExists) as error:
            return error
        return None

    outcomes = await asyncio.gather(*map(one, quick))
    failures = {path: error for path, error in zip(quick, outcomes, strict=True) if error is not None}
    if odd:
        work = Changes(Verb.MAKE, [*map(os.fsencode, odd)], options="-p" if parents else "")
        answer = await jobs.change(t, work, "mkdir")
        for index, words in answer.failures.items():
            failures[odd[index]] = failure(words, odd[index], site=t.site, system=t.name)
    raise_failures(failures, len(paths))


@dataclass(frozen=True, slots=True)
class Usage:
    """What is under a path: bytes in files (not what their blocks take), and how many of what.

    `below` holds the same of every directory in it, in the order of `du`; `unread` the words about what could not be
    read and is not counted. A file with several names counts each time.
    """

    path: str
    bytes: int
    files: int
    directories: int
    links: int
    below: tuple[Usage, ...] = ()
    unread: str = ""


async def usage(t: Transfer, path: str) -> Usage:
    """How much is under `path`, hidden names included, links not followed.

    By one recursive listing, and by a job where that is over the server's limits or a directory in the tree may not be
    read. Raises PathNotFound, PermissionDenied.
    """
    path = inside(t.info, path)
    if carried(path):
        try:
            return _summed(path, await _listed(t, path))
        except (TooLarge, CommandTimeout):
            pass
        except PermissionDenied as error:
            if re.search(rf"'{re.escape(path)}/?': ", error.message):
                raise
    found, said = await jobs.records(t, Records(os.fsencode(path), measure=True), "du")
    if said and len(found) <= 1 and f"'{path}" in said:
        raise failure(said, path, site=t.site, system=t.name)
    own = {}
    for record in found:
        size, files, links, where = record.split(b" ", 3)
        own[os.fsdecode(where)[2:]] = [int(size), int(files), int(links)]
    return _summed(path, own, said)


async def _listed(t: Transfer, path: str) -> dict[str, list[int]]:
    """Directory -> [bytes, files, links] directly in it, from one recursive listing."""
    own = {"": [0, 0, 0]}
    for entry in listing.as_read(await t.client.ls(t.name, path, hidden=True, recursive=True)):
        if entry.is_dir:
            own.setdefault(entry.name, [0, 0, 0])
            continue
        # Of a file alone the listing holds the whole path.
        sums = own.setdefault("" if entry.name.startswith("/") else posixpath.dirname(entry.name), [0, 0, 0])
        sums[0] += entry.size if entry.is_file else 0
        sums[2 if entry.is_link else 1] += 1
    return own


def _summed(path: str, own: dict[str, list[int]], unread: str = "") -> Usage:
    """Whole subtrees from what is directly in each directory."""
    sums = {where: [*each, 0] for where, each in own.items()}
    for where in sorted(own, key=lambda each: each.count("/"), reverse=True):
        if where:
            above = sums.setdefault(posixpath.dirname(where), [0, 0, 0, 0])
            above[:] = [a + b for a, b in zip(above, sums[where], strict=True)]
            above[3] += 1
    order = sorted((where for where in sums if where), key=lambda each: [*each.split("/"), "\U0010ffff"])
    below = tuple(_usage(posixpath.join(path, where), sums[where]) for where in order)
    return replace(_usage(path, sums[""]), below=below, unread=unread)


def _usage(path: str, sums: list[int]) -> Usage:
    size, files, links, directories = sums
    return Usage(path, size, files, directories, links)
