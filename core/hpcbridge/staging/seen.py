"""What this client has met at a site: rates and waits of earlier transfers, for the next one's estimate.

One small private file per system in the state directory. It is safe to delete; figures older than a month do not count.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hpcbridge.staging.estimates import Figures

log = logging.getLogger(__name__)

FORMAT = 1
"""Version of the file; another one is ignored and written anew."""
SHARE = 0.3
"""Weight of the newest of many figures."""
KEPT = 30 * 86400.0
"""Seconds after which a figure no longer counts."""
_NAMES = frozenset(each.name for each in fields(Figures))


class Seen:
    """The figures of one system of one site."""

    def __init__(self, site: str, system: str, directory: Path | None = None) -> None:
        """`site` is the deployment's URL; `directory` defaults to `figures` in the state directory."""
        if directory is None:
            from hpcbridge.jobs.intents import state_directory

            directory = state_directory() / "figures"
        name = hashlib.sha256(f"{site}\0{system}".encode()).hexdigest()[:24]
        self.path = directory / f"{name}.json"
        self._about = {"site": site, "system": system}

    def figures(self) -> Figures:
        """What was seen, else the measured defaults; a file that is missing or of no use is none."""
        return replace(Figures(), **{name: value for name, (value, _, _) in self._read().items()})

    def learn(self, **values: float) -> None:
        """Take new figures in; concurrent callers lose nothing. Failures are logged: a figure is worth no error."""
        try:
            with self._held():
                now, known = time.time(), self._read()
                for name, value in values.items():
                    old, count, _ = known.get(name, (value, 0, now))
                    known[name] = (old + (value - old) * max(SHARE, 1 / (count + 1)), count + 1, now)
                self._write(known)
        except OSError as error:
            log.debug("what this transfer has shown of the site could not be kept: %s", error)

    def _read(self) -> dict[str, tuple[float, int, float]]:
        """Name -> value, how many it was made of, when (s since 1970)."""
        try:
            record: Any = json.loads(self.path.read_bytes())
            if record["format"] != FORMAT:
                return {}
            rows = {name: (float(v), int(count), float(when)) for name, (v, count, when) in record["figures"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}
        horizon = time.time() - KEPT
        return {name: row for name, row in rows.items() if name in _NAMES and row[0] > 0 and row[2] > horizon}

    def _write(self, figures: dict[str, tuple[float, int, float]]) -> None:
        record = {"format": FORMAT, **self._about, "figures": figures}
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".new-")  # 0600
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(record, file)
            Path(name).replace(self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    @contextmanager
    def _held(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Some network file systems have no locks; then the last writer wins, and no more is lost than a figure.
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
