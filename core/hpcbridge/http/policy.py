"""When a request is made again: tenacity's parts, put together per call."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from tenacity import RetryCallState

from hpcbridge.errors import NotSent, RateLimited, ServerError, Unavailable
from hpcbridge.http.breaker import BreakerPolicy
from hpcbridge.http.limiter import LimiterPolicy


@dataclass(frozen=True, slots=True)
class HttpPolicy:
    """Constants of the HTTP layer; all times in seconds.

    `patience` is the budget for outages from the first failure on, where the call does not bring its own. `read` is
    the longest silence of the server: it must be above the sum of its SSH time-outs (15 s by default). `total` ends a
    request that trickles for ever.
    """

    connect: float = 10.0
    read: float = 30.0
    write: float = 30.0
    total: float = 300.0
    patience: float = 15.0
    first_pause: float = 0.25
    longest_pause: float = 5.0
    limiter: LimiterPolicy = field(default_factory=LimiterPolicy)
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)


class RetryBudget:
    """Decides for one call, as tenacity's `retry`, `wait` and `stop`.

    Outages (Unavailable) are outlasted for `patience` seconds after the first failure. Answers that may be the
    request's own fault are only tried a little: a command over the server's limit (408) and an unexplained 5xx twice
    in all, a refused SSH credential for half a minute. What is not safe to repeat is made again only after a definite
    no.
    """

    UNEXPLAINED = 2
    LASTING = 30.0

    def __init__(self, policy: HttpPolicy, *, safe: bool, patience: float | None) -> None:
        self._policy = policy
        self._safe = safe
        self._patience = policy.patience if patience is None else patience
        self._first_failure: float | None = None
        self._unexplained = 0
        self.outcome_unknown = False

    def retry(self, state: RetryCallState) -> bool:
        """Whether this outcome may be followed by another attempt."""
        error = state.outcome.exception() if state.outcome else None
        if error is None:
            return False
        if self._first_failure is None:
            self._first_failure = time.monotonic()
        if isinstance(error, Unavailable):
            # For what is not safe, the session calls an outcome Unavailable only if it is a definite no.
            # 429 and a refused SSH credential are answers of before anything was done.
            self.outcome_unknown |= not (isinstance(error, NotSent | RateLimited) or error.lasting)
            if error.lasting:
                self._patience = min(self._patience, self.LASTING)
            return self._patience > 0
        if isinstance(error, ServerError) and self._safe:
            self.outcome_unknown = True
            self._unexplained += 1
            return self._unexplained < self.UNEXPLAINED and self._patience > 0
        return False

    def wait(self, state: RetryCallState) -> float:
        """Full jitter over an exponential pause; where the server said when, that and a little."""
        error = state.outcome.exception() if state.outcome else None
        after = getattr(error, "retry_after", None)
        if after is not None:
            return float(after) * random.uniform(1.0, 1.1)  # noqa: S311
        longest = min(self._policy.longest_pause, self._policy.first_pause * 2 ** min(state.attempt_number, 30))
        return random.uniform(longest / 4, longest)  # noqa: S311

    def stop(self, state: RetryCallState) -> bool:
        """Whether the next attempt would begin after the patience has run out."""
        begun = self._first_failure if self._first_failure is not None else time.monotonic()
        return time.monotonic() + state.upcoming_sleep > begun + self._patience
