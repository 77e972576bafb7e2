"""`hpcbridge run` inside CI services: sections, masks, outputs and summaries in the form that each knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpcbridge.cli.running.ci import Service, recognise
from support.runs import Runs, end, read_until
from support.sandbox import SandboxProcess

TOKEN = "s3cret-%-token"


@pytest.fixture
def runs(sandbox: SandboxProcess, tmp_path: Path) -> Runs:
    made = Runs(sandbox, tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x").write_text("x\n")
    return made


def github(folder: Path) -> dict[str, str]:
    """What a step finds in its environment, its files included."""
    for name in ("output", "summary"):
        (folder / name).touch()
    return {
        "CI": "true",
        "GITHUB_ACTIONS": "true",
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": "me/project",
        "GITHUB_RUN_ID": "1658821493",
        "GITHUB_RUN_ATTEMPT": "1",
        "GITHUB_JOB": "unit_tests",
        "GITHUB_ACTION": "__run",
        "GITHUB_OUTPUT": str(folder / "output"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary"),
        "RUNNER_TRACKING_ID": "github_0f3f6cbe",
    }


def as_the_runner_shows(stream: str) -> tuple[list[str], list[str]]:
    """(lines that are shown, masks), as GitHub's runner reads a stream: commands stand at the start of a line."""
    masks: list[str] = []
    shown = []
    for line in stream.splitlines():
        if found := re.match(r"::add-mask::(.*)", line):
            masks.append(found[1].replace("%0A", "\n").replace("%0D", "\r").replace("%25", "%"))
            continue
        for mask in masks:
            line = line.replace(mask, "***")
        shown.append(line)
    return shown, masks


def test_github_gets_groups_masks_outputs_and_a_summary(runs: Runs) -> None:
    env = github(runs.folder) | {"TOKEN": TOKEN}
    command = "echo token $TOKEN; test -f x && printf 'no end of line' > r.txt; cat r.txt"
    process = runs.start(
        "--push", "data", "--pull", "r.txt", "--time", "5", "--secret", "TOKEN", "--", "bash", "-c", command, env=env
    )
    code, out, said = end(process)
    assert code == 0
    assert out == b"token ***\nno end of line"
    shown, masks = as_the_runner_shows(said)
    assert set(masks) == {TOKEN, runs.env["FIRECREST_CLIENT_SECRET"]}
    assert TOKEN not in "\n".join(shown)
    groups = [line for line in shown if line.startswith(("::group::", "::endgroup::"))]
    begun = [line.partition("::group::")[2].split()[0] for line in groups[::2]]
    # "Job … waits in the queue": on a busy machine it is seen there.
    assert [word for word in begun if word != "Job"] == ["Files", "Results"]
    assert groups[1::2] == ["::endgroup::"] * len(begun)
    outputs = dict(line.split("=", 1) for line in (runs.folder / "output").read_text().splitlines())
    (job_id,) = runs.jobs()
    assert outputs.items() >= {"job-id": job_id, "state": "COMPLETED", "exit-code": "0"}.items()
    assert outputs["workdir"].startswith(f"/home/alice/hpcbridge-runs/{runs.name}")
    summary = (runs.folder / "summary").read_text()
    assert f"### Job {job_id}" in summary
    assert "| State | COMPLETED |" in summary
    assert "| Results | 1 file, " in summary


def test_github_is_told_why_a_job_failed_and_later_steps_its_code(runs: Runs) -> None:
    done = runs.run("--", "bash", "-c", "exit 7", env=github(runs.folder))
    assert done.returncode == 7
    assert re.search(r"^::error title=The job failed::Job .*exit code 7", done.stderr, re.MULTILINE)
    assert re.search(r"^::warning title=hpcbridge::no --time", done.stderr, re.MULTILINE)
    assert "exit-code=7\n" in (runs.folder / "output").read_text()


def test_what_others_wrote_makes_no_commands_of_ours(runs: Runs) -> None:
    """Names and reasons from the cluster stay on their line, and inside their cell."""
    env = github(runs.folder)
    body = "mkdir r; touch $'r/a\\n::error::injected' 'r/b|<img>'"
    done = runs.run(
        "--workdir", runs.name, "--pull", "r", "--pull", "no|such::x", "--time", "5", runs.script(body), env=env
    )
    assert done.returncode == 74
    assert "\n::error::injected" not in done.stderr
    assert (runs.folder / "r/a\n::error::injected").exists()


def test_github_without_its_files_is_no_error(runs: Runs) -> None:
    env = github(runs.folder) | {"GITHUB_OUTPUT": "", "GITHUB_STEP_SUMMARY": str(runs.folder / "no/such/file")}
    done = runs.run("--time", "5", "--", "true", env=env)
    assert done.returncode == 0
    assert "GITHUB_STEP_SUMMARY cannot be written" in done.stderr


def gitlab(**more: str) -> dict[str, str]:
    return {
        "CI": "true",
        "GITLAB_CI": "true",
        "CI_SERVER_URL": "https://gitlab.example.org",
        "CI_JOB_ID": "4711",
        "CI_JOB_NAME": "unit tests: gcc",
    } | more


def test_gitlab_gets_sections_that_are_closed(runs: Runs) -> None:
    env = gitlab(TOKEN=TOKEN)
    done = runs(
        "run",
        "--push",
        "data",
        "--pull",
        "x",
        "--secret",
        "TOKEN",
        "--time",
        "5",
        "--",
        "bash",
        "-c",
        "echo $TOKEN",
        env=env,
    )
    assert (done.returncode, done.stdout) == (0, "***\n")
    begun = re.findall(r"\x1b\[0Ksection_start:(\d+):([a-z0-9_]+)\[collapsed=true\]\r\x1b\[0K", done.stderr)
    over = re.findall(r"\x1b\[0Ksection_end:(\d+):([a-z0-9_]+)\r\x1b\[0K", done.stderr)
    assert [name for _, name in begun] == [name for _, name in over]
    assert len([name for _, name in begun if "queue" not in name]) == 2
    assert "::" not in done.stderr
    assert TOKEN not in done.stderr
    assert runs.jobs("unit-tests-gcc")


def test_jenkins_gets_plain_lines(runs: Runs) -> None:
    env = {"JENKINS_URL": "https://ci.example.org", "BUILD_TAG": "jenkins-x-1", "TOKEN": TOKEN}
    done = runs.run("--secret", "TOKEN", "--time", "5", "--", "bash", "-c", "echo a${TOKEN}b; exit 3", env=env)
    assert (done.returncode, done.stdout) == (3, "a***b\n")
    assert "\x1b" not in done.stderr
    assert "::" not in done.stderr


def test_the_service_can_be_named(runs: Runs) -> None:
    done = runs.run("--ci", "none", "--time", "5", "--", "true", env=github(runs.folder))
    assert "::" not in done.stderr
    assert (runs.folder / "output").read_text() == ""


def test_what_identifies_a_run_differs_between_jobs_attempts_and_cells_of_a_matrix(tmp_path: Path) -> None:
    env = github(tmp_path)
    base = recognise(environ=env)
    assert base.service is Service.GITHUB
    for name, value in {"GITHUB_RUN_ATTEMPT": "2", "GITHUB_JOB": "other", "RUNNER_TRACKING_ID": "github_2"}.items():
        assert recognise(environ=env | {name: value}).identity != base.identity
    assert recognise(environ=dict(env)).identity == base.identity
    assert recognise(environ=gitlab()).identity != recognise(environ=gitlab(CI_JOB_ID="4712")).identity
    assert recognise(environ={}).service is Service.NONE
    assert recognise("gitlab", environ=env).service is Service.GITLAB


def test_another_ci_job_does_not_take_up_the_run_of_a_killed_one(runs: Runs) -> None:
    first = runs.start("--time", "5", "--", "sleep", "5", env=gitlab())
    read_until(first, "Submitted")
    first.kill()
    end(first)
    assert runs.run("--time", "5", "--", "sleep", "5", env=gitlab(CI_JOB_ID="4712")).returncode == 0
    assert len(runs.jobs()) == 2
