"""Names of the streamer's faults, and those in force. That the real package appends 98 bytes is not among them.

Each value is a probability from 0 to 1 that a transfer has the fault, unless said otherwise:

- ``start_delay``: seconds that the job takes until it starts its streamer (a slow package index);
- ``no_start``: the package cannot be installed, so the job ends before anything listens;
- ``deaf``: the streamer seems to start, and nothing ever listens (a firewall looks the same);
- ``drop_after``: bytes of a transfer after which its connection is cut;
- ``corruption``: one byte differs: on the cluster's disk on the way up, in what is received on the way down;
- ``wrong_hash``: the checksum at the end is that of another file;
- ``count``: how many transfers remain to be spoilt; absent means no end.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpcbridge_sandbox.rules import as_numbers

RULES = frozenset({"start_delay", "no_start", "deaf", "drop_after", "corruption", "wrong_hash", "count"})
_AMOUNTS = {"start_delay", "drop_after"}


@dataclass
class StreamerFaults:
    """The faults that the next transfers have."""

    rules: dict[str, float] = field(default_factory=dict)

    def replace(self, rules: Mapping[str, Any]) -> None:
        """Take *rules* from now on.

        Raises:
            ValueError: an unknown name, or a value that is not a number of zero or more.
        """
        self.rules = as_numbers(rules, RULES, "streamer fault")

    def draw(self) -> dict[str, float]:
        """Return the faults of one transfer, with their amounts."""
        if self.rules.get("count") == 0:
            return {}
        hit = {
            name: value
            for name, value in self.rules.items()
            if name != "count" and (name in _AMOUNTS or random.random() < value)  # noqa: S311
        }
        if hit and "count" in self.rules:
            self.rules["count"] -= 1
        return hit
