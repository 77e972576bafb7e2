"""The files of `hpcbridge run`: what is pushed into its work directory, and what comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.runs import Runs, parsed
from support.sandbox import SandboxProcess


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
