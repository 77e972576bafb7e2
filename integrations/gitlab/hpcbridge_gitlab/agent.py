"""The batch script of an allocation: the agent, with its constants filled in. No secret is in it."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path

from hpcbridge_gitlab.settings import Driver

CHUNK = 3 << 20
"""Bytes of one closed piece of output: below what one direct download carries (3.9 MB)."""

BEAT = 5
"""Seconds after which the agent writes its state again, though nothing has changed."""


def script(home: str, driver: Driver) -> str:
    """The agent for the attempt whose directory on the system is `home`."""
    values = {
        "HOME": shlex.quote(home),
        "LEASE": str(math.ceil(driver.lease)),
        "TICK": f"{driver.agent_tick:g}",
        "BEAT": str(BEAT),
        "KILL_AFTER": str(math.ceil(driver.kill_after)),
        "CHUNK": str(CHUNK),
    }
    text = Path(__file__).with_name("agent.sh").read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


@dataclass(frozen=True, slots=True)
class State:
    """The agent's `state` file: what it was last given, how that goes, how much output is closed.

    `size`: bytes of that output. `status`: idle, running, done (of stage `seq`), ended (the agent has left). `reason`:
    none, cancelled, timelimit, damaged, superseded, lease, stopped, terminated, abandoned. `beat` changes as long as
    the agent lives.
    """

    seq: int
    status: str
    code: int
    reason: str
    chunks: int
    size: int
    beat: int
    node: str

    @classmethod
    def parse(cls, data: bytes) -> State | None:
        """None for anything but a whole state of this version."""
        lines = data.decode("ascii", "replace").split("\n")
        if lines[0] != "hpcbridge-agent 1" or lines[-2:] != ["end", ""]:
            return None
        found = dict(line.split(" ", 1) for line in lines[1:-2] if " " in line)
        try:
            return cls(
                *(int(found["seq"]), found["status"], int(found["code"]), found["reason"]),
                *(int(found["chunks"]), int(found["bytes"]), int(found["beat"]), found["node"]),
            )
        except (KeyError, ValueError):
            return None

    @property
    def over(self) -> bool:
        """Whether the stage has ended."""
        return self.status in ("done", "ended")
