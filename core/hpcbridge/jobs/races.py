"""Jobs that found the lock of their key held (exit code 75): who holds it, and what becomes of an array's rest."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Protocol

from hpcbridge.errors import HpcBridgeError, JobNotFound
from hpcbridge.jobs.finder import lock_owner
from hpcbridge.jobs.guard import Places
from hpcbridge.jobs.ledger import WatchPolicy
from hpcbridge.jobs.names import is_ours
from hpcbridge.jobs.state import LOST_RACE_EXIT, JobInfo, JobState

if TYPE_CHECKING:
    from hpcbridge.firecrest import FirecrestClient

log = logging.getLogger(__name__)


class Look(Protocol):
    """How a job is read."""

    async def __call__(self, job_id: str, *, name: str | None = None) -> JobInfo:
        """One by-id read; raises JobNotFound."""


class Races:
    """The lost races of one system's watched jobs."""

    def __init__(self, client: FirecrestClient, system: str, policy: WatchPolicy, look: Look) -> None:
        """`look` reads a job again whose end accounting has not told in full."""
        self._client = client
        self._system = system
        self._policy = policy
        self._look = look
        self._withdrawn: dict[str, asyncio.Task[None]] = {}

    async def owner(self, info: JobInfo) -> str | None:
        """The id of the job that `info`'s job lost its lock to, or None."""
        if not may_have_lost(info):
            return None
        info = await self._beyond_placeholder(info)
        if not is_ours(info.name) or info.workdir is None:
            return None
        owner = await lock_owner(self._client, self._system, Places(info.workdir, info.name).lock)
        return owner if owner != info.job_id else None

    def withdraw_if_lost(self, array: JobInfo) -> None:
        """Cancel, once, what is left of an array whose first tasks found the lock held: the others would as well."""
        if may_have_lost(array) and array.job_id not in self._withdrawn:
            self._withdrawn[array.job_id] = asyncio.create_task(self._withdraw(array))

    async def _withdraw(self, array: JobInfo) -> None:
        try:
            if await self.owner(array) is not None:
                await self._client.cancel(self._system, array.job_id)
        except HpcBridgeError as error:
            log.info("array %s lost its lock, and its other tasks could not be cancelled: %s", array.job_id, error)

    async def _beyond_placeholder(self, info: JobInfo) -> JobInfo:
        """The info with its work directory, which accounting leaves out of an end's row for some seconds."""
        deadline = time.monotonic() + self._policy.lag
        while info.workdir is None and time.monotonic() < deadline:
            await asyncio.sleep(self._policy.first_tick)
            try:
                info = await self._look(info.job_id, name=info.name)
            except JobNotFound:
                break
            except HpcBridgeError as error:
                log.debug("looking for the work directory of job %s: %s", info.job_id, error)
        return info


def may_have_lost(info: JobInfo) -> bool:
    """Whether it, or a task of it, has ended with the code for a held lock."""
    ends = info.tasks or (info,)
    return any(end.state is JobState.FAILED and end.exit_code == LOST_RACE_EXIT for end in ends)
