"""``--dependency``: what a job waits for; no I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from hpcbridge_sandbox.scheduling.local.job import Job


class Verdict(Enum):
    """Whether a dependency lets a job run."""

    MET = "met"
    WAITING = "waiting"
    NEVER = "never"


@dataclass(frozen=True)
class Term:
    """One condition: ``afterok:112``; `job_id` is None for ``singleton``."""

    kind: str
    job_id: int | None


_KINDS = ("after", "afterany", "afterok", "afternotok", "aftercorr", "afterburstbuffer")


def parse_dependency(text: str) -> tuple[list[Term], bool]:
    """Return the conditions and whether any one is enough (``?``) instead of all (``,``). Raises ValueError."""
    terms = []
    for piece in re.split(r"[,?]", text):
        kind, _, ids = piece.partition(":")
        if kind == "singleton" and not ids:
            terms.append(Term(kind, None))
            continue
        numbers = [number.partition("+")[0].partition("_")[0] for number in ids.split(":")]
        if kind not in _KINDS or not all(number.isdigit() for number in numbers):
            raise ValueError(text)
        terms += [Term(kind, int(number)) for number in numbers]
    return terms, "?" in text


def _judge(term: Term, records: Sequence[Job]) -> Verdict:
    if not records:
        return Verdict.MET  # an id that the controller does not know holds nothing back (seen on Slurm 22.05)
    if term.kind == "after":
        begun = all(job.start is not None or job.terminal for job in records)
        return Verdict.MET if begun else Verdict.WAITING
    if not all(job.terminal for job in records):
        failed = any(job.terminal and job.state != "COMPLETED" for job in records)
        return Verdict.NEVER if failed and term.kind in ("afterok", "aftercorr") else Verdict.WAITING
    good = all(job.state == "COMPLETED" for job in records)
    if term.kind in ("afterok", "aftercorr"):
        return Verdict.MET if good else Verdict.NEVER
    if term.kind == "afternotok":
        return Verdict.NEVER if good else Verdict.MET
    return Verdict.MET


def judge(job: Job, find: Callable[[int], Sequence[Job]], same_name: Callable[[Job], bool]) -> Verdict:
    """Return whether the job may run.

    `find` gives the records of an id; `same_name` says whether an earlier job of that name and user is still there.
    """
    if not job.request.options.dependency:
        return Verdict.MET
    terms, any_one = parse_dependency(job.request.options.dependency)
    verdicts = []
    for term in terms:
        if term.job_id is None:
            verdicts.append(Verdict.WAITING if same_name(job) else Verdict.MET)
        else:
            verdicts.append(_judge(term, find(term.job_id)))
    order = (Verdict.MET, Verdict.WAITING, Verdict.NEVER) if any_one else (Verdict.NEVER, Verdict.WAITING, Verdict.MET)
    return next(verdict for verdict in order if verdict in verdicts)
