"""What accounting shows of a job, and when: slurmdbd lags behind the controller.

Measured on a real server (``backend/firecrest-v2.md``): for up to about 5 s a running job may read PENDING with start
and nodes set; one that has ended may still read RUNNING, may carry the name ``allocation`` with an empty partition and
working directory, and may be missing from listings although a read by id finds it; a new one may be missing from
listings although a read by id finds it. A terminal state is never shown before it is true.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum

from hpcbridge_sandbox.scheduling.local.job import Job


class View(Enum):
    """How a record shows in one answer."""

    TRUE = "as it is"
    PENDING = "started, but accounting still says PENDING"
    RUNNING = "ended, but accounting still says RUNNING"
    ALLOCATION = "ended, and accounting holds the placeholder named allocation"
    MISSING = "not in this listing"


_KNUTH = 2654435761


def _fraction(job_id: int, salt: int) -> float:
    """Return a number in [0, 1) that is the same in every answer about the job."""
    return ((job_id * 31 + salt) * _KNUTH % 2**32) / 2**32


@dataclass
class Accounting:
    """The lag and the faults; changed while the sandbox runs by ``POST …/scheduler-faults``.

    Attributes:
        lag: longest time in seconds for which accounting is behind.
        missing_fraction: part of the rows left out of every listing, drawn anew each time.
        allocation_rows: every job that has just ended shows as ``allocation`` (else a third of them).
        listing_error: every listing fails.
        lost_jobs: ids of jobs that neither the queue nor accounting knows any more, though they may go on.
    """

    lag: float = 5.0
    missing_fraction: float = 0.0
    allocation_rows: bool = False
    listing_error: bool = False
    lost_jobs: frozenset[str] = frozenset()

    def settled(self, job: Job, now: float) -> bool:
        """True when no answer about the job will change any more."""
        return job.terminal and job.end is not None and now >= job.end + self.lag

    def view(self, job: Job, now: float, *, listing: bool) -> View:
        """Return how the job shows at `now` (Unix time), in a listing or by id."""
        if listing and self.missing_fraction and random.random() < self.missing_fraction:  # noqa: S311
            return View.MISSING
        if job.terminal and job.end is not None:
            return self._ended(job, now, listing=listing)
        if listing and now < job.submitted + self._new_delay(job):
            return View.MISSING
        if job.start is not None and now < job.start + self._start_delay(job):
            return View.PENDING
        return View.TRUE

    def _new_delay(self, job: Job) -> float:
        """Half of the jobs are listed at once."""
        fraction = _fraction(job.master, 1)
        return 0.0 if fraction < 0.5 else self.lag * (2 * fraction - 1)

    def _start_delay(self, job: Job) -> float:
        fraction = _fraction(job.job_id, 2)
        return 0.0 if fraction < 0.5 else self.lag * (2 * fraction - 1)

    def _ended(self, job: Job, now: float, *, listing: bool) -> View:
        end = job.end if job.end is not None else now
        if now >= end + self.lag * (0.2 + 0.8 * _fraction(job.job_id, 3)):
            return View.TRUE
        kind = _fraction(job.job_id, 4)
        if self.allocation_rows or kind < 1 / 3:
            return View.MISSING if listing else View.ALLOCATION
        if kind < 2 / 3 and job.start is not None:
            return View.RUNNING
        return View.MISSING if listing and random.random() < 0.5 else View.TRUE  # noqa: S311
