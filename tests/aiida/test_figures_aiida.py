"""Many calculations at once, beside aiida-core's own plugins in the same run; the event loop meanwhile."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support.aiida_computers import credential_file, installed_code, make_ours
from support.aiida_profile import AiidaProfile
from support.aiida_runs import Ended, add, report
from support.sandbox import SandboxProcess, start_sandbox
from support.scale import PROVE

Say = Callable[[str], None]
RATIO = 1.15
BLOCKED = 0.05
ENDS = ("finished", "excepted", "killed")


@dataclass(frozen=True)
class Setting:
    """One line of the table; the whole is measured `rounds` times, and the round that was disturbed least counts."""

    count: int
    sessions: int | None
    rounds: int

    def __str__(self) -> str:
        return f"{self.count} adds, MaxSessions {self.sessions or 'unlimited'}"


SETTINGS = [Setting(50, 10, 2), Setting(50, None, 2), Setting(300, 10, 1)]
LATENCIES = (0.0, 0.1)


@pytest.fixture(scope="module")
def busy(request: pytest.FixtureRequest) -> Iterator[SandboxProcess]:
    """For the full figures a sandbox of their own, with the accounting lag that deployments have."""
    if not PROVE:
        yield request.getfixturevalue("local_queue")
        return
    with start_sandbox("--user", "alice") as started:
        yield started


@pytest.fixture(scope="module")
def many(daemon: AiidaProfile, busy: SandboxProcess, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Bash there."""
    secret = credential_file(busy, tmp_path_factory.mktemp("secret") / "alice.toml")
    return installed_code(make_ours("many", busy, secret, "/scratch/{username}/many"), "bash-many")


def wall(daemon: AiidaProfile, code: Any, count: int, seconds: float) -> float:
    """Seconds from the first submit to the last end of `count` adds, all of them right."""
    from aiida import orm

    begun = time.monotonic()
    nodes = [add(code, x=number, y=1) for number in range(count)]
    pks = [node.pk for node in nodes]
    query = orm.QueryBuilder().append(
        orm.CalcJobNode, filters={"id": {"in": pks}, "attributes.process_state": {"in": ENDS}}
    )
    while query.count() < count:
        if time.monotonic() - begun > seconds:
            raise Ended("\n".join(report(node) for node in nodes if not node.is_terminated) + daemon.log())
        time.sleep(0.2)
    took = time.monotonic() - begun
    wrong = [node for node in nodes if not node.is_finished_ok or node.outputs.sum.value != node.inputs.x.value + 1]
    if wrong:
        raise Ended("\n".join(f"{node}: {node.process_state}, {node.exit_status}\n{report(node)}" for node in wrong))
    return took


class Measure:
    """Walls of many calculations, theirs before and after ours: machines are slower at times, by half in minutes."""

    def __init__(self, daemon: AiidaProfile, count: int, title: str, say: Say) -> None:
        self.daemon, self.count, self.title, self.say = daemon, count, title, say

    def wall(self, code: Any, what: str) -> float:
        """Seconds for all of them; nothing fails, and nothing is tried again."""
        failures, computed = len(self.daemon.failures()), self.daemon.used()
        seconds = wall(self.daemon, code, self.count, 300 + 20 * self.count)  # a bound for busy machines, not a figure
        computed = self.daemon.used() - computed
        self.say(f"{self.title}: {what} {seconds:.1f} s, in which the worker computed for {computed:.1f} s")
        assert self.daemon.failures()[failures:] == []
        return seconds

    def ratios(self, base: Any, ours: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
        """Ours by the mean of theirs before and after, the best of the rounds.

        `ours`: by name, what makes the setting ready and returns the code.
        """
        found: dict[str, float] = {}
        before = self.wall(base, base.computer.scheduler_type)
        for _ in range(rounds):
            walls = {what: self.wall(ready(), f"ours{what}") for what, ready in ours.items()}
            after = self.wall(base, base.computer.scheduler_type)
            for what, seconds in walls.items():
                found[what] = min(found.get(what, math.inf), seconds / ((before + after) / 2))
            before = after
        for what, ratio in found.items():
            self.say(f"{self.title}{what}: {ratio:.2f} x {base.computer.scheduler_type}")
        return found


@pytest.mark.prove
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.timeout(6000)
def test_many_at_once(
    daemon: AiidaProfile, busy: SandboxProcess, native: Any, many: Any, setting: Setting, say: Say
) -> None:
    def ready(latency: float) -> Any:
        busy.post("/latency", {"seconds": latency})
        busy.delete("/requests")
        return many

    ours = {f" at {latency * 1000:g} ms": partial(ready, latency) for latency in LATENCIES}
    busy.post("/sessions", {"max": setting.sessions})
    try:
        ratios = Measure(daemon, setting.count, str(setting), say).ratios(native, ours, setting.rounds)
    finally:
        busy.post("/sessions", {"max": None})
        busy.post("/latency", {"seconds": 0})
    total = sum(busy.get("/requests")["counts"].values())
    say(f"{setting}: {total / setting.count:.1f} requests each")
    assert max(ratios.values()) <= RATIO


@pytest.mark.slurm
@pytest.mark.prove
@pytest.mark.timeout(3000)
def test_many_at_once_on_slurm(daemon: AiidaProfile, native_slurm: Any, slurm: Any, say: Say) -> None:
    """core.local and core.slurm, and ours, on one and the same real Slurm."""
    ratios = Measure(daemon, 50, "50 adds on Slurm", say).ratios(native_slurm, {"": lambda: slurm}, 1)
    assert max(ratios.values()) <= RATIO


def test_the_event_loop_is_not_blocked(daemon: AiidaProfile, many: Any, say: Say) -> None:
    """By anything of ours, in whatever this run gave the daemon to do."""
    wall(daemon, many, 4, 240)
    beat = Path(f"{daemon.loop_log}.watching").stat().st_mtime
    assert time.time() - beat < 30, "nobody watches the event loop any more"
    lines = daemon.loop_log.read_text().splitlines() if daemon.loop_log.exists() else []
    stretches = sorted(map(json.loads, lines), key=lambda one: -one["ours"])
    for one in stretches[:5]:
        ms = {name: round(one[name] * 1000) for name in ("ours", "ran", "garbage", "queued")}
        rest = f"garbage {ms['garbage']} ms, others had the processor {ms['queued']} ms"
        say(f"{ms['ours']} ms, of which it computed for {ms['ran']} ms; {rest}: {one['places']}")
    say(f"{len(stretches)} stretches of 10 ms and more")
    assert max((one["ours"] for one in stretches), default=0) <= BLOCKED
