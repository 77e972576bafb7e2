"""What this host remembers of CI jobs: one directory (0700) per job, one JSON file per attempt of it.

    <state>/jobs/<GitLab's host>-<id>/attempt-1.json
                                     /verdict.json     why prepare failed for good

The runner deletes its own directory after each attempt; a verdict outlives that, so that a job that has waited in the
queue in vain does not wait three times.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcbridge_gitlab.verdicts import Cause, Stop

if TYPE_CHECKING:
    from hpcbridge_gitlab.contract import CiJob

FORMAT = 1
"""Version of the records."""

MARK = "hpcbridge-attempt"
"""File in the runner's own directory of an attempt: which record is its."""


@dataclass
class Attempt:
    """One attempt to run a CI job: its allocation, its directories, how far it has come.

    Attributes:
        ci_job, number: the CI job's id; 1 for the first attempt.
        project, label: GitLab's path of the project; the record's directory.
        facts: what rules ask for, as GitLab has said or signed it when the attempt began.
        site, system: where.
        user: our name there.
        home: directory of the attempt on the system: `home/box` is the agent's, `home/builds` the job's builds_dir.
        slot: directory of this project's clone on this host.
        key, name, job_id: of the allocation's submit-once; the two last are empty as long as they are not known.
        upload_limit: bytes of one direct upload.
        seq: number of the last file that was given to the agent.
        pushed: whether the sources are on the system.
        wide: whether the script runs once per task.
        queued, started: epoch seconds.
        node: where the agent runs.
        limit: minutes of the allocation.
        account: that is charged.
        stopped: whether cleanup has seen the allocation's end.
        path: the record's file.
    """

    ci_job: int
    number: int
    project: str
    label: str
    facts: dict[str, Any] = field(default_factory=dict)
    site: str = ""
    system: str = ""
    user: str = ""
    home: str = ""
    slot: str = ""
    key: str = ""
    name: str = ""
    job_id: str = ""
    upload_limit: int = 5 << 20
    seq: int = 0
    pushed: bool = False
    wide: bool = False
    queued: float = 0.0
    started: float = 0.0
    node: str = ""
    limit: int = 0
    account: str = ""
    stopped: bool = False
    path: str = ""

    @property
    def box(self) -> str:
        """The agent's directory on the system."""
        return f"{self.home}/box"

    @property
    def builds(self) -> str:
        """builds_dir, as the runner is told."""
        return f"{self.home}/builds"

    def save(self) -> None:
        """Write the record."""
        write_json(Path(self.path), {"format": FORMAT, **asdict(self)})

    @property
    def age(self) -> float:
        """Seconds since the record was last written: how long nobody has worked for this attempt."""
        return time.time() - Path(self.path).stat().st_mtime


class Records:
    """All records below a state directory."""

    def __init__(self, state: Path) -> None:
        """`state` is made (0700) when it is not there."""
        self.root = state / "jobs"
        for folder in (state, self.root):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if state.stat().st_mode & 0o077:
            raise Stop(Cause.CONFIGURATION, f"{state} is open to others", hint=f"chmod 700 {state}")

    def begin(self, job: CiJob) -> Attempt:
        """A new attempt of this job; the working directory is the runner's own for it, and gets a mark."""
        folder = self.root / job.label
        folder.mkdir(mode=0o700, exist_ok=True)
        number = 1 + max((attempt.number for attempt in self.of(job)), default=0)
        attempt = Attempt(job.id, number, job.project_path, job.label, path=str(folder / f"attempt-{number}.json"))
        attempt.save()
        Path(MARK).write_text(attempt.path, encoding="utf-8")
        return attempt

    def of(self, job: CiJob) -> list[Attempt]:
        """The attempts of a job, oldest first."""
        return sorted(self._in(self.root / job.label), key=lambda attempt: attempt.number)

    def all(self) -> Iterator[Attempt]:
        """Every attempt of every job."""
        for folder in sorted(self.root.iterdir()):
            yield from self._in(folder)

    def _in(self, folder: Path) -> Iterator[Attempt]:
        for path in folder.glob("attempt-*.json"):
            if (attempt := read_attempt(path)) is not None:
                yield attempt

    def verdict(self, job: CiJob) -> Stop | None:
        """Why this job failed for good, in an earlier attempt."""
        try:
            return Stop.from_json(json.loads((self.root / job.label / "verdict.json").read_bytes()))
        except (OSError, ValueError, KeyError):
            return None

    def remember(self, job: CiJob, stop: Stop) -> None:
        """Let later attempts of this job end in the same way at once."""
        write_json(self.root / job.label / "verdict.json", stop.to_json())

    def forget(self, attempt: Attempt) -> None:
        """Drop an attempt's record, and its job's directory with the last one; a verdict stays a while (see gc)."""
        Path(attempt.path).unlink(missing_ok=True)

    def sweep(self, older: float) -> None:
        """Drop directories without attempts that have not changed for `older` seconds."""
        for folder in self.root.iterdir():
            if not any(folder.glob("attempt-*.json")) and time.time() - folder.stat().st_mtime > older:
                shutil.rmtree(folder, ignore_errors=True)


def read_attempt(path: Path) -> Attempt | None:
    """The record in a file; None when there is none. Fields of later versions are ignored."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    known = {item.name for item in fields(Attempt)}
    return Attempt(**{name: value for name, value in data.items() if name in known} | {"path": str(path)})


def current(records: Records, job: CiJob) -> Attempt:
    """The attempt that the runner's directory (the working directory) belongs to. Raises Stop."""
    with contextlib.suppress(OSError):
        found = read_attempt(Path(Path(MARK).read_text(encoding="utf-8").strip()))
        if found is not None and found.label == job.label:
            return found
    attempts = records.of(job)
    if not attempts:
        raise Stop(Cause.CONFIGURATION, "this CI job was not prepared here: config_exec must be hpcbridge-gitlab, too")
    return attempts[-1]


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Replace a file (0600) atomically."""
    write_text(path, json.dumps(data))


def write_text(path: Path, text: str) -> None:
    """Replace a file (0600) atomically."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
