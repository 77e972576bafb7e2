"""systems and doctor: what is in order, and what to do where it is not."""

from __future__ import annotations

import json
from pathlib import Path

from support.cli import run_cli, start_cli
from support.sandbox import SandboxProcess, start_sandbox


def test_systems(sandbox: SandboxProcess, tmp_path: Path) -> None:
    env = sandbox.client_env("alice")
    (shown,) = json.loads(run_cli("systems", "--json", env=env, cwd=tmp_path).stdout)
    assert shown["name"] == sandbox.system
    assert shown["healthy"] is True
    assert shown["scheduler"]["kind"] == "slurm"
    assert "/home" in [each["path"] for each in shown["file_systems"]]
    assert run_cli("systems", env=env, cwd=tmp_path).stdout.startswith(f"{sandbox.system}\thealthy\t")


def test_doctor_finds_everything_in_order(sandbox: SandboxProcess, tmp_path: Path) -> None:
    env = sandbox.client_env("alice")
    done = run_cli("doctor", env=env, cwd=tmp_path)
    assert done.returncode == 0
    checks = [line for line in done.stdout.splitlines() if "\t" not in line]
    assert [line.split()[1] for line in checks] == [
        *("configuration", "token", "server", "system", "limits", "user", "files", "queue")
    ]
    assert all(line.startswith("✓") for line in checks)
    assert "/home/alice is writable" in done.stdout
    assert env["FIRECREST_CLIENT_SECRET"] not in done.stdout + done.stderr
    shown = json.loads(run_cli("doctor", "--json", env=env, cwd=tmp_path).stdout)
    assert shown["ok"] is True
    assert {each["check"] for each in shown["checks"]} >= {"token", "files"}
    assert not [p for p in sandbox.host_path("/home/alice").iterdir() if "doctor" in p.name]


def test_doctor_names_a_wrong_secret(sandbox: SandboxProcess, tmp_path: Path) -> None:
    env = sandbox.client_env("alice") | {"FIRECREST_CLIENT_SECRET": "not-the-right-one"}
    done = run_cli("doctor", env=env, cwd=tmp_path)
    assert done.returncode == 77
    assert "✗ token" in done.stdout
    assert "next:" in done.stdout
    assert "not-the-right-one" not in done.stdout + done.stderr
    assert run_cli("systems", env=env, cwd=tmp_path).returncode == 77


def test_doctor_names_an_unknown_system(sandbox: SandboxProcess, tmp_path: Path) -> None:
    done = run_cli("doctor", "--system", "nowhere", env=sandbox.client_env("alice"), cwd=tmp_path)
    assert done.returncode == 1
    assert "✗ system" in done.stdout
    assert sandbox.system in done.stdout


def test_doctor_tells_a_server_that_is_down_from_a_wrong_url(tmp_path: Path) -> None:
    with start_sandbox() as sandbox:
        env = sandbox.client_env("alice")
        wrong = run_cli("doctor", env=env | {"FIRECREST_URL": sandbox.url + "/wrong"}, cwd=tmp_path)
        assert wrong.returncode != 0
        assert "✗ server" in wrong.stdout
    down = run_cli("doctor", env=env, cwd=tmp_path)
    assert down.returncode == 69
    assert "✗ token" in down.stdout


def test_debug_shows_requests_and_no_secret(sandbox: SandboxProcess, tmp_path: Path) -> None:
    env = sandbox.client_env("alice")
    process = start_cli("--debug", "systems", env=env, cwd=tmp_path)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "/status/systems" in said
    assert env["FIRECREST_CLIENT_SECRET"] not in said
    assert "eyJ" not in said
