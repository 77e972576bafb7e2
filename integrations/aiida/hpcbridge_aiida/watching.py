"""The jobs that AiiDA asks for: all of them are watched by hpcbridge's one watcher, and its knowledge is the answer.

AiiDA takes an id that is missing from an answer for a job that is done. So every id is answered, and done is only what
accounting says has ended, or what has been looked for by its id, twice, long after it was last seen.

What an answer costs is AiiDA's own work: it writes the state of every job that it asked for, changed or not, into its
database, which takes its event loop some 50 ms each. So an answer waits until there is something to tell.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from hpcbridge.errors import JobVanished
from hpcbridge.jobs.state import JobInfo, JobState

if TYPE_CHECKING:
    from hpcbridge.jobs.watch import JobWatcher
    from hpcbridge_aiida.sessions import Session

log = logging.getLogger(__name__)

FIRST_ANSWER = 2.0
"""Seconds for which the first question about a job waits for an answer; later ones take what is known."""
HOLD = 30.0
"""Seconds for which an answer waits for news at most."""
EACH = 0.2
"""Seconds for which an answer with news waits in a busy event loop, for each job in it that has none."""
LOOK = 0.05
"""Seconds of a nap, by which a busy event loop is told from one that has nothing else to do: that one wakes us late."""
LATE = 0.02
"""Seconds by which such a nap is longer in a busy loop."""
UNASKED = 900.0
"""Seconds after which a job that nobody asks for any more is no longer watched."""
ENDS_KEPT = 10_000

VANISHED = "VANISHED"
"""The raw state of a job that neither the queue nor accounting knows."""


@dataclass(slots=True)
class _Followed:
    """One job: what waits for its end, what is known, and what AiiDA was told.

    Monotonic seconds: when somebody last `asked`, and since when there is `news` that was not told.
    """

    task: asyncio.Task[None]
    news: float | None
    heard: asyncio.Event = field(default_factory=asyncio.Event)
    info: JobInfo | None = None
    told: JobState | None = None
    asked: float = 0.0

    @property
    def news_since(self) -> float | None:
        """The same; an end is always news."""
        return 0.0 if self.news is None and self.task.done() else self.news


class Watch:
    """What is known of jobs of one system."""

    def __init__(self, session: Session) -> None:
        """Nothing is asked yet."""
        self._session = session
        self._followed: dict[str, _Followed] = {}
        self._ends: OrderedDict[str, _Followed] = OrderedDict()
        self._submitted: dict[str, tuple[str, datetime]] = {}
        self._unasked: dict[str, float] = {}
        self._news = asyncio.Event()

    @property
    def _watcher(self) -> JobWatcher:
        return self._session.handle.watcher

    def submitted(self, job_id: str, name: str, when: datetime) -> None:
        """A job was submitted from here: its name and time spare questions."""
        self._submitted[job_id] = (name, when)
        self._unasked[job_id] = time.monotonic()
        self._news.set()

    async def look(self, job_ids: Iterable[str]) -> dict[str, JobInfo | None]:
        """What is known of each, as soon as there is news or after half a minute; None where nothing is known yet.

        Raises HpcBridgeError where the server refuses us.
        """
        now = time.monotonic()
        jobs = {job_id: self._ends.get(job_id) or self._follow(job_id, now) for job_id in job_ids}
        new = [
            asyncio.ensure_future(job.heard.wait())
            for job in jobs.values()
            if job.news is not None and not job.heard.is_set()
        ]
        if new:
            _, pending = await asyncio.wait(new, timeout=FIRST_ANSWER)
            for waiter in pending:
                waiter.cancel()
        await self._until_worth_telling(jobs.values())
        self._drop_unasked(now)
        return {job_id: self._tell(job_id, job) for job_id, job in jobs.items()}

    async def _until_worth_telling(self, jobs: Collection[_Followed]) -> None:
        """Wait for news; where only some of the jobs have any and the loop is busy, a while longer for more of it."""
        deadline = time.monotonic() + HOLD
        while True:
            self._news.clear()
            now = time.monotonic()
            news = [since for since in (job.news_since for job in jobs) if since is not None]
            unchanged = len(jobs) - len(news)
            # A job that was submitted meanwhile is asked for after this answer.
            self._unasked = {job_id: since for job_id, since in self._unasked.items() if now - since < HOLD}
            first = min((*news, *self._unasked.values()), default=None)
            if unchanged == 0 or now >= (deadline if first is None else min(deadline, first + EACH * unchanged)):
                return
            if first is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(deadline - now):
                        await self._news.wait()
            else:
                await asyncio.sleep(LOOK)
                if time.monotonic() - now < LOOK + LATE:
                    return

    async def end(self, job_id: str) -> JobInfo:
        """How a job ended, or what is known of it now. Raises JobNotFound."""
        if (ended := self._ends.get(job_id)) is not None and ended.info is not None:
            return ended.info
        name = self._submitted.get(job_id, (None, None))[0]
        return await self._watcher.info(job_id, name=name)

    def _follow(self, job_id: str, now: float) -> _Followed:
        found = self._followed.get(job_id)
        if found is None:
            since = self._unasked.pop(job_id, now)
            found = self._followed[job_id] = _Followed(self._session.spawn(self._until_end(job_id)), since)
        found.asked = now
        return found

    def _tell(self, job_id: str, job: _Followed) -> JobInfo | None:
        if job.task.done() and not job.task.cancelled() and (error := job.task.exception()) is not None:
            self._followed.pop(job_id, None)
            raise error
        job.told, job.news = job.info.state if job.info is not None else None, None
        return job.info

    async def _until_end(self, job_id: str) -> None:
        await asyncio.sleep(0)  # until `_follow` has written down whom this is for
        followed = self._followed[job_id]
        name, when = self._submitted.get(job_id, (None, None))

        def hear(info: JobInfo) -> None:
            followed.info = info
            followed.heard.set()
            if info.state != followed.told:
                self._has_news(followed)

        try:
            followed.info = await self._watcher.wait(job_id, name=name, submitted_at=when, on_change=hear)
        except JobVanished as error:
            log.warning("%s", error)
            reason = "neither the queue nor accounting knows the job any more"
            followed.info = JobInfo(job_id, name or "", JobState.UNKNOWN, reason=reason, raw_state=VANISHED)
        finally:
            followed.heard.set()
            self._has_news(followed)
        self._ends[job_id] = followed
        self._followed.pop(job_id, None)
        self._submitted.pop(job_id, None)
        while len(self._ends) > ENDS_KEPT:
            self._ends.popitem(last=False)

    def _has_news(self, job: _Followed) -> None:
        job.news = time.monotonic() if job.news is None else job.news
        self._news.set()

    def _drop_unasked(self, now: float) -> None:
        for job_id, followed in list(self._followed.items()):
            if now - followed.asked > UNASKED:
                followed.task.cancel()
                del self._followed[job_id]
