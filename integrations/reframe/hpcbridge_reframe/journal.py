"""What was submitted and not yet brought back, one file per stage directory: a run that was killed is gone on with.

A record is written after everything was shipped and before the job is submitted, and removed when the test has its
output or the job was cancelled. Only jobs that are recorded here are ever cancelled for the sake of a new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hpcbridge.jobs.intents import state_directory

FORMAT = 1
"""Version of the file; one of another version counts as none."""
FRESH = 24 * 3600.0
"""Seconds for which a job's output is taken for that of the test that asks for it again."""


@dataclass(frozen=True)
class Record:
    """`print` stands for all that was shipped, `key` for the job; `spec` is what was submitted, `at` Unix time."""

    print: str
    key: str
    spec: dict[str, Any]
    at: float
    job_id: str | None = None

    @property
    def is_fresh(self) -> bool:
        """Whether it may still be gone on with."""
        return time.time() - self.at < FRESH


class Journal:
    """The record of one stage directory on the cluster."""

    def __init__(self, path: Path) -> None:
        """`path` need not exist."""
        self.path = path

    @classmethod
    def of(cls, site: str, who: str, system: str, remote: str) -> Journal:
        """`site` is the deployment's URL, `who` the user, `remote` the absolute path."""
        name = hashlib.sha256("\0".join((site, who, system, remote)).encode()).hexdigest()[:32]
        return cls(state_directory() / "reframe" / name)

    def load(self) -> Record | None:
        """The record; None when there is none that can be read."""
        try:
            data = json.loads(self.path.read_text())
            return Record(**data) if data.pop("format") == FORMAT else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def save(self, record: Record) -> None:
        """Write it down, whole and on the disk. Raises OSError."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, new = tempfile.mkstemp(prefix=".new-", dir=self.path.parent)  # 0600
        try:
            with os.fdopen(fd, "w") as out:
                json.dump({"format": FORMAT, **asdict(record)}, out)
                out.flush()
                os.fsync(out.fileno())
            Path(new).replace(self.path)
        except BaseException:
            Path(new).unlink(missing_ok=True)
            raise

    def bind(self, record: Record, job_id: str) -> None:
        """Add the scheduler's id."""
        self.save(replace(record, job_id=job_id))

    def forget(self) -> None:
        """The test has its output."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
