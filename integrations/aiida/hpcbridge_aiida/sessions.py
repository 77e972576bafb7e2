"""What all transports of one event loop share that reach the same system as the same identity.

AiiDA makes a transport for every batch of work and opens and closes it several times for one job. Connections, token,
user name, what is known of directories, what is collected and the watching of jobs live here instead.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import posixpath
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hpcbridge.errors import ConfigurationError, HpcBridgeError, NotFound
from hpcbridge_aiida import references
from hpcbridge_aiida.paths import is_within, lineage
from hpcbridge_aiida.references import Endpoint
from hpcbridge_aiida.spool import Notes, spool_path

if TYPE_CHECKING:
    from hpcbridge.firecrest import FirecrestClient
    from hpcbridge.hpc import Hpc
    from hpcbridge.staging.context import Transfer
    from hpcbridge.staging.plan import Limits
    from hpcbridge.system import System
    from hpcbridge_aiida.known import Known
    from hpcbridge_aiida.parcels import Parcel

T = TypeVar("T")

log = logging.getLogger(__name__)

PATIENCE = 300.0
"""Seconds for which an outage is waited out before AiiDA hears of it: its own back-off pauses a process for good."""
DIRECTORY_TRUST = 300.0
"""Seconds for which a directory that was there counts as there: the computer's work directory is asked for by each
upload."""
SCRIPTS_KEPT = 500
"""Batch scripts kept in memory between upload and submit; one that is not there is read from the system."""

NEW = 30.0
"""Seconds for which what was missing, and was then made by us, holds nothing of earlier attempts."""
ANOTHER_WORKER = 60
"""Seconds for which the submit waits for another worker that still sends the files of the same calculation."""
LAST_WORK = "hpcbridge-aiida-last"
"""Name of tasks that a loop should see the end of."""


class Session:
    """One system as one identity, in one event loop; `open_session` gives the one there is."""

    def __init__(self, endpoint: Endpoint, hpc: Hpc, limits: Limits, handle: System, known: Known) -> None:
        """See `open_session`."""
        from hpcbridge.jobs.intents import FileIntentStore, state_directory
        from hpcbridge_aiida.parcels import Delivery
        from hpcbridge_aiida.watching import Watch

        self._background: set[asyncio.Task[Any]] = set()
        self.endpoint, self.hpc, self.limits, self.handle = endpoint, hpc, limits, handle
        self.system = handle.name
        self.loop = asyncio.get_running_loop()
        self.parcels: dict[str, Parcel] = {}
        self.scripts: OrderedDict[str, str] = OrderedDict()
        self.intents = FileIntentStore()
        self.delivery = Delivery(self)
        self.watch = Watch(self)
        self._directory = state_directory() / "aiida" / "spool"
        identity = _identity(hpc, handle.name)
        self._notes = Notes(spool_path(self._directory / "archives", identity, "").with_suffix(""))
        self.spawn(self._remove_left_behind())
        self._seen: dict[str, float] = {}
        self._new: dict[str, float] = {}
        self._entered: set[str] = set()
        self._known = known
        self._asked = set(known.roots)
        self._roots = set(known.roots)
        self._assumed: set[str] = set()
        self._asking: dict[tuple[str, str], asyncio.Task[Any]] = {}
        self.have_been_made(known.roots)

    @property
    def client(self) -> FirecrestClient:
        """The REST client of this loop."""
        return self.hpc.client

    async def transfer(self) -> Transfer:
        """What jobs of ours need to know of the system."""
        from hpcbridge.staging.remote import jobs

        return await jobs.context(self.handle, account=self.endpoint.account or None)

    async def user(self) -> str:
        """Our name on the system, asked for once, by whichever worker came first."""
        token = await self.hpc.credential.access_token()
        name = await self.handle.user(known=self._known.user(token))
        await asyncio.to_thread(self._known.learn_user, token, name)
        return name

    async def once(self, kind: str, path: str, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `ask()` returns; those who want the same at the same time share one call."""
        task = self._asking.get((kind, path))
        if task is None:
            task = self._asking[kind, path] = self.spawn(ask())
            task.add_done_callback(lambda _: self._asking.pop((kind, path)))
        result: T = await asyncio.shield(task)
        return result

    # -- directories -------------------------------------------------------------------------------------------------

    def have_been_made(self, directories: Iterable[str]) -> None:
        """These and all above them are there."""
        now = time.monotonic()
        for directory in directories:
            for path in lineage(directory):
                self._seen[path] = now
                self._assumed.discard(path)
        if len(self._seen) > 20_000:
            self._seen = {path: seen for path, seen in self._seen.items() if now - seen < DIRECTORY_TRUST}

    def is_missing(self, path: str) -> None:
        """The system has just said so."""
        for each in [each for each in self._seen if is_within(each, path)]:
            del self._seen[each]

    def is_new(self, directory: str) -> None:
        """It was missing and is made by us: nothing can be in it but what has been put there since."""
        self._new[directory] = time.monotonic()

    def is_first_in_new(self, path: str) -> bool:
        """Whether `path` is in a directory that was missing a moment ago. Said once: then it may be there."""
        now = time.monotonic()
        self._new = {each: when for each, when in self._new.items() if now - when < NEW}
        if path in self._entered or not any(each in self._new for each in lineage(path) if each != path):
            return False
        self._entered.add(path)
        return True

    def is_trusted(self, directory: str) -> bool:
        """Whether it was there a moment ago."""
        seen = self._seen.get(directory)
        return seen is not None and time.monotonic() - seen < DIRECTORY_TRUST

    def asked(self, directory: str) -> None:
        """Somebody has asked whether `directory` is there: it may be a computer's work directory."""
        self._asked.add(directory)

    def is_work_root(self, directory: str) -> bool:
        """Whether it was there a moment ago, and calculations are uploaded to new directories in it."""
        return directory in self._roots and self.is_trusted(directory)

    def base_for(self, path: str) -> str | None:
        """Where an archive for the new directory `path` is put, and unpacked from.

        The computer's work directory, so that those of several calculations are one; else the deepest directory above
        that was there a moment ago; None where there is none.
        """
        trusted = [each for each in lineage(path) if each != path and self.is_trusted(each)]
        root = next((each for each in trusted if each in self._asked), None)
        if root is not None:
            if root not in self._roots:
                self._roots.add(root)
                self.spawn(asyncio.to_thread(self._known.learn_root, root)).set_name(LAST_WORK)
            return root
        return trusted[0] if trusted else None

    def forget(self, path: str) -> None:
        """`path` and what is below has changed in a way that we do not follow."""
        self.is_missing(path)
        self._asked = {each for each in self._asked if not is_within(each, path)}
        self._roots = {each for each in self._roots if not is_within(each, path)}
        self._new = {each: when for each, when in self._new.items() if not is_within(each, path)}
        for each in [each for each in self.scripts if is_within(each, path)]:
            del self.scripts[each]

    def assume(self, directory: str) -> None:
        """It shall exist; it will be made with what is put into it, or when somebody looks."""
        self._assumed.add(directory)

    def no_longer_assumed(self, directory: str) -> None:
        """It will be made in another way."""
        self._assumed.discard(directory)

    def is_assumed(self, directory: str) -> bool:
        """Whether it shall exist and was not made yet."""
        return directory in self._assumed

    async def make_assumed(self, path: str) -> None:
        """Make what shall exist at `path`, above it or below."""
        await self._make(each for each in self._assumed if is_within(path, each) or is_within(each, path))

    async def make_still_assumed(self, directories: Iterable[str]) -> None:
        """Make those of `directories` that shall exist and were not made with what was put into them."""
        await self._make(each for each in directories if each in self._assumed)

    async def _make(self, directories: Iterable[str]) -> None:
        wanted = list(directories)
        deepest = [each for each in wanted if not any(other != each and is_within(other, each) for other in wanted)]
        for directory in deepest:
            await self.client.mkdir(self.system, directory, parents=True)
        self._assumed.difference_update(wanted)
        self.have_been_made(deepest)

    # -- what is under way -------------------------------------------------------------------------------------------

    def spool_path(self, root: str) -> Path:
        """Where the spool keeps what is under way to `root`."""
        return spool_path(self._directory, _identity(self.hpc, self.system), root)

    def parcel_of(self, path: str) -> Parcel | None:
        """The directory of our own making that `path` is in."""
        if not self.parcels:
            return None
        return next((self.parcels[each] for each in lineage(path) if each in self.parcels), None)

    def parcels_at(self, path: str) -> list[Parcel]:
        """Those that `path` is in, those that are within it, and those in which a copy of it is still to be made."""
        above = self.parcel_of(path)
        others = (each for each in self.parcels.values() if each is not above)
        found = [each for each in others if is_within(each.root, path) or each.reads(path)]
        return found if above is None else [above, *found]

    async def before_change(self, path: str) -> None:
        """Make the copies that still wait for what is at `path`, which is about to become something else."""
        await self.delivery.send([parcel for parcel in self.parcels.values() if parcel.reads(path)])

    async def settle(self, *paths: str) -> None:
        """Send whatever has to do with `paths`, so that the system can be asked about them."""
        parcels = {parcel.root: parcel for path in paths for parcel in self.parcels_at(path)}
        await self.delivery.send(parcels.values())
        if self._assumed:
            for path in paths:
                await self.make_assumed(path)

    async def drop(self, parcels: Sequence[Parcel]) -> None:
        """What is in these is no longer ours to know."""
        for parcel in parcels:
            if self.parcels.get(parcel.root) is parcel:
                del self.parcels[parcel.root]
        await asyncio.gather(*(parcel.close() for parcel in parcels))

    def keep_script(self, path: str, text: str) -> None:
        """Remember a batch script until it is submitted."""
        self.scripts[path] = text
        self.scripts.move_to_end(path)
        while len(self.scripts) > SCRIPTS_KEPT:
            self.scripts.popitem(last=False)

    async def script_for(self, workdir: str, filename: str) -> str:
        """The text of a batch script, once everything that was put into its directory has been sent."""
        where = posixpath.normpath(workdir)
        path = posixpath.join(where, filename)
        parcels = self.parcels_at(where)
        if self.parcel_of(where) is None and path not in self.scripts:
            parcels += await self._left_behind(where)
        await self.delivery.send(parcels)
        await self.drop(
            [parcel for parcel in parcels if is_within(parcel.root, where) or is_within(where, parcel.root)]
        )
        text = self.scripts.pop(path, None)
        if text is None:
            text = (await self.client.download(self.system, path)).decode("utf-8", "surrogateescape")
        return text

    async def _left_behind(self, workdir: str) -> list[Parcel]:
        """What a worker that was killed has collected for the directory, or for one above it."""
        from hpcbridge_aiida.parcels import Parcel

        found = []
        for path in lineage(workdir):
            for pause in (1.0,) * ANOTHER_WORKER:
                try:
                    parcel = await Parcel.left_behind(self, path)
                except BlockingIOError:
                    await asyncio.sleep(pause)  # another worker is still sending it
                    continue
                if parcel is not None:
                    found.append(parcel)
                break
            else:
                raise OSError(f"another process of AiiDA has not finished sending {path} to {self.system}")
        return found

    # -- in the background -------------------------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` beside; in a context of its own, which holds no process of AiiDA's."""
        task = self.loop.create_task(work, context=contextvars.Context())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def will_make(self, archive: str) -> None:
        """An archive of ours is about to be made there; `remove_later` belongs to it."""
        await asyncio.to_thread(self._notes.add, archive)

    def remove_later(self, archive: str) -> None:
        """Remove an archive of ours that has served; nobody waits for it but `tidy`."""
        self.spawn(self._remove(archive)).set_name(LAST_WORK)

    async def _remove(self, archive: str) -> None:
        try:
            await self.client.rm(self.system, archive)
        except NotFound:
            pass
        except HpcBridgeError as error:
            log.warning("an archive of ours stays on the system for now: %s", error)
            return
        await asyncio.to_thread(self._notes.remove, archive)

    async def _remove_left_behind(self) -> None:
        for archive in await asyncio.to_thread(self._notes.left_behind):
            await self._remove(archive)

    async def tidy(self) -> None:
        """Until archives that have been unpacked are gone; loops of a command line end with the command."""
        waiting = [task for task in self._background if task.get_name() == LAST_WORK]
        if waiting:
            await asyncio.wait(waiting)


_sessions: dict[tuple[int, Endpoint], asyncio.Future[Session]] = {}


async def open_session(endpoint: Endpoint) -> Session:
    """The session of the running loop for `endpoint`, made when there is none.

    Raises ConfigurationError, and what the first request raises.
    """
    loop = asyncio.get_running_loop()
    key = (id(loop), endpoint)
    found = _sessions.get(key)
    if found is None or found.get_loop() is not loop or (found.done() and _failed(found)):
        _drop_closed_loops()
        found = _sessions[key] = asyncio.ensure_future(_make(endpoint))
    return await asyncio.shield(found)


def _failed(future: asyncio.Future[Session]) -> bool:
    return future.cancelled() or future.exception() is not None


def _drop_closed_loops() -> None:
    for key, future in list(_sessions.items()):
        if future.get_loop().is_closed():
            del _sessions[key]


async def _make(endpoint: Endpoint) -> Session:
    hpc, limits_of = await asyncio.to_thread(_prepare, endpoint)
    # Held for as long as the loop lives, so that connections and token outlast AiiDA's transports.
    await hpc.open()
    http = hpc.client.session
    http.policy = replace(http.policy, patience=PATIENCE)
    await asyncio.to_thread(http.prepare)
    name = await _system_name(hpc, endpoint)
    info = await hpc.client.system(name)
    limits = limits_of(info.max_ops_file_size, info.transfer, info.inbound_limit)
    return Session(endpoint, hpc, limits, hpc.system(name), await asyncio.to_thread(_known, hpc, name))


def _identity(hpc: Hpc, system: str) -> tuple[str, str, str]:
    """What tells apart what is kept on disk for this session from what is kept for others."""
    return hpc.site.url, hpc.credential.identity, system


def _known(hpc: Hpc, system: str) -> Known:
    from hpcbridge.jobs.intents import state_directory
    from hpcbridge_aiida.known import Known

    return Known(spool_path(state_directory() / "aiida" / "known", _identity(hpc, system), "").with_suffix(".json"))


_USED = (
    "aiida.transports.util",
    "hpcbridge.jobs.logs",
    "hpcbridge.jobs.submit",
    "hpcbridge.jobs.watch",
    "hpcbridge.staging.chunked",
    "hpcbridge.staging.cut_download",
    "hpcbridge.staging.either",
    "hpcbridge.staging.keyed_jobs",
    "hpcbridge.staging.remote.globs",
    "hpcbridge.staging.remote.operations",
    "hpcbridge.staging.s3_download",
    "hpcbridge.staging.s3_upload",
    "hpcbridge_aiida.batch",
    "hpcbridge_aiida.parcels",
    "hpcbridge_aiida.watching",
)


def _prepare(endpoint: Endpoint) -> tuple[Hpc, Any]:
    """Read the configuration, and load in this thread what would otherwise hold up AiiDA's event loop later."""
    for module in _USED:
        import_module(module)
    from hpcbridge.credentials import issuer
    from hpcbridge.firecrest import rest
    from hpcbridge.jobs.intents import state_directory
    from hpcbridge.staging.plan import Limits
    from hpcbridge_aiida.spool import sweep

    issuer.preload()
    rest.preload()
    sweep(state_directory() / "aiida" / "spool")
    return references.connect(endpoint), Limits.of


async def _system_name(hpc: Hpc, endpoint: Endpoint) -> str:
    """The system that is meant: by name, else the one called like the computer's host, else the only one there is."""
    names = [info.name for info in await hpc.systems()]
    if endpoint.system:
        return endpoint.system
    same = next((name for name in names if name.lower() == endpoint.hostname.lower()), None)
    if same is not None:
        return same
    if hpc.site.system:
        return hpc.site.system
    if len(names) == 1:
        return names[0]
    raise ConfigurationError(
        f"the deployment has no system {endpoint.hostname!r}",
        site=hpc.site.name,
        hint=f"It has {', '.join(names) or 'none'}: give the computer that hostname, or configure it with --system",
    )
