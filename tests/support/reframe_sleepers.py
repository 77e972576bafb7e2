"""Runs of tests that sleep: long enough for something to happen to them."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from support.reframe_runs import Outcome, Running
from support.sandbox import SandboxProcess

WAITING = Path(__file__).parents[1] / "reframe" / "waiting"
_numbers = itertools.count()


@dataclass
class Sleepers:
    """`count` tests that sleep so many seconds each, and what is known of their jobs."""

    sandbox: SandboxProcess
    folder: Path
    count: int = 3
    seconds: float = 5
    word: str = "word"
    more: Mapping[str, str] | None = None
    mark: str = ""

    def __post_init__(self) -> None:
        self.mark = self.mark or f"mark-{os.getpid()}-{next(_numbers)}"

    def start(self, *arguments: str, policy: str = "async") -> Running:
        """Begin a run."""
        own = {"SLEEPERS": str(self.count), "SLEEP": str(self.seconds), "MARK": self.mark, "WORD": self.word}
        client = self.sandbox.client_env() | own | dict(self.more or {})
        return Running(self.folder, WAITING, client, *arguments, policy=policy)

    def run(self, *arguments: str, policy: str = "async") -> Outcome:
        """A run from begin to end."""
        return self.start(*arguments, policy=policy).end()

    def executions(self) -> dict[int, list[str]]:
        """Job ids, by test, as the jobs wrote them down themselves."""
        home = self.sandbox.host_path("/home/alice")
        paths = {number: home / f"{self.mark}-{number}" for number in range(self.count)}
        return {number: path.read_text().split() if path.exists() else [] for number, path in paths.items()}

    def states(self) -> dict[str, str]:
        """State of every job that was written down, as the local queue has it: accounting may be late."""
        self.sandbox.post("/scheduler-faults", {"accounting_lag": 0})
        try:
            with self.sandbox.client() as client:
                rows = client.get(f"/compute/{self.sandbox.system}/jobs").json()["jobs"] or []
        finally:
            self.sandbox.delete("/scheduler-faults")
        ids = {job for jobs in self.executions().values() for job in jobs}
        return {str(row["jobId"]): row["status"]["state"] for row in rows if str(row["jobId"]) in ids}

    def wait_running(self, running: Running) -> dict[int, list[str]]:
        """Until all run, and ReFrame knows the ids of all."""
        wait_for(lambda: all(self.executions().values()), running)
        journals = self.folder / "state" / "reframe"
        wait_for(lambda: len([p for p in journals.glob("*") if '"job_id": "' in p.read_text()]) == self.count, running)
        return self.executions()


def wait_for(what: Callable[[], object], running: Running, seconds: float = 400) -> None:
    """Until it is so; the run must go on meanwhile."""
    deadline = time.monotonic() + seconds
    while not what():
        assert running.process.poll() is None, running.output[-4000:]
        assert time.monotonic() < deadline, f"it did not happen in {seconds:.0f} s:\n{running.output[-3000:]}"
        time.sleep(0.2)
