"""The jobs that AiiDA asks for: all of them are watched by hpcbridge's one watcher, and its knowledge is the answer.

AiiDA takes an id that is missing from an answer for a job that is done. So every id is answered, and done is only what
accounting says has ended, or what has been looked for by its id, twice, long after it was last seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from hpcbridge.errors import JobVanished
from hpcbridge.jobs.state import JobInfo, JobState

if TYPE_CHECKING:
    from hpcbridge.jobs.watch import JobWatcher
    from hpcbridge_aiida.sessions import Session

log = logging.getLogger(__name__)

FIRST_ANSWER = 15.0
"""Seconds for which questions about a new job wait for the listing that tells of it; later ones take what is known.

AiiDA writes every job that it has asked for into its database at each answer: 50 ms of computing each, which hundreds
of jobs in a busy event loop would repeat every few seconds to learn nothing.
"""
UNASKED = 900.0
"""Seconds after which a job that nobody asks for any more is no longer watched."""
ENDS_KEPT = 10_000

VANISHED = "VANISHED"
"""The raw state of a job that neither the queue nor accounting knows."""


@dataclass(slots=True)
class _Followed:
    """One job: what waits for its end, what is known, and when somebody first and last asked (monotonic seconds)."""

    task: asyncio.Task[None]
    since: float
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    info: JobInfo | None = None
    asked: float = 0.0


class Watch:
    """What is known of jobs of one system."""

    def __init__(self, session: Session) -> None:
        """Nothing is asked yet."""
        self._session = session
        self._followed: dict[str, _Followed] = {}
        self._ends: OrderedDict[str, JobInfo] = OrderedDict()
        self._submitted: dict[str, tuple[str, datetime]] = {}

    @property
    def _watcher(self) -> JobWatcher:
        return self._session.handle.watcher

    def submitted(self, job_id: str, name: str, when: datetime) -> None:
        """A job was submitted from here: its name and time spare questions."""
        self._submitted[job_id] = (name, when)

    async def look(self, job_ids: Iterable[str]) -> dict[str, JobInfo | None]:
        """What is known of each; None where no answer has told anything yet.

        Raises HpcBridgeError where the server refuses us.
        """
        ids = list(dict.fromkeys(job_ids))
        now = time.monotonic()
        followed = [self._follow(job_id, now) for job_id in ids if job_id not in self._ends]
        await self._first_answers([each for each in followed if not each.heard.is_set()], now)
        self._drop_unasked(now)
        return {job_id: self._known(job_id) for job_id in ids}

    async def end(self, job_id: str) -> JobInfo:
        """How a job ended, or what is known of it now. Raises JobNotFound."""
        if job_id in self._ends:
            return self._ends[job_id]
        name = self._submitted.get(job_id, (None, None))[0]
        return await self._watcher.info(job_id, name=name)

    @staticmethod
    async def _first_answers(unheard: list[_Followed], now: float) -> None:
        """Until something is known of each; of what is still unknown long after the first question nobody waits."""
        left = max((each.since for each in unheard), default=now) + FIRST_ANSWER - now
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                for each in unheard:
                    await each.heard.wait()

    def _follow(self, job_id: str, now: float) -> _Followed:
        found = self._followed.get(job_id)
        if found is None:
            found = self._followed[job_id] = _Followed(self._session.spawn(self._until_end(job_id)), now)
        found.asked = now
        return found

    def _known(self, job_id: str) -> JobInfo | None:
        if job_id in self._ends:
            return self._ends[job_id]
        found = self._followed[job_id]
        if found.task.done() and not found.task.cancelled() and (error := found.task.exception()) is not None:
            del self._followed[job_id]
            raise error
        return found.info

    async def _until_end(self, job_id: str) -> None:
        await asyncio.sleep(0)  # until `_follow` has written down whom this is for
        followed = self._followed[job_id]
        name, when = self._submitted.get(job_id, (None, None))

        def hear(info: JobInfo) -> None:
            followed.info = info
            followed.heard.set()

        try:
            self._ended(job_id, await self._watcher.wait(job_id, name=name, submitted_at=when, on_change=hear))
        except JobVanished as error:
            log.warning("%s", error)
            reason = "neither the queue nor accounting knows the job any more"
            self._ended(job_id, JobInfo(job_id, name or "", JobState.UNKNOWN, reason=reason, raw_state=VANISHED))
        finally:
            followed.heard.set()

    def _ended(self, job_id: str, info: JobInfo) -> None:
        self._ends[job_id] = info
        self._followed.pop(job_id, None)
        self._submitted.pop(job_id, None)
        while len(self._ends) > ENDS_KEPT:
            self._ends.popitem(last=False)

    def _drop_unasked(self, now: float) -> None:
        for job_id, followed in list(self._followed.items()):
            if now - followed.asked > UNASKED:
                followed.task.cancel()
                del self._followed[job_id]
