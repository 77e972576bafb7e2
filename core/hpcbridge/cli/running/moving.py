"""The files of a run: what is pushed into its work directory, and what is pulled out of it."""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any

from hpcbridge.cli.context import usage_error
from hpcbridge.cli.output import size
from hpcbridge.cli.progress import Several
from hpcbridge.errors import HpcBridgeError, NotFound, PathNotFound, SomeFailed

if TYPE_CHECKING:
    from hpcbridge.staging import Progress
    from hpcbridge.staging.context import Transfer
    from hpcbridge.system import System

    Show = Callable[[Progress], None]

ONE_BY_ONE = 16
"""Files up to which each is fetched by itself; more of them are packed by one job."""
AT_ONCE = 4
"""Files of those that move at a time."""


@dataclass(frozen=True)
class Push:
    """A directory or file of this machine, and where below the work directory it goes ("" for the directory itself)."""

    source: Path
    target: str

    def within(self, workdir: str) -> str:
        """The absolute remote path."""
        return f"{workdir.rstrip('/')}/{self.target}".rstrip("/")


def parse_push(text: str) -> Push:
    """`PATH` or `PATH:TARGET`. What is not there, and targets outside the work directory, are errors of usage."""
    source, colon, target = text, "", ""
    if not Path(text).exists() and ":" in text:
        source, colon, target = text.rpartition(":")
    path = Path(source)
    if not path.exists():
        raise usage_error(f"{source!r} does not exist on this machine", "--push")
    if colon and (target.startswith("/") or ".." in PurePosixPath(target).parts):
        raise usage_error(f"{target!r} must lie below the work directory: relative, and without ..", "--push")
    if not path.is_dir() and (not target or target.endswith("/")):
        target += path.name
    return Push(path, target.strip("/"))


def check_pull(pattern: str) -> str:
    """A pattern as it is. Raises an error of usage for one that leaves the work directory."""
    if not pattern or pattern.startswith("/") or ".." in PurePosixPath(pattern).parts:
        raise usage_error(f"{pattern!r} must lie below the work directory: relative, and without ..", "--pull")
    return pattern


async def push(
    system: System,
    pushes: Sequence[Push],
    workdir: str,
    show: Show | None,
    *,
    account: str | None,
    dry_run: bool = False,
    exclude: Sequence[str] = (),
    **tree_options: Any,
) -> list[tuple[Push, Any]]:
    """Bring all of them into `workdir`, of directories only what differs. `tree_options` are those of `System.sync`."""
    done = []
    for each in pushes:
        target = each.within(workdir)
        options: dict[str, Any] = {"account": account, "progress": show, "dry_run": dry_run}
        if each.source.is_dir():
            result: Any = await system.sync(each.source, target, exclude=exclude, **options, **tree_options)
        else:
            if not dry_run:
                await system.mkdir(target.rpartition("/")[0])
            result = await system.put(each.source, target, **options)
        done.append((each, result))
    return done


def _literal(path: PurePath) -> str:
    """A path as patterns take it literally."""
    return re.sub(r"([*?\[\]\\])", r"\\\1", path.as_posix())


@dataclass
class Pulled:
    """What has come: remote path (or pattern), local path, files, bytes; and what has not, with the reason."""

    items: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[str, HpcBridgeError] = field(default_factory=dict)

    @property
    def files(self) -> int:
        """Number of files."""
        return sum(item["files"] for item in self.items)

    @property
    def bytes(self) -> int:
        """Bytes that moved."""
        return sum(item["bytes"] for item in self.items)

    @property
    def amount(self) -> str:
        """`3 files, 1.2 MB`."""
        return f"{self.files} file{'' if self.files == 1 else 's'}, {size(self.bytes)}"

    def add(self, source: str, target: Path, result: Any) -> None:
        """Note a transfer's result."""
        files = getattr(result, "files", 1)
        self.items.append({"source": source, "target": str(target), "files": files, "bytes": result.bytes})

    def failure(self, *, allow_missing: bool) -> HpcBridgeError | None:
        """What has to be told, or None."""
        kept = {
            name: error
            for name, error in self.failures.items()
            if not (allow_missing and isinstance(error, PathNotFound))
        }
        return SomeFailed("", failures=kept) if len(kept) > 1 else next(iter(kept.values()), None)


async def pull(
    system: System, patterns: Sequence[str], workdir: str, into: Path, show: Show | None, *, account: str | None
) -> Pulled:
    """Fetch what the patterns match; paths below `workdir` stay the same below `into`. Failures do not stop the others.

    A directory that matches comes whole. A few files come one by one; for more of them one job packs an archive.
    """
    from hpcbridge.staging.remote import jobs

    t = await jobs.context(system, account=account, progress=show)
    pulled = Pulled()
    for pattern in patterns:
        try:
            files, directories = await _found(t, workdir, pattern)
            if len(files) > ONE_BY_ONE:
                include = [f"/{pattern}"]
                result = await system.get(f"{workdir}/", into, include=include, progress=show, account=account)
                pulled.add(pattern, into, result)
            else:
                await _one_by_one(system, files, workdir, into, pulled, show, account)
            for path in directories:
                target = into / path.removeprefix(f"{workdir.rstrip('/')}/")
                target.parent.mkdir(parents=True, exist_ok=True)
                pulled.add(path, target, await system.get(f"{path}/", target, progress=show, account=account))
        except HpcBridgeError as error:
            pulled.failures[pattern] = error
        except OSError as error:
            pulled.failures[pattern] = HpcBridgeError(f"{error.filename or into}: {error.strerror or error}")
    return pulled


async def _found(t: Transfer, workdir: str, pattern: str) -> tuple[list[str], list[str]]:
    """The files and the directories that match. Raises PathNotFound when there is nothing."""
    from hpcbridge.staging.remote import globs

    base = _literal(PurePosixPath(workdir))
    files: list[str] = []
    directories: list[str] = []
    for found in await globs.expand(t, f"{base}/{pattern}"):
        if found.entry is not None and not found.entry.is_link:
            is_directory = found.entry.is_dir
        else:
            try:
                is_directory = stat.S_ISDIR((await t.client.stat(t.name, found.path, dereference=True)).mode)
            except NotFound as error:
                hint = f"`hpcbridge ls {workdir}` shows what is there"
                raise PathNotFound("there is no such result", system=t.name, path=found.path, hint=hint) from error
        (directories if is_directory else files).append(found.path)
    return files, directories


async def _one_by_one(
    system: System,
    files: Sequence[str],
    workdir: str,
    into: Path,
    pulled: Pulled,
    show: Show | None,
    account: str | None,
) -> None:
    places = asyncio.Semaphore(AT_ONCE)
    several = Several(len(files), "downloading", show) if show is not None else None

    async def one(index: int, path: str) -> None:
        progress = several.part(index) if several is not None else None
        target = into / path.removeprefix(f"{workdir.rstrip('/')}/")
        async with places:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                pulled.add(path, target, await system.get(path, target, progress=progress, account=account))
            except HpcBridgeError as error:
                pulled.failures[path] = error

    await asyncio.gather(*(one(index, path) for index, path in enumerate(files)))


def changes_of(each: Push, result: Any) -> list[str]:
    """One line per change that a dry run would make: `copy src/main.c`."""
    if not hasattr(result, "changes"):
        return [f"copy {each.source} -> {each.target}"]
    return [f"{change.action} {os.fsdecode(change.path)}" for change in result.changes]
