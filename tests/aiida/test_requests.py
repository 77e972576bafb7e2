"""What one calculation and `verdi computer test` cost a site in requests, by stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.aiida_computers import installed_code, make_firecrest, make_ours
from support.aiida_profile import AiidaProfile
from support.aiida_runs import Meter, add
from support.sandbox import SandboxProcess

Say = Callable[[str], None]
COALESCED, WRITE_THROUGH, COMPUTER_TEST = 8, 11, 12


@dataclass(frozen=True)
class Way:
    """A way to upload: the parameter of `configure`, and what one calculation may cost."""

    coalesce: bool
    bound: int
    unknown: int
    """For what nobody has asked before: the user's name, and the work directory, which is looked for and made."""


WAYS = {"collected": Way(True, COALESCED, 2), "write-through": Way(False, WRITE_THROUGH, 3)}


@pytest.fixture(scope="module")
def codes(daemon: AiidaProfile, quiet: SandboxProcess, quiet_secret: Path) -> dict[str, Any]:
    """Bash on computers that nobody has used yet."""
    made = {}
    for name, way in WAYS.items():
        computer = make_ours(name, quiet, quiet_secret, f"/scratch/{{username}}/{name}", coalesce=way.coalesce)
        made[name] = installed_code(computer, f"bash-{name}")
    return made


def measure(daemon: AiidaProfile, process: SandboxProcess, code: Any, title: str, say: Say) -> int:
    """Run one add; print what it cost, and return it."""
    meter = Meter(process)
    node = add(code)
    meter.follow(node, daemon)
    say(meter.table(title))
    assert node.is_finished_ok, (node.process_state, node.exit_status)
    return meter.total


@pytest.mark.parametrize("name", WAYS)
def test_the_first_add_ever(
    daemon: AiidaProfile, quiet: SandboxProcess, codes: dict[str, Any], name: str, say: Say
) -> None:
    way = WAYS[name]
    assert measure(daemon, quiet, codes[name], f"hpcbridge, {name}, first ever", say) <= way.bound + way.unknown


@pytest.mark.parametrize("name", WAYS)
def test_one_more(daemon: AiidaProfile, quiet: SandboxProcess, codes: dict[str, Any], name: str, say: Say) -> None:
    assert measure(daemon, quiet, codes[name], f"hpcbridge, {name}, warm", say) <= WAYS[name].bound


@pytest.fixture(scope="module")
def new_worker(daemon: AiidaProfile) -> None:
    """The daemon's worker has just been started."""
    daemon.kill_workers()


@pytest.mark.parametrize("name", WAYS)
def test_the_first_add_of_a_worker(
    daemon: AiidaProfile, quiet: SandboxProcess, codes: dict[str, Any], new_worker: None, name: str, say: Say
) -> None:
    """What earlier workers were told is not asked again."""
    assert measure(daemon, quiet, codes[name], f"hpcbridge, {name}, cold", say) <= WAYS[name].bound


def test_beside_aiida_firecrest(daemon: AiidaProfile, quiet: SandboxProcess, say: Say) -> None:
    """The same from the same sandbox, with the other plugin."""
    pytest.importorskip("aiida_firecrest")
    code = installed_code(make_firecrest("theirs", quiet), "bash-theirs")
    cold, warm = (measure(daemon, quiet, code, f"aiida-firecrest, {way}", say) for way in ("cold", "warm"))
    assert min(cold, warm) > WRITE_THROUGH


def test_computer_test(daemon: AiidaProfile, quiet: SandboxProcess, quiet_secret: Path, say: Say) -> None:
    """In a process of its own, as users run it: nothing is known from before."""
    computer = make_ours("tested", quiet, quiet_secret, "/scratch/{username}/tested")
    quiet.delete("/requests")
    said = daemon.verdi("computer", "test", "--print-traceback", computer.label)
    counts = quiet.get("/requests")["counts"]
    say(f"verdi computer test: {sum(counts.values())} requests: {counts}")
    assert "tests succeeded" in said
    assert sum(counts.values()) <= COMPUTER_TEST
