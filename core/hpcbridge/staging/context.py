"""What every route of a transfer needs to know."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from hpcbridge.errors import HpcBridgeError, TransferError
from hpcbridge.staging.plan import Limits, Verify
from hpcbridge.staging.progress import Reporter

if TYPE_CHECKING:
    from hpcbridge.firecrest import FirecrestClient, SystemInfo
    from hpcbridge.jobs.state import JobInfo
    from hpcbridge.jobs.watch import JobWatcher


T = TypeVar("T")


class TransferSystem(Protocol):
    """What staging uses of a system; `hpcbridge.System` is one."""

    @property
    def name(self) -> str:
        """Name of the system."""

    @property
    def client(self) -> FirecrestClient:
        """REST client of the running loop."""

    @property
    def watcher(self) -> JobWatcher:
        """The one watcher of this system's jobs."""

    async def home(self) -> str:
        """The user's own directory."""


PATIENCE = 900.0
"""Seconds for which an outage of the server is waited out in the middle of a transfer.

Every request of a transfer may be repeated: pieces have names, and jobs have keys.
"""


@dataclass(slots=True)
class Transfer:
    """One file on its way: `size` in bytes; `mtime_ns` is the local file's, 0 on the way down."""

    system: TransferSystem
    info: SystemInfo
    local: Path
    reporter: Reporter
    verify: Verify | None = Verify.AUTO
    account: str | None = None
    size: int = 0
    mtime_ns: int = 0
    limits: Limits = field(init=False)
    site: str = field(init=False)

    def __post_init__(self) -> None:
        """Derive the limits from what the system says of itself, and the deployment's name."""
        self.site = self.client.session.site.name
        self.limits = Limits.of(self.info.max_ops_file_size, self.info.transfer, self.info.inbound_limit)

    @property
    def client(self) -> FirecrestClient:
        """REST client of the running loop."""
        return self.system.client

    @property
    def name(self) -> str:
        """Name of the system, as the first argument of the client's calls."""
        return self.info.name

    def error(self, message: str, *, kind: type[HpcBridgeError] = TransferError, **about: Any) -> HpcBridgeError:
        """An error that says which site and system it is about."""
        return kind(message, **({"site": self.site, "system": self.name} | about))


ALONE = 1.0
"""Seconds for which a transfer asks for its job's result only: a short job is over by then.

The listings that show how a job waits cost the login node two commands each, and keep the question for its result
waiting, at the few requests per second that polling may make.
"""


async def watched(
    t: Transfer, job_id: str, on_change: Callable[[JobInfo], None], *, name: str | None = None
) -> JobInfo:
    """Until the job has ended, watched from `ALONE` seconds on; raises what the watcher's `wait` raises."""
    await asyncio.sleep(ALONE)
    return await t.system.watcher.wait(job_id, name=name, on_change=on_change)


_PARTITION = re.compile(r"(?:--partition(?:=|\s+)|-p\s*)(\S+)")


def transfer_directives(directives: tuple[str, ...], mode: str, account: str | None) -> dict[str, Any]:
    """Fields of a JobSpec that put our own job where the site wants transfer jobs to run.

    `directives` are the `datatransfer_jobs_directives` of `/status/systems`. The scheduler's REST mode carries no free
    directives, so only the partition is kept there.
    """
    lines = [line.removeprefix("#SBATCH").strip() for line in directives]
    # A template of the server's: the caller's account goes there. Ours has a field of its own.
    lines = [line for line in lines if "{account}" not in line]
    fields: dict[str, Any]
    if mode == "rest":
        found = next((match[1] for line in lines if (match := _PARTITION.match(line))), None)
        fields = {"partition": found} if found else {}
    else:
        fields = {"directives": tuple(line for line in lines if line.startswith("-"))}
    return fields | ({"account": account} if account else {})


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group whose first failure comes out as itself: callers wait for our errors, not for groups of them."""
    task = asyncio.current_task()
    cancels = task.cancelling() if task else 0
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        # Before 3.13 a group leaves its own cancel of this task counted (gh-116720). With that, `asyncio.timeout` of
        # 3.11.2 (Debian 12) raises CancelledError instead of TimeoutError for the rest of the task's life.
        if sys.version_info < (3, 13) and task and task.cancelling() > cancels:
            task.uncancel()
        first: BaseException = failures
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Like `asyncio.to_thread`, but when cancelled it returns only after the thread has.

    What the thread writes to must not be closed under it: the number of a closed file soon belongs to another one.
    """
    future = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await ended(future)
        raise


async def ended(future: asyncio.Future[Any]) -> None:
    """Wait for the end of work whose outcome no longer matters; asyncio would report an error that nobody asks for."""
    await asyncio.wait({future})
    if not future.cancelled():
        future.exception()


async def given_up(future: asyncio.Future[Any] | None) -> None:
    """Cancel work in the background, and wait until it has ended; None is no work."""
    if future is not None:
        future.cancel()
        await ended(future)
