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
from collections.abc import Awaitable, Callable, Sequence
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

Failures = dict[str, HpcBridgeError]
"""Path -> why it failed; empty when all went well."""
ABOUT_PATHS = (PathNotFound, PermissionDenied, InvalidPath, Conflict, CommandTimeout)
"""Errors that are about one path: the others may fare better."""
BY_REQUEST = 200
"""Paths up to which one request each is less than a job."""


async def copy(t: Transfer, sources: Sequence[str], destination: str, *, recursive: bool = False) -> Failures:
    """Copy on the cluster as `cp` does, in one job; a `destination` that is a directory means inside it.

    Each new file or tree appears under its name by one rename; a directory that exists is merged into.
    """
    return await _carry(t, Verb.COPY, sources, destination, recursive=recursive)


async def move(t: Transfer, sources: Sequence[str], destination: str) -> Failures:
    """Move on the cluster as `mv` does, in one job: by rename, to another file system by a hidden copy and a rename.

    A `destination` that is a directory means inside it.
    """
    return await _carry(t, Verb.MOVE, sources, destination)


async def _carry(
    t: Transfer, verb: Verb, sources: Sequence[str], destination: str, *, recursive: bool = False
) -> Failures:
    several = _means_inside(sources, destination)
    target = inside(t.info, destination)
    sources, failures = await _acceptable(t, sources, "moved" if verb is Verb.MOVE else None)
    if sources:
        work = Changes(verb, [*map(os.fsencode, sources)], os.fsencode(target), recursive=recursive, several=several)
        failures |= await _change(t, work, sources)
    return failures


async def check(t: Transfer, sources: Sequence[str], destination: str, *, recursive: bool) -> Failures:
    """Look whether `copy` (or, with `recursive`, `move`) would go well; nothing is changed."""
    target = inside(t.info, destination)
    several = _means_inside(sources, destination)
    sources, failures = await _acceptable(t, sources, None)
    if several and carried(target):
        found = await t.client.stat(t.name, target, dereference=True)
        if not stat.S_ISDIR(found.mode):
            raise t.error(f"target '{target}' is not a directory", kind=Conflict, path=target)

    async def look(path: str) -> None:
        found = await t.client.stat(t.name, path)
        if stat.S_ISDIR(found.mode) and not recursive:
            raise t.error(f"-r not specified; omitting directory '{path}'", kind=Conflict, path=path)

    return failures | await _each([*filter(carried, sources)], look)


def _means_inside(sources: Sequence[str], destination: str) -> bool:
    # A slash at the end says "a directory": what does not exist is then no new name.
    return len(sources) > 1 or destination.endswith("/")


async def _acceptable(
    t: Transfer, paths: Sequence[str], verb: str | None, *, preserve_root: bool = True
) -> tuple[list[str], Failures]:
    """`paths` made plain, each once, without those outside the file systems, or too dear to be `verb`."""
    failures: Failures = {}
    plain = []
    for path in paths:
        try:
            plain.append(inside(t.info, path))
        except InvalidPath as error:
            failures[path] = error
    if verb and preserve_root:
        own = await _own(t, plain)
        refused = {path: _precious(t, path, own, verb) for path in plain}
        failures |= {path: refusal for path, refusal in refused.items() if refusal is not None}
    return [path for path in dict.fromkeys(plain) if path not in failures], failures


async def _change(t: Transfer, work: Changes, paths: Sequence[str]) -> Failures:
    answer = await jobs.change(t, work, work.verb.value)
    return {
        paths[index]: failure(words, paths[index], site=t.site, system=t.name)
        for index, words in answer.failures.items()
    }


def raise_failures(failures: Failures, total: int) -> None:
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
    dry_run: bool = False,
) -> Failures:
    """Remove files and, if `recursive`, directories with all they hold.

    By a request each, by one job for what takes longer than the server's five seconds, for names that no request can
    carry, and for many. Unless `preserve_root` is off, the root of a file system and the user's own directory on it
    are refused. With `dry_run` everything is looked at and nothing removed.
    """
    paths, failures = await _acceptable(t, paths, "removed", preserve_root=preserve_root)
    if recursive:  # what is in a directory goes with it
        whole = set(paths)
        paths = [path for path in paths if not any(above in whole for above in _parents(path))]
    quick = [path for path in paths if carried(path)] if len(paths) <= BY_REQUEST else []
    failed = await _each(quick, lambda path: _remove_one(t, path, recursive=recursive, dry_run=dry_run))
    slow = [path for path in paths if path not in quick or isinstance(failed.get(path), CommandTimeout)]
    failures |= {path: error for path, error in failed.items() if path not in slow}
    if slow and not dry_run:
        options = " ".join(["-r"] * recursive + ["-f"] * missing_ok)
        failures |= await _change(t, Changes(Verb.REMOVE, [*map(os.fsencode, slow)], options=options), slow)
    if missing_ok:
        failures = {path: error for path, error in failures.items() if not isinstance(error, NotFound)}
    return failures


async def _each(paths: Sequence[str], work: Callable[[str], Awaitable[None]]) -> Failures:
    """Do `work` to each path, side by side within the client's limiter; returns what it said about paths."""

    async def one(path: str) -> HpcBridgeError | None:
        try:
            await work(path)
        except ABOUT_PATHS as error:
            return error
        return None

    outcomes = await asyncio.gather(*map(one, paths))
    return {path: error for path, error in zip(paths, outcomes, strict=True) if error is not None}


def _parents(path: str) -> list[str]:
    found = []
    while (path := posixpath.dirname(path)) != "/":
        found.append(path)
    return found


async def _remove_one(t: Transfer, path: str, *, recursive: bool, dry_run: bool) -> None:
    # The server's command is `rm -r`, always.
    if dry_run or not recursive:
        is_directory = stat.S_ISDIR((await t.client.stat(t.name, path)).mode)
        if is_directory and not recursive:
            raise t.error(f"cannot remove '{path}': Is a directory", kind=Conflict, path=path, hint=_RECURSIVE)
    if not dry_run:
        await t.client.rm(t.name, path)


_RECURSIVE = "-r removes directories with all they hold"


async def _own(t: Transfer, paths: Sequence[str]) -> set[str]:
    """The user's own directories, one per file system; looked up only where one of `paths` may be such."""
    if not any(depth(t.info, path) == 1 for path in paths):
        return set()
    user = posixpath.basename(await t.system.home())
    return {posixpath.join(each.path, user) for each in t.info.file_systems}


def _precious(t: Transfer, path: str, own: set[str], verb: str) -> HpcBridgeError | None:
    """The refusal of the root of a file system, or of the user's own directory, itself."""
    if depth(t.info, path) == 0 or any(each.path.startswith(f"{path}/") for each in t.info.file_systems):
        what = "the root of a file system"
    elif path in own:
        what = "your own directory"
    else:
        return None
    hint = "Name what is in it; if you mean it: --no-preserve-root (preserve_root=False)" if verb == "removed" else None
    return t.error(f"{path} is {what}: it is not {verb}", kind=InvalidPath, path=path, hint=hint)


async def make(t: Transfer, paths: Sequence[str], *, parents: bool = False, dry_run: bool = False) -> Failures:
    """Make directories; with `parents` those above, too, and one that exists is fine.

    With `dry_run` it is looked whether that would go well, and nothing made.
    """
    paths, failures = await _acceptable(t, paths, None)
    if dry_run:
        return failures | await _each([*filter(carried, paths)], lambda path: _would_make(t, path, parents=parents))
    quick, odd = [each for each in paths if carried(each)], [each for each in paths if not carried(each)]
    failures |= await _each(quick, lambda path: t.client.mkdir(t.name, path, parents=parents))
    if odd:
        failures |= await _change(t, Changes(Verb.MAKE, [*map(os.fsencode, odd)], options="-p" * parents), odd)
    for error in failures.values():
        if not parents and isinstance(error, PathNotFound | AlreadyExists):
            error.hint = "-p (parents=True) makes those above as well, and takes one that exists"
    return failures


async def _would_make(t: Transfer, path: str, *, parents: bool) -> None:
    try:
        found = await t.client.stat(t.name, path, dereference=True)
    except NotFound:
        if not parents:
            await t.client.stat(t.name, posixpath.dirname(path))
        return
    if not (parents and stat.S_ISDIR(found.mode)):
        raise t.error(f"cannot create directory '{path}': File exists", kind=AlreadyExists, path=path)


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
