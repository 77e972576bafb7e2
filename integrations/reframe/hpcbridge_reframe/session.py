"""What the tests of one ReFrame run share: the site, the mirror of the stage prefix, the store, the end.

Everything but the constructor, `of`, `start` and `finish` runs on hpcbridge's own event loop thread.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import hashlib
import os
import posixpath
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from reframe.core.logging import getlogger

from hpcbridge import blocking, connect
from hpcbridge.errors import AmbiguousOutcome, ConfigurationError, HpcBridgeError, PathNotFound, Unavailable
from hpcbridge.jobs.names import is_ours
from hpcbridge.staging.trees.patterns import Filter, with_own
from hpcbridge_reframe.bringing import Bringing
from hpcbridge_reframe.options import Options
from hpcbridge_reframe.paths import PathMap
from hpcbridge_reframe.shipping import STORE, Shipping
from hpcbridge_reframe.tree import Known, Scanner

if TYPE_CHECKING:
    from hpcbridge import Hpc, System

T = TypeVar("T")

SCRATCH = ".hpcbridge-reframe-"
"""How the hidden directory beside the stage directories begins; the process's id follows."""
ENOUGH = 60.0
"""Seconds for which the end of the run waits for cancelled jobs and for the clean-up."""


class SiteAway(HpcBridgeError):
    """The site has not answered for longer than the outage budget."""

    _hint = "The jobs are still there: run ReFrame again with the same stage directory, and it goes on with them"


@dataclass(eq=False)
class StageDirectory:
    """One stage directory and its mirror: what is `known` to be there, and the `layouts` that made it so.

    `left` are keys of contents that jobs have left there.
    """

    local: Path
    remote: str
    map: PathMap
    known: dict[str, Known] = field(default_factory=dict)
    layouts: list[str] = field(default_factory=list)
    left: set[str] = field(default_factory=set)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def is_new(self) -> bool:
        """Whether nothing was shipped to it in this run."""
        return not self.layouts


@dataclass(eq=False)
class Mirror:
    """What is known once the site has been asked: places on the cluster and the parts that need them."""

    system: System
    base: str
    root: str
    user: str
    scanner: Scanner
    shipping: Shipping
    bringing: Bringing
    map: PathMap
    contents: dict[str, str] = field(default_factory=dict)
    """Keys of what jobs left in stage directories, with paths below `base`."""
    alive: dict[str, set[str]] = field(default_factory=dict)
    """Directories in which a job of an earlier run lives, with its id."""

    def lend(self, directory: StageDirectory) -> None:
        """What jobs have left in `directory` need not be shipped to others, until the next job may change it."""
        below = directory.remote[len(self.base) + 1 :]
        for path, each in directory.known.items():
            if each.entry.key in directory.left:
                self.contents[each.entry.key] = f"{below}/{path}"

    def take_back(self, directory: StageDirectory) -> None:
        """The next job of `directory` may change what is there."""
        below = directory.remote[len(self.base) + 1 :]
        for key in directory.left:
            if self.contents.get(key, "").startswith(f"{below}/"):
                del self.contents[key]


class Session:
    """One per process, options and stage prefix."""

    _all: ClassVar[dict[tuple[Options, str], Session]] = {}

    def __init__(self, options: Options, stage: str) -> None:
        """Prefer `of`. Nothing is sent."""
        self.options = options
        self.stage = stage
        self.filter = with_own(Filter(exclude=options.sync_exclude, max_file_size=options.sync_max_file_size))
        self.away: asyncio.Future[None] | None = None
        self.working: set[Future[None]] = set()
        self._hpc: Hpc | None = None
        self._opening: asyncio.Task[Mirror] | None = None
        self._directories: dict[str, StageDirectory] = {}
        self._scratch: Path | None = None
        self._lock = threading.Lock()
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, options: Options, stage: str) -> Session:
        """The session of these options and this stage prefix; it ends with the process."""
        session = cls._all.get((options, stage))
        if session is None:
            session = cls._all[options, stage] = cls(options, stage)
            atexit.register(session.finish)
        return session

    # -- for ReFrame's thread ------------------------------------------------------------------------------------------

    def start(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        """Begin `work` on the loop thread; the end of the process waits for it."""

        async def run() -> None:
            await work

        future = blocking.start(run)
        self.working.add(future)
        future.add_done_callback(self.working.discard)
        return future

    def call(self, work: Any, *arguments: Any, timeout: float | None = None) -> Any:
        """Do `work(*arguments)` on the loop thread and wait for it."""
        future = blocking.start(partial(work, *arguments))
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    def finish(self) -> None:
        """At the end of the process: wait for what is being cancelled, and tidy up on the cluster. Done once."""
        atexit.unregister(self.finish)
        self._all.pop((self.options, self.stage), None)
        deadline = time.monotonic() + ENOUGH
        try:
            for future in list(self.working):
                with contextlib.suppress(Exception, asyncio.CancelledError):
                    future.result(max(0.1, deadline - time.monotonic()))
            if self._opening is not None:
                self.call(self._close, timeout=max(5.0, deadline - time.monotonic()))
        except KeyboardInterrupt:
            getlogger().warning("interrupted: jobs may be left on the cluster; the next run finds them")
        except Exception as error:
            getlogger().warning(f"the stage directories on the cluster could not be tidied up: {error}")
        finally:
            if self._scratch is not None:
                shutil.rmtree(self._scratch, ignore_errors=True)

    # -- for the loop thread -------------------------------------------------------------------------------------------

    async def mirror(self) -> Mirror:
        """Connected, and knowing where things go. Raises HpcBridgeError; the next call tries again."""
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.create_task(self.patiently(self._open), name="hpcbridge-reframe-open")
        return await asyncio.shield(self._opening)

    async def patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """The outcome of `work`, which may be repeated, through an outage as long as the budget."""
        deadline: float | None = None
        while True:
            try:
                return await work()
            except (Unavailable, AmbiguousOutcome) as error:
                now = time.monotonic()
                deadline = now + self.options.outage_budget if deadline is None else deadline
                if now > deadline:
                    raise
                await asyncio.sleep(min(getattr(error, "retry_after", None) or 2.0, 10.0))

    async def hpc(self) -> Hpc:
        """The connection, held open until the end."""
        if self._hpc is None:
            own = self.options
            settings = {"url": own.url, "token_url": own.token_url, "client_id": own.client_id, **own.credential}
            settings = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items() if v is not None}
            self._hpc = connect(own.site, adapter="reframe", **settings)
            await self._hpc.open()
            self.away = asyncio.get_running_loop().create_future()
            self._watching = asyncio.create_task(self._watch_outages(), name="hpcbridge-reframe-outages")
        return self._hpc

    async def system(self) -> System:
        """The cluster."""
        system = (await self.hpc()).system(self.options.system)
        await system.resolve()
        return system

    async def _open(self) -> Mirror:
        system = await self.system()
        base = self.options.stage_prefix or posixpath.join(await system.home(), "reframe")
        if not base.startswith("/"):
            raise ConfigurationError(f"firecrest_stage_prefix is no absolute path: {base}", system=system.name)
        root = posixpath.join(base, self.options.stage_name or self._own_name())
        await system.mkdir(root)
        await system.client.chmod(system.name, root, "700")  # nobody else's business, whatever the umask
        map = PathMap.of(self.stage, root, self.options.paths)
        scratch, account = self._make_scratch(), self.options.account
        store = posixpath.join(base, STORE)
        mirror = Mirror(
            system,
            base,
            root,
            await system.user(),
            Scanner(self.stage, store, self.filter),
            Shipping(system, base, root, account, scratch),
            Bringing(system, root, self.filter, account, scratch),
            map,
        )
        for row in await system.jobs():
            there = row.working_directory or ""
            if there.startswith(f"{root}/") and is_ours(row.name) and not _has_ended(row.state):
                mirror.alive.setdefault(there, set()).add(row.array_job_id or row.job_id)
        return mirror

    def _own_name(self) -> str:
        """The same for the same directory of the same machine, and no other's."""
        digest = hashlib.sha256(f"{socket.gethostname()}\0{self.stage}".encode()).hexdigest()[:10]
        label = re.sub(r"[^A-Za-z0-9_.-]", "_", socket.gethostname().partition(".")[0])[:24]
        return f"stage-{label}-{digest}"

    def _make_scratch(self) -> Path:
        if self._scratch is None:
            stage = Path(self.stage)
            stage.mkdir(parents=True, exist_ok=True)
            for left in stage.glob(f"{SCRATCH}*"):  # by a run that was killed
                if not _lives(left.name.removeprefix(SCRATCH).partition("-")[0]):
                    shutil.rmtree(left, ignore_errors=True)
            self._scratch = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-", dir=stage))
        return self._scratch

    async def directory(self, local: str) -> StageDirectory:
        """The stage directory at `local` (absolute); any other directory has a mirror beside those."""
        mirror = await self.mirror()
        if local not in self._directories:
            remote, map = mirror.map.there(local), mirror.map
            if remote is None:
                digest = hashlib.sha256(local.encode()).hexdigest()[:10]
                remote = posixpath.join(mirror.root, "elsewhere", f"{Path(local).name}-{digest}")
                map = PathMap.of(local, remote, dict(map.pairs))
            self._directories[local] = StageDirectory(Path(local), remote, map)
        return self._directories[local]

    async def _watch_outages(self) -> None:
        """Says so when the site has been away for longer than the budget."""
        assert self._hpc is not None
        assert self.away is not None
        since: float | None = None
        while True:
            await asyncio.sleep(1)
            if not self._hpc.client.session.breaker.is_open:
                since = None
                if self.away.done():
                    self.away = asyncio.get_running_loop().create_future()
                continue
            now = time.monotonic()
            since = now if since is None else since
            if now - since > self.options.outage_budget and not self.away.done():
                self.away.set_exception(
                    SiteAway(f"the site has not answered for {now - since:.0f} s", site=self._hpc.site.name)
                )
                self.away.exception()  # seen, also when nobody waits

    async def _close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        try:
            if self._opening is not None and self._opening.done() and self._opening.exception() is None:
                await self._tidy(self._opening.result())
        finally:
            if self._hpc is not None:
                await self._hpc.aclose()

    async def _tidy(self, mirror: Mirror) -> None:
        """Remove the mirrors of stage directories that ReFrame has removed: their tests passed."""
        shipped = mirror.shipping.shipped
        sent = f"{shipped.blobs} file contents in {shipped.archives} archives, {shipped.bytes} bytes"
        getlogger().debug(f"[S] firecrest: shipped {sent}")
        await mirror.shipping.tidy()
        await mirror.bringing.fetching.tidy()
        used = {each.remote: each for each in self._directories.values() if each.layouts or each.known}
        if not self.options.cleanup or not used:
            return
        kept = {remote for remote, each in used.items() if each.local.exists()}
        paths = _tops(mirror.root, used.keys() - kept, kept | mirror.alive.keys(), await self._there(mirror))
        if paths:
            await mirror.system.rm(sorted(paths), missing_ok=True, account=self.options.account)

    async def _there(self, mirror: Mirror) -> set[str]:
        """Directories below the root down to stage directories; what an earlier run has kept is among them."""
        found = {posixpath.dirname(each.remote) for each in self._directories.values()}
        there: set[str] = set()
        for parent in found:
            with contextlib.suppress(PathNotFound):
                there |= {
                    posixpath.join(parent, entry.name)
                    for entry in await mirror.system.ls(parent, hidden=True)
                    if entry.is_dir
                }
        return there


def _tops(root: str, gone: set[str], kept: set[str], there: set[str]) -> set[str]:
    """The fewest directories whose removal removes all of `gone`, and nothing else that is there."""
    stays = kept | (there - gone)
    above = {parent for path in stays for parent in _parents(path, root)} | {root}
    tops = set()
    for path in gone:
        chain = [path, *_parents(path, root)]
        tops.add([each for each in chain if each not in above][-1])
    return tops


def _parents(path: str, root: str) -> list[str]:
    found = []
    while (path := posixpath.dirname(path)) != root and path.startswith(f"{root}/"):
        found.append(path)
    return found


def _lives(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _has_ended(state: str) -> bool:
    from hpcbridge import JobState

    return JobState.parse(state).is_terminal
