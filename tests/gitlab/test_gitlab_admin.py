"""What an administrator calls: doctor, explain; and a job's failure in the words of its scheduler."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hpcbridge.errors import AuthenticationError, ConfigurationError, SubmitRejected, Unavailable
from hpcbridge.jobs.state import JobInfo, JobState
from hpcbridge_gitlab import verdicts
from hpcbridge_gitlab.verdicts import Cause
from support.gitlab_scripts import Recipe

PROGRAM = str(Path(sys.prefix) / "bin" / "hpcbridge-gitlab")


def call(bench, config, *words):
    done = subprocess.run(
        [PROGRAM, "--config", str(config), *words],
        env=bench.env,
        cwd=bench.root,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, done.stderr)
    return done


def test_doctor_goes_through_every_rule_and_prints_config_toml(host):
    table = '[id_token]\nissuer = "{}"\naudience = "hpc"'
    done = call(host, host.config('system = "sandbox"', tables=table.format(host.gitlab.url)), "doctor")
    assert done.returncode == 0
    assert "ok    rule 1: box, sandbox as alice, /home/alice/hpcbridge-ci, scheduler slurm (ssh)" in done.stdout
    assert f'run_args = ["--config", "{host.root}/gitlab-' in done.stdout
    assert f"ok    id_token: {host.gitlab.url} serves 1 keys, for hpc" in done.stdout
    away = table.format("http://127.0.0.1:1")
    broken = call(host, host.config('system = "nowhere"', {"runner": "", "isolate": "none"}, away), "doctor")
    assert broken.returncode == 1
    assert "FAIL  rule 1: no system 'nowhere'" in broken.stdout
    assert "NOT isolated" in broken.stdout
    assert "FAIL  id_token: the keys of http://127.0.0.1:1 cannot be had: ConnectError" in broken.stdout


def test_explain_says_where_each_value_comes_from(host, tmp_path):
    response = tmp_path / "response.json"
    response.write_text(json.dumps(Recipe(["true"]).response(1, "tok-secret", host.gitlab.url)))
    config = host.config('account = "a1"\nmax_time = "00:30:00"\noptions = ["--gpus=1"]')
    done = call(host, config, "explain", "--job-response", str(response), "--variable", "SLURM_NTASKS=4")
    assert done.returncode == 0
    lines = {line.partition(":")[0]: line.partition(":")[2].strip() for line in done.stdout.splitlines()}
    assert lines["project"] == "group/project (id 7), branch main"
    assert lines["--account"] == "a1, from the rule"
    assert lines["--ntasks"] == "4, from SLURM_NTASKS"
    assert lines["--time"] == "30 min, from max_time of the rule"
    assert lines["always"] == "--gpus=1"
    assert "tok-secret" not in done.stdout
    refused = call(host, config, "explain", "--job-response", str(response), "--variable", "SLURM_ACCOUNT=b")
    assert "POLICY (the job): SLURM_ACCOUNT: account 'b' is not allowed here" in refused.stderr
    assert call(host, config, "explain", "123456").returncode == 2


def test_the_command_line_of_hpcbridge_has_it_too(host):
    done = subprocess.run(
        [sys.executable, "-m", "hpcbridge", "gitlab", "--config", str(host.config()), "gc"],
        env=host.env, cwd=host.root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "removed" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("state", "cause", "jobs"),
    [
        ("TIMEOUT", Cause.TIMEOUT, True),
        ("OUT_OF_MEMORY", Cause.OUT_OF_MEMORY, True),
        ("NODE_FAIL", Cause.NODE_FAIL, False),
        ("PREEMPTED", Cause.PREEMPTED, False),
        ("CANCELLED", Cause.REVOKED, False),
        ("FAILED", Cause.LOST, False),
    ],
)
def test_an_allocations_end_says_whose_fault_it_is(state, cause, jobs):
    stop = verdicts.of_allocation(JobInfo("1", "n", JobState(state), exit_code=0, signal=0, reason="r"))
    assert (stop.cause, stop.cause.is_the_jobs) == (cause, jobs)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (SubmitRejected("invalid partition"), Cause.REJECTED),
        (Unavailable("503"), Cause.UNAVAILABLE),
        (AuthenticationError("no"), Cause.AUTHENTICATION),
        (ConfigurationError("no url"), Cause.CONFIGURATION),
    ],
)
def test_an_error_says_whose_fault_it_is(error, cause):
    assert verdicts.of_error(error).cause is cause
