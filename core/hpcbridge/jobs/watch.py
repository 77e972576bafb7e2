"""One JobWatcher per registry entry and system, whatever the number of jobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpcbridge.firecrest import FirecrestClient
    from hpcbridge.jobs.state import JobInfo


@dataclass(frozen=True, slots=True)
class WatchPolicy:
    """Time constants, in seconds. `misses`: listings without a job before it is asked for by id."""

    first_tick: float = 1.0
    max_tick: float = 15.0
    lag: float = 30.0
    misses: int = 3


class JobWatcher:
    """Watches any number of jobs of one system with one listing and at most one by-id read per tick."""

    def __init__(
        self,
        client: FirecrestClient,
        system: str,
        *,
        policy: WatchPolicy | None = None,
        all_users: bool = False,
        account: str | None = None,
    ) -> None:
        """Nothing is sent before the first `wait`."""

    async def wait(
        self,
        job_id: str,
        *,
        name: str | None = None,
        submitted_at: datetime | None = None,
        array: str | None = None,
        on_change: Callable[[JobInfo], None] | None = None,
    ) -> JobInfo:
        """Until the job has ended (every task of an array). Raises JobVanished when it is confirmed absent."""
        raise NotImplementedError

    async def info(self, job_id: str, *, name: str | None = None) -> JobInfo:
        """The job now, by one by-id read. Raises JobNotFound."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """End the watching task; waiters get a CancelledError."""
