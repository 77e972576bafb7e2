"""What a transfer tells its caller while it runs, and what it hands back at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """The steps of a transfer, in the order in which they can occur."""

    CHECKING = "checking"
    """Looking at the file, the target and what an earlier attempt left behind."""
    UPLOADING = "uploading"
    """Bytes leave this machine."""
    QUEUED = "queued"
    """A job of the transfer waits in the scheduler's queue; no byte moves."""
    JOINING = "joining"
    """Our job on the system assembles, checks and publishes the file."""
    STAGING = "staging"
    """The server's own job copies between the object store and the file system."""
    DOWNLOADING = "downloading"
    """Bytes arrive on this machine."""
    VERIFYING = "verifying"
    """Sizes and checksums are compared."""
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Progress:
    """One report: `done` of `total` bytes (None when unknown) in `phase`; `detail` is a line for people."""

    phase: str
    done: int
    total: int | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class TransferResult:
    """What a transfer did: the route taken, bytes in the file, seconds spent, SHA-256 (hex) where both sides agree.

    `route` is None when nothing was to be moved (`dry_run`), `sha256` when only the size was compared.
    """

    route: str | None
    bytes: int
    seconds: float
    sha256: str | None = None


class Reporter:
    """Counts bytes of one transfer and passes at most ten reports per second on, every change of phase included.

    An exception raised by the callback ends the transfer; it is the caller's own.

    Attributes:
        spent: seconds in each phase that has been left.
        moved: bytes counted while this transfer ran; those of an earlier attempt are not among them.
    """

    INTERVAL = 0.1

    def __init__(self, callback: Callable[[Progress], None] | None, total: int | None = None) -> None:
        """`total` is the size of the file in bytes, None while it is unknown."""
        self.total = total
        self._callback = callback
        self._phase: Phase = Phase.CHECKING
        self._done = 0
        self._detail = ""
        self._next = 0.0
        self._since = time.monotonic()
        self.spent: dict[Phase, float] = {}
        self.moved = 0

    def phase(self, phase: Phase, detail: str = "", done: int | None = None) -> None:
        """Enter `phase`; `done` sets the byte count (a resumed transfer does not start at 0)."""
        changed = (phase, detail) != (self._phase, self._detail) or (done is not None and done != self._done)
        if phase is not self._phase:
            now = time.monotonic()
            self.spent[self._phase] = self.spent.get(self._phase, 0.0) + now - self._since
            self._since = now
        self._phase, self._detail = phase, detail
        if done is not None:
            self._done = done
        if changed or not self._next:
            self._send()

    def add(self, count: int) -> None:
        """Count `count` more bytes; negative when a part has to be sent again."""
        self._done += count
        self.moved += count
        if time.monotonic() >= self._next:
            self._send()

    @property
    def done(self) -> int:
        """Bytes counted so far."""
        return self._done

    def _send(self) -> None:
        self._next = time.monotonic() + self.INTERVAL
        if self._callback is not None:
            self._callback(Progress(self._phase.value, self._done, self.total, self._detail))
