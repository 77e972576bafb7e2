"""Move one file between here and a system; the same coroutine runs in the worker and in the triggerer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from hpcbridge_airflow.submitting import resolve_path

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

    from hpcbridge import Hpc
    from hpcbridge.staging import Progress


class Direction(StrEnum):
    """Seen from here."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True)
class Move:
    """One transfer, as an operator asks for it; `remote` may be relative to the user's own directory."""

    direction: Direction
    local: str
    remote: str
    system: str | None = None
    route: str | None = None
    verify: str | None = "auto"
    account: str | None = None
    atomic: bool = False

    def replace(self, **changes: Any) -> Self:
        """A copy with other values."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return dataclasses.asdict(self) | {"direction": str(self.direction)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The reverse of `to_json`; fields of newer versions are ignored."""
        known = {field.name: data[field.name] for field in dataclasses.fields(cls) if field.name in data}
        return cls(**known | {"direction": Direction(data["direction"])})


async def move_file(hpc: Hpc, move: Move, log: Logger) -> str:
    """Do it; returns the absolute remote path. Raises what `System.put` and `System.get` raise."""
    async with hpc:
        system = hpc.system(move.system)
        name = await system.resolve()
        remote = await resolve_path(system, move.remote)
        report = _reporter(log)
        options: dict[str, Any] = {"route": move.route, "verify": move.verify, "account": move.account}
        if move.direction is Direction.UP:
            log.info("Uploading %s to %s:%s", move.local, name, remote)
            await system.mkdir(remote.rpartition("/")[0] or "/")
            done = await system.put(move.local, remote, atomic=move.atomic, progress=report, **options)
        else:
            log.info("Downloading %s:%s to %s", name, remote, move.local)
            Path(move.local).parent.mkdir(parents=True, exist_ok=True)
            done = await system.get(remote, move.local, progress=report, **options)
        rate = done.bytes / done.seconds / 1e6 if done.seconds else 0.0
        checked = f", SHA-256 {done.sha256}" if done.sha256 else ""
        log.info("%d bytes in %.1f s (%.1f MB/s, %s)%s", done.bytes, done.seconds, rate, done.route, checked)
        return remote


def _reporter(log: Logger) -> Callable[[Progress], None]:
    """Phases and each tenth of the bytes into the task's log."""
    last: list[Any] = [None, -1]

    def report(progress: Progress) -> None:
        tenth = progress.done * 10 // progress.total if progress.total else 0
        if [progress.phase, tenth] != last:
            last[:] = [progress.phase, tenth]
            total = f" of {progress.total}" if progress.total is not None else ""
            log.info("%s: %d%s bytes %s", progress.phase, progress.done, total, progress.detail)

    return report
