"""The keeper of orphans: ends the jobs in the ledger, again and again until their end is confirmed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hpcbridge.errors import HpcBridgeError, JobNotFound, JobVanished
from hpcbridge.jobs.finder import finder, window_for
from hpcbridge.jobs.guard import Places
from hpcbridge.jobs.prepare import remove_environment
from hpcbridge_jupyterhub import metrics

if TYPE_CHECKING:
    from hpcbridge import Hpc, System
    from hpcbridge_jupyterhub.backend import Backend
    from hpcbridge_jupyterhub.orphans import Orphan

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 2.0, 300.0
"""Seconds between two rounds; a new orphan, and a user's next token, begin one at once."""
FORGOTTEN = 10.0
"""Times accounting's lag for which an unknown job is still looked for."""
ATTEMPT = 60.0
"""Seconds for one attempt to end one job and see its end."""


class Keeper:
    """Ends orphans in the background of the hub's loop."""

    def __init__(self, backend: Backend, lag: float) -> None:
        """Nothing runs before `kick`; accounting may be `lag` seconds late."""
        self._backend = backend
        self._lag = lag
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._born = time.monotonic()
        self._absences: dict[str, list[float]] = {}
        self.busy: set[str] = set()
        """Keys whose submit is still under way in this process."""

    def kick(self) -> None:
        """There is something to do: a new orphan, or a token that was missing. Call it in the hub's loop."""
        self._news.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._rounds(), name="hpcbridge-orphans")

    async def _rounds(self) -> None:
        pause = FIRST_PAUSE
        while orphans := self._backend.orphans.all():
            metrics.ORPHANS.set(len(orphans))
            self._news.clear()
            await asyncio.gather(*(self._try(orphan) for orphan in orphans))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._news.wait()
                    pause = FIRST_PAUSE / 2
            pause = min(pause * 2, LONGEST_PAUSE)
        metrics.ORPHANS.set(0)

    async def _try(self, orphan: Orphan) -> None:
        if orphan.key in self.busy:
            return
        try:
            await self.end(orphan)
        except HpcBridgeError as error:
            log.info("job %s of %s is still to be ended: %s", orphan.job_id or orphan.name, orphan.user, error)
        except Exception:
            log.exception("job %s of %s is still to be ended", orphan.job_id or orphan.name, orphan.user)

    async def end(self, orphan: Orphan) -> bool:
        """Cancel it, and take it out of the ledger once its end is confirmed; False: not yet.

        Raises HpcBridgeError when nobody's credential could.
        """
        if orphan.name is None and orphan.job_id is None:
            self._backend.orphans.remove(orphan.key)  # it was never sent
            return True
        failure: HpcBridgeError | None = None
        for hpc in self._ways(orphan):
            try:
                async with asyncio.timeout(ATTEMPT), hpc:
                    system = hpc.system(self._backend.clusters[orphan.system].system)
                    await system.resolve()
                    done = await self._end_as(system, orphan)
            except TimeoutError:
                continue
            except HpcBridgeError as error:
                failure = failure or error
                continue
            if done:
                self._backend.orphans.remove(orphan.key)
                self._absences.pop(orphan.key, None)
            return done
        if failure is not None:
            raise failure
        return False

    def _ways(self, orphan: Orphan) -> list[Hpc]:
        """Whose credential may end it: the user's own first."""
        backend, ways = self._backend, []
        cluster = backend.clusters.get(orphan.system)
        if cluster is None:
            log.error(
                "job %s of %s ran on %s, which is not configured any more: end it by hand",
                orphan.job_id or orphan.name,
                orphan.user,
                orphan.system,
            )
            return []
        user = backend.user_named(orphan.user)
        if user is not None or cluster.credential == "site":
            ways.append(backend.as_user(user, cluster))
        service = backend.service(orphan.system)
        return [*ways, service.hpc] if service is not None else ways

    async def _end_as(self, system: System, orphan: Orphan) -> bool:
        ids = [orphan.job_id] if orphan.job_id else await self._found(system, orphan)
        if ids is None:
            return False
        for job_id in ids:
            try:
                info = await system.job(job_id, orphan.name).cancel(verify=True)
            except (JobNotFound, JobVanished):
                if orphan.job_id and (datetime.now(UTC) - orphan.since).total_seconds() < FORGOTTEN * self._lag:
                    return False  # accounting may not know it yet, or not for the moment
                continue
            log.info("job %s of %s has ended as %s", job_id, orphan.user, info.raw_state or info.state)
        if orphan.name and orphan.workdir:
            with contextlib.suppress(HpcBridgeError):
                await remove_environment(system.client, system.name, Places(orphan.workdir, orphan.name).private)
        return True

    async def _found(self, system: System, orphan: Orphan) -> list[str] | None:
        """Ids of a job whose submit was never answered.

        [] once it is certain that there is none, None while it is not: two listings without it, both begun when
        whatever the POST made would show. The POST was sent before this process began to look, at the latest.
        """
        assert orphan.name is not None
        window = window_for((datetime.now(UTC) - orphan.since).total_seconds())
        began = time.monotonic()
        rows = await finder(system.client, system.name).rows(orphan.name, window)
        if ids := sorted({row.array_job_id or row.job_id for row in rows}):
            return ids
        entered = began - (datetime.now(UTC) - orphan.since).total_seconds()
        horizon = max(self._born, entered) + (await system.info()).ssh.total + self._lag
        if began > horizon:
            absences = self._absences.setdefault(orphan.key, [])
            absences.append(began)
            if len(absences) >= 2:
                return []
        return None
