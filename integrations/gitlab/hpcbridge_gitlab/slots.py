"""Directories on this host, one clone per project and concurrent job: the next job fetches what is new.

    <builds>/<project id>/0/builds/group/project      the clone, and builds_dir in scripts
    <builds>/<project id>/0/cache -> ../cache         shared by the project's jobs
    <builds>/<project id>/0/owner                     the record of the attempt that uses it

The number of the project is GitLab's own word; no variable leads into another project's directory.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from hpcbridge_gitlab.records import read_attempt

if TYPE_CHECKING:
    from hpcbridge_gitlab.contract import CiJob
    from hpcbridge_gitlab.records import Attempt
    from hpcbridge_gitlab.settings import Settings


def cache(settings: Settings, job: CiJob) -> Path:
    """The directory of this project's caches."""
    path = settings.builds / str(job.project_id) / "cache"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def take(settings: Settings, job: CiJob, attempt: Attempt) -> Path:
    """A directory that no live attempt uses."""
    cache(settings, job)
    number = 0
    while True:
        slot = settings.builds / str(job.project_id) / str(number)
        slot.mkdir(mode=0o700, exist_ok=True)
        if _own(slot / "owner", attempt):
            (slot / "builds").mkdir(mode=0o700, exist_ok=True)
            link = slot / "cache"
            if not link.is_symlink():
                link.symlink_to(Path("..") / "cache")
            return slot
        number += 1


def _own(path: Path, attempt: Attempt) -> bool:
    # Linked into place with its content: nobody sees an owner without a name.
    new = path.with_name(f"owner.{os.getpid()}")
    new.write_text(attempt.path, encoding="utf-8")
    try:
        for _ in range(2):
            with contextlib.suppress(FileExistsError):
                os.link(new, path)
                return True
            with contextlib.suppress(FileNotFoundError):
                owner = read_attempt(Path(path.read_text(encoding="utf-8")))
                if owner is not None and not owner.stopped:
                    return False
                path.unlink()  # its attempt is over
        return False
    finally:
        new.unlink()


def release(attempt: Attempt) -> None:
    """Let the next job have the attempt's directory."""
    if attempt.slot:
        path = Path(attempt.slot) / "owner"
        with contextlib.suppress(OSError):
            if path.read_text() == attempt.path:
                path.unlink()
