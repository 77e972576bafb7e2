"""`hpcbridge run` on real Slurm: what differs there is how jobs end, and how late accounting is."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from support.runs import Runs, end, parsed, read_until
from support.sandbox import SandboxProcess
from support.scale import PROVE


@pytest.fixture
def runs(slurm_sandbox: SandboxProcess, tmp_path: Path) -> Runs:
    return Runs(slurm_sandbox, tmp_path)


@pytest.mark.slurm
def test_from_files_to_results(runs: Runs) -> None:
    raw = bytes(range(256)) * 20 + b"no end of line"
    (runs.folder / "data").mkdir()
    (runs.folder / "data/raw.bin").write_bytes(raw)
    body = "cat raw.bin; echo gone >&2; mkdir out; wc -c < raw.bin > out/size.txt; exit 42"
    arguments = ("--push", "data", "--error", "err.txt", "--pull", "out/*", "--into", "r", runs.script(body))
    code, out, said = end(runs.start(*arguments))
    assert (code, out) == (42, raw)
    assert "gone\n" in said
    assert (runs.folder / "r/out/size.txt").read_text().strip() == str(len(raw))


@pytest.mark.slurm
def test_signals_time_limits_and_held_jobs(runs: Runs) -> None:
    assert runs.run(runs.script("kill -SEGV $$")).returncode == 128 + signal.SIGSEGV
    held = runs.run("--queue-timeout", "5", runs.script("#SBATCH --hold\ntrue"))
    assert held.returncode == 75
    assert "JobHeldUser" in held.stderr
    assert set(runs.jobs().values()) <= {"FAILED", "CANCELLED"}
    if PROVE:  # the shortest limit is a minute, and enforced late
        assert runs.run("--time", "1", "--", "sleep", "200").returncode == 124


@pytest.mark.slurm
def test_a_killed_run_is_taken_up_and_an_interrupted_one_leaves_no_job(runs: Runs) -> None:
    arguments = ("--", "bash", "-c", "echo one; sleep 8; echo two")
    first = runs.start(*arguments)
    job_id = read_until(first, r"Submitted job (\w+)")[1]
    first.kill()
    end(first)
    assert end(runs.start(*arguments))[:2] == (0, b"one\ntwo\n")
    assert list(runs.jobs()) == [job_id]
    process = runs.start("--json", "--", "sleep", "120")
    last = read_until(process, r"Job (\w+) runs")[1]
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 130
    assert runs.state_of(last) == "CANCELLED"
    assert parsed(runs("status", "--json", last).stdout)["exit_code"] == 0
