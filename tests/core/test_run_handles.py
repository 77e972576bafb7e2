"""Runs that are left and come back to: --detach, attach, collect, cancel by the handle."""

from __future__ import annotations

import json
import signal
import stat
from pathlib import Path

import pytest

from support.runs import Runs, end, parsed, read_until
from support.sandbox import SandboxProcess


@pytest.fixture
def runs(sandbox: SandboxProcess, tmp_path: Path) -> Runs:
    return Runs(sandbox, tmp_path)


BODY = "echo one; sleep 4; echo two; echo r > r.txt; exit 9"


def detach(runs: Runs, body: str = BODY, *options: str) -> Path:
    handle = runs.folder / "run.json"
    done = runs.run(
        "--detach", "--handle", handle, "--workdir", runs.name, "--pull", "r.txt", "--json", *options, runs.script(body)
    )
    assert done.returncode == 0
    assert parsed(done.stdout)["job_id"] == json.loads(handle.read_text())["job_id"]
    return handle


def test_another_process_follows_it_to_its_end(runs: Runs) -> None:
    handle = detach(runs)
    early = runs("collect", handle)
    assert early.returncode == 75
    assert "has not ended yet" in early.stderr
    code, out, _ = end(runs.start_any("attach", handle))
    assert (code, out) == (9, b"one\ntwo\n")
    assert (runs.folder / "r.txt").read_text() == "r\n"
    (runs.folder / "r.txt").unlink()
    late = runs("collect", handle)
    assert (late.returncode, late.stdout) == (9, "")
    assert (runs.folder / "r.txt").read_text() == "r\n"
    assert runs("collect", handle, "--logs").stdout == "one\ntwo\n"
    assert len(runs.jobs()) == 1


def test_collect_can_wait(runs: Runs) -> None:
    done = runs("collect", "--wait", "--json", detach(runs))
    assert done.returncode == parsed(done.stdout)["code"] == 9
    assert [Path(item["target"]).name for item in parsed(done.stdout)["pulled"]] == ["r.txt"]


def test_leaving_an_attached_job_leaves_it_running(runs: Runs) -> None:
    handle = detach(runs, "echo one; sleep 60")
    process = runs.start_any("attach", handle)
    job_id = read_until(process, r"Job (\w+) runs")[1]
    process.send_signal(signal.SIGINT)
    code, _, said = end(process)
    assert code == 130
    assert f"Job {job_id} goes on" in said
    assert runs.state_of(job_id) == "RUNNING"
    assert parsed(runs("status", "--json", handle).stdout)["job_id"] == job_id
    assert runs("logs", handle).stdout == "one\n"
    cancelled = runs("cancel", handle)
    assert cancelled.returncode == 0
    assert runs.state_of(job_id) == "CANCELLED"
    assert runs("attach", handle).returncode == 130


def test_a_detached_command_again_is_another_run(runs: Runs) -> None:
    first, second = (json.loads(detach(runs, "true").read_text())["job_id"] for _ in range(2))
    assert first != second


def test_the_handle_of_a_killed_run_finds_its_job(runs: Runs) -> None:
    """It is written before the submit, so that a CI service's last step can cancel what nobody else knows of."""
    handle = runs.folder / "run.json"
    process = runs.start("--handle", handle, "--", "sleep", "60")
    read_until(process, "Submitted")
    process.kill()
    end(process)
    known = json.loads(handle.read_text())
    handle.write_text(json.dumps(known | {"job_id": None, "phase": "submitting"}))
    assert runs("cancel", handle).returncode == 0
    assert runs.states() == {"CANCELLED"}


def test_a_handle_is_private_and_holds_no_secret(runs: Runs) -> None:
    handle = detach(runs, "true", "--env", "TOKEN=hunter2hunter2")
    assert stat.S_IMODE(handle.stat().st_mode) == 0o600
    assert "hunter2" not in handle.read_text()
    assert runs.env["FIRECREST_CLIENT_SECRET"] not in handle.read_text()


@pytest.mark.parametrize("command", ["attach", "collect", "cancel"])
def test_what_is_no_handle_is_named(runs: Runs, command: str) -> None:
    (runs.folder / "x.json").write_text('{"a": 1}')
    done = runs(command, "x.json")
    assert done.returncode == 78
    assert "not the handle of a run" in done.stderr
    missing = runs(command, "./missing.json")
    assert missing.returncode == 78
    assert "No such file" in missing.stderr


def test_a_handle_of_another_deployment_is_refused(runs: Runs) -> None:
    handle = detach(runs, "true")
    handle.write_text(json.dumps(json.loads(handle.read_text()) | {"url": "https://example.org/firecrest"}))
    for command in ("attach", "collect", "cancel"):
        done = runs(command, handle)
        assert done.returncode == 78
        assert "https://example.org/firecrest" in done.stderr


def test_a_handle_of_the_first_format_loads(runs: Runs) -> None:
    handle = detach(runs, "true")
    now = json.loads(handle.read_text())
    assert now["format"] == 1
    first = {
        "format": 1,
        "kind": "hpcbridge run",
        "url": runs.sandbox.url,
        "system": runs.sandbox.system,
        "site": None,
        "key": now["key"],
        "name": runs.name,
        "workdir": now["workdir"],
        "account": None,
        "own_workdir": False,
        "job_id": now["job_id"],
        "phase": "submitted",
        "pull": [],
        "into": str(runs.folder),
        "allow_missing": False,
        "queue_timeout": None,
        "submitted_at": 1795166107.5,
    }
    handle.write_text(json.dumps(first | {"a_later_field": 1}))
    assert runs("collect", "--wait", handle).returncode == 0
    handle.write_text(json.dumps(first | {"format": 2}))
    assert runs("collect", handle).returncode == 78
