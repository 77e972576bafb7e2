"""The sandbox's memory: one SQLite file under the state directory.

Every room keeps its own tables: it calls `Store.table` once with its DDL and then reads and writes through
`Store.execute`, `Store.query` and `Store.transaction`. Calls are synchronous (tens of microseconds) and belong to the
event loop's thread.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1


class Store:
    """A SQLite database in WAL mode; survives a kill of the sandbox, though not a power cut."""

    def __init__(self, path: Path) -> None:
        """Open or create the database at ``path`` (made readable for its owner only)."""
        path.touch(mode=0o600, exist_ok=True)
        self.path = path
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._depth = 0
        self.table("CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        found = self.get("format", FORMAT_VERSION)
        if found != FORMAT_VERSION:
            raise ValueError(f"{path} has format {found}; this sandbox reads format {FORMAT_VERSION}")
        self.put("format", FORMAT_VERSION)

    def table(self, *statements: str) -> None:
        """Run idempotent DDL (``CREATE TABLE IF NOT EXISTS …``)."""
        for statement in statements:
            self._connection.execute(statement)

    def execute(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> sqlite3.Cursor:
        """Run one statement; outside `transaction` it commits by itself."""
        return self._connection.execute(sql, parameters)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any] | dict[str, Any]]) -> None:
        """Run one statement for many rows in one transaction."""
        with self.transaction():
            self._connection.executemany(sql, rows)

    def query(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[sqlite3.Row]:
        """Return all rows of a SELECT."""
        return self._connection.execute(sql, parameters).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; may be nested (the outermost one commits). Do not await inside."""
        if self._depth:
            yield
            return
        self._connection.execute("BEGIN IMMEDIATE")
        self._depth = 1
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        else:
            self._connection.execute("COMMIT")
        finally:
            self._depth = 0

    def get(self, key: str, default: Any = None) -> Any:
        """Return the JSON value kept under ``key``."""
        row = self._connection.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        return default if row is None else json.loads(row["value"])

    def put(self, key: str, value: Any) -> None:
        """Keep a JSON value under ``key``."""
        self._connection.execute(
            "INSERT INTO settings (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, json.dumps(value)),
        )

    def close(self) -> None:
        """Write everything back and close the file."""
        self._connection.close()
