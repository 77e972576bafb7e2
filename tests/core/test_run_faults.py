"""What happens to the job when something happens to the run: one job, never lost, never left behind."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from support.cli import COMMAND, clean_environment
from support.runs import Runs, end, parsed, read_until
from support.sandbox import SandboxProcess
from support.scale import PROVE


@pytest.fixture
def runs(sandbox: SandboxProcess, tmp_path: Path) -> Runs:
    return Runs(sandbox, tmp_path)


def test_an_outage_in_the_middle_loses_nothing(runs: Runs) -> None:
    body = "for i in 1 2 3 4 5 6 7 8; do echo line $i; sleep 1; done; echo r > r.txt; exit 4"
    process = runs.start("--workdir", runs.name, "--pull", "r.txt", runs.script(body))
    read_until(process, "Job .* runs")
    runs.sandbox.post("/outage", {"kind": "refused", "seconds": 60 if PROVE else 4})
    time.sleep(5)
    runs.sandbox.post("/outage", {"kind": "503", "seconds": 2})
    code, out, _ = end(process, timeout=200)
    assert (code, out.decode()) == (4, "".join(f"line {i}\n" for i in range(1, 9)))
    assert (runs.folder / "r.txt").read_text() == "r\n"


def test_after_kill_9_the_same_command_goes_on_with_the_job(runs: Runs) -> None:
    (runs.folder / "data").mkdir()
    (runs.folder / "data/x").write_text("first\n")
    arguments = (
        "--push",
        "data",
        "--",
        "bash",
        "-c",
        "cat x; sleep 5; cat x; echo ran >> count; wc -l < count; exit 5",
    )
    first = runs.start(*arguments)
    job_id = read_until(first, r"Submitted job (\w+)")[1]
    first.kill()
    end(first)
    (runs.folder / "data/x").write_text("changed meanwhile\n")
    code, out, said = end(runs.start(*arguments))
    assert (code, out) == (5, b"first\nfirst\n1\n")
    assert f"Found job {job_id}" in said
    assert list(runs.jobs()) == [job_id]
    # That run has ended, and its end was told: now the same command is a new one.
    assert end(runs.start(*arguments))[1].startswith(b"changed meanwhile\n")
    assert len(runs.jobs()) == 2


def test_an_answer_lost_with_the_process_is_one_job(runs: Runs) -> None:
    """The submit's answer is lost, and the client is killed while it looks for the job."""
    path = f"/compute/{runs.sandbox.system}/jobs"
    runs.sandbox.post("/faults", [{"method": "POST", "path": path, "kind": "drop_after", "count": 1}])
    runs.sandbox.post("/faults", [{"method": "GET", "path": path, "kind": "hang", "count": 1}])
    arguments = ("--workdir", runs.name, "--", "bash", "-c", "echo once | tee -a once.txt")
    first = runs.start(*arguments)
    for _ in range(600):
        if runs.there(f"{runs.name}/once.txt").exists():
            break
        time.sleep(0.05)
    first.kill()
    assert end(first)[1] == b""
    runs.sandbox.delete("/faults")
    code, out, _ = end(runs.start(*arguments))
    assert (code, out) == (0, b"once\n")
    assert runs.there(f"{runs.name}/once.txt").read_text() == "once\n"
    assert len(runs.jobs()) == 1


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_job_while_it_runs(runs: Runs, first: signal.Signals) -> None:
    process = runs.start("--", "bash", "-c", "echo begun; sleep 120")
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(first)
    code, _, said = end(process, timeout=30)
    (job_id,) = runs.jobs()
    assert code == 130
    assert f"job {job_id} CANCELLED" in said
    assert "Traceback" not in said
    assert runs.state_of(job_id) == "CANCELLED"
    assert list((runs.folder / ".local/state/hpcbridge/runs").iterdir()) == []


def test_as_github_cancels_sigint_and_sigterm_leave_no_job(runs: Runs) -> None:
    """SIGINT; the site is slow to answer; SIGTERM 7.5 s later; SIGKILL 2.5 s after that."""
    process = runs.start("--", "sleep", "120")
    read_until(process, "Job .* runs")
    runs.sandbox.post("/latency", {"seconds": 1.0})
    process.send_signal(signal.SIGINT)
    try:
        process.wait(7.5)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
    code, _, _ = end(process, timeout=30)
    runs.sandbox.post("/latency", {"seconds": 0})
    assert code == 130
    assert runs.states() == {"CANCELLED"}


def test_a_second_and_different_signal_does_not_stop_the_cancelling(runs: Runs) -> None:
    process = runs.start("--", "sleep", "120")
    read_until(process, "Job .* runs")
    runs.sandbox.post("/outage", {"kind": "refused", "seconds": 3})
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    code, _, _ = end(process, timeout=60)
    assert code == 130
    assert runs.states() == {"CANCELLED"}


def test_a_person_who_insists_is_let_go_and_told(runs: Runs) -> None:
    process = runs.start("--", "sleep", "120")
    job_id = read_until(process, r"Job (\w+) runs")[1]
    runs.sandbox.post("/outage", {"kind": "hang", "seconds": 60})
    for pause in (0.2, 3.0, 0.0):  # twice at once is not yet insisting
        process.send_signal(signal.SIGINT)
        time.sleep(pause)
    code, _, said = end(process, timeout=30)
    runs.sandbox.delete("/outage")
    assert code == 130
    assert f"hpcbridge cancel {job_id}" in said
    assert runs("cancel", job_id).returncode == 0


def test_a_signal_during_the_submit_waits_for_its_answer_and_ends_the_job(runs: Runs) -> None:
    path = f"/compute/{runs.sandbox.system}/jobs"
    runs.sandbox.post("/faults", [{"method": "POST", "path": path, "kind": "latency", "seconds": 3, "count": 1}])
    process = runs.start("--handle", "h.json", "--", "sleep", "120")
    for _ in range(1200):
        if (runs.folder / "h.json").exists():  # written just before the submit
            break
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    code, _, _ = end(process, timeout=60)
    assert code == 130
    assert runs.states() == {"CANCELLED"}
    assert len(runs.jobs()) == 1


def test_a_signal_before_the_submit_leaves_nothing(runs: Runs) -> None:
    (runs.folder / "data").mkdir()
    (runs.folder / "data/x").write_text("x\n")
    runs.sandbox.post("/faults", [{"method": "POST", "path": "/compute/*/jobs", "kind": "latency", "seconds": 3}])
    process = runs.start("--push", "data", "--", "sleep", "120")
    read_until(process, "files: uploading")
    process.send_signal(signal.SIGINT)
    code, _, said = end(process, timeout=60)
    assert code == 130
    assert "No job was submitted" in said
    assert runs.jobs() == {}


def test_a_signal_after_the_end_leaves_the_results_to_the_same_command(runs: Runs) -> None:
    slow = {"method": "GET", "path": "/filesystem/*/ops/download", "kind": "latency", "seconds": 30}
    runs.sandbox.post("/faults", [slow])
    arguments = ("--workdir", runs.name, "--pull", "r.txt", "--", "bash", "-c", "echo r > r.txt; exit 3")
    process = runs.start(*arguments)
    read_until(process, "Results from")
    process.send_signal(signal.SIGINT)
    code, _, said = end(process)
    assert code == 130
    assert "The same command again fetches its results" in said
    runs.sandbox.delete("/faults")
    assert end(runs.start(*arguments))[0] == 3
    assert (runs.folder / "r.txt").read_text() == "r\n"
    assert len(runs.jobs()) == 1


def test_a_reader_that_has_enough_ends_the_job(runs: Runs) -> None:
    words = " ".join([*COMMAND, "run", "--name", runs.name, "--quiet", "--", "bash", "-c"])
    subprocess.run(
        ["bash", "-c", f"{words} 'while echo line; do sleep 0.5; done' | head -n 2"],
        env=clean_environment(runs.env, home=runs.folder),
        cwd=runs.folder,
        timeout=90,
        check=False,
    )
    assert runs.states() == {"CANCELLED"}


def test_a_job_that_somebody_else_cancels_is_130(runs: Runs) -> None:
    process = runs.start("--", "sleep", "120")
    job_id = read_until(process, r"Job (\w+) runs")[1]
    assert runs("cancel", job_id).returncode == 0
    assert end(process)[0] == 130


def test_the_same_command_twice_at_once_is_two_runs(runs: Runs) -> None:
    both = [runs.start("--", "bash", "-c", "sleep 3; echo $SLURM_JOB_ID") for _ in range(2)]
    ended = [end(each) for each in both]
    assert [code for code, _, _ in ended] == [0, 0]
    assert {out.decode().strip() for _, out, _ in ended} == set(runs.jobs())
    assert len(runs.jobs()) == 2


def test_a_key_runs_once_wherever_it_is_said(runs: Runs, tmp_path: Path) -> None:
    (runs.folder / "data").mkdir()
    (runs.folder / "data/x").write_text("first\n")
    arguments = ("--key", f"key-{runs.name}", "--push", "data", "--json", "--", "cat", "x")
    first = parsed(runs.run(*arguments).stdout)
    (runs.folder / "data/x").write_text("second\n")
    again = runs.run(*arguments)
    elsewhere = runs.run(*arguments, env={"HPCBRIDGE_STATE_DIR": str(tmp_path / "elsewhere")})
    for done in (again, elsewhere):
        assert parsed(done.stdout)["job_id"] == first["job_id"]
        assert "its files are left alone" in done.stderr
        assert "first\n" in done.stderr
    assert runs.there(first["workdir"] + "/x").read_text() == "first\n"
    assert list(runs.jobs()) == [first["job_id"]]
    other = runs.run("--key", f"key-{runs.name}", "--push", "data", "--", "true")
    assert other.returncode == 2
    assert "another script" in other.stderr


def test_a_refused_submit_is_not_taken_up_again(runs: Runs) -> None:
    (runs.folder / "data").mkdir()
    (runs.folder / "data/x").write_text("first\n")
    path = f"/compute/{runs.sandbox.system}/jobs"
    rule = {"method": "POST", "path": path, "kind": "status", "status": 403, "message": "over quota", "count": 1}
    runs.sandbox.post("/faults", [rule])
    (runs.folder / "data/x").write_text("second\n")
    assert runs.run("--workdir", f"hpcbridge-runs/{runs.name}", "--push", "data/x", "--", "cat", "x").returncode == 77
    (runs.folder / "data/x").write_text("third\n")
    done = runs.run("--workdir", f"hpcbridge-runs/{runs.name}", "--push", "data/x", "--", "cat", "x")
    assert (done.returncode, done.stdout) == (0, "third\n")
