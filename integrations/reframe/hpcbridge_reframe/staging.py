"""What has to be shipped for a job, and how its script and its directory become the cluster's."""

from __future__ import annotations

import asyncio
import posixpath
import re
import shlex
import time
import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reframe.core.exceptions import JobError
from reframe.core.logging import getlogger

from hpcbridge import JobSpec
from hpcbridge.errors import HpcBridgeError, JobNotFound
from hpcbridge.jobs.guard import directives_in, options_in, split_head
from hpcbridge.jobs.names import LABEL_MAX
from hpcbridge.staging.trees.entries import Kind
from hpcbridge_reframe.journal import Journal, Record
from hpcbridge_reframe.restage import FAILED_EXIT, FOLDER, Layout
from hpcbridge_reframe.shipping import STORE
from hpcbridge_reframe.tree import Content, Known, Tree, blob_path

if TYPE_CHECKING:
    from hpcbridge_reframe.course import Request
    from hpcbridge_reframe.session import Mirror, Session, StageDirectory


@dataclass(frozen=True)
class Plan:
    """A job that may be submitted: all that it needs is on the cluster, or in the scripts that it runs first."""

    journal: Journal
    record: Record
    marker: str
    resumed: bool

    @cached_property
    def spec(self) -> JobSpec:
        """What to submit."""
        return JobSpec(**{**self.record.spec, "directives": tuple(self.record.spec.get("directives", ()))})


async def plan_for(session: Session, mirror: Mirror, directory: StageDirectory, request: Request) -> Plan:
    """Ship what `request` needs. A job of a killed run that had just this to do is taken over instead.

    Raises HpcBridgeError, OSError, JobError.
    """
    system = mirror.system
    journal = Journal.of(system.hpc.site.url, mirror.user, system.name, directory.remote)
    async with directory.turn:
        tree = await asyncio.to_thread(mirror.scanner.scan, directory.local, directory.map, directory.known)
        _leave_out_output(tree, directory, request)
        if directory.is_new:
            record = await _earlier(session, mirror, directory, journal, tree)
            if record is not None:
                _note_shipped(directory, tree)
                directory.layouts.append(posixpath.join(directory.remote, FOLDER, f"{record.key}.sh"))
                return Plan(journal, record, record.key, True)
        return await _ship(session, mirror, directory, request, journal, tree)


def _leave_out_output(tree: Tree, directory: StageDirectory, request: Request) -> None:
    """What an earlier job of the same name has said is not shipped: this one writes to these files from its start."""
    names = (request.stdout, request.stderr)
    for paths in (tree.entries, directory.known):
        for path in [path for path in paths if path in names or path.startswith(tuple(f"{name}_" for name in names))]:
            del paths[path]


async def _earlier(
    session: Session, mirror: Mirror, directory: StageDirectory, journal: Journal, tree: Tree
) -> Record | None:
    """The record of a job of an earlier run that may be gone on with; any other is ended."""
    record = await asyncio.to_thread(journal.load)
    if record is not None and session.options.resume and record.is_fresh and record.print == tree.fingerprint():
        getlogger().debug(f"[S] firecrest: going on with a job of an earlier run in {directory.remote}")
        return record
    alive = set(mirror.alive.pop(directory.remote, ()))
    if record is not None and record.job_id is not None:
        await _end(mirror, record.job_id)
        alive.discard(record.job_id)
    elif record is not None and alive:
        # Its answer was lost with the process; what works in this directory since is that job.
        for job_id in sorted(alive):
            await _end(mirror, job_id)
        alive.clear()
    if alive:
        raise JobError(
            f"job {', '.join(sorted(alive))} of another run works in {directory.remote}; wait for it or cancel it, or "
            "give this run another firecrest_stage_name"
        )
    journal.forget()
    return None


async def _end(mirror: Mirror, job_id: str) -> None:
    try:
        await mirror.system.job(job_id).cancel()
    except JobNotFound:
        return
    except HpcBridgeError as error:
        raise JobError(f"a job of an earlier run could not be cancelled: {error}", job_id) from None


async def _ship(
    session: Session, mirror: Mirror, directory: StageDirectory, request: Request, journal: Journal, tree: Tree
) -> Plan:
    key = uuid.uuid4().hex
    mirror.take_back(directory)
    layout = _layout(mirror, directory, tree, key, (request.stdout, request.stderr))
    others = [path for name in sorted(tree.others) for path in await _other(session, mirror, name)]
    await _send(session, mirror, tree, layout)
    directory.layouts.append(layout.path)
    _note_shipped(directory, tree)
    spec = _spec(directory, request, [*directory.layouts, *others])
    record = Record(tree.fingerprint(), key, spec, time.time())
    await asyncio.to_thread(journal.save, record)
    return Plan(journal, record, key, False)


async def _other(session: Session, mirror: Mirror, name: str) -> list[str]:
    """The layouts of another stage directory that this job's files name; what is here and not there is shipped.

    A fixture that was built here has no job that would have brought it there.
    """
    other = await session.directory(posixpath.join(session.stage, name))
    async with other.turn:
        tree = await asyncio.to_thread(mirror.scanner.scan, other.local, other.map, other.known)
        mirror.take_back(other)  # the layout may remove what it would copy
        layout = _layout(mirror, other, tree, uuid.uuid4().hex, ())
        if other.is_new or layout.entries or layout.gone:
            await _send(session, mirror, tree, layout)
            other.layouts.append(layout.path)
            _note_shipped(other, tree)
        else:
            mirror.lend(other)
        return list(other.layouts)


async def _send(session: Session, mirror: Mirror, tree: Tree, layout: Layout) -> None:
    """Bring a layout and the contents that it needs to the cluster."""
    needed = needed_in_store(tree, layout)
    script = {layout.path[len(mirror.base) + 1 :]: layout.script()}
    await session.patiently(lambda: mirror.shipping.ship(needed, script))


def needed_in_store(tree: Tree, layout: Layout) -> dict[str, Content]:
    """What the layout copies from the store, and what links point to there; the rest it has from other directories."""
    keys = {key for key, source in layout.sources.items() if source.startswith(f"{STORE}/")}
    keys |= {posixpath.basename(entry.target) for entry in tree.entries.values() if entry.kind is Kind.LINK}
    return {key: each for key, each in tree.contents.items() if key in keys}


def _layout(mirror: Mirror, directory: StageDirectory, tree: Tree, name: str, keep: tuple[str, ...]) -> Layout:
    """What the mirror lacks of the tree."""
    known = {path: each.entry for path, each in directory.known.items()}
    entries = {path: entry for path, entry in tree.entries.items() if not entry.is_like(known.get(path))}
    gone = [path for path in known if path not in tree.entries]
    gone += [path for path, e in entries.items() if path in known and known[path].kind is not e.kind]
    sources = {
        entry.key: mirror.contents.get(entry.key) or f"{STORE}/{blob_path(entry.key)}"
        for entry in entries.values()
        if entry.kind is Kind.FILE
    }
    return Layout(name, directory.remote, mirror.base, entries, sources, gone, directory.is_new, keep)


def _note_shipped(directory: StageDirectory, tree: Tree) -> None:
    directory.known.clear()
    directory.known.update({path: Known(entry, tree.signatures.get(path)) for path, entry in tree.entries.items()})


def _spec(directory: StageDirectory, request: Request, layouts: list[str]) -> dict[str, Any]:
    """The job: its script runs the layouts before anything of its own."""
    text = Path(request.directory, request.script).read_bytes()
    script = directory.map.forward(text).decode("utf-8", "surrogateescape")
    head, body = split_head(script)
    first = "".join(f"/bin/bash {shlex.quote(path)} || exit {FAILED_EXIT}\n" for path in dict.fromkeys(layouts))
    options = dict(options_in(directives_in(script)))
    task = "_%a" if request.is_array else ""
    spec: dict[str, Any] = {
        "script": f"{head}{first}{body}",
        "workdir": directory.remote,
        "name": _label(request.name),
        "output": _output(directory.remote, request.stdout) + task,
        "error": _output(directory.remote, request.stderr) + task,
    }
    if request.directives:
        spec["directives"] = list(request.directives)
    # The site's default account must not win over the one that the test or the partition names.
    account = options.get("--account") or options.get("-A")
    return spec | ({"account": account} if account else {})


def _output(directory: str, name: str) -> str:
    return posixpath.join(directory, name).replace("%", "%%")


def _label(name: str) -> str:
    """A job's name as the core takes it."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    return (plain if plain[:1].isalpha() else f"rfm_{plain}")[:LABEL_MAX]
