"""put, get and sync at work: one tree or file, or several files side by side with one bar for all."""

from __future__ import annotations

import asyncio
import glob
import os
import posixpath
import stat
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcbridge.cli import output
from hpcbridge.cli.context import State, choose_system, connect, usage_error
from hpcbridge.cli.progress import Display, Several
from hpcbridge.cli.remote import Remote
from hpcbridge.cli.transfers import Choice
from hpcbridge.errors import (
    AuthenticationError,
    ConfigurationError,
    Conflict,
    HpcBridgeError,
    NotFound,
    PathNotFound,
    SomeFailed,
)

if TYPE_CHECKING:
    from hpcbridge.hpc import Hpc, System
    from hpcbridge.staging import TransferResult
    from hpcbridge.staging.trees.results import TreeResult

    Result = TransferResult | TreeResult

AT_ONCE = 4
"""Files of one command that move at a time; each has up to four requests in flight, and the client's limiter rules."""
NAMED_ONE_BY_ONE = 10
"""Files up to which each has a line of its own in the summary."""
HOPELESS = (AuthenticationError, ConfigurationError)
"""What fails for one file so will fail for all."""


def local_sources(texts: Sequence[str]) -> list[Path]:
    """What LOCAL... names, also by patterns that no shell has expanded; what is missing is an error of usage."""
    found: list[Path] = []
    for text in texts:
        matches = [text] if os.path.lexists(text) else sorted(glob.glob(text, recursive=True))  # noqa: PTH207 (absolute ones, too)
        if not matches:
            raise usage_error(f"{text!r} does not exist on this machine", "LOCAL")
        found += map(Path, matches)
    return found


@dataclass
class Job:
    """One file of several: what is shown of it, and what moves it."""

    source: str
    target: str
    work: Callable[..., Awaitable[Result]]


class Moving:
    """One call of put, get or sync with its options."""

    def __init__(
        self, state: State, choice: Choice, options: dict[str, Any], *, quiet: bool, as_json: bool, dry_run: bool
    ) -> None:
        """`options` go to `System.put`, `get` or `sync` as they are."""
        self.state = state
        self.choice = choice
        self.options = options
        self.quiet = quiet or as_json
        self.as_json = as_json
        self.dry_run = dry_run

    async def put(self, sources: list[Path], target: Remote, *, atomic: bool) -> None:
        """One directory or file to `target`, or several files into it."""
        async with connect(self.state) as hpc:
            system = await self._system(hpc, target.system)
            if len(sources) > 1:
                await self._require_directory(system, target.path)
                jobs = [self._up(system, each, target, atomic=atomic) for each in sources]
                await self._several(jobs, "uploading", f"{system.name}:{target.path}")
                return
            (source,) = sources
            if _is_here(source):
                await self._one(
                    str(source),
                    f"{system.name}:{target.path}",
                    lambda show: system.put(source, target.path, progress=show, **self._tree_options()),
                )
                return
            self._refuse_choice(str(source))
            if target.is_directory or await _is_directory(system, target.path):
                target = target / source.name
            job = self._up(system, source, target, atomic=atomic, inside=False)
            await self._one(job.source, job.target, lambda show: job.work(progress=show))

    def _up(self, system: System, source: Path, target: Remote, *, atomic: bool, inside: bool = True) -> Job:
        path = (target / source.name if inside else target).path

        async def work(progress: Any) -> Result:
            if _is_here(source):
                raise Conflict(
                    f"omitting the directory {source}",
                    path=str(source),
                    hint=f"A directory goes alone: hpcbridge put {source} REMOTE",
                )
            return await system.put(
                source, path, atomic=atomic, progress=progress, dry_run=self.dry_run, **self.options
            )

        return Job(str(source), f"{system.name}:{path}", work)

    async def get(
        self, named: str | None, patterns: list[str], local: Path, *, default: bool = False, inside: bool = False
    ) -> None:
        """One directory or file to `local`, or several files into it.

        `default` when nobody has named `local`; `inside` when it was written as a directory (`results/`).
        """
        from hpcbridge.staging.remote import globs, jobs

        async with connect(self.state) as hpc:
            system = await self._system(hpc, named)
            t = await jobs.context(system, account=self.options["account"])
            if len(patterns) == 1 and not globs.has_magic(patterns[0]):
                (found,) = await globs.expand(t, patterns[0])
                await self._get_one(system, found.path, patterns[0], local, default=default, inside=inside)
                return
            paths: list[str] = []
            failures: dict[str, HpcBridgeError] = {}
            for pattern in patterns:
                try:
                    paths += [found.path for found in await globs.expand(t, pattern)]
                except NotFound as error:
                    failures[pattern] = error
            if paths and not _is_here(local):
                raise usage_error(
                    f"several files go into a directory, and {str(local)!r} is none here; make it: mkdir {local}",
                    "LOCAL",
                )
            downs = [self._down(system, path, local) for path in dict.fromkeys(paths)]
            await self._several(downs, "downloading", str(local), failures)

    async def _get_one(
        self, system: System, path: str, written: str, local: Path, *, default: bool, inside: bool
    ) -> None:
        is_tree = written.endswith("/") or await _is_directory(system, path)
        if not is_tree:
            self._refuse_choice(path)
        if is_tree and default:
            name = posixpath.basename(path)
            raise usage_error(
                f"{written!r} is a directory: say where its content goes, as in: {written} {name}", "LOCAL"
            )
        target = local / posixpath.basename(path) if _is_here(local) and not is_tree else local
        into = local if inside else target.absolute().parent
        if not is_tree and not _is_here(into):
            shown = into if inside else target.parent
            raise usage_error(f"the directory {str(shown)!r} does not exist on this machine", "LOCAL")
        options = self._tree_options() if is_tree else self.options | {"dry_run": self.dry_run}
        await self._one(
            f"{system.name}:{path}",
            str(target),
            lambda show: system.get(f"{path}/" if is_tree else path, target, progress=show, **options),
        )

    def _down(self, system: System, path: str, local: Path) -> Job:
        target = local / posixpath.basename(path)

        async def work(progress: Any) -> Result:
            if await _is_directory(system, path):
                raise Conflict(
                    f"omitting the directory {path}",
                    path=path,
                    hint=f"A directory goes alone: hpcbridge get {path} LOCAL",
                )
            return await system.get(path, target, progress=progress, dry_run=self.dry_run, **self.options)

        return Job(f"{system.name}:{path}", str(target), work)

    async def sync(self, local: Path, remote: Remote, direction: Any) -> None:
        """Make one side like the other."""
        async with connect(self.state) as hpc:
            system = await self._system(hpc, remote.system)
            there, here = f"{system.name}:{remote.path}", str(local)
            await self._one(
                *((here, there) if direction == "up" else (there, here)),
                lambda show: system.sync(
                    local, remote.path, direction=direction, progress=show, **self._tree_options()
                ),
            )

    # --- what they share ----------------------------------------------------------------------------------------------

    async def _system(self, hpc: Hpc, named: str | None) -> System:
        system = choose_system(hpc, self.state, named)
        await system.resolve()
        return system

    def _tree_options(self) -> dict[str, Any]:
        return self.options | self.choice.options() | {"dry_run": self.dry_run}

    def _refuse_choice(self, source: str) -> None:
        if self.choice:
            raise usage_error(f"{source!r} is a file: --include, --exclude and --max-file-size are for directories")

    async def _require_directory(self, system: System, path: str) -> None:
        if not await _is_directory(system, path):
            raise PathNotFound(
                f"several files go into a directory, and {path} is none",
                system=system.name,
                path=path,
                hint=f"Make it: hpcbridge mkdir -p {system.name}:{path}",
            )

    async def _one(self, source: str, target: str, work: Callable[[Any], Awaitable[Result]]) -> None:
        with Display(_label(source), quiet=self.quiet, state=self.state) as display:
            result = await work(display.show)
        if self.as_json:
            output.print_json(record(result, source, target, dry_run=self.dry_run))
        elif self.dry_run:
            print_dry_run(result, source, target)
        elif not self.quiet:
            print_result(result, source, target)

    async def _several(
        self, jobs: list[Job], phase: str, into: str, failures: dict[str, HpcBridgeError] | None = None
    ) -> None:
        """Run them side by side; what fails does not stop the others, and is named at the end."""
        _refuse_collisions(jobs)
        failures = dict(failures or {})
        results: dict[str, Result] = {}
        places, begun = asyncio.Semaphore(AT_ONCE), time.monotonic()
        with Display(f"{len(jobs)} files", quiet=self.quiet, state=self.state) as display:
            bar = Several(len(jobs), phase, display.show)

            async def one(index: int, job: Job) -> None:
                async with places:
                    try:
                        results[job.source] = await job.work(progress=bar.part(index))
                    except HOPELESS:
                        raise
                    except (HpcBridgeError, OSError) as error:
                        failures[job.source] = _told(error, job)
                    finally:
                        bar.finished(index)

            from hpcbridge.staging.context import task_group

            async with task_group() as group:
                for index, job in enumerate(jobs):
                    group.create_task(one(index, job))
        self._tell_several(jobs, results, failures, into, time.monotonic() - begun)

    def _tell_several(
        self,
        jobs: list[Job],
        results: dict[str, Result],
        failures: dict[str, HpcBridgeError],
        into: str,
        seconds: float,
    ) -> None:
        targets = {job.source: job.target for job in jobs}
        done = [source for source in targets if source in results]
        if self.as_json:
            records = [record(results[source], source, targets[source], dry_run=self.dry_run) for source in done]
            failed = [
                {"source": source, "target": targets.get(source), "error": str(error)}
                for source, error in failures.items()
            ]
            output.print_json(records + failed)
        elif self.dry_run:
            for source in done:
                print_dry_run(results[source], source, targets[source])
        elif not self.quiet and len(done) <= NAMED_ONE_BY_ONE:
            for source in done:
                print_result(results[source], source, targets[source])
        elif not self.quiet:
            sent = sum(result.bytes for result in results.values())
            rate = f", {output.size(int(sent / seconds))}/s" if seconds > 0 else ""
            output.note(f"{len(done)} files -> {into.rstrip('/')}/: {output.size(sent)} in {seconds:.1f} s{rate}")
        if failures:
            total = len(done) + len(failures)
            raise SomeFailed(f"{len(failures)} of {total} did not arrive" if total > 1 else "", failures=failures)


def _refuse_collisions(jobs: list[Job]) -> None:
    sources: dict[str, str] = {}
    for job in jobs:
        if (other := sources.setdefault(job.target, job.source)) != job.source:
            raise usage_error(f"{other} and {job.source} would both become {job.target}; copy them one at a time")


def _told(error: HpcBridgeError | OSError, job: Job) -> HpcBridgeError:
    if isinstance(error, HpcBridgeError):
        return error
    return HpcBridgeError(f"{error.filename or job.source}: {error.strerror or error}")


def _label(source: str) -> str:
    return posixpath.basename(source.rstrip("/")) or source


def _is_here(path: Path) -> bool:
    """Whether `path` is a directory on this machine."""
    return path.is_dir()


async def _is_directory(system: System, path: str) -> bool:
    from hpcbridge.staging.remote.paths import carried

    if not carried(path):
        return False
    try:
        return stat.S_ISDIR((await system.client.stat(system.name, path, dereference=True)).mode)
    except NotFound:
        return False


def record(result: Result, source: str, target: str, *, dry_run: bool = False) -> dict[str, Any]:
    """What `--json` prints for one file or tree; bytes and seconds."""
    value: dict[str, Any] = {
        "source": source,
        "target": target,
        "bytes": result.bytes,
        "seconds": round(result.seconds, 3),
        "route": result.route,
        "sha256": result.sha256,
    }
    if dry_run:
        value["dry_run"] = True
    if (tree := as_tree(result)) is not None:
        value |= {
            "files": tree.files,
            "directories": tree.directories,
            "links": tree.links,
            "unchanged": tree.unchanged,
            "deleted": tree.deleted,
            "skipped": [{"path": os.fsdecode(each.path), "why": each.why} for each in tree.skipped],
            "changes": [
                {"path": os.fsdecode(each.path), "action": each.action, "kind": each.kind, "size": each.size}
                for each in tree.changes
            ],
        }
    return value


def as_tree(result: Result) -> TreeResult | None:
    """The result as a tree's, None for a file's."""
    return result if hasattr(result, "directories") else None  # type: ignore[return-value]


def print_result(result: Result, source: str, target: str) -> None:
    """One line about what went where, and the names of what was left out."""
    moved = result.seconds > 0 and result.bytes and result.route
    rate = f", {output.size(int(result.bytes / result.seconds))}/s" if moved else ""
    tree = as_tree(result)
    what = output.size(result.bytes) if tree is None else _counted(tree)
    route = f" ({result.route})" if result.route else ""
    if tree is not None:
        source, target = _as_directories(source, target)
    output.note(output.printable(f"{source} -> {target}: {what} in {result.seconds:.1f} s{rate}{route}"))
    _print_left_out(tree)


def _counted(tree: TreeResult) -> str:
    """What was done to a tree, in a few words: `2 files, 1 removed, 12 unchanged, 3.1 kB`."""
    touched = sum(change.action == "change" for change in tree.changes)
    parts = [_of(tree.files, "file")]
    # Beside files they only lead there; alone they are what was done.
    parts += [_of(tree.directories, "directory", "directories")] if tree.directories and not tree.files else []
    parts += [_of(tree.links, "link")] if tree.links and not tree.files else []
    parts += [f"{touched} changed in mode or time"] if touched else []
    parts += [f"{tree.deleted} removed"] if tree.deleted else []
    parts += [f"{tree.unchanged} unchanged"] if tree.unchanged else []
    return ", ".join([*parts, output.size(tree.bytes) if tree.route else "nothing to transfer"])


def _of(count: int, one: str, more: str | None = None) -> str:
    return f"{count} {one if count == 1 else more or one + 's'}"


def print_dry_run(result: Result, source: str, target: str) -> None:
    """One line per entry that would be changed, and the sum."""
    tree = as_tree(result)
    if tree is None:
        output.print_line(f"would copy {source} -> {target} ({output.size(result.bytes)})")
        return
    for change in tree.changes:
        size = f" ({output.size(change.size)})" if change.kind == "file" and change.action == "copy" else ""
        output.print_line(f"would {change.action} {_name(change.path)}{size}")
    source, target = _as_directories(source, target)
    count = _of(len(tree.changes), "change")
    output.note(f"{source} -> {target}: {count}, {output.size(tree.bytes)}; nothing was done")
    _print_left_out(tree)


def _as_directories(*paths: str) -> list[str]:
    return [f"{path.rstrip('/')}/" for path in paths]


def _print_left_out(tree: TreeResult | None) -> None:
    for each in tree.skipped if tree is not None else ():
        output.note(f"left out: {_name(each.path)}: {each.why}")


def _name(path: bytes) -> str:
    """A path that stays on one line."""
    return output.printable(os.fsdecode(path))
