"""What a run was asked for, and where its work directory is."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcbridge.cli.running.ci import Ci
from hpcbridge.cli.running.moving import Push
from hpcbridge.cli.specs import label
from hpcbridge.cli.transfers import Choice
from hpcbridge.errors import Conflict

if TYPE_CHECKING:
    from hpcbridge.jobs.spec import JobSpec
    from hpcbridge.system import System

RUNS = "hpcbridge-runs"
"""Directory in the user's own, for work directories that nobody has named."""


@dataclass(frozen=True)
class Plan:
    """One `hpcbridge run`.

    Attributes:
        fields: those of the JobSpec, without its work directory.
        where: the system that the script's path names, None for the default one.
        pushes, choice, delete, max_size: what is sent, and of directories which part (see `System.sync`).
        share: push although another job still works in the directory.
        pulls, into, allow_missing: what is fetched, where to, and whether a pattern may match nothing.
        cleanup: remove the work directory when all went well.
        queue_timeout: seconds.
    """

    fields: dict[str, Any]
    where: str | None
    ci: Ci
    key: str | None = None
    workdir: str | None = None
    pushes: tuple[Push, ...] = ()
    choice: Choice = field(default_factory=Choice)
    delete: bool = False
    max_size: int | None = None
    share: bool = False
    pulls: tuple[str, ...] = ()
    into: Path = Path()
    allow_missing: bool = False
    cleanup: bool = False
    queue_timeout: float | None = None
    handle: Path | None = None
    detach: bool = False

    @property
    def account(self) -> str | None:
        """Charged for the job, and for those that move its files."""
        return self.fields.get("account")

    def identity(self, url: str, system: str, spec: JobSpec) -> str:
        """What the same command has in common with an earlier one: 16 hex digits."""
        pushed = [[str(each.source.absolute()), each.target] for each in self.pushes]
        parts = [self.ci.identity, url, system, spec.fingerprint(), self.key, self.workdir, pushed, self.detach]
        return _digest(json.dumps(parts), 16)

    def sync_options(self) -> dict[str, Any]:
        """Of `System.sync`, for the directories that are pushed."""
        return self.choice.options() | {"delete": self.delete, "max_size": self.max_size}


@dataclass(frozen=True)
class Workdir:
    """An absolute remote path; `own`: made for this one run, by whose nonce it is named."""

    path: str
    own: bool = False


async def workdir_of(system: System, plan: Plan, nonce: str) -> Workdir:
    """Where the job works.

    A directory that was named; else the user's own; with files, one in `RUNS`: of the run's own in a CI service, where
    jobs run side by side; elsewhere that of the local directory, so that only what has changed is sent again.
    """
    if plan.workdir is not None and plan.workdir.startswith("/"):
        return Workdir(plan.workdir)
    home = await system.home()
    if plan.workdir is not None:
        return Workdir(posixpath.normpath(f"{home}/{plan.workdir.removeprefix('~/')}"))
    if plan.key is not None and plan.pushes:
        return Workdir(f"{home}/{RUNS}/{label(plan.key)}-{_digest(plan.key, 8)}")
    if plan.cleanup or (plan.pushes and plan.ci.is_service):
        return Workdir(f"{home}/{RUNS}/{label(str(plan.fields['name']))}-{nonce}", own=True)
    if plan.pushes:
        here = str(plan.pushes[0].source.absolute())
        return Workdir(f"{home}/{RUNS}/{label(posixpath.basename(here))}-{_digest(f'{os.uname().nodename}:{here}', 8)}")
    return Workdir(home)


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:length]


async def require_quiet(system: System, workdir: str) -> None:
    """Raise Conflict where a job of ours still works in the directory: its files would change under it."""
    from hpcbridge.jobs.names import is_ours, normal_directory
    from hpcbridge.jobs.state import JobState

    wanted = normal_directory(workdir)
    for row in await system.jobs():
        theirs = row.working_directory
        if theirs and normal_directory(theirs) == wanted and is_ours(row.name):
            if JobState.parse(row.state).is_terminal:
                continue
            raise Conflict(
                f"job {row.job_id} still works in this directory, and its files would change under it",
                system=system.name,
                path=workdir,
                hint=f"Wait for it, end it (hpcbridge cancel {row.job_id}), choose another --workdir, or say --share",
            )
