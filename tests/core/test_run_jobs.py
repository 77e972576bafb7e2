"""`hpcbridge run`: files there, one job, its output as it comes, results back, its own exit code."""

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


@pytest.fixture
def project(runs: Runs) -> Path:
    """A checkout with a test that reads a file and writes reports."""
    folder = runs.folder / "project"
    (folder / "src").mkdir(parents=True)
    (folder / "src/words.txt").write_text("to be or not to be\n")
    (folder / "notes.tmp").write_text("not for others\n")
    (folder / ".git").mkdir()
    (folder / ".git/config").write_text("extraheader = AUTHORIZATION: basic c2VjcmV0\n")
    return folder


CHECK = """\
mkdir -p out/junit
wc -w < src/words.txt > out/count.txt
echo '<testsuite/>' > out/junit/unit.xml
echo counted"""


def test_files_go_there_output_and_results_come_back(runs: Runs, project: Path) -> None:
    arguments = ("--push", project, "--exclude", "*.tmp", "--pull", "out/**/*.xml", "--pull", "out/count.txt")
    done = runs.run(*arguments, "--into", "results", "--json", runs.script(CHECK))
    assert done.returncode == 0
    told = parsed(done.stdout)
    assert (told["state"], told["exit_code"], told["code"], told["missing"]) == ("COMPLETED", 0, 0, [])
    assert (runs.folder / "results/out/count.txt").read_text().strip() == "6"
    assert (runs.folder / "results/out/junit/unit.xml").read_text() == "<testsuite/>\n"
    assert {item["source"].removeprefix(told["workdir"]) for item in told["pulled"]} == {
        "/out/count.txt",
        "/out/junit/unit.xml",
    }
    there = {path.name for path in runs.there(told["workdir"]).rglob("*")}
    assert "words.txt" in there
    assert not there & {"notes.tmp", ".git", "config"}


def test_our_own_state_is_not_sent_where_the_home_directory_is_the_checkout(runs: Runs) -> None:
    config = runs.folder / ".config/hpcbridge"
    config.mkdir(parents=True)
    (config / "site.secret").write_text("a secret\n")
    (runs.folder / "words.txt").write_text("words\n")
    done = runs.run("--push", runs.folder, "--", "find", ".", "-type", "f")
    assert "./words.txt\n" in done.stdout
    assert "site.secret" not in done.stdout
    assert ".local/state" not in done.stdout


def test_of_a_directory_only_what_differs_is_sent_again(runs: Runs, project: Path) -> None:
    first = runs.run("--push", project, "--", "cat", "src/words.txt")
    (project / "src/more.txt").write_text("more\n")
    second = runs.run("--push", project, "--", "cat", "src/more.txt")
    assert (first.stdout, second.stdout) == ("to be or not to be\n", "more\n")
    assert "1 file, 3 unchanged" in second.stderr


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


def test_a_failed_job_has_results_too_and_keeps_its_code(runs: Runs) -> None:
    done = runs.run(
        "--workdir", runs.name, "--pull", "*.xml", "--pull", "nothing", "--", "bash", "-c", "echo 1 > a.xml; exit 3"
    )
    assert done.returncode == 3
    assert (runs.folder / "a.xml").read_text() == "1\n"


def test_a_result_that_is_missing_is_a_failure_unless_it_may_be(runs: Runs) -> None:
    missing = runs.run("--workdir", runs.name, "--pull", "*.xml", "--", "true")
    assert missing.returncode == 74
    assert "nothing matches" in missing.stderr
    assert runs.run("--workdir", runs.name, "--pull", "*.xml", "--allow-missing", "--", "true").returncode == 0
    assert runs.run("--workdir", runs.name, "--pull", "*.xml", "--no-pull", "--", "true").returncode == 0


MANY = """\
mkdir -p many whole/deep
for i in $(seq 40); do echo $i > many/$i.txt; done
echo x > whole/deep/x
ln -s deep whole/link"""


def test_many_results_and_whole_directories_come_as_archives(runs: Runs) -> None:
    pulled = ("--pull", "many/*.txt", "--pull", "whole", "--into", "r")
    done = runs.run("--workdir", runs.name, *pulled, runs.script(MANY))
    assert done.returncode == 0
    assert len(list((runs.folder / "r/many").iterdir())) == 40
    assert (runs.folder / "r/whole/deep/x").read_text() == "x\n"
    assert (runs.folder / "r/whole/link").readlink() == Path("deep")


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
    assert set(runs.jobs().values()) == {"CANCELLED"}


def test_quiet_is_the_output_alone(runs: Runs) -> None:
    done = runs.run("--quiet", "--workdir", runs.name, "--", "echo", "hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")


def test_json_is_alone_on_standard_output(runs: Runs) -> None:
    done = runs.run("--json", "--", "bash", "-c", "echo hello; exit 6")
    told = parsed(done.stdout)
    assert done.returncode == told["code"] == told["exit_code"] == 6
    assert (told["state"], told["system"], told["workdir"]) == ("FAILED", runs.sandbox.system, "/home/alice")
    assert "\nhello\n" in done.stderr


def test_a_dry_run_says_what_would_be_done_and_does_nothing(runs: Runs, project: Path) -> None:
    arguments = ("--push", project, "--pull", "out", "--nodes", "2", "--env", "LIMIT=3", runs.script(CHECK))
    before = len(runs.jobs())
    told = parsed(runs.run("--dry-run", "--json", *arguments).stdout)
    assert set(told["push"]) == {"copy src", "copy notes.tmp", "copy src/words.txt"}
    assert "--nodes=2" in told["options"]
    assert told["env"] == ["LIMIT"]
    assert f"would submit {runs.name} on" in runs.run("--dry-run", *arguments).stdout
    assert len(runs.jobs()) == before
    assert not runs.there(told["workdir"]).exists()


def test_cleanup_removes_the_runs_own_directory_when_all_went_well(runs: Runs, project: Path) -> None:
    good = parsed(
        runs.run("--push", project, "--cleanup", "--pull", "o", "--json", "--", "cp", "src/words.txt", "o").stdout
    )
    assert (runs.folder / "o").read_text() == "to be or not to be\n"
    assert not runs.there(good["workdir"]).exists()
    bad = parsed(runs.run("--push", project, "--cleanup", "--json", "--", "false").stdout)
    assert runs.there(bad["workdir"]).exists()


def test_a_directory_in_which_a_job_still_works_is_left_alone(runs: Runs, project: Path) -> None:
    handle = runs.folder / "one.json"
    assert runs.run("--workdir", runs.name, "--detach", "--handle", handle, "--", "sleep", "60").returncode == 0
    job_id = runs.wait_for_job("RUNNING")
    refused = runs.run("--workdir", runs.name, "--push", project, "--", "true")
    assert refused.returncode == 1
    assert f"job {job_id} still works in this directory" in refused.stderr
    assert runs.run("--workdir", runs.name, "--push", project, "--share", "--", "true").returncode == 0
    assert runs("cancel", handle).returncode == 0


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
