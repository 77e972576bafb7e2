"""Which job belongs to a task instance, remembered so that no crash makes a second one.

One record per task instance (dag, run, task, map index) is written before the POST and again when the scheduler's id is
known. It lives in Airflow 3.3's task state store, which the retries of a task instance share and which survives the
loss of a worker; on 3.1 and 3.2 it lives in a Variable. A retry attaches to the recorded job only when clear number,
script and system are the same: a clear asks for a new job, and so does a changed script.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from hpcbridge.errors import KeyConflict
from hpcbridge.jobs.intents import Intent

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 1
STATE_KEY = "hpcbridge.attempt"


@dataclass(frozen=True)
class Attempt:
    """One intended run of a batch script.

    Attributes:
        number: 1 for the first job of this generation, one more for each job that ended badly before it.
        clear_number: how often the run had been cleared when the job was intended.
        spec_hash: digest of script, directives and environment as the operator made them.
        key: what the job's name and lock are derived from; unique per intended job.
        system: the cluster.
        since: when the POST was intended, ISO 8601; what a look-up by name has to reach back to.
        name: the job's name, known before the POST.
        job_id: the scheduler's id; None between intention and answer.
        refused: the scheduler said a definite no; no job exists.
    """

    number: int
    clear_number: int
    spec_hash: str
    key: str
    system: str
    since: str = ""
    name: str = ""
    job_id: str | None = None
    refused: bool = False

    def stands_for(self, *, clear_number: int, spec_hash: str, system: str) -> bool:
        """Whether the job that is wanted now is the recorded one: only then may a retry attach to it."""
        return (self.clear_number, self.spec_hash, self.system) == (clear_number, spec_hash, system)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with a format version."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Attempt:
        """The reverse of `to_json`; fields of newer versions are ignored."""
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        return cls(**known)


class AttemptStore(Protocol):
    """Where the record of one task instance lives. Called from worker threads, never from an event loop."""

    def read(self) -> Attempt | None:
        """The record, None when there is none."""

    def write(self, attempt: Attempt) -> None:
        """Replace the record; durable when it returns."""


class TaskStateAttempts:
    """The record in the task state store (Airflow 3.3 and newer)."""

    def __init__(self, accessor: Any) -> None:
        """`accessor` is `context["task_state_store"]`."""
        self._accessor = accessor

    def read(self) -> Attempt | None:
        """See AttemptStore."""
        data = self._accessor.get(STATE_KEY)
        return Attempt.from_json(data) if data else None

    def write(self, attempt: Attempt) -> None:
        """See AttemptStore. Kept as long as the run: a job may outlive the store's default retention."""
        from airflow.sdk.execution_time.context import NEVER_EXPIRE

        self._accessor.set(STATE_KEY, attempt.to_json(), retention=NEVER_EXPIRE)


class VariableAttempts:
    """The record in a Variable, for Airflow 3.1 and 3.2, which have no task state store."""

    def __init__(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> None:
        """One Variable per task instance."""
        self.name = f"hpcbridge.attempt/{dag_id}/{run_id}/{task_id}/{map_index}"

    def read(self) -> Attempt | None:
        """See AttemptStore."""
        from airflow.sdk import Variable

        data = Variable.get(self.name, default=None, deserialize_json=True)
        return Attempt.from_json(data) if data else None

    def write(self, attempt: Attempt) -> None:
        """See AttemptStore."""
        from airflow.sdk import Variable

        Variable.set(self.name, attempt.to_json(), serialize_json=True)


def attempts_of(context: Any) -> AttemptStore:
    """The store for the task instance that `context` is about."""
    accessor = context.get("task_state_store")
    if accessor is not None:
        return TaskStateAttempts(accessor)
    ti = context["ti"]
    return VariableAttempts(ti.dag_id, ti.run_id, ti.task_id, _map_index(ti))


def key_of(context: Any, number: int) -> str:
    """The key of the `number`-th job of this task instance in this clear generation.

    The run's start time tells a run from one of the same id that was deleted and made again.
    """
    ti, run = context["ti"], context["dag_run"]
    started = run.start_date.isoformat() if run.start_date else ""
    parts = (ti.dag_id, ti.run_id, started, ti.task_id, _map_index(ti), clear_number(context), number)
    return "airflow/" + "/".join(map(str, parts))


def clear_number(context: Any) -> int:
    """How often the run has been cleared: it rises on clear and never on retry."""
    return int(getattr(context["dag_run"], "clear_number", 0) or 0)


def label_of(dag_id: str, task_id: str, limit: int = 40) -> str:
    """A job label that Slurm's listings and the server's name filter can carry."""
    text = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{dag_id}.{task_id}")[-limit:]
    return text if re.match("[A-Za-z]", text) else f"t{text[1 - limit :]}"


def _map_index(ti: Any) -> int:
    return -1 if ti.map_index is None else int(ti.map_index)


class AttemptIntents:
    """Core's intent store over the record of one attempt: what `submit_once` reads and writes.

    Core's key is the job's full name; one record holds one attempt, so nothing else is looked up.
    """

    def __init__(self, store: AttemptStore, attempt: Attempt, *, new: bool) -> None:
        """`new` when no POST can have been sent for this attempt yet."""
        self._store = store
        self._new = new
        self.attempt = attempt

    async def begin(self, key: str, spec_hash: str) -> Intent:  # noqa: ARG002 - core's protocol
        """Record the intention before the POST; `new` tells whether it is the first time.

        `spec_hash` is not compared: the record's own is of what the operator asked for, core's of what it sends.
        """
        if self._new:
            since = datetime.now(UTC).isoformat()
            await self._write(replace(self.attempt, name=key, since=since, job_id=None, refused=False))
        elif key != self.attempt.name:
            raise KeyConflict(f"the record of job {self.attempt.name} is about another job than {key}")
        new, self._new = self._new, False
        return Intent(new=new, since=datetime.fromisoformat(self.attempt.since), job_id=self.attempt.job_id)

    async def bind(self, key: str, job_id: str) -> None:
        """Record the scheduler's id."""
        await self._write(replace(self.attempt, name=key, job_id=job_id))

    async def abandon(self, key: str) -> None:
        """The scheduler said a definite no: the next submit of this attempt is a first one again."""
        self._new = True
        await self._write(replace(self.attempt, name=key, refused=True))

    async def _write(self, attempt: Attempt) -> None:
        self.attempt = attempt
        await asyncio.to_thread(self._store.write, attempt)
