"""Standard streams as scripts and cron leave them: closed, full, or in another encoding."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

from support.cli import COMMAND, clean_environment
from support.sandbox import SandboxProcess

LATIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def in_shell(sandbox: SandboxProcess, folder: Path, words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`hpcbridge WORDS` by a shell, whose redirections WORDS may hold."""
    return subprocess.run(
        ["bash", "-c", f"{shlex.join(COMMAND)} {words}"],
        env=clean_environment(sandbox.client_env("alice"), home=folder) | env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_closed_output_is_no_defect(sandbox: SandboxProcess, tmp_path: Path) -> None:
    done = in_shell(sandbox, tmp_path, "home >&-")
    assert (done.returncode, done.stderr) == (0, "")


def test_closed_input_is_an_empty_script(sandbox: SandboxProcess, tmp_path: Path) -> None:
    done = in_shell(sandbox, tmp_path, "submit - <&-")
    assert done.returncode == 2
    assert "#!" in done.stderr


def test_a_full_device_is_told(sandbox: SandboxProcess, tmp_path: Path) -> None:
    done = in_shell(sandbox, tmp_path, "systems --json >/dev/full")
    assert done.returncode == 74
    assert "no space left" in done.stderr


def test_an_early_end_of_the_reader_is_silent(sandbox: SandboxProcess, tmp_path: Path) -> None:
    done = in_shell(sandbox, tmp_path, "doctor | head -n 1")
    assert done.stderr in ("", "Everything is in order.\n")
    assert "configuration" in done.stdout


def test_other_encodings_get_escapes(sandbox: SandboxProcess, tmp_path: Path) -> None:
    done = in_shell(sandbox, tmp_path, "doctor", **LATIN)
    assert done.returncode == 0, done.stderr
    assert r"\u2713 configuration" in done.stdout


def test_json_survives_other_encodings(sandbox: SandboxProcess, tmp_path: Path) -> None:
    name = "größe \U0001f600.txt"
    (tmp_path / name).write_text("x")
    done = in_shell(sandbox, tmp_path, f"put {shlex.quote(name)} /home/alice/plain --json", PYTHONIOENCODING="ascii")
    assert json.loads(done.stdout)["source"] == name, done.stderr


def test_home_as_json(sandbox: SandboxProcess, tmp_path: Path) -> None:
    done = in_shell(sandbox, tmp_path, "home --json")
    assert json.loads(done.stdout) == {"system": sandbox.system, "path": "/home/alice"}
