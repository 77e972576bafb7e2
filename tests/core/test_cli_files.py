"""put, get, ls and home against the sandbox."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.cli import run_cli, start_cli
from support.sandbox import SandboxProcess


@pytest.fixture
def there(sandbox: SandboxProcess, tmp_path: Path) -> str:
    """A folder of alice's on the system."""
    path = f"/home/alice/{tmp_path.name}"
    run_cli(
        "submit", "-", "--wait", env=sandbox.client_env("alice"), cwd=tmp_path, stdin=f"#!/bin/bash\nmkdir {path}\n"
    )
    return path


def hpcbridge(sandbox: SandboxProcess, folder: Path, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return run_cli(*arguments, env=sandbox.client_env("alice"), cwd=folder, **more)


@pytest.mark.parametrize("name", ["plain.dat", "with space.dat", "größe.dat", "comma,and;more.dat"])
def test_a_file_goes_and_comes_back(sandbox: SandboxProcess, tmp_path: Path, there: str, name: str) -> None:
    content = bytes(range(256)) * 40
    (tmp_path / name).write_bytes(content)
    put = hpcbridge(sandbox, tmp_path, "put", name, f"{sandbox.system}:{there}/{name}", "--json")
    assert put.returncode == 0
    result = json.loads(put.stdout)
    assert set(result) == {"source", "target", "bytes", "seconds", "route", "sha256"}
    assert result["bytes"] == len(content)
    assert result["target"] == f"{sandbox.system}:{there}/{name}"
    get = hpcbridge(sandbox, tmp_path, "get", f"{there}/{name}", "back.dat", "--verify", "sha256", "--json")
    assert get.returncode == 0
    assert json.loads(get.stdout)["sha256"] == hashlib.sha256(content).hexdigest()
    assert (tmp_path / "back.dat").read_bytes() == content


def test_into_directories_the_name_is_kept(sandbox: SandboxProcess, tmp_path: Path, there: str) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "results").mkdir()
    assert hpcbridge(sandbox, tmp_path, "put", "a.txt", there).returncode == 0
    assert hpcbridge(sandbox, tmp_path, "put", "a.txt", f"{there}/").returncode == 0
    assert hpcbridge(sandbox, tmp_path, "get", f"{there}/a.txt", "results").returncode == 0
    assert (tmp_path / "results" / "a.txt").read_text() == "a"
    (tmp_path / "elsewhere").mkdir()
    assert hpcbridge(sandbox, tmp_path / "elsewhere", "get", f"{there}/a.txt").returncode == 0
    assert (tmp_path / "elsewhere" / "a.txt").read_text() == "a"


def test_ls_prints_names_in_a_pipe_and_records_as_json(sandbox: SandboxProcess, tmp_path: Path, there: str) -> None:
    for name in ("b.txt", "a.txt", ".hidden"):
        (tmp_path / name).write_text("12345")
        assert hpcbridge(sandbox, tmp_path, "put", name, f"{there}/{name}").returncode == 0
    assert hpcbridge(sandbox, tmp_path, "ls", there).stdout.split() == ["a.txt", "b.txt"]
    assert ".hidden" in hpcbridge(sandbox, tmp_path, "ls", "-a", there).stdout
    (first, _) = json.loads(hpcbridge(sandbox, tmp_path, "ls", there, "--json").stdout)
    assert (first["name"], first["kind"], first["size"]) == ("a.txt", "file", 5)
    assert there.rpartition("/")[2] in hpcbridge(sandbox, tmp_path, "ls").stdout.split()


def test_home_prints_ones_own_directory(sandbox: SandboxProcess, tmp_path: Path) -> None:
    assert hpcbridge(sandbox, tmp_path, "home").stdout == "/home/alice\n"


def test_what_is_not_there_or_not_allowed_is_named(sandbox: SandboxProcess, tmp_path: Path, there: str) -> None:
    (tmp_path / "a.txt").write_text("a")
    missing = hpcbridge(sandbox, tmp_path, "get", f"{there}/missing", "x")
    assert missing.returncode == 1
    assert f"{there}/missing" in missing.stderr
    assert not (tmp_path / "x").exists()
    assert hpcbridge(sandbox, tmp_path, "ls", f"{there}/missing").returncode == 1
    foreign = hpcbridge(sandbox, tmp_path, "put", "a.txt", "/home/bob/a.txt")
    assert foreign.returncode in (1, 77)
    assert "/home/bob" in foreign.stderr
    outside = hpcbridge(sandbox, tmp_path, "ls", "/etc")
    assert outside.returncode in (1, 2, 77)
    unknown = hpcbridge(sandbox, tmp_path, "ls", "nowhere:/home")
    assert unknown.returncode == 1
    assert "nowhere" in unknown.stderr
    assert f"Systems there: {sandbox.system}" in unknown.stderr
    for done in (missing, foreign, outside, unknown):
        assert "Traceback" not in done.stderr


def test_large_files_show_their_phases(sandbox: SandboxProcess, tmp_path: Path, there: str) -> None:
    (tmp_path / "large.dat").write_bytes(b"x" * 12_000_000)
    done = hpcbridge(sandbox, tmp_path, "put", "large.dat", there)
    assert done.returncode == 0
    assert "large.dat: uploading" in done.stderr
    assert "12.0 MB" in done.stderr


def test_interrupting_a_transfer_says_how_to_finish_it(sandbox: SandboxProcess, tmp_path: Path, there: str) -> None:
    (tmp_path / "large.dat").write_bytes(b"x" * 60_000_000)
    sandbox.post("/latency", {"seconds": 0.5})
    with start_cli("put", "large.dat", there, env=sandbox.client_env("alice"), cwd=tmp_path) as process:
        assert process.stderr is not None
        assert any("uploading" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert "Repeat the command" in said
    assert "Traceback" not in said
    sandbox.post("/latency", {"seconds": 0})
    assert hpcbridge(sandbox, tmp_path, "put", "large.dat", there).returncode == 0
