"""What one calculation and `verdi computer test` cost a site in requests, by stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.aiida_computers import installed_code, make_firecrest, make_ours
from support.aiida_profile import AiidaProfile
from support.aiida_runs import Meter, add
from support.sandbox import SandboxProcess

Say = Callable[[str], None]
COALESCED, WRITE_THROUGH, COMPUTER_TEST = 8, 11, 12


def measure(daemon: AiidaProfile, process: SandboxProcess, code: Any, title: str, say: Say) -> int:
    """Run one add and then another one; print both, return what the second one cost."""
    for way in ("cold", "warm"):
        meter = Meter(process)
        node = add(code)
        meter.follow(node, daemon)
        say(meter.table(f"{title}, {way}"))
        assert node.is_finished_ok, (node.process_state, node.exit_status)
    return meter.total


def test_one_add(daemon: AiidaProfile, quiet: SandboxProcess, quiet_secret: Path, say: Say) -> None:
    code = installed_code(make_ours("meter", quiet, quiet_secret), "bash-meter")
    assert measure(daemon, quiet, code, "hpcbridge", say) <= COALESCED


def test_one_add_write_through(daemon: AiidaProfile, quiet: SandboxProcess, quiet_secret: Path, say: Say) -> None:
    workdir = "/scratch/{username}/through"
    code = installed_code(make_ours("through", quiet, quiet_secret, workdir, coalesce=False), "bash-through")
    assert measure(daemon, quiet, code, "hpcbridge, write-through", say) <= WRITE_THROUGH


def test_beside_aiida_firecrest(daemon: AiidaProfile, quiet: SandboxProcess, quiet_secret: Path, say: Say) -> None:
    """The same from the same sandbox, with the other plugin."""
    pytest.importorskip("aiida_firecrest")
    theirs = measure(
        daemon, quiet, installed_code(make_firecrest("theirs", quiet), "bash-theirs"), "aiida-firecrest", say
    )
    assert theirs > WRITE_THROUGH


def test_computer_test(daemon: AiidaProfile, quiet: SandboxProcess, quiet_secret: Path, say: Say) -> None:
    """In a process of its own, as users run it: nothing is known from before."""
    computer = make_ours("tested", quiet, quiet_secret, "/scratch/{username}/tested")
    quiet.delete("/requests")
    said = daemon.verdi("computer", "test", "--print-traceback", computer.label)
    counts = quiet.get("/requests")["counts"]
    say(f"verdi computer test: {sum(counts.values())} requests: {counts}")
    assert "tests succeeded" in said
    assert sum(counts.values()) <= COMPUTER_TEST
