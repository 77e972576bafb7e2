"""Requests for a job of the server's own, which cannot be keyed: noted before they are made and when they are answered.

Lines in the journal: `asked` (s since 1970), `answer` (the server's directives). After a lost answer the request is
made again; the job that it may have made is found by its script and ended when all is over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from hpcbridge.errors import AmbiguousOutcome, HpcBridgeError
from hpcbridge.staging import server_jobs
from hpcbridge.staging.context import Transfer
from hpcbridge.staging.journal import Entry, Journal

ATTEMPTS = 3
"""Requests at most whose answers are lost."""


async def ask(journal: Journal, about: Entry, request: Callable[[], Awaitable[Entry]]) -> None:
    """Make a request for the transfer `about`, which begins with it, until there is an answer; note it.

    Raises AmbiguousOutcome, and what `request` raises: no job exists then.
    """
    unanswered = _moments(journal)
    journal.start(**about)
    for moment in unanswered:
        journal.add(asked=moment)
    for attempt in range(1, ATTEMPTS + 1):
        journal.add(asked=int(time.time()))
        try:
            journal.add(answer=await request())
            return
        except AmbiguousOutcome:
            if attempt == ATTEMPTS:
                raise
            await asyncio.sleep(1.0)
        except HpcBridgeError:
            if len(_moments(journal)) == 1:
                journal.remove()
            raise


def answer(journal: Journal) -> Entry | None:
    """The server's directives, None while there are none."""
    found = journal.noted("answer")
    return found[-1]["answer"] if found else None


def last(journal: Journal) -> int:
    """When the last request was made (s since 1970); 0 without one."""
    return max(_moments(journal), default=0)


async def clear(t: Transfer, journal: Journal, name: str, path: str) -> None:
    """End what lost answers have left behind: jobs called `name` about `path`."""
    unanswered, known = _moments(journal), _job_ids(journal)
    if known:
        unanswered = unanswered[:-1]
    if unanswered:
        await server_jobs.clear_unanswered(t, name, path, unanswered, known)


def _job_ids(journal: Journal) -> set[str]:
    # The answers hold presigned URLs: none stays in a local variable that a traceback might show.
    return {entry["answer"]["transferJob"]["jobId"] for entry in journal.noted("answer")}


def _moments(journal: Journal) -> list[int]:
    return [entry["asked"] for entry in journal.noted("asked")]
