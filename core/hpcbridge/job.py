"""One batch job: its state, its end, its output."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from hpcbridge._output_paths import Stream, output_path

if TYPE_CHECKING:
    from hpcbridge.errors import JobFailed
    from hpcbridge.firecrest import FirecrestClient
    from hpcbridge.jobs.spec import JobSpec
    from hpcbridge.jobs.state import JobInfo
    from hpcbridge.jobs.submit import Submitted
    from hpcbridge.jobs.watch import JobWatcher
    from hpcbridge.system import System

logger = logging.getLogger(__name__)

_LATE = timedelta(minutes=2)
"""For so long after a job's end its output may still arrive on the file system that the server reads."""


def _long_over(info: JobInfo) -> bool:
    return info.is_terminal and info.ended is not None and datetime.now(UTC) - info.ended > _LATE


class Job:
    """One batch job on one system."""

    def __init__(
        self,
        system: System,
        job_id: str,
        name: str | None = None,
        *,
        spec: JobSpec | None = None,
        submitted: Submitted | None = None,
        since: datetime | None = None,
    ) -> None:
        """Prefer `System.submit()` or `System.job()`."""
        self.system = system
        self.id = job_id
        self.name = name
        self.spec = spec
        self.adopted = submitted is not None and submitted.adopted
        """True when `submit` found the job that an earlier submit with the same key had made."""
        self._since = since
        self._array = submitted.array if submitted is not None else None
        self._env_path = submitted.env_path if submitted is not None else None

    def __repr__(self) -> str:
        return f"Job({self.id} on {self.system!r})"

    async def info(self) -> JobInfo:
        """State, exit code, signal, reason, times and nodes as of now. Raises JobNotFound."""
        async with self.system._use() as (entry, system):
            return await self._now(entry.watcher(system))

    async def wait(self, on_change: Callable[[JobInfo], None] | None = None, *, check: bool = False) -> JobInfo:
        """Wait until the job (every task of an array) has ended; outages are waited out.

        `on_change` is told every change of state. With `check` a job that did not end well raises JobFailed (TimeLimit,
        OutOfMemory …) with the last lines it wrote. Raises JobVanished.
        """
        async with self.system._use() as (entry, system):
            info = await self._end(entry.watcher(system), on_change)
            await self._remove_environment(entry.client, system)
            if check and not info.ok:
                from hpcbridge.jobs.logs import post_mortem

                failure = await post_mortem(entry.client, system, info)
                assert failure is not None
                raise failure
            return info

    async def _now(self, watcher: JobWatcher) -> JobInfo:
        return await watcher.info(self.id, name=self.name)

    async def _end(self, watcher: JobWatcher, on_change: Callable[[JobInfo], None] | None = None) -> JobInfo:
        return await watcher.wait(
            self.id, name=self.name, submitted_at=self._since, array=self._array, on_change=on_change
        )

    async def _remove_environment(self, client: FirecrestClient, system: str) -> None:
        """Remove the private file of `env` values; it stays (mode 0600, in the work directory) when that fails."""
        from hpcbridge.errors import HpcBridgeError, PathNotFound

        if self._env_path is None:
            return
        path, self._env_path = self._env_path, None
        try:
            await client.rm(system, path)
        except PathNotFound:
            return
        except HpcBridgeError as error:
            logger.warning("the environment file of job %s stays on the system: %s", self.id, error)

    async def cancel(self, verify: bool = True) -> JobInfo:
        """End the job; with `verify` wait until the scheduler says that it has ended.

        Cancelling a job that has ended already is no error: its end is returned. One task of an array cannot be
        cancelled: FirecREST knows arrays as a whole. Raises JobNotFound, PermissionDenied, InvalidRequest.
        """
        from hpcbridge.errors import HpcBridgeError, InvalidRequest

        array, is_task, _ = self.id.partition("_")
        if is_task:
            raise InvalidRequest(
                "FirecREST cancels whole arrays, not single tasks",
                job_id=self.id,
                hint=f"To end all of its tasks: cancel {array}",
            )
        async with self.system._use() as (entry, system):
            watcher = entry.watcher(system)
            try:
                await entry.client.cancel(system, self.id)
            except HpcBridgeError as refusal:
                # The server answers 500 for finished, unknown and foreign jobs alike: look which it is.
                info = await self._now(watcher)
                if not info.is_terminal:
                    raise refusal from None
                return info
            if verify:
                return await self._end(watcher)
            return await self._now(watcher)

    async def output_path(self, stream: Stream = "stdout") -> str:
        """The absolute path of the file that holds standard output ("stdout") or standard error ("stderr")."""
        async with self.system._use() as (entry, system):
            return await output_path(entry.client, system, self.id, stream, spec=self.spec, name=self.name)

    async def logs(
        self, follow: bool = False, *, stream: Stream = "stdout", offset: int = 0, exact: bool = False
    ) -> AsyncGenerator[bytes]:
        """The bytes of a stream from `offset` on, each once; with `follow` until the job has ended and all is read.

        What is not UTF-8 beyond the server's direct limit (about 3.9 MB) comes with U+FFFD in its place; with `exact`
        as it is, but only at the end, and for the price of a small job. Of a whole array the tasks' streams come one
        after the other; to follow, name a task (`120_1`). Raises InvalidRequest for a whole array with `follow`.
        """
        from hpcbridge.errors import InvalidRequest
        from hpcbridge.jobs.logs import follow as follow_file

        async with self.system._use() as (entry, system):
            info = await self._now(entry.watcher(system))
            if info.tasks and follow:
                raise InvalidRequest(
                    "an array has one log per task",
                    job_id=self.id,
                    hint=f"Name one: {', '.join(task.job_id for task in info.tasks[:3])} …",
                )
            for part in [Job(self.system, task.job_id, self.name, spec=self.spec) for task in info.tasks] or [self]:
                path = await part.output_path(stream)
                late = follow and not _long_over(info)
                ended = asyncio.ensure_future(self._end(entry.watcher(system))) if late else None
                rest = partial(self._rest, path) if exact else None
                try:
                    async for chunk in follow_file(entry.client, system, path, until=ended, offset=offset, rest=rest):
                        yield chunk
                finally:
                    if ended is not None:
                        ended.cancel()

    async def _rest(self, path: str, offset: int) -> AsyncIterator[bytes]:
        """The bytes of a file from `offset` on, by a job where no request gives them."""
        account = self.spec.account if self.spec is not None else None
        async with aclosing(self.system.read(path, account=account)) as blocks:
            async for block in blocks:
                if offset < len(block):
                    yield block[offset:]
                offset = max(0, offset - len(block))

    async def post_mortem(self) -> JobFailed | None:
        """The error that tells how a failed job ended, with the last lines it wrote; None when it ended well."""
        from hpcbridge.jobs.logs import post_mortem

        async with self.system._use() as (entry, system):
            return await post_mortem(entry.client, system, await self._now(entry.watcher(system)))
