"""Faults on demand: rules for single endpoints, and outages of the whole REST server.

A rule is ``{"method": "POST" | "*", "path": glob, "kind": …, …}``. Kinds: ``latency`` (wait ``seconds``, then work),
``status`` (answer ``status`` without working), ``hang`` (never answer, without working; ``seconds`` bounds it),
``drop_before`` (close the connection without working), ``status_after`` and ``drop_after`` (work, then answer
``status`` or close the connection). ``probability``, ``every`` (each third request that matches, for 3) and ``count``
limit how often a rule applies. ``status`` is a final one, 200 to 599, and ``headers`` are any but those that say where
the answer ends.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, StringConstraints

FRAMING = frozenset({"content-length", "transfer-encoding"})
Kind = Literal["latency", "status", "hang", "status_after", "drop_after", "drop_before"]


def _not_framing(name: str) -> str:
    if name.lower() in FRAMING:
        raise ValueError("is set by the server")
    return name


HeaderName = Annotated[str, StringConstraints(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"), AfterValidator(_not_framing)]
HeaderValue = Annotated[
    str, StringConstraints(pattern=r"^([\x21-\x7e\xa0-\xff]([\t\x20-\x7e\xa0-\xff]*[\x21-\x7e\xa0-\xff])?)?$")
]


class Rule(BaseModel):
    """One fault rule; see the module's text."""

    model_config = ConfigDict(extra="forbid")
    method: str = "*"
    path: str = "*"
    kind: Kind
    status: int = Field(default=503, ge=200, le=599)
    message: str = "Injected fault."
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict)
    seconds: float | None = None
    probability: float = Field(default=1.0, ge=0, le=1)
    every: int = Field(default=1, ge=1)
    count: int | None = None
    _seen: int = PrivateAttr(default=0)

    def applies(self, method: str, path: str) -> bool:
        """Tell whether this request is hit, by chance where the rule says so; counts down ``count``."""
        if self.count == 0 or self.method not in {"*", method} or not fnmatchcase(path, self.path):
            return False
        self._seen += 1
        if self._seen % self.every:
            return False
        if self.probability < 1 and random.random() >= self.probability:  # noqa: S311 (a fault, not a secret)
            return False
        if self.count is not None:
            self.count -= 1
        return True


class Outage(BaseModel):
    """An outage of the REST server: connections refused, 503 from a gateway, or no answer at all."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["refused", "503", "hang"]
    seconds: float = Field(gt=0)
    retry_after: int | None = None
    """Value of the ``Retry-After`` header of a 503."""


class Faults:
    """The faults in force, and a count of every request."""

    def __init__(self, latency: float = 0.0) -> None:
        self.rules: list[Rule] = []
        self.latency = latency
        self.counts: Counter[str] = Counter()
        self._outage: Outage | None = None
        self._outage_end = 0.0
        self._over = asyncio.Event()

    def begin(self, outage: Outage) -> None:
        """Start an outage; it ends by itself."""
        self._outage, self._outage_end, self._over = outage, time.monotonic() + outage.seconds, asyncio.Event()
        asyncio.get_running_loop().call_later(outage.seconds, self._over.set)

    def end(self) -> None:
        """End an outage early."""
        self._outage = None
        self._over.set()

    @property
    def outage(self) -> Outage | None:
        """The outage in force, if any."""
        if self._outage is not None and time.monotonic() >= self._outage_end:
            self.end()
        return self._outage

    async def outage_over(self) -> None:
        """Wait for the end of the current outage."""
        await self._over.wait()

    def matching(self, method: str, path: str) -> list[Rule]:
        """Return the rules that hit this request."""
        return [rule for rule in self.rules if rule.applies(method, path)]

    def note(self, method: str, path: str) -> None:
        """Count a request under its method and path with ``{}`` for the system and the job id."""
        parts = path.strip("/").split("/")
        if len(parts) > 2 or parts[0] != "status":
            parts[1:2] = ["{}"] if len(parts) > 1 and parts[0] in {"status", "compute", "filesystem"} else parts[1:2]
        if len(parts) > 3 and parts[0] == "compute":
            parts[3] = "{}"
        self.counts[f"{method} /{'/'.join(parts)}"] += 1
