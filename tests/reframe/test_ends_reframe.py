"""However a run ends: its jobs are cancelled, or the next run goes on with them; nothing is left running."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from support.reframe_sleepers import Sleepers, wait_for
from support.sandbox import SandboxProcess
from support.scale import PROVE


@pytest.mark.parametrize("policy", ["async", "serial"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["interrupt", "terminate"])
def test_interrupted(sandbox: SandboxProcess, folder: Path, sent: signal.Signals, policy: str) -> None:
    sleepers = Sleepers(sandbox, folder, seconds=3000, count=1 if policy == "serial" else 40 if PROVE else 8)
    running = sleepers.start(policy=policy)
    jobs = sleepers.wait_running(running)
    begun = time.monotonic()
    running.process.send_signal(sent)
    outcome = running.end(300)
    assert outcome.code != 0
    assert time.monotonic() - begun < 200
    states = sleepers.states()
    assert len(states) == len(jobs)
    assert {state.split()[0] for state in states.values()} == {"CANCELLED"}
    assert not list((folder / "state/reframe").glob("[0-9a-f]*"))
    assert not list((folder / "rfm/stage").glob(".hpcbridge-*"))


def test_killed_and_run_again(sandbox: SandboxProcess, folder: Path) -> None:
    """The jobs run on; the same run again takes their output, and submits nothing."""
    sleepers = Sleepers(sandbox, folder, seconds=20, count=3)
    running = sleepers.start()
    jobs = sleepers.wait_running(running)
    running.process.kill()
    running.process.wait()
    sandbox.delete("/requests")
    outcome = sleepers.run()
    assert [case["result"] for case in outcome.cases] == ["pass"] * 3, outcome.output[-4000:]
    assert sleepers.executions() == jobs
    assert {case["job_id"] if "job_id" in case else case["jobid"] for case in outcome.cases} == {
        job for each in jobs.values() for job in each
    }
    assert not [name for name in sandbox.get("/requests")["counts"] if name.startswith("POST /compute")]
    assert not list((folder / "rfm/stage").glob(".hpcbridge-*"))
    # What has come back is over: the next run is a new one.
    assert [case["result"] for case in sleepers.run().cases] == ["pass"] * 3
    assert all(len(each) == 2 for each in sleepers.executions().values())


def test_killed_and_run_again_with_another_input(sandbox: SandboxProcess, folder: Path) -> None:
    """A job that does not do what the test is now about is cancelled, and another one made."""
    sleepers = Sleepers(sandbox, folder, seconds=3000, count=1)
    running = sleepers.start()
    (first,) = sleepers.wait_running(running)[0]
    running.process.kill()
    running.process.wait()
    outcome = Sleepers(sandbox, folder, seconds=1, count=1, word="another", mark=sleepers.mark).run()
    assert [case["result"] for case in outcome.cases] == ["pass"], outcome.output[-4000:]
    assert len(sleepers.executions()[0]) == 2
    assert sleepers.states()[first].startswith("CANCELLED")


def test_killed_while_it_ships(sandbox: SandboxProcess, folder: Path) -> None:
    """Before anything was submitted: the next run is as if nothing had been."""
    sandbox.post("/faults", [{"method": "POST", "path": "/filesystem/*/ops/extract", "kind": "hang", "count": 1}])
    sleepers = Sleepers(sandbox, folder, seconds=1, count=2)
    running = sleepers.start()
    wait_for(lambda: any(rule["count"] == 0 for rule in sandbox.get("/faults")), running)
    running.process.kill()
    running.process.wait()
    sandbox.delete("/faults")
    assert [case["result"] for case in sleepers.run().cases] == ["pass"] * 2
    assert all(len(jobs) == 1 for jobs in sleepers.executions().values())
