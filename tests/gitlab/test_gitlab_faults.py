"""Faults of the site in every stage, a runner killed with -9, a node that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from support.gitlab_bench import Bench, bench
from support.gitlab_coordinator import wait_for
from support.gitlab_runner import Spec, start_process, wait_for_log
from support.gitlab_scripts import Recipe
from support.gitlab_table import row
from support.sandbox import start_sandbox

FAULTS = {
    "408": [{"kind": "status", "status": 408, "message": "Command timed out."}],
    "429": [{"kind": "status", "status": 429, "headers": {"Retry-After": "1"}}],
    "500": [{"kind": "status", "status": 500}],
    "answers lost": [{"kind": "drop_after"}],
}
ARTIFACT = [{"paths": ["out"], "when": "always"}]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", [*FAULTS, "expired token"])
def test_a_fault_in_every_stage_changes_nothing(host: Bench, fault: str, record_property):
    """The first two requests of every call meet the fault; the job ends as without."""
    runner = host.runner(Recipe(["mkdir out; echo x > out/y; echo in the script"], ["echo after"], artifacts=ARTIFACT))
    began = len(runner.starts)
    runner.start()
    while not runner.outcome:
        if len(runner.starts) > began:
            began = len(runner.starts)
            if fault == "expired token":
                host.sandbox.post("/expire-tokens")
            else:
                rules = [{"path": "/*/*/*", "count": 2, **rule} for rule in FAULTS[fault]]
                host.sandbox.post("/faults", rules)
        time.sleep(0.02)
    runner.join(900)
    record_property("contract", row(f"{fault} in every stage", runner))
    assert runner.outcome == "success", runner.log
    assert host.job(runner).artifact() is not None
    assert runner.log.count("in the script\n") == 2  # the command's echo, and its output
    host.sandbox.reset()
    wait_for(lambda: host.states(runner) in (["COMPLETED"], ["CANCELLED"]), 60)


def test_a_404_after_the_submit_is_no_end(host: Bench, record_property):
    host.sandbox.post(
        "/faults", [{"method": "GET", "path": "/compute/*/jobs/*", "kind": "status", "status": 404, "count": 3}]
    )
    runner = host.runner(Recipe(["echo ran"]), rule='options = ["--begin=now+5"]').run()
    record_property("contract", row("404 after submit", runner))
    assert runner.outcome == "success", runner.log
    assert len(host.rows(runner)) == 1


def _killed(bench: Bench, recipe: Recipe, *, lease: int) -> Spec:
    """A runner that dies by SIGKILL while its script runs, with all that it had started."""
    spec = bench.spec(recipe, driver={"lease": lease})
    process = start_process(spec)
    job = bench.gitlab.jobs[spec.wanted]  # type: ignore[index]
    wait_for(lambda: b"started\n" in job.trace, 600, "the script's start")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return spec


def _gc(bench: Bench, spec: Spec, *words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*spec.program, "gc", *words], env={**bench.env}, cwd=bench.root, capture_output=True, text=True, check=False
    )
    print(done.stdout, done.stderr)
    return done


@pytest.mark.timeout(1200)
def test_the_lease_ends_what_a_killed_runner_has_left(any_host: Bench, record_property):
    lease = 20
    spec = _killed(any_host, Recipe(["echo started; sleep 600"]), lease=lease)
    mine = lambda: [p for p in any_host.places if p.name.startswith(f"{spec.wanted}-")]  # noqa: E731
    assert mine()
    wait_for(lambda: not mine(), lease * 3 + 60, "the lease's end")

    def state() -> str:
        with any_host.sandbox.client("alice") as client:
            rows = client.get(f"/compute/{any_host.sandbox.system}/jobs").json()["jobs"]
        listed = [item for item in rows if f"/{spec.wanted}-" in (item["workingDirectory"] or "")]
        return str(listed[0]["status"]["state"]) if listed else "not accounted for yet"

    wait_for(lambda: state() == "FAILED", 60, "the allocation's end")
    records = any_host.root / "state" / "jobs"
    (record,) = records.glob(f"*-{spec.wanted}/attempt-1.json")
    old = time.time() - 3600
    os.utime(record, (old, old))
    done = _gc(any_host, spec)
    assert "nothing was left on the system" in done.stdout
    assert not record.exists()
    name, said = "runner SIGKILL (the lease ends the job)", done.stdout.splitlines()[-1]
    record_property("contract", f"{name:45} {spec.form:6} {any_host.scheduler:6} {state():24} gc: {said}")


@pytest.mark.timeout(1200)
def test_gc_ends_a_live_allocation_that_nobody_works_for(host: Bench):
    spec = _killed(host, Recipe(["echo started; sleep 600"]), lease=600)
    assert "in use" in _gc(host, spec).stdout
    done = _gc(host, spec, "--all")
    assert "ended job" in done.stdout
    assert not [p for p in host.places if p.name.startswith(f"{spec.wanted}-")]
    assert _gc(host, spec).returncode == 0


@pytest.mark.timeout(1200)
def test_a_node_that_dies_is_the_sites_fault(record_property):
    with start_sandbox("--accounting-lag", "1", "--user", "alice", "--user", "bob") as process, bench(process) as own:
        runner = own.runner(Recipe(["echo started; sleep 600"], ["echo after"]))
        runner.start()
        wait_for_log(runner, "started\n", 600)
        process.kill()
        process.start()
        runner.join(900)
        record_property("contract", row("NODE_FAIL", runner))
        assert runner.outcome == "runner_system_failure", runner.log
        assert "NODE_FAIL (the site or the runner): the allocation is gone" in runner.log
        assert runner.log.count("after") == 0 or "LOST" in runner.log or "NODE_FAIL" in runner.log
