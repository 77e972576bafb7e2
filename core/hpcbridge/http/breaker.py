"""A circuit breaker: while a site is down, one probe at a time asks for everybody."""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from hpcbridge.errors import NotSent

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """Constants; times in seconds. The pause doubles with every failed probe, from `pause` to `longest_pause`."""

    failures: int = 5
    pause: float = 1.0
    longest_pause: float = 8.0


class CircuitBreaker:
    """Opens after consecutive failures of the site itself (refused, time-out, 502-504), not of one system."""

    def __init__(self, site: str, policy: BreakerPolicy | None = None) -> None:
        self.policy = policy or BreakerPolicy()
        self.site = site
        self.failures = 0
        self.opened = 0
        self._pause = self.policy.pause
        self._open_until: float | None = None
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether requests are held back."""
        return self._open_until is not None

    def admit(self) -> Admission:
        """Let one request through.

        Raises:
            NotSent: the circuit is open; `retry_after` is when to ask again. Callers with patience sleep that long.
        """
        if self._open_until is None:
            return Admission(self, probe=False)
        remaining = self._open_until - time.monotonic()
        if remaining > 0 or self._probing:
            # Spread: when the pause ends, not everybody at once.
            wait = max(remaining, 0.1) + random.uniform(0, 0.2)  # noqa: S311
            raise NotSent(
                "the site does not answer; requests are held back while one probe at a time looks for it",
                site=self.site,
                retry_after=wait,
            )
        self._probing = True
        return Admission(self, probe=True)

    def _succeeded(self) -> None:
        if self._open_until is not None:
            log.warning("%s answers again", self.site)
        self.failures = 0
        self._open_until = None
        self._pause = self.policy.pause

    def _failed(self, probe: bool) -> None:
        self.failures += 1
        if probe:
            self._pause = min(self._pause * 2, self.policy.longest_pause)
        elif self._open_until is not None or self.failures < self.policy.failures:
            return
        else:
            self.opened += 1
            log.warning("%s does not answer; requests are held back until it does", self.site)
        self._open_until = time.monotonic() + self._pause


class Admission:
    """One admitted request; leaving without a verdict (cancelled, no token) only ends the probe."""

    __slots__ = ("_breaker", "_probe")

    def __init__(self, breaker: CircuitBreaker, *, probe: bool) -> None:
        self._breaker = breaker
        self._probe = probe

    def succeeded(self) -> None:
        """The site answered."""
        self._breaker._succeeded()

    def failed(self) -> None:
        """The site did not answer, or said that it cannot."""
        self._breaker._failed(self._probe)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._probe:
            self._breaker._probing = False
