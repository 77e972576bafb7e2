"""A real Slurm comes up, goes down without leaving anything, and knows its jobs after both kinds of end."""

import concurrent.futures
import time
from pathlib import Path

import httpx
import pytest

from support.sandbox import alive, children_of, start_sandbox
from support.scale import PROVE

pytestmark = pytest.mark.slurm


def submit(http, sandbox, script="#!/bin/sh\ntrue\n", **job):
    body = {"job": {"script": script, "workingDirectory": "/home/alice", **job}}
    answer = http.post(f"/compute/{sandbox.system}/jobs", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()["jobId"]


def status(http, sandbox, job_id):
    answer = http.get(f"/compute/{sandbox.system}/jobs/{job_id}")
    assert answer.status_code in (200, 404), answer.text
    return answer.json()["jobs"][0]["status"] if answer.status_code == 200 else {"state": None, "stateReason": None}


def until(test, seconds=60):
    end = time.monotonic() + seconds
    while not (result := test()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return result


def test_jobs_outlive_a_kill_of_the_sandbox_and_nothing_else_does(slurm_installed):
    with start_sandbox("--scheduler", "slurm", timeout=180) as sandbox:
        with sandbox.client() as http:
            done = submit(http, sandbox, "#!/bin/sh\nexit 3\n")
            held = submit(http, sandbox, "#!/bin/sh\n#SBATCH -H\ntrue\n")
            running = submit(http, sandbox, "#!/bin/sh\n#SBATCH --no-requeue\nsleep 600\n")
            until(lambda: status(http, sandbox, done)["state"] == "FAILED")
            until(lambda: status(http, sandbox, running)["state"] == "RUNNING")
            time.sleep(6)  # slurmctld writes its state down every 5 s
        everything = children_of(sandbox.process.pid)
        assert len(everything) > 6
        sandbox.kill()
        until(lambda: not [pid for pid in everything if alive(pid)], seconds=20)
        sandbox.start()
        with sandbox.client() as http:
            assert status(http, sandbox, done)["exitCode"] == 3
            assert status(http, sandbox, held)["stateReason"] == "JobHeldUser"
            until(lambda: status(http, sandbox, running)["state"] == "NODE_FAIL", seconds=30)
            assert int(submit(http, sandbox)) > int(running)
        everything = children_of(sandbox.process.pid)
        started = time.monotonic()
        assert sandbox.stop() == 0
        assert time.monotonic() - started < 25
        assert not [pid for pid in everything if alive(pid)]


def test_jobs_of_a_real_slurm_see_the_cluster_only(slurm_sandbox):
    script = (
        f"#!/bin/sh\nls -d {Path.cwd()}/pyproject.toml {slurm_sandbox.state}; id -un; ls /home/bob; echo $SLURM_CONF\n"
    )
    with slurm_sandbox.client() as http:
        job_id = submit(http, slurm_sandbox, script)
        path = slurm_sandbox.host_path(f"/home/alice/slurm-{job_id}.out")
        until(lambda: path.exists() and "slurm.conf" in path.read_text())
    text = path.read_text()
    assert text.count("No such file or directory") == 2
    assert "Permission denied" in text
    assert "\nalice\n" in text


def test_a_burst_of_submits_makes_as_many_jobs_and_executions(slurm_sandbox):
    count = 200 if PROVE else 60
    script = "#!/bin/sh\n#SBATCH -o /dev/null\necho run >> burst.txt\n"
    limits = httpx.Limits(max_connections=8)
    with slurm_sandbox.client(limits=limits) as http, concurrent.futures.ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: submit(http, slurm_sandbox, script), range(count)))
        assert len(set(ids)) == count
        path = slurm_sandbox.host_path("/home/alice/burst.txt")
        until(lambda: path.exists() and len(path.read_text().splitlines()) == count, seconds=120)
        time.sleep(1)
        assert len(path.read_text().splitlines()) == count


if PROVE:  # Slurm enforces a limit of one minute up to half a minute late

    def test_a_time_limit_ends_in_timeout(slurm_sandbox):
        with slurm_sandbox.client() as http:
            job_id = submit(http, slurm_sandbox, "#!/bin/sh\n#SBATCH -t 1\nsleep 300\n")
            found = until(
                lambda: (found := status(http, slurm_sandbox, job_id))["state"] == "TIMEOUT" and found, seconds=150
            )
        assert (found["exitCode"], found["interruptSignal"]) == (0, 0)
