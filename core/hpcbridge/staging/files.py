"""`put_file` and `get_file`: one file each, by the route that suits it."""

from __future__ import annotations

import asyncio
import os
import posixpath
import stat
import time
from collections.abc import Callable
from pathlib import Path

from hpcbridge.errors import InvalidPath, IsDirectory, PathNotFound
from hpcbridge.staging import direct
from hpcbridge.staging.context import PATIENCE, Transfer, TransferSystem
from hpcbridge.staging.local import LocalFile
from hpcbridge.staging.names import RemotePath, parse_remote
from hpcbridge.staging.partfile import PartFile, Source, part_path
from hpcbridge.staging.places import require_directory, require_inside, usable_limits
from hpcbridge.staging.plan import RANGE, Direction, Route, verification
from hpcbridge.staging.progress import Phase, Progress, Reporter, TransferResult
from hpcbridge.staging.routes import remember, route_for

MAX_LINKS = 16
"""Symbolic links followed in a row before a path counts as one that leads nowhere."""


async def put_file(
    system: TransferSystem,
    local: str | Path,
    remote: str,
    *,
    route: str | None = None,
    verify: str | None = "auto",
    atomic: bool = False,
    progress: Callable[[Progress], None] | None = None,
    account: str | None = None,
) -> TransferResult:
    """Copy the file `local` to the absolute path `remote`; `remote` ending with `/` means inside that directory.

    Args:
        system: a `hpcbridge.System`.
        local: a regular file; it must not change meanwhile.
        remote: absolute path on the system; its directory must exist.
        route: "direct", "chunked", "s3" or "streamer"; None takes the quickest that can carry size and name.
        verify: "auto" compares SHA-256 where it is free or quick and else the size; "size"; "sha256" also where it
            costs a job; None compares nothing.
        atomic: the file appears by one rename. Chunked uploads always do; a small file then costs one short job.
        progress: told phases and bytes; an exception it raises ends the transfer.
        account: charged for the jobs of the transfer.

    Raises:
        OSError: the local file cannot be read.
        InvalidPath, InvalidRequest, TooLarge: refused before anything was sent.
        PathNotFound, PermissionDenied: the target's directory is not there, or not writable.
        TransferError: the transfer failed; IntegrityError: what arrived is not what was sent.
        Unavailable: the server stayed away for longer than a transfer waits (15 minutes).
    """
    begun, checked = time.monotonic(), verification(verify)
    path = Path(local)
    target = parse_remote(remote, path.name)
    source = LocalFile(path)
    try:
        info = await system.client.system(system.name, patience=PATIENCE)
        t = Transfer(system, info, path, Reporter(progress, source.size), checked, account, source.size)
        require_inside(t, target)
        needs_job = atomic or not target.upload_carries_it
        chosen = await route_for(
            t,
            source.size,
            direction=Direction.UP,
            wanted=route,
            needs_job=needs_job,
            limits=usable_limits(t, target.directory, route),
        )
        digest = await _put(t, source, target, chosen, atomic=atomic)
    finally:
        source.close()
    return await _done(t, chosen, Direction.UP, begun, digest)


async def check_put(system: TransferSystem, local: str | Path, remote: str) -> None:
    """Look whether `put_file` has a place for the file. Raises InvalidPath, PathNotFound."""
    target = parse_remote(remote, Path(local).name)
    info = await system.client.system(system.name, patience=PATIENCE)
    t = Transfer(system, info, Path(local), Reporter(None), verification("auto"), None)
    require_inside(t, target)
    await require_directory(t, target.directory)


async def _put(t: Transfer, source: LocalFile, target: RemotePath, route: Route, *, atomic: bool) -> str | None:
    try:
        if route is Route.DIRECT:
            return await direct.put(t, source, target)
        if route is Route.S3 and target.scripts_carry_it and not atomic:
            from hpcbridge.staging import s3_upload

            # The server's job would find out when all has been sent.
            await require_directory(t, target.directory)
            return await s3_upload.put(t, source, target)
        return await _put_by_job(t, source, target, route)
    except PathNotFound:
        await require_directory(t, target.directory)  # it says so more plainly
        raise


async def _done(t: Transfer, route: Route, direction: Direction, begun: float, digest: str | None) -> TransferResult:
    t.reporter.phase(Phase.DONE, done=t.size)
    seconds = time.monotonic() - begun
    await remember(t, route, direction)
    return TransferResult(route.value, t.size, seconds, digest)


async def _put_by_job(t: Transfer, source: LocalFile, target: RemotePath, route: Route) -> str | None:
    # Loaded when first used, like every route but the direct one: jobs and their models take a sixth of a second.
    from hpcbridge.staging import chunked

    return await chunked.put(t, source, target, route)


async def get_file(
    system: TransferSystem,
    remote: str,
    local: str | Path,
    *,
    route: str | None = None,
    verify: str | None = "auto",
    resume: bool = True,
    progress: Callable[[Progress], None] | None = None,
    account: str | None = None,
) -> TransferResult:
    """Copy the absolute path `remote` to the file `local`; a directory `local` means inside it, under the same name.

    `local` appears complete and checked, by one rename; until then the bytes are in `.NAME.hpcbridge-part` beside it.

    Args:
        system: a `hpcbridge.System`.
        remote: absolute path of a file; links are followed.
        local: where it goes; an existing file is replaced and keeps its mode.
        route: "direct", "chunked" (one job cuts the file), "s3" or "streamer"; None takes the quickest there is.
        verify: see `put_file`.
        resume: go on with what an interrupted download left, if the remote file is still the same.
        progress: told phases and bytes; an exception it raises ends the transfer, and what has arrived is kept.
        account: charged for the jobs of the transfer.

    Raises:
        InvalidPath, InvalidRequest, TooLarge: refused before anything was sent.
        PathNotFound, PermissionDenied: the remote file is not there, or not readable.
        Conflict: another process is receiving the same file.
        TransferError: the transfer failed; IntegrityError: what arrived is not what is there.
        Unavailable: the server stayed away for longer than a transfer waits (15 minutes).
    """
    begun, checked = time.monotonic(), verification(verify)
    source = parse_remote(remote)
    target = _local_target(Path(local), source.name)
    info = await system.client.system(system.name, patience=PATIENCE)
    t = Transfer(system, info, target, Reporter(progress), checked, account)
    require_inside(t, source)
    chosen, digest = await _get(t, source, target, route, resume=resume)
    return await _done(t, chosen, Direction.DOWN, begun, digest)


def _local_target(path: Path, name: str) -> Path:
    # Through links, so that part file and target are in the same directory and the link stays.
    return (path / name if path.is_dir() else path).resolve()


async def _get(
    t: Transfer, source: RemotePath, target: Path, wanted: str | None, *, resume: bool
) -> tuple[Route, str | None]:
    if not source.commands_carry_it:
        return Route.CHUNKED, await _cut(t, source, target, resume=resume)
    found = await t.client.stat(t.name, str(source), patience=PATIENCE)
    plain: RemotePath | None = source
    if stat.S_ISLNK(found.mode):
        plain, found = None, await t.client.stat(t.name, str(source), dereference=True, patience=PATIENCE)
    if stat.S_ISDIR(found.mode):
        raise t.error(f"{source} is a directory", kind=IsDirectory, path=str(source), hint="Only files are fetched")
    t.size = t.reporter.total = found.size
    await asyncio.to_thread(_require_room, t, target)
    route = await route_for(t, found.size, direction=Direction.DOWN, wanted=wanted)
    if route in (Route.S3, Route.STREAMER):
        plain = plain or await _followed(t, source)
        if plain.scripts_carry_it:
            return route, await _by_server(t, route, source, plain, target, int(found.mtime), resume=resume)
        if wanted is not None:
            message = "the server's transfer scripts cannot name this file"
            raise t.error(message, kind=InvalidPath, path=str(plain), hint="Leave the route out")
        route = Route.CHUNKED
    if route is Route.CHUNKED:
        return route, await _cut(t, source, target, resume=resume)
    return route, await direct.get(t, source, found)


def _require_room(t: Transfer, target: Path) -> None:
    """Before any job is started for the file; what an earlier attempt has received has its room already."""
    try:
        volume = os.statvfs(target.parent)
    except OSError:
        # Opening the part file says what is wrong with the directory.
        return
    part = part_path(target)
    free = volume.f_bavail * volume.f_frsize + (part.stat().st_blocks * 512 if part.exists() else 0)
    if free < t.size:
        message = f"{target} needs {t.size} bytes and the disk has {free} left"
        raise t.error(message, path=str(target), hint="Make room there, or receive it elsewhere")


async def _followed(t: Transfer, path: RemotePath) -> RemotePath:
    """Where a link leads: the server's egress script measures the link itself, and would send its few bytes only.

    A chain that cannot be followed comes back as a path that no script carries.
    """
    for _ in range(MAX_LINKS):
        if not stat.S_ISLNK((await t.client.stat(t.name, str(path), patience=PATIENCE)).mode):
            return path
        entries = await t.client.ls(t.name, str(path), patience=PATIENCE)
        link = entries[0].link_target if len(entries) == 1 else None
        if not link:
            break
        whole = posixpath.normpath(posixpath.join(path.directory, link))
        path = RemotePath(*posixpath.split(whole))
        if not path.scripts_carry_it:
            break
    return RemotePath("/", "'")


async def _cut(t: Transfer, remote: RemotePath, target: Path, *, resume: bool) -> str | None:
    from hpcbridge.staging import cut_download

    return await cut_download.get(t, remote, target, resume=resume)


async def _by_server(
    t: Transfer, route: Route, remote: RemotePath, plain: RemotePath, target: Path, mtime: int, *, resume: bool
) -> str | None:
    source = Source(t.site, t.name, str(remote), t.size, mtime)
    part = PartFile.open(target, source, RANGE, resume=resume)
    try:
        if route is Route.S3:
            from hpcbridge.staging import s3_download

            digest = await s3_download.get(t, plain, part, resume=resume)
        else:
            from hpcbridge.staging import streamer

            digest = await streamer.get(t, plain, part)
        part.publish()
    finally:
        part.close()
    return digest
