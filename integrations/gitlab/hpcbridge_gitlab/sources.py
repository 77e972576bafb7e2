"""The job's files: from this host to the system before its script, and back what artifacts and caches are made of.

Both are one tar archive in pieces, inside the job's own allocation: no second job, no second queue. The node needs
bash, coreutils, find, tar and gzip.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
import shlex
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from hpcbridge_gitlab import credentials, patterns
from hpcbridge_gitlab.box import Box
from hpcbridge_gitlab.output import say
from hpcbridge_gitlab.site import opened
from hpcbridge_gitlab.verdicts import Cause, Stop

if TYPE_CHECKING:
    from hpcbridge_gitlab.contract import CiJob
    from hpcbridge_gitlab.records import Attempt
    from hpcbridge_gitlab.settings import Settings

MUST_EXIST = "HPCBRIDGE_ARTIFACTS_MUST_EXIST"
"""Variable of a job for which a pattern that matches nothing is an error; gitlab-runner only warns."""

_UNPACK = """
mkdir -p -- {target} && cat -- "${{parts[@]}}" | tar -xpzf - -C {target} || exit 1
rm -f -- "${{parts[@]}}"
"""

_LIST = """
cd -- {directory} || exit 66
find . -name .git -prune -o ! -type d -printf '%P\\0' -o -type d -empty -printf '%P/\\0'
"""

# Hard links are sent as the files they are: the other side takes no links that an archive could aim at anything.
_PACK = """
cd -- {directory} || exit 66
cat -- "${{parts[@]/#/$OLDPWD/}}" | tar --hard-dereference --ignore-failed-read --no-recursion -czf - --null -T -
status=$?
rm -f -- "${{parts[@]/#/$OLDPWD/}}"
exit $((status > 1 ? status : 0))
"""


async def push(box: Box, attempt: Attempt) -> None:
    """Send this host's clone, with what caches and other jobs' artifacts have added, to the node."""
    total = 0
    if attempt.slot and any((Path(attempt.slot) / "builds").iterdir()):
        builds = Path(attempt.slot) / "builds"
        await asyncio.to_thread(credentials.strip, builds)

        async def counted() -> AsyncIterator[bytes]:
            nonlocal total
            async for piece in _packed(builds, _without(builds, attempt), attempt.upload_limit):
                total += len(piece)
                yield piece

        for last in (False, True):
            code = await box.run("sources", _UNPACK.format(target=shlex.quote(attempt.builds)), _nothing, counted())
            if code != 65 or last:  # 65: damaged on its way
                break
        if code:
            raise Stop(Cause.LOST, f"the sources could not be unpacked on the node: {await box.complaint()}")
        say(f"sources are on {attempt.node}: {total / 1e6:.1f} MB packed")
    attempt.pushed = True
    attempt.save()


def _without(builds: Path, attempt: Attempt) -> list[str]:
    """The runner's own directory beside a clone holds credentials and file variables; scripts make it anew."""
    project = f"./{attempt.project}.tmp"
    beside = (path for path in builds.glob("*/*.tmp") if path.with_suffix("").is_dir())
    return [project, *(f"./{path.relative_to(builds)}" for path in beside)]


async def _packed(directory: Path, exclude: Iterable[str], size: int) -> AsyncIterator[bytes]:
    """A directory as tar.gz, in pieces of `size` bytes."""
    command = ["tar", "-C", str(directory), *(f"--exclude={path}" for path in exclude), "-czf", "-", "."]
    environment = os.environ | {"GZIP": "-1", "COPYFILE_DISABLE": "1", "LC_ALL": "C"}
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    assert process.stderr is not None
    complaints = asyncio.ensure_future(process.stderr.read())
    try:
        while True:
            try:
                yield await process.stdout.readexactly(size)
            except asyncio.IncompleteReadError as rest:
                if rest.partial:
                    yield rest.partial
                break
        if await process.wait() > 1:
            raise Stop(Cause.LOST, f"tar on the runner's host: {(await complaints).decode(errors='replace')[:300]}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        complaints.cancel()


def _nothing(data: bytes) -> None:
    del data


async def pull(
    settings: Settings, job: CiJob, attempt: Attempt, slot: Path, directory: bytes, words: list[bytes]
) -> None:
    """Bring what an uploader is about to pack: `words` are its arguments, `directory` where it was called.

    Raises Stop where nothing matches and the job says that this is an error.
    """
    here = Path(os.fsdecode(directory))
    if not here.is_relative_to(slot / "builds"):
        raise Stop(Cause.CONFIGURATION, f"{words[0].decode()} was called outside of the job's directory")
    if not attempt.pushed or attempt.stopped:
        return  # no script has run: what is here is all there is
    wanted = patterns.Wanted.of([os.fsdecode(word) for word in words], str(here))
    there = posixpath.join(attempt.home, here.relative_to(slot).as_posix())
    async with opened(settings, attempt.site, attempt.system) as system:
        box = Box(system.client, attempt, settings.driver)
        names = await _names(box, there)
        tracked = await _tracked(here) if wanted.untracked else frozenset()
        chosen, missing = wanted.choose(names, tracked)
        if missing and job.wants(MUST_EXIST) and words[0] == b"artifacts-uploader":
            raise Stop(Cause.ARTIFACTS, f"no file matches {', '.join(missing)}")
        await asyncio.to_thread(_clear, here)
        if chosen:
            await _fetch(box, there, chosen, here, slot)


async def _names(box: Box, directory: str) -> list[bytes]:
    listing = bytearray()
    if await box.run("list", _LIST.format(directory=shlex.quote(directory)), listing.extend):
        raise Stop(Cause.LOST, f"files on the node could not be listed: {await box.complaint()}")
    return bytes(listing).split(b"\0")[:-1]


async def _tracked(here: Path) -> frozenset[bytes]:
    git = ("git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", "ls-files", "-z")
    process = await asyncio.create_subprocess_exec(*git, cwd=here, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return frozenset(output.split(b"\0"))


async def _fetch(box: Box, directory: str, chosen: list[bytes], here: Path, slot: Path) -> None:
    """Archive, unpack beside, move into place; nothing leads out of the job's directory (core's extract sees to it)."""
    from hpcbridge.errors import HpcBridgeError
    from hpcbridge.staging.trees.extract import extract

    with tempfile.TemporaryFile(dir=slot) as archive:
        names = b"".join(name.rstrip(b"/") + b"\0" for name in chosen)

        async def pieces() -> AsyncIterator[bytes]:
            for begin in range(0, len(names), 1 << 20):
                yield names[begin : begin + (1 << 20)]

        script = _PACK.format(directory=shlex.quote(directory))
        if await box.run("pack", script, archive.write, pieces()):
            raise Stop(Cause.LOST, f"files on the node could not be packed: {await box.complaint()}")
        archive.seek(0)
        staged = Path(tempfile.mkdtemp(dir=slot, prefix="pulled-"))
        try:
            await asyncio.to_thread(_unpack, extract, archive, staged, here)
        except (HpcBridgeError, OSError) as error:
            raise Stop(Cause.LOST, f"files from the node could not be unpacked: {error}") from None
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    say(f"{len(chosen)} files brought from {box.node}")


def _unpack(extract: Callable[[IO[bytes], Path], object], archive: IO[bytes], staged: Path, here: Path) -> None:
    extract(archive, staged)
    for entry in staged.iterdir():
        entry.rename(here / entry.name)


def _clear(directory: Path) -> None:
    """Remove everything but .git: what the node has is the truth, and a file that is gone there must not be packed."""
    for entry in directory.iterdir():
        if entry.name == ".git":
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            with contextlib.suppress(FileNotFoundError):
                entry.unlink()
