"""`hpcbridge run`: one job, its output as it comes, its own exit code."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from support.runs import Runs, end, parsed
from support.sandbox import SandboxProcess
from support.scale import PROVE


@pytest.fixture
def runs(sandbox: SandboxProcess, tmp_path: Path) -> Runs:
    return Runs(sandbox, tmp_path)


def test_a_command_runs_with_its_own_words(runs: Runs) -> None:
    done = runs.run("--", "printf", "%s|", "two words", "$HOME", "a'b", "--name", "*")
    assert done.stdout == "two words|$HOME|a'b|--name|*|"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("exit 42", 42),
        ("kill -SEGV $$", 128 + signal.SIGSEGV),
        ("#SBATCH -o /dev/null\n#SBATCH --comment=simulate:duration=0.5,state=TIMEOUT,exit=0,signal=15", 124),
    ],
)
def test_the_exit_code_is_the_jobs(runs: Runs, body: str, code: int) -> None:
    done = runs.run(runs.script(body))
    assert done.returncode == code
    assert "The job failed" in done.stderr
    assert f"exit code {code}." in done.stderr


def test_output_is_the_jobs_own_bytes(runs: Runs) -> None:
    raw = os.urandom(20_000) + b"\r50 %\r100 %\xe2\x82" + b"no end of line"
    (runs.folder / "raw.bin").write_bytes(raw)
    process = runs.start("--push", "raw.bin", "--", "cat", "raw.bin")
    assert end(process)[:2] == (0, raw)


WRITE = """\
import sys, random
r, out, n = random.Random(7), sys.stdout.buffer, 0
while n < {size}:
    n += out.write(b'%d Z\\xc3\\xbcrich %a\\n' % (n, r.random()))
out.write(bytes(range(256)))
"""


def test_megabytes_of_output_arrive_exactly(runs: Runs) -> None:
    """Beyond what one request can give, bytes that are no text come at the end, by a job."""
    (runs.folder / "write.py").write_text(WRITE.format(size=50_000_000 if PROVE else 5_000_000))
    process = runs.start("--push", "write.py", "--", "python3", "write.py")
    code, out, _ = end(process, timeout=280)
    assert code == 0
    assert out == subprocess.check_output(["python3", str(runs.folder / "write.py")])


def test_errors_in_a_file_of_their_own_go_to_standard_error(runs: Runs) -> None:
    done = runs.run("--workdir", runs.name, "--error", "err.txt", "--", "bash", "-c", "echo out; echo err >&2")
    assert done.stdout == "out\n"
    assert "\nerr\n" in done.stderr


def test_an_array_prints_its_tasks_in_order(runs: Runs) -> None:
    done = runs.run("--array", "0-2", runs.script('echo "task $SLURM_ARRAY_TASK_ID"'))
    assert (done.returncode, done.stdout) == (0, "task 0\ntask 1\ntask 2\n")


def test_a_wait_in_the_queue_is_told_with_its_reason_and_has_an_end(runs: Runs) -> None:
    done = runs.run("--queue-timeout", "4", runs.script("#SBATCH --hold\ntrue"))
    assert done.returncode == 75
    assert "waits in the queue" in done.stderr
    assert "JobHeldUser" in done.stderr
    assert "had not started after 4.0 s and was cancelled" in done.stderr
    assert runs.states() == {"CANCELLED"}


def test_quiet_is_the_output_alone(runs: Runs) -> None:
    done = runs.run("--quiet", "--workdir", runs.name, "--", "echo", "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")


def test_json_is_alone_on_standard_output(runs: Runs) -> None:
    done = runs.run("--json", "--", "bash", "-c", "echo hello; exit 6")
    told = parsed(done.stdout)
    assert done.returncode == told["code"] == told["exit_code"] == 6
    assert (told["state"], told["system"], told["workdir"]) == ("FAILED", runs.sandbox.system, "/home/alice")
    assert "\nhello\n" in done.stderr


NOWHERE = {"FIRECREST_URL": "http://127.0.0.1:9", "AUTH_TOKEN_URL": "http://127.0.0.1:9/token"}


def test_what_is_wrong_with_service_secret_or_configuration_has_its_code(runs: Runs) -> None:
    down = runs.run("--", "true", env=NOWHERE)
    assert down.returncode == 69
    wrong = runs.run("--", "true", env={"FIRECREST_CLIENT_SECRET": "not-the-right-one"})
    assert wrong.returncode == 77
    assert "not-the-right-one" not in wrong.stderr + wrong.stdout
    unset = runs.run("--", "true", env=dict.fromkeys(runs.env, ""))
    assert unset.returncode == 78
    assert runs.run("--partition", "no-such", "--", "true").returncode == 1
    assert runs.jobs() == {}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "give a batch script, or a command after --"),
        ("--", "the command after -- is missing"),
        ("job.sh -- true", "either a script or, after --, a command"),
        ("missing.sh", "does not exist on this machine"),
        ("--push nothing -- true", "'nothing' does not exist on this machine"),
        ("--push job.sh:/etc/x -- true", "must lie below the work directory"),
        ("--push job.sh:../x -- true", "must lie below the work directory"),
        ("--pull /etc/passwd -- true", "must lie below the work directory"),
        ("--pull ../x -- true", "must lie below the work directory"),
        ("--queue-timeout soon -- true", "'soon' is not a time"),
        ("--secret TOKEN=x -- true", "the variable's name alone"),
        ("--secret UNSET_TOKEN -- true", "'UNSET_TOKEN' has no value here"),
        ("--secret SHORT -- true", "it cannot be hidden"),
        ("--detach -- true", "it needs --handle FILE"),
        ("--ci circle -- true", "'circle' is not one of github, gitlab, jenkins, none"),
        ("--key= -- true", "a key must not be empty"),
        ("--cleanup --workdir x -- true", "neither --workdir nor --key"),
        ("--name a|b -- true", "[A-Za-z]"),
        ("--time soon -- true", "must be minutes"),
        ("job.sh extra", "unexpected extra argument"),
        ("-- printf \udcff", "not UTF-8"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_sent(runs: Runs, arguments: str, said: str) -> None:
    runs.script("true")
    done = runs("run", *arguments.split(), env=NOWHERE | {"SHORT": "abc"})
    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert done.stdout == ""
