"""What a sync remembers on this side: the manifest that it left on the system, one file per remote tree.

A record is a guess that saves work, never a truth: the job compares it with what is there. Without one, or with a stale
one, a sync costs a second job. It is safe to delete.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpcbridge.staging.trees.listing import joined, records

RECORD_FORMAT = 1
"""Version of the file; another one counts as no record."""
_HEAD = b"hpcbridge sync %d\n"


@dataclass(frozen=True, slots=True)
class Record:
    """`state` is the tree's state directory on the system, `rows` the manifest that is kept there (sorted)."""

    state: str
    rows: tuple[bytes, ...] = ()


class RecordFile:
    """The record of one tree on one system, as one of our identities sees it."""

    def __init__(self, path: Path) -> None:
        """`path` need not exist."""
        self.path = path

    @classmethod
    def of(cls, way: str, site: str, who: str, system: str, remote: str, directory: Path | None = None) -> RecordFile:
        """The record of syncs `way` ("up", "down") with `remote`; `site` is the deployment's URL, `who` the identity.

        `directory` defaults to `trees` in the state directory.
        """
        if directory is None:
            from hpcbridge.jobs.intents import state_directory  # loaded when first used

            directory = state_directory() / "trees"
        name = hashlib.sha256("\0".join((way, site, who, system, remote)).encode(errors="surrogateescape")).hexdigest()
        return cls(directory / name[:32])

    def load(self) -> Record | None:
        """The record; None when there is none, or one of another format, or a damaged one."""
        try:
            head, about, rows = self.path.read_bytes().split(b"\n", 2)
            if head + b"\n" != _HEAD % RECORD_FORMAT:
                return None
            known = json.loads(about)
            found = tuple(records(rows))
            if hashlib.sha256(joined(found)).hexdigest() != known["sha256"]:
                return None
            return Record(str(known["state"]), found)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, record: Record) -> None:
        """Write it down, whole or not at all. Raises OSError."""
        rows = joined(record.rows)
        about = {"state": record.state, "sha256": hashlib.sha256(rows).hexdigest()}
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, new = tempfile.mkstemp(prefix=".new-", dir=self.path.parent)  # 0600
        try:
            with os.fdopen(fd, "wb") as out:
                out.write(_HEAD % RECORD_FORMAT + json.dumps(about).encode() + b"\n" + rows)
            Path(new).replace(self.path)
        except BaseException:
            Path(new).unlink(missing_ok=True)
            raise

    def forget(self) -> None:
        """Remove it."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
