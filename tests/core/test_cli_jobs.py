"""submit, status, logs and cancel against the sandbox: what they print and what they exit with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from support.cli import run_cli, start_cli
from support.sandbox import SandboxProcess
from support.scale import PROVE

STATUS_FIELDS = ["job_id", "name", "state", "exit_code", "signal", "reason", "submitted", "started", "ended", "nodes"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def script(folder: Path, body: str, name: str = "run.sh") -> str:
    (folder / name).write_text(f"#!/bin/bash\n{body}\n")
    return name


def hpcbridge(sandbox: SandboxProcess, folder: Path, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return run_cli(*arguments, env=sandbox.client_env("alice"), cwd=folder, **more)


def submit(sandbox: SandboxProcess, folder: Path, body: str, *options: str) -> dict[str, Any]:
    done = hpcbridge(sandbox, folder, "submit", script(folder, body), "--json", *options)
    assert done.returncode == 0
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


def wait_for(sandbox: SandboxProcess, folder: Path, job_id: str, *states: str) -> dict[str, Any]:
    for _ in range(60):
        shown: dict[str, Any] = json.loads(hpcbridge(sandbox, folder, "status", job_id, "--json").stdout)
        # For some seconds accounting may show a placeholder of that name.
        if shown["state"] in states and shown["name"] != "allocation":
            return shown
        time.sleep(0.5)
    raise AssertionError(f"job {job_id} never was {states}: {shown}")


def test_submit_prints_one_object_with_the_job_id(sandbox: SandboxProcess, folder: Path) -> None:
    shown = submit(sandbox, folder, "true", "--name", "first", "--key", f"one-{folder}")
    assert re.fullmatch(r"\w+", shown["job_id"])
    assert shown["name"].startswith("first.hb1")
    assert shown["system"] == sandbox.system
    assert shown["workdir"] == "/home/alice"
    assert shown["adopted"] is False


def test_a_second_submit_with_the_same_key_finds_the_first(sandbox: SandboxProcess, folder: Path) -> None:
    body, key = "echo once >> executions.txt", f"twice-{folder}"
    there = f"/home/alice/{folder.name}"
    first = submit(sandbox, folder, body, "--key", key)
    second = submit(sandbox, folder, body, "--key", key)
    assert second["job_id"] == first["job_id"]
    assert second["adopted"] is True
    conflict = hpcbridge(sandbox, folder, "submit", script(folder, "echo another"), "--key", key)
    assert conflict.returncode == 2
    assert "another script" in conflict.stderr
    assert there


def test_in_a_pipe_submit_prints_the_job_id_alone(sandbox: SandboxProcess, folder: Path) -> None:
    done = hpcbridge(sandbox, folder, "submit", script(folder, "true"))
    assert re.fullmatch(r"\w+\n", done.stdout)


def test_the_script_may_come_from_standard_input_or_from_the_system(sandbox: SandboxProcess, folder: Path) -> None:
    done = hpcbridge(sandbox, folder, "submit", "-", "--wait", stdin="#!/bin/bash\nexit 4\n")
    assert done.returncode == 4
    assert hpcbridge(sandbox, folder, "put", script(folder, "exit 6"), "/home/alice/there.sh").returncode == 0
    done = hpcbridge(sandbox, folder, "submit", f"{sandbox.system}:/home/alice/there.sh", "--wait")
    assert done.returncode == 6


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("exit 3", 3),
        ("kill -SEGV $$", 128 + signal.SIGSEGV),
        ("#SBATCH --comment=simulate:duration=0.5,state=TIMEOUT,exit=0,signal=15", 124),
    ],
)
def test_wait_exits_with_the_jobs_code(sandbox: SandboxProcess, folder: Path, body: str, code: int) -> None:
    done = hpcbridge(sandbox, folder, "submit", script(folder, body), "--wait")
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_wait_shows_the_way_and_the_last_words_of_a_failed_job(sandbox: SandboxProcess, folder: Path) -> None:
    done = hpcbridge(sandbox, folder, "submit", script(folder, "echo the disk is full >&2; exit 9"), "--wait")
    assert done.returncode == 9
    assert "Submitted job" in done.stderr
    assert "FAILED" in done.stderr
    assert "exit code 9" in done.stderr
    assert "the disk is full" in done.stderr


def test_wait_with_json_prints_the_status_object(sandbox: SandboxProcess, folder: Path) -> None:
    done = hpcbridge(sandbox, folder, "submit", script(folder, "exit 5"), "--wait", "--json")
    assert done.returncode == 5
    shown = json.loads(done.stdout)
    assert list(shown) == STATUS_FIELDS
    assert (shown["state"], shown["exit_code"], shown["signal"]) == ("FAILED", 5, 0)


def test_status_prints_exactly_the_ten_fields(sandbox: SandboxProcess, folder: Path) -> None:
    job_id = submit(sandbox, folder, "exit 2", "--name", "ten")["job_id"]
    shown = wait_for(sandbox, folder, job_id, "FAILED")
    assert list(shown) == STATUS_FIELDS
    assert shown["job_id"] == job_id
    assert shown["name"].startswith("ten.hb1")
    assert shown["exit_code"] == 2
    assert shown["started"] <= shown["ended"]
    plain = hpcbridge(sandbox, folder, "status", job_id)
    assert f"job_id\t{job_id}\n" in plain.stdout
    assert "state\tFAILED\n" in plain.stdout


def test_status_of_nothing_and_of_everything(sandbox: SandboxProcess, folder: Path) -> None:
    unknown = hpcbridge(sandbox, folder, "status", "99999999")
    assert unknown.returncode == 1
    assert "99999999" in unknown.stderr
    assert hpcbridge(sandbox, folder, "status", "not/an/id").returncode == 2
    job_id = submit(sandbox, folder, "sleep 20")["job_id"]
    for _ in range(30):  # listings flicker for some seconds after a submit
        listed = json.loads(hpcbridge(sandbox, folder, "status", "--json").stdout)
        if job_id in [row["job_id"] for row in listed]:
            break
        time.sleep(0.5)
    assert job_id in [row["job_id"] for row in listed]
    assert hpcbridge(sandbox, folder, "cancel", job_id).returncode == 0


def test_an_array_is_one_job_with_tasks(sandbox: SandboxProcess, folder: Path) -> None:
    body = 'echo "task $SLURM_ARRAY_TASK_ID"; exit $SLURM_ARRAY_TASK_ID'
    done = hpcbridge(sandbox, folder, "submit", script(folder, body), "--array", "0-2", "--wait", "--json")
    shown = json.loads(done.stdout)
    assert shown["state"] == "FAILED"
    assert done.returncode in (1, 2)
    assert hpcbridge(sandbox, folder, "logs", f"{shown['job_id']}_1").stdout == "task 1\n"
    assert hpcbridge(sandbox, folder, "logs", shown["job_id"]).stdout == "task 0\ntask 1\ntask 2\n"


def test_environment_values_arrive_intact_and_unseen(sandbox: SandboxProcess, folder: Path) -> None:
    value = "a,b|c'd\"e\nf $HOME `id`"
    body = 'printf %s "$ODD" > value.txt; printf %s "$FROM_SHELL" >> value.txt'
    env = sandbox.client_env("alice") | {"FROM_SHELL": "inherited"}
    done = run_cli(
        "submit", script(folder, body), "--env", f"ODD={value}", "--env", "FROM_SHELL", "--wait", env=env, cwd=folder
    )
    assert done.returncode == 0
    assert hpcbridge(sandbox, folder, "get", "/home/alice/value.txt", "value.txt").returncode == 0
    assert (folder / "value.txt").read_text() == value + "inherited"


def test_logs_are_byte_for_byte(sandbox: SandboxProcess, folder: Path) -> None:
    body = r"printf '\377\000caf\303\251\n'; echo error >&2"
    job_id = submit(sandbox, folder, body, "--output", "o.txt", "--error", "e.txt")["job_id"]
    wait_for(sandbox, folder, job_id, "COMPLETED")
    shown = hpcbridge(sandbox, folder, "logs", job_id).stdout
    assert shown.encode("utf-8", "surrogateescape") == b"\xff\x00caf\xc3\xa9\n"
    assert hpcbridge(sandbox, folder, "logs", job_id, "--stderr").stdout == "error\n"


def test_following_ends_with_the_job_and_prints_each_byte_once(sandbox: SandboxProcess, folder: Path) -> None:
    job_id = submit(sandbox, folder, "for i in 1 2 3 4 5 6; do echo line $i; sleep 0.4; done")["job_id"]
    done = hpcbridge(sandbox, folder, "logs", "-f", job_id)
    assert done.returncode == 0
    assert done.stdout == "".join(f"line {i}\n" for i in range(1, 7))


def test_cancel_is_confirmed_and_may_be_repeated(sandbox: SandboxProcess, folder: Path) -> None:
    job_id = submit(sandbox, folder, "sleep 60")["job_id"]
    done = hpcbridge(sandbox, folder, "cancel", job_id, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["state"] == "CANCELLED"
    assert hpcbridge(sandbox, folder, "cancel", job_id).returncode == 0
    assert hpcbridge(sandbox, folder, "cancel", "99999999").returncode == 1


def test_a_cancelled_job_ends_the_wait_with_130(sandbox: SandboxProcess, folder: Path) -> None:
    waiting = start(sandbox, folder, "submit", script(folder, "sleep 60"), "--wait")
    job_id = submitted_id(waiting)
    assert hpcbridge(sandbox, folder, "cancel", job_id).returncode == 0
    waiting.communicate(timeout=30)
    assert waiting.returncode == 130


def test_interrupting_the_wait_leaves_the_job_and_says_so(sandbox: SandboxProcess, folder: Path) -> None:
    waiting = start(sandbox, folder, "submit", script(folder, "sleep 60"), "--wait")
    job_id = submitted_id(waiting)
    time.sleep(1)
    waiting.send_signal(signal.SIGINT)
    _, said = waiting.communicate(timeout=20)
    assert waiting.returncode == 130
    assert f"Job {job_id} goes on" in said
    assert f"hpcbridge logs -f {job_id}" in said
    assert "Traceback" not in said
    assert wait_for(sandbox, folder, job_id, "PENDING", "RUNNING")["job_id"] == job_id
    assert hpcbridge(sandbox, folder, "cancel", job_id).returncode == 0


def test_an_outage_during_the_wait_is_waited_out(sandbox: SandboxProcess, folder: Path) -> None:
    waiting = start(sandbox, folder, "submit", script(folder, "sleep 3; exit 3"), "--wait")
    submitted_id(waiting)
    sandbox.post("/outage", {"kind": "refused", "seconds": 60 if PROVE else 6})
    _, said = waiting.communicate(timeout=150)
    assert waiting.returncode == 3
    assert "Traceback" not in said


def test_interrupting_the_log_leaves_the_job(sandbox: SandboxProcess, folder: Path) -> None:
    job_id = submit(sandbox, folder, "echo begun; sleep 60")["job_id"]
    following = start(sandbox, folder, "logs", "-f", job_id)
    assert following.stdout is not None
    assert following.stdout.readline() == "begun\n"
    following.send_signal(signal.SIGINT)
    _, said = following.communicate(timeout=20)
    assert following.returncode == 130
    assert f"Job {job_id} goes on" in said
    assert "Traceback" not in said
    assert hpcbridge(sandbox, folder, "cancel", job_id).returncode == 0


def test_a_job_that_does_not_start_in_time_is_cancelled_with_75(sandbox: SandboxProcess, folder: Path) -> None:
    held = script(folder, "#SBATCH --hold\ntrue")
    done = hpcbridge(sandbox, folder, "submit", held, "--wait", "--queue-timeout", "2")
    assert done.returncode == 75
    assert "had not started after 2 s" in done.stderr
    job_id = re.search(r"Submitted job (\w+)", done.stderr)
    assert job_id is not None
    assert wait_for(sandbox, folder, job_id[1], "CANCELLED")


def test_the_schedulers_refusal_is_told_in_its_words(sandbox: SandboxProcess, folder: Path) -> None:
    done = hpcbridge(sandbox, folder, "submit", script(folder, "true"), "--partition", "no-such-partition")
    assert done.returncode == 1
    assert "partition" in done.stderr
    assert "Traceback" not in done.stderr


def start(sandbox: SandboxProcess, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return start_cli(*arguments, env=sandbox.client_env("alice"), cwd=folder)


def submitted_id(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.match(r"Submitted job (\w+)", line):
            return found[1]
    raise AssertionError(f"nothing was submitted (exit {process.wait()}, pid {os.getpid()})")


@pytest.mark.slurm
def test_the_whole_story_on_real_slurm(slurm_sandbox: SandboxProcess, folder: Path) -> None:
    sandbox = slurm_sandbox
    failed = hpcbridge(sandbox, folder, "submit", script(folder, "echo gone; exit 7"), "--key", f"{folder}", "--wait")
    assert failed.returncode == 7
    assert "gone" in failed.stderr
    found = submit(sandbox, folder, "echo gone; exit 7", "--key", f"{folder}")
    assert found["adopted"] is True
    shown = wait_for(sandbox, folder, found["job_id"], "FAILED")
    assert list(shown) == STATUS_FIELDS
    assert (shown["exit_code"], shown["signal"]) == (7, 0)
    assert hpcbridge(sandbox, folder, "logs", "-f", found["job_id"]).stdout == "gone\n"
    killed = hpcbridge(sandbox, folder, "submit", script(folder, "kill -SEGV $$"), "--wait")
    assert killed.returncode == 128 + signal.SIGSEGV
    body = 'echo "task $SLURM_ARRAY_TASK_ID"'
    tasks = hpcbridge(sandbox, folder, "submit", script(folder, body), "--array", "0-2", "--wait", "--json")
    assert tasks.returncode == 0
    array = json.loads(tasks.stdout)["job_id"]
    assert hpcbridge(sandbox, folder, "logs", f"{array}_1").stdout == "task 1\n"
    running = submit(sandbox, folder, "sleep 60")["job_id"]
    assert json.loads(hpcbridge(sandbox, folder, "cancel", running, "--json").stdout)["state"] == "CANCELLED"
    refused = hpcbridge(sandbox, folder, "submit", script(folder, "true"), "--partition", "no-such-partition")
    assert refused.returncode == 1
    assert "invalid partition" in refused.stderr
