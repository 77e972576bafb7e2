"""What people see in a terminal: tables, progress with its phases, no control characters from elsewhere."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import threading
from pathlib import Path

from support.cli import COMMAND, clean_environment, run_cli
from support.sandbox import SandboxProcess

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def in_terminal(sandbox: SandboxProcess, folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and everything shown, with standard output and error on one pseudo-terminal."""
    ours, theirs = pty.openpty()
    env = clean_environment(sandbox.client_env("alice"), home=folder) | {"TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen([*COMMAND, *arguments], env=env, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(ours, 65536):
                shown.append(chunk)
        except OSError:  # the other side is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    code = process.wait(timeout=90)
    reader.join()
    os.close(ours)
    return code, b"".join(shown).decode()


def test_systems_is_a_table_with_a_header_and_colours(sandbox: SandboxProcess, tmp_path: Path) -> None:
    code, shown = in_terminal(sandbox, tmp_path, "systems")
    assert code == 0
    assert _CONTROL.search(shown)
    plain = _CONTROL.sub("", shown)
    assert re.search(r"name +health +scheduler", plain)
    assert re.search(rf"{sandbox.system} +healthy +slurm", plain)


def test_waiting_shows_the_queue(sandbox: SandboxProcess, tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("#!/bin/bash\nsleep 2\n")
    code, shown = in_terminal(sandbox, tmp_path, "submit", "run.sh", "--wait")
    assert code == 0
    assert "Submitted job" in shown
    assert "COMPLETED" in shown


def test_put_shows_a_bar(sandbox: SandboxProcess, tmp_path: Path) -> None:
    (tmp_path / "large.dat").write_bytes(b"x" * 12_000_000)
    code, shown = in_terminal(sandbox, tmp_path, "put", "large.dat", "/home/alice/")
    assert code == 0
    assert "━" in shown
    assert "12.0 MB in " in shown


def test_names_cannot_drive_the_terminal(sandbox: SandboxProcess, tmp_path: Path) -> None:
    where = f"/home/alice/{tmp_path.name}"
    script = f"#!/bin/bash\nmkdir -p {where}; touch {where}/$'evil\\e[31mred'\n"
    env = sandbox.client_env("alice")
    assert run_cli("submit", "-", "--wait", env=env, cwd=tmp_path, stdin=script).returncode == 0
    code, shown = in_terminal(sandbox, tmp_path, "ls", where)
    assert code == 0
    assert "\x1b[31mred" not in shown


def test_status_in_a_terminal(sandbox: SandboxProcess, tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("#!/bin/bash\nexit 3\n")
    run_cli("submit", "run.sh", "--wait", env=sandbox.client_env("alice"), cwd=tmp_path)
    code, shown = in_terminal(sandbox, tmp_path, "status")
    assert code == 0
    assert "job_id" in shown
