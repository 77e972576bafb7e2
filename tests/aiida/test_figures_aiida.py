"""Many calculations at once, beside aiida-core's own plugins in the same run; the event loop meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    """One line of the table."""

    count: int
    sessions: int | None
    latency: float

    def __str__(self) -> str:
        return f"{self.count} adds, MaxSessions {self.sessions or 'unlimited'}, {self.latency * 1000:g} ms"


SETTINGS = [
    *(Setting(50, sessions, latency) for sessions in (10, None) for latency in (0.0, 0.1)),
    Setting(300, 10, 0.0),
    Setting(300, 10, 0.1),
]


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


def compare(daemon: AiidaProfile, base: Any, ours: Any, count: int, title: str, say: Say) -> float:
    """Our wall by theirs, which is measured before and after ours: machines are slower at times.

    Nothing fails, and nothing is tried again.
    """
    failures = len(daemon.failures())
    seconds = 300 + 20 * count  # a bound for machines with much else to do, not a figure
    walls, computed = [], []
    for code in (base, ours, base):
        begun = daemon.used()
        walls.append(wall(daemon, code, count, seconds))
        computed.append(daemon.used() - begun)
    ratio = walls[1] / ((walls[0] + walls[2]) / 2)
    say(
        f"{title}: {base.computer.scheduler_type} {walls[0]:.1f} and {walls[2]:.1f} s, ours {walls[1]:.1f} s, "
        f"ratio {ratio:.2f}; the worker computed for {computed[0]:.1f}, {computed[2]:.1f} and {computed[1]:.1f} s"
    )
    assert daemon.failures()[failures:] == []
    return ratio


@pytest.mark.prove
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.timeout(3000)
def test_many_at_once(
    daemon: AiidaProfile, busy: SandboxProcess, native: Any, many: Any, setting: Setting, say: Say
) -> None:
    busy.post("/sessions", {"max": setting.sessions})
    busy.post("/latency", {"seconds": setting.latency})
    busy.delete("/requests")
    try:
        ratio = compare(daemon, native, many, setting.count, str(setting), say)
    finally:
        busy.post("/sessions", {"max": None})
        busy.post("/latency", {"seconds": 0})
    total = sum(busy.get("/requests")["counts"].values())
    say(f"{setting}: {total / setting.count:.1f} requests each")
    assert ratio <= RATIO


@pytest.mark.slurm
@pytest.mark.prove
@pytest.mark.timeout(3000)
def test_many_at_once_on_slurm(daemon: AiidaProfile, native_slurm: Any, slurm: Any, say: Say) -> None:
    """core.local and core.slurm, and ours, on one and the same real Slurm."""
    assert compare(daemon, native_slurm, slurm, 50, "50 adds on Slurm", say) <= RATIO


def test_the_event_loop_is_not_blocked(daemon: AiidaProfile, many: Any, say: Say) -> None:
    """By anything of ours, in whatever this run gave the daemon to do."""
    wall(daemon, many, 4, 240)
    lines = daemon.loop_log.read_text().splitlines() if daemon.loop_log.exists() else []
    stretches = sorted(map(json.loads, lines), key=lambda one: -one["ours"])
    for one in stretches[:5]:
        ms = {name: round(one[name] * 1000) for name in ("ours", "garbage", "queued")}
        say(f"{ms['ours']} ms; garbage {ms['garbage']} ms, others had the processor {ms['queued']} ms: {one['places']}")
    assert max((one["ours"] for one in stretches), default=0) <= BLOCKED
