"""What the hub remembers of one server between two processes: `ServerState`, in `Spawner.state`."""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

from hpcbridge.jobs.guard import FOLDER
from hpcbridge.jobs.names import LABEL_MAX, normal_directory

FORMAT = 1
"""Version of the record; one without is of the first."""

KEY = "hpcbridge"
"""Where the record is in the hub's state."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """One start of one server, from the intention on. Times are ISO 8601 with offset.

    Attributes:
        system: key in `FirecRESTSpawner.systems`.
        key: what the submit stands for, new for every start.
        since: when it was meant.
        workdir: absolute path on the system; None until it is known.
        server: name of the server in its files.
        name, job_id: of the job; None until they are known.
        spec: fingerprint of the specification.
        host, port: where the server listens; None until it does.
        minutes: the job's time limit.
        ends: when the time limit ends the job.
        code: exit status once the job has ended.
    """

    system: str
    key: str
    since: str
    server: str
    workdir: str | None = None
    name: str | None = None
    spec: str | None = None
    job_id: str | None = None
    host: str | None = None
    port: int | None = None
    minutes: int | None = None
    ends: str | None = None
    code: int | None = None

    @classmethod
    def begin(cls, system: str, server_name: str) -> ServerState:
        """A new start; `server_name` is unique within the account that the job runs in."""
        return cls(system, uuid.uuid4().hex, datetime.now(UTC).isoformat(), slug(server_name))

    def with_(self, **changes: Any) -> ServerState:
        """A copy with other values."""
        return replace(self, **changes)

    @property
    def submitted(self) -> datetime:
        """When it was meant."""
        return datetime.fromisoformat(self.since)

    @property
    def rendezvous(self) -> str:
        """The file in which the node says where the server listens."""
        return f"{self._folder}/{self.server}.json"

    @property
    def output(self) -> str:
        """The job's log: one per server, that of the last start."""
        return f"{self._folder}/{self.server}.log"

    @property
    def _folder(self) -> str:
        assert self.workdir is not None
        return f"{normal_directory(self.workdir).rstrip('/')}/{FOLDER}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"format": FORMAT, **{name: value for name, value in asdict(self).items() if value is not None}}

    @classmethod
    def from_json(cls, data: Any) -> ServerState | None:
        """The reverse of `to_json`; None for what is not a record. Unknown fields are a newer version's."""
        if not isinstance(data, dict):
            return None
        known = {field.name for field in fields(cls)}
        try:
            return cls(**{name: value for name, value in data.items() if name in known})
        except TypeError:
            return None


def slug(server_name: str) -> str:
    """A name for files and for the job's label: `jupyter`, or `jupyter-<name>-<digest>` for a named server."""
    if not server_name:
        return "jupyter"
    digest = hashlib.sha256(server_name.encode()).hexdigest()[:6]
    word = re.sub(r"[^A-Za-z0-9_.]+", "-", server_name, flags=re.ASCII).strip("-.")[: LABEL_MAX - 16]
    return f"jupyter-{word}-{digest}" if word else f"jupyter-{digest}"
