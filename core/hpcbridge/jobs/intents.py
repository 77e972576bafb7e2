"""Intents: what was meant to be submitted, recorded before the POST, so that no crash can make a second job of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Intent:
    """The record of one submit. `since`: when it was first meant (aware); `job_id`: None while no answer is known."""

    new: bool
    since: datetime
    job_id: str | None = None


class IntentStore(Protocol):
    """Where intents are kept. A record must survive a crash of this process, and be visible to the one that replaces
    it.

    `key` is the job's full name (`names.job_name`): it stands for (site, system, user, work directory, key), so a
    store needs no other
    part. Hosts with a database of their own implement these three.
    """

    async def begin(self, key: str, spec_hash: str) -> Intent:
        """Record the intent if there is none, atomically: `new` is True for exactly one caller.

        Raises KeyConflict when the key was recorded with another hash.
        """
        ...

    async def bind(self, key: str, job_id: str) -> None:
        """Record the scheduler's id."""
        ...

    async def abandon(self, key: str) -> None:
        """Forget an intent of which the scheduler has said a definite no; the key may be used again, with another
        script."""
        ...
