"""The same names without `await`, for programs that have no event loop.

    with hpcbridge.blocking.connect() as hpc:
        daint = hpc.system("daint")
        info = daint.submit(JobSpec(script=SCRIPT, workdir="/scratch/me/run1"), key="fig3-17").wait()

Every call runs the asynchronous method of the same name on one portal thread per process, which starts with the first
call and ends with the process; a forked child starts its own. Any number of threads may call. Callbacks (`progress=`,
`on_change=`) run on the portal thread and must not call back into this module. Inside a running event loop each call
raises BlockingInsideLoop: await the asynchronous method there.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar

from anyio import create_memory_object_stream
from anyio.from_thread import BlockingPortal, start_blocking_portal

from hpcbridge import hpc as _async

if TYPE_CHECKING:
    from concurrent.futures import Future
    from types import TracebackType

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from hpcbridge._output_paths import Stream
    from hpcbridge.credentials import Credential
    from hpcbridge.errors import JobFailed
    from hpcbridge.firecrest import FileEntry, FileStat, JobRow, SystemInfo
    from hpcbridge.jobs.intents import IntentStore
    from hpcbridge.jobs.spec import JobSpec
    from hpcbridge.jobs.state import JobInfo
    from hpcbridge.sites import Site
    from hpcbridge.staging import Progress, TransferResult
    from hpcbridge.staging.remote.operations import Usage
    from hpcbridge.staging.trees.results import TreeResult

P = ParamSpec("P")
T = TypeVar("T")


class _PortalThread:
    """The event loop thread of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._portal: BlockingPortal | None = None
        self._thread: AbstractContextManager[BlockingPortal] | None = None
        self._inherited: list[object] = []

    def get(self) -> BlockingPortal:
        with self._lock:
            if self._portal is None:
                self._thread = start_blocking_portal("asyncio", name="hpcbridge")
                self._portal = self._thread.__enter__()
            return self._portal

    def stop(self) -> None:
        """End the thread, what runs on it included; its loop closes every connection on the way out."""
        with self._lock:
            thread, portal, self._thread, self._portal = self._thread, self._portal, None, None
        if thread is not None and portal is not None:
            portal.call(portal.stop, True)
            thread.__exit__(None, None, None)

    def forget(self) -> None:
        """In a forked child the thread does not exist; its remains must not be finalised (that would join it)."""
        self._inherited.append((self._thread, self._portal))
        self._lock = threading.Lock()
        self._thread = self._portal = None


_thread = _PortalThread()
atexit.register(_thread.stop)
os.register_at_fork(after_in_child=_thread.forget)


def _refuse_inside_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    from hpcbridge.errors import BlockingInsideLoop

    raise BlockingInsideLoop(
        "hpcbridge.blocking was called inside a running event loop",
        hint="await the same method of hpcbridge.connect() here, or call from a thread (asyncio.to_thread)",
    )


def _run(function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Await `function(*args, **kwargs)` on the portal thread; an interrupt here cancels it there."""
    _refuse_inside_loop()
    future: Future[T] = _thread.get().start_task_soon(partial(function, *args, **kwargs))
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def start(function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Begin `await function(*args, **kwargs)` on the portal thread and return at once; for hosts that poll.

    Cancelling the future cancels the coroutine. Unlike everything else here it may be called inside a running event
    loop. What still runs when the process exits is cancelled.
    """
    return _thread.get().start_task_soon(partial(function, *args, **kwargs))


def _iterate(source: Callable[[], AsyncIterator[T]]) -> Iterator[T]:
    """Draw from an asynchronous iterator that lives in one task of the portal thread."""
    _refuse_inside_loop()
    portal = _thread.get()
    send, receive = portal.call(_channel)
    pump = portal.start_task_soon(_pump, source, send)
    try:
        while True:
            item = portal.call(_receive, receive)
            if item is None:
                break
            yield item[0]
        pump.result()
    finally:
        pump.cancel()
        portal.call(receive.close)


def _channel() -> tuple[MemoryObjectSendStream[Any], MemoryObjectReceiveStream[Any]]:
    return create_memory_object_stream[Any](1)


async def _pump(source: Callable[[], AsyncIterator[T]], send: MemoryObjectSendStream[tuple[T]]) -> None:
    async with send:
        async for item in source():
            await send.send((item,))


async def _receive(stream: MemoryObjectReceiveStream[tuple[T]]) -> tuple[T] | None:
    async for item in stream:
        return item
    return None


def connect(
    site: str | Site | None = None, *, credential: Credential | None = None, adapter: str = "core", **overrides: Any
) -> Hpc:
    """Open a deployment; see `hpcbridge.connect`."""
    from hpcbridge.sites import hide_secrets

    overrides = hide_secrets(overrides)
    return Hpc(_async.connect(site, credential=credential, adapter=adapter, **overrides))


class Hpc:
    """One deployment as one identity; see `hpcbridge.Hpc`. Use as `with`."""

    def __init__(self, wrapped: _async.Hpc) -> None:
        """Prefer `connect()`."""
        self._wrapped = wrapped

    def __repr__(self) -> str:
        return f"blocking.{self._wrapped!r}"

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> Self:
        """See `hpcbridge.Hpc.open`."""
        _run(self._wrapped.open)
        return self

    def close(self) -> None:
        """See `hpcbridge.Hpc.aclose`."""
        _run(self._wrapped.aclose)

    @property
    def site(self) -> Site:
        """The deployment's configuration."""
        return self._wrapped.site

    def systems(self, fresh: bool = False) -> list[SystemInfo]:
        """See `hpcbridge.Hpc.systems`."""
        return _run(self._wrapped.systems, fresh)

    def system(self, name: str | None = None) -> System:
        """See `hpcbridge.Hpc.system`."""
        return System(self._wrapped.system(name))


class System:
    """One cluster behind a deployment; see `hpcbridge.System`."""

    def __init__(self, wrapped: _async.System) -> None:
        """Prefer `Hpc.system()`."""
        self._wrapped = wrapped

    def __repr__(self) -> str:
        return f"blocking.{self._wrapped!r}"

    @property
    def name(self) -> str:
        """The system's name."""
        return _run(self._wrapped.resolve)

    def info(self, fresh: bool = False) -> SystemInfo:
        """See `hpcbridge.System.info`."""
        return _run(self._wrapped.info, fresh)

    def submit(
        self, spec: JobSpec, key: str | None = None, *, store: IntentStore | None = None, look_first: bool = False
    ) -> Job:
        """See `hpcbridge.System.submit`. An asynchronous `store` is called on the portal thread."""
        return Job(_run(self._wrapped.submit, spec, key, store=store, look_first=look_first))

    def job(self, job_id: str | int, name: str | None = None) -> Job:
        """See `hpcbridge.System.job`."""
        return Job(self._wrapped.job(job_id, name))

    def find(self, key: str, *, workdir: str | None = None, name: str = "job") -> Job | None:
        """See `hpcbridge.System.find`."""
        found = _run(self._wrapped.find, key, workdir=workdir, name=name)
        return Job(found) if found is not None else None

    def jobs(self) -> list[JobRow]:
        """See `hpcbridge.System.jobs`."""
        return _run(self._wrapped.jobs)

    def put(
        self,
        local: str | Path,
        remote: str,
        *,
        route: str | None = None,
        verify: str | None = "auto",
        atomic: bool = False,
        progress: Callable[[Progress], None] | None = None,
        account: str | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        max_file_size: int | None = None,
        max_size: int | None = None,
        dry_run: bool = False,
    ) -> TransferResult | TreeResult:
        """See `hpcbridge.System.put`."""
        return _run(
            self._wrapped.put,
            local,
            remote,
            route=route,
            verify=verify,
            atomic=atomic,
            progress=progress,
            account=account,
            include=include,
            exclude=exclude,
            max_file_size=max_file_size,
            max_size=max_size,
            dry_run=dry_run,
        )

    def get(
        self,
        remote: str,
        local: str | Path,
        *,
        route: str | None = None,
        verify: str | None = "auto",
        resume: bool = True,
        progress: Callable[[Progress], None] | None = None,
        account: str | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        max_file_size: int | None = None,
        max_size: int | None = None,
        dry_run: bool = False,
    ) -> TransferResult | TreeResult:
        """See `hpcbridge.System.get`."""
        return _run(
            self._wrapped.get,
            remote,
            local,
            route=route,
            verify=verify,
            resume=resume,
            progress=progress,
            account=account,
            include=include,
            exclude=exclude,
            max_file_size=max_file_size,
            max_size=max_size,
            dry_run=dry_run,
        )

    def sync(
        self,
        local: str | Path,
        remote: str,
        *,
        direction: Literal["up", "down"] = "up",
        delete: bool = False,
        route: str | None = None,
        progress: Callable[[Progress], None] | None = None,
        account: str | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        max_file_size: int | None = None,
        max_size: int | None = None,
        dry_run: bool = False,
    ) -> TreeResult:
        """See `hpcbridge.System.sync`."""
        return _run(
            self._wrapped.sync,
            local,
            remote,
            direction=direction,
            delete=delete,
            route=route,
            progress=progress,
            account=account,
            include=include,
            exclude=exclude,
            max_file_size=max_file_size,
            max_size=max_size,
            dry_run=dry_run,
        )

    def ls(self, path: str, *, hidden: bool = False, recursive: bool = False) -> list[FileEntry]:
        """See `hpcbridge.System.ls`."""
        return _run(self._wrapped.ls, path, hidden=hidden, recursive=recursive)

    def glob(self, pattern: str) -> list[str]:
        """See `hpcbridge.System.glob`."""
        return _run(self._wrapped.glob, pattern)

    def stat(self, path: str) -> FileStat:
        """See `hpcbridge.System.stat`."""
        return _run(self._wrapped.stat, path)

    def mkdir(self, path: str | Sequence[str], parents: bool = True) -> None:
        """See `hpcbridge.System.mkdir`."""
        _run(self._wrapped.mkdir, path, parents)

    def rm(
        self,
        path: str | Sequence[str],
        *,
        recursive: bool = True,
        missing_ok: bool = False,
        preserve_root: bool = True,
        progress: Callable[[Progress], None] | None = None,
        account: str | None = None,
    ) -> None:
        """See `hpcbridge.System.rm`."""
        _run(
            self._wrapped.rm,
            path,
            recursive=recursive,
            missing_ok=missing_ok,
            preserve_root=preserve_root,
            progress=progress,
            account=account,
        )

    def cp(
        self,
        source: str | Sequence[str],
        destination: str,
        *,
        recursive: bool = False,
        progress: Callable[[Progress], None] | None = None,
        account: str | None = None,
    ) -> None:
        """See `hpcbridge.System.cp`."""
        _run(self._wrapped.cp, source, destination, recursive=recursive, progress=progress, account=account)

    def mv(
        self,
        source: str | Sequence[str],
        destination: str,
        *,
        progress: Callable[[Progress], None] | None = None,
        account: str | None = None,
    ) -> None:
        """See `hpcbridge.System.mv`."""
        _run(self._wrapped.mv, source, destination, progress=progress, account=account)

    def du(self, path: str, *, progress: Callable[[Progress], None] | None = None, account: str | None = None) -> Usage:
        """See `hpcbridge.System.du`."""
        return _run(self._wrapped.du, path, progress=progress, account=account)

    def read(
        self, path: str, *, progress: Callable[[Progress], None] | None = None, account: str | None = None
    ) -> Iterator[bytes]:
        """See `hpcbridge.System.read`."""
        return _iterate(lambda: self._wrapped.read(path, progress=progress, account=account))

    def checksum(self, path: str) -> str:
        """See `hpcbridge.System.checksum`."""
        return _run(self._wrapped.checksum, path)

    def read_bytes(self, path: str) -> bytes:
        """See `hpcbridge.System.read_bytes`."""
        return _run(self._wrapped.read_bytes, path)

    def user(self, known: str | None = None) -> str:
        """See `hpcbridge.System.user`."""
        return _run(self._wrapped.user, known)

    def home(self) -> str:
        """See `hpcbridge.System.home`."""
        return _run(self._wrapped.home)


class Job:
    """One batch job on one system; see `hpcbridge.Job`."""

    def __init__(self, wrapped: _async.Job) -> None:
        """Prefer `System.submit()` or `System.job()`."""
        self._wrapped = wrapped

    def __repr__(self) -> str:
        return f"blocking.{self._wrapped!r}"

    @property
    def id(self) -> str:
        """The scheduler's id."""
        return self._wrapped.id

    @property
    def name(self) -> str | None:
        """The job's name, when it is known."""
        return self._wrapped.name

    @property
    def adopted(self) -> bool:
        """See `hpcbridge.Job.adopted`."""
        return self._wrapped.adopted

    @property
    def spec(self) -> JobSpec | None:
        """What was submitted, when this object did it."""
        return self._wrapped.spec

    @property
    def system(self) -> System:
        """The system it runs on."""
        return System(self._wrapped.system)

    def info(self) -> JobInfo:
        """See `hpcbridge.Job.info`."""
        return _run(self._wrapped.info)

    def wait(self, on_change: Callable[[JobInfo], None] | None = None, *, check: bool = False) -> JobInfo:
        """See `hpcbridge.Job.wait`."""
        return _run(self._wrapped.wait, on_change, check=check)

    def cancel(self, verify: bool = True) -> JobInfo:
        """See `hpcbridge.Job.cancel`."""
        return _run(self._wrapped.cancel, verify)

    def output_path(self, stream: Stream = "stdout") -> str:
        """See `hpcbridge.Job.output_path`."""
        return _run(self._wrapped.output_path, stream)

    def post_mortem(self) -> JobFailed | None:
        """See `hpcbridge.Job.post_mortem`."""
        return _run(self._wrapped.post_mortem)

    def logs(
        self, follow: bool = False, *, stream: Stream = "stdout", offset: int = 0, exact: bool = False
    ) -> Iterator[bytes]:
        """See `hpcbridge.Job.logs`."""
        return _iterate(lambda: self._wrapped.logs(follow, stream=stream, offset=offset, exact=exact))
