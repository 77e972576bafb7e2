"""The log: large, live, byte for byte; and what a running job costs in requests and time."""

from __future__ import annotations

import hashlib
import re
import statistics
import subprocess
import sys
import time

import pytest

from support.gitlab_runner import wait_for_log
from support.gitlab_scripts import Recipe
from support.gitlab_table import row
from support.scale import PROVE

SIZE = 50_000_000 if PROVE else 8_000_000
TICK_1 = {"tick": 1, "agent_tick": 0.3}


@pytest.mark.timeout(1800)
def test_a_large_log_arrives_byte_for_byte(any_host, record_property):
    script = [f"head -c {SIZE} /dev/urandom > blob; echo BEGIN-OF-IT; cat blob; echo; echo END-OF-IT; sha256sum blob"]
    runner = any_host.runner(Recipe(script)).run()
    record_property("contract", row(f"{SIZE // 1_000_000} MB of log", runner, any_host.scheduler))
    assert runner.outcome == "success", runner.log[-2000:]
    trace = bytes(any_host.job(runner).trace)
    body = trace[trace.rindex(b"BEGIN-OF-IT\n") + len(b"BEGIN-OF-IT\n") :]
    blob = body[:SIZE]
    assert body[SIZE:].startswith(b"\nEND-OF-IT\n")
    assert hashlib.sha256(blob).hexdigest().encode() in body[SIZE:]


def delays(runner) -> list[float]:
    """Seconds between a line's printing on the node and its arrival here."""
    found = []
    for arrived, data in runner.arrivals:
        found += [arrived - float(text) for text in re.findall(rb"^tick (\d+\.\d+)", data, re.MULTILINE)]
    return found


@pytest.mark.timeout(1200)
def test_the_log_is_live(any_host):
    """Lines arrive while the script runs; with the full figures, within three seconds at ticks of one second."""
    lines = 100 if PROVE else 40
    script = [f"for i in $(seq {lines}); do date +'tick %s.%N'; sleep 0.2; done"]
    runner = any_host.runner(Recipe(script), driver=TICK_1).run()
    late = delays(runner)
    assert len(late) == lines, runner.log
    print(f"median delay {statistics.median(late):.2f} s, worst {max(late):.2f} s")
    assert statistics.median(late) < (3 if PROVE else lines * 0.2)


@pytest.mark.timeout(1200)
def test_an_idle_look_is_one_request(host):
    seconds = 20 if PROVE else 8
    runner = host.runner(Recipe([f"echo started; sleep {seconds + 6}"]), driver=TICK_1)
    runner.start()
    wait_for_log(runner, "started\n", 600)
    time.sleep(3)
    host.sandbox.delete("/requests")
    time.sleep(seconds)
    counts = host.sandbox.get("/requests")["counts"]
    runner.join(600)
    assert set(counts) == {"GET /filesystem/{}/ops/download"}, counts
    assert 1 <= counts["GET /filesystem/{}/ops/download"] <= seconds + 2


@pytest.mark.timeout(1200)
def test_a_job_of_eight_stages_costs_one_queue_wait(host):
    host.sandbox.delete("/requests")
    cache = [{"key": "k", "paths": ["out"], "policy": "pull-push"}]
    recipe = Recipe(["mkdir out; echo x > out/y"], ["echo after"], artifacts=[{"paths": ["out"]}], cache=cache)
    runner = host.runner(recipe).run()
    assert runner.outcome == "success", runner.log
    stages = [stage for stage in runner.order if stage not in ("config", "prepare", "cleanup")]
    assert len(stages) == 8
    counts = host.sandbox.get("/requests")["counts"]
    assert counts["POST /compute/{}/jobs"] == 1
    print(f"{sum(counts.values())} requests: {counts}")


def test_the_start_of_a_stage_imports_nothing_that_it_does_not_need():
    """What made a start slow: httpx's own command line, an OAuth library, pydantic."""
    code = (
        "import sys; sys.modules['httpx._main'] = None\n"
        "import hpcbridge_gitlab.cli, hpcbridge_gitlab.running, hpcbridge.firecrest.client, hpcbridge._registry\n"
        "heavy = {'authlib', 'pydantic', 'rich', 'typer', 'firecrest', 'cryptography', 'joserfc'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
