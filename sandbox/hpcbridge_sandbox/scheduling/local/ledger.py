"""The queue's memory in the sandbox's SQLite file."""

from __future__ import annotations

import json
from collections.abc import Iterable

from hpcbridge_sandbox.scheduling.local.job import REQUESTS, Job, Request, dump_job, load_job
from hpcbridge_sandbox.store import Store


class Ledger:
    """Two tables: what was submitted (one row per submit) and what became of it (one row per record)."""

    def __init__(self, store: Store) -> None:
        """Make the tables when they are not there."""
        self._store = store
        store.table(
            "CREATE TABLE IF NOT EXISTS queue_request (request_id INTEGER PRIMARY KEY, request TEXT NOT NULL)",
            "CREATE TABLE IF NOT EXISTS queue_job (job_id INTEGER PRIMARY KEY, request_id INTEGER NOT NULL,"
            " record TEXT NOT NULL)",
        )

    @property
    def next_id(self) -> int:
        """The lowest id that no restart has handed out."""
        return int(self._store.get("queue_next_id", 1))

    def add(self, request_id: int, request: Request, jobs: Iterable[Job], next_id: int) -> None:
        """Write a new submit down, durably against a kill of the sandbox, before its id is told to anyone."""
        with self._store.transaction():
            text = REQUESTS.dump_json(request).decode()
            self._store.execute("INSERT INTO queue_request VALUES (?, ?)", (request_id, text))
            self.save((job, request_id) for job in jobs)
            self._store.put("queue_next_id", next_id)

    def save(self, jobs: Iterable[tuple[Job, int]]) -> None:
        """Write the present state of records; each comes with the id of its request."""
        self._store.executemany(
            "INSERT INTO queue_job VALUES (?, ?, ?) ON CONFLICT (job_id) DO UPDATE SET record = excluded.record",
            ((job.job_id, request_id, json.dumps(dump_job(job))) for job, request_id in jobs),
        )

    def keep_next_id(self, next_id: int) -> None:
        """Remember the lowest free id."""
        self._store.put("queue_next_id", next_id)

    def load(self) -> list[tuple[Job, int]]:
        """Return every record with its request's id, oldest first."""
        requests = {
            row["request_id"]: REQUESTS.validate_json(row["request"])
            for row in self._store.query("SELECT * FROM queue_request")
        }
        return [
            (load_job(json.loads(row["record"]), requests[row["request_id"]]), row["request_id"])
            for row in self._store.query("SELECT * FROM queue_job ORDER BY job_id")
        ]
