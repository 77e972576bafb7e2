"""The orphan ledger: jobs that must end and of which nobody has seen the end yet.

A job is entered before it is cancelled and taken out when its end is confirmed, so neither an outage nor a killed hub
loses it. The ledger is a table of the hub's own database: it lives wherever the hub's users and servers live.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Integer, MetaData, String, Table, delete, insert, select, update

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

    from hpcbridge_jupyterhub.state import ServerState

_metadata = MetaData()
_table = Table(
    "hpcbridge_orphans",
    _metadata,
    Column("key", String(64), primary_key=True),
    Column("format", Integer, nullable=False, default=1),
    Column("user", String(255), nullable=False),
    Column("system", String(64), nullable=False),
    Column("name", String(255)),
    Column("job_id", String(64)),
    Column("workdir", String(1023)),
    Column("since", String(64), nullable=False),
)


@dataclass(frozen=True, slots=True)
class Orphan:
    """A job to be ended. `job_id` None: a submit whose answer is lost; `name` None: it was never sent."""

    key: str
    user: str
    system: str
    name: str | None
    job_id: str | None
    workdir: str | None
    since: datetime


class Orphans:
    """The ledger over the hub's own session (one per hub, as everything of the hub's in one event loop)."""

    def __init__(self, session: Session) -> None:
        """Make the table where it is not there yet."""
        self._session = session
        with self._transaction():
            _metadata.create_all(session.connection(), checkfirst=True)

    def add(self, user: str, state: ServerState) -> Orphan:
        """Enter a start that must not live on; again for what is learnt later."""
        orphan = Orphan(state.key, user, state.system, state.name, state.job_id, state.workdir, datetime.now(UTC))
        values = {name: getattr(orphan, name) for name in ("user", "system", "name", "job_id", "workdir")}
        values["since"] = orphan.since.isoformat()
        with self._transaction():
            known = self._session.execute(select(_table.c.key).where(_table.c.key == state.key)).first()
            if known is None:
                self._session.execute(insert(_table).values(key=state.key, format=1, **values))
            else:
                self._session.execute(update(_table).where(_table.c.key == state.key).values(**values))
        return orphan

    def remove(self, key: str) -> None:
        """Its end is confirmed, or that it never was."""
        with self._transaction():
            self._session.execute(delete(_table).where(_table.c.key == key))

    def all(self) -> list[Orphan]:
        """Oldest first."""
        with self._transaction():
            rows = self._session.execute(select(_table).order_by(_table.c.since)).mappings().all()
        return [_orphan(row) for row in rows]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            yield
            self._session.commit()
        except Exception:
            self._session.rollback()
            raise


def _orphan(row: Any) -> Orphan:
    known = ("key", "user", "system", "name", "job_id", "workdir")
    return Orphan(**{name: row[name] for name in known}, since=datetime.fromisoformat(row["since"]))
