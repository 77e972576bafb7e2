"""The file that stands for a run: what `attach`, `collect` and `cancel` need to know of it, and nothing secret.

Each run that has not ended also has one in the state directory, under what identifies it (the same command, in the same
CI job or the same directory), beside a lock that its process holds. A process that was killed leaves both; the next one
that is started with the same command finds a lock that nobody holds, and goes on with that run. Two processes side by
side are two runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
import time
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path

from hpcbridge.errors import ConfigurationError
from hpcbridge.jobs.intents import RETENTION_DAYS, state_directory, try_lock

FORMAT = 1
"""Version of the file's format."""


class Phase(StrEnum):
    """How far a run has come: in what follows PREPARING a job may exist, and its files are not touched any more."""

    PREPARING = "preparing"
    SUBMITTING = "submitting"
    SUBMITTED = "submitted"


@dataclass(frozen=True)
class Handle:
    """One run.

    Attributes:
        url, system: the deployment and the cluster; `site` is the section of the configuration file, where one was
            named.
        key, name, workdir: what the job was submitted under: they find it even where `job_id` is still unknown.
        own_workdir: whether the work directory was made for this run alone.
        pull: patterns of the results, below the work directory; `into`: where they go on this machine (absolute).
        allow_missing: whether a pattern may match nothing.
        queue_timeout: seconds, None for none.
        submitted_at: seconds since 1970, of the submit (before it: of the run's beginning).
    """

    url: str
    system: str
    key: str
    name: str
    workdir: str
    site: str | None = None
    account: str | None = None
    own_workdir: bool = False
    job_id: str | None = None
    phase: Phase = Phase.PREPARING
    pull: tuple[str, ...] = ()
    into: str = "."
    allow_missing: bool = False
    queue_timeout: float | None = None
    submitted_at: float = field(default_factory=time.time)

    def save(self, path: Path) -> None:
        """Write the file (mode 0600), whole or not at all."""
        text = json.dumps({"format": FORMAT, "kind": "hpcbridge run"} | asdict(self), indent=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def load(path: Path) -> Handle:
    """Read a handle file. Raises ConfigurationError for what is none."""
    hint = "`hpcbridge run --handle FILE` writes one"
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"the handle cannot be read: {error.strerror}", path=str(path), hint=hint) from None
    except ValueError:
        data = None
    if not isinstance(data, dict) or data.get("kind") != "hpcbridge run":
        raise ConfigurationError("this is not the handle of a run", path=str(path), hint=hint)
    if int(data.get("format", 1)) > FORMAT:
        raise ConfigurationError(
            f"the handle has format {data['format']}, this version knows up to {FORMAT}",
            path=str(path),
            hint="A newer hpcbridge wrote it: use that one",
        )
    known = {item.name for item in fields(Handle)}
    try:
        made = Handle(**{name: value for name, value in data.items() if name in known})
        return replace(made, phase=Phase(made.phase), pull=tuple(made.pull))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"the handle is damaged: {error}", path=str(path), hint=hint) from None


class Record:
    """A run that has not ended, in the state directory; held by this process until `release`."""

    def __init__(self, path: Path, lock: int | None, left: Handle | None) -> None:
        """`left` is what an earlier process left behind, None for a new run."""
        self.path = path
        self.left = left
        self._lock = lock

    def save(self, handle: Handle) -> None:
        """Write down how far the run has come."""
        handle.save(self.path)

    def forget(self) -> None:
        """The run has ended, and whoever started it knows how: the same command again is another run."""
        self.path.unlink(missing_ok=True)

    def release(self) -> None:
        """Let go of it; what was not forgotten is there for the same command again."""
        if not self.path.exists():
            self.path.with_suffix(".lock").unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def record_of(identity: str) -> Record:
    """The record of a run that was left behind under `identity`, else a new one."""
    directory = state_directory() / "runs"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    _sweep(directory)
    for path in sorted(directory.glob(f"{identity}-*.json")):
        if (lock := try_lock(path.with_suffix(".lock"))) is None:
            continue  # another process is at it
        if path.exists():  # else it has just ended
            return Record(path, lock, _left(path))
        os.close(lock)
    path = directory / f"{identity}-{secrets.token_hex(4)}.json"
    return Record(path, try_lock(path.with_suffix(".lock")), None)


def _left(path: Path) -> Handle | None:
    try:
        return load(path)
    except ConfigurationError:
        return None  # cut short by a full disk: what it would have told is found by the key, or is new


def _sweep(directory: Path) -> None:
    horizon = time.time() - RETENTION_DAYS * 86400
    for path in directory.glob("*"):
        with contextlib.suppress(OSError):  # another process sweeps too
            if path.stat().st_mtime < horizon:
                path.unlink()
