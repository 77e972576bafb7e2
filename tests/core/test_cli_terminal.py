"""What people see in a terminal: tables, progress with its phases, no control characters from elsewhere."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from support.cli import COMMAND, clean_environment, run_cli
from support.sandbox import SandboxProcess

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def in_terminal(
    sandbox: SandboxProcess, folder: Path, *arguments: str, interrupt_at: str | None = None, columns: int = 120
) -> tuple[int, str]:
    """Exit code and everything shown, with standard output and error on one pseudo-terminal.

    Ctrl-C is pressed when `interrupt_at` has been shown.
    """
    ours, theirs = pty.openpty()
    env = clean_environment(sandbox.client_env("alice"), home=folder) | {
        "TERM": "xterm-256color",
        "COLUMNS": str(columns),
    }
    process = subprocess.Popen([*COMMAND, *arguments], env=env, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown: list[bytes] = []
    pressed = False

    def read() -> None:
        nonlocal pressed
        try:
            while chunk := os.read(ours, 65536):
                shown.append(chunk)
                if not pressed and interrupt_at and interrupt_at in b"".join(shown).decode(errors="replace"):
                    process.send_signal(signal.SIGINT)
                    pressed = True
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


def test_a_run_shows_the_queue_and_then_the_output(sandbox: SandboxProcess, tmp_path: Path) -> None:
    code, shown = in_terminal(sandbox, tmp_path, "run", "--", "bash", "-c", "echo the output; sleep 2; echo its end")
    assert code == 0
    plain = _CONTROL.sub("", shown).replace("\r", "")
    assert "waiting for the scheduler" in plain
    assert "the output\nits end\n" in plain
    assert re.search(r"Job \w+ COMPLETED after .* exit code 0", plain)


def test_put_shows_a_bar(sandbox: SandboxProcess, tmp_path: Path) -> None:
    (tmp_path / "large.dat").write_bytes(b"x" * 12_000_000)
    code, shown = in_terminal(sandbox, tmp_path, "put", "large.dat", "/home/alice/")
    assert code == 0
    assert "━" in shown
    assert "12.0 MB in " in shown


@pytest.mark.parametrize("name", ["x", "a_rather_long_name_of_a_file_that_is_sent.dat"])
def test_a_bar_keeps_to_its_line(sandbox: SandboxProcess, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(os.urandom(30_000_000))
    code, shown = in_terminal(sandbox, tmp_path, "put", "--route", "chunked", name, "/home/alice/x", columns=80)
    assert code == 0
    drawn = [_CONTROL.sub("", line) for line in re.split(r"[\r\n]+", shown) if "━" in line]
    assert drawn
    assert all(len(line.rstrip()) <= 80 and re.search(r"\d MB .*\d:\d\d:\d\d$", line.rstrip()) for line in drawn)


def test_a_tree_shows_a_bar_and_the_queue(sandbox: SandboxProcess, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "large.dat").write_bytes(os.urandom(12_000_000))
    path = f"/home/alice/{tmp_path.name}"
    code, shown = in_terminal(sandbox, tmp_path, "put", "tree", path)
    plain = _CONTROL.sub("", shown)
    assert code == 0
    assert "━" in plain
    assert re.search(r"job \d+ waits in the queue", plain)
    assert re.search(r"tree/ -> \S+: 1 file, 12.0 MB in ", plain)
    code, shown = in_terminal(sandbox, tmp_path, "rm", "-r", path)
    assert (code, shown) == (0, "")


def test_ls_shows_columns_with_slashes_and_a_table_on_request(sandbox: SandboxProcess, tmp_path: Path) -> None:
    path = f"/home/alice/{tmp_path.name}"
    env = sandbox.client_env("alice")
    run_cli("mkdir", "-p", f"{path}/größe", f"{path}/b", env=env, cwd=tmp_path)
    code, shown = in_terminal(sandbox, tmp_path, "ls", path)
    assert (code, shown.split()) == (0, ["b/", "größe/"])
    _, table = in_terminal(sandbox, tmp_path, "ls", "-l", path)
    assert re.search(r"mode +user +group +size +modified +name", _CONTROL.sub("", table))
    assert "drwxr-xr-x" in table
    _, empty = in_terminal(sandbox, tmp_path, "ls", f"{path}/b")
    assert "is empty" in empty
    run_cli("rm", "-r", path, env=env, cwd=tmp_path)


def test_cat_does_not_mix_with_its_own_progress(sandbox: SandboxProcess, tmp_path: Path) -> None:
    path = f"/home/alice/{tmp_path.name}.txt"
    text = "".join(f"line {number}\n" for number in range(500_000))
    (tmp_path / "large.txt").write_text(text)
    env = sandbox.client_env("alice")
    assert run_cli("put", "large.txt", path, env=env, cwd=tmp_path).returncode == 0
    code, shown = in_terminal(sandbox, tmp_path, "cat", path)
    assert code == 0
    assert shown.replace("\r\n", "\n").endswith(text)
    run_cli("rm", path, env=env, cwd=tmp_path)


def test_ctrl_c_while_a_job_waits_says_what_goes_on(sandbox: SandboxProcess, tmp_path: Path) -> None:
    path = f"/home/alice/{tmp_path.name}"
    env = sandbox.client_env("alice")
    run_cli("mkdir", path, env=env, cwd=tmp_path)
    rule = {"method": "GET", "path": "*/ops/download", "kind": "latency", "seconds": 2}
    sandbox.post("/faults", [rule])
    code, shown = in_terminal(sandbox, tmp_path, "mv", path, f"{path}-2", interrupt_at="waits in the queue")
    sandbox.reset()
    assert code == 130
    plain = _CONTROL.sub("", shown)
    assert "It may be half done" in plain
    assert re.search(r"hpcbridge status \d+ +End it: hpcbridge cancel \d+", plain)
    run_cli("rm", "-rf", path, f"{path}-2", "/home/alice/.hpcbridge-get-*", env=env, cwd=tmp_path)


def test_names_cannot_drive_the_terminal(sandbox: SandboxProcess, tmp_path: Path) -> None:
    where = f"/home/alice/{tmp_path.name}"
    script = f"#!/bin/bash\nmkdir -p {where}; touch {where}/$'evil\\e[31mred'\n"
    env = sandbox.client_env("alice")
    assert run_cli("submit", "-", "--wait", env=env, cwd=tmp_path, stdin=script).returncode == 0
    for options in ([], ["-l"], ["-R"], ["-d"]):
        code, shown = in_terminal(sandbox, tmp_path, "ls", *options, f"{where}/*" if "-d" in options else where)
        assert code == 0
        assert "evil" in shown
        assert "\x1b[31mred" not in shown
    for command in (["rm", "-n"], ["du"], ["rm"]):
        code, shown = in_terminal(sandbox, tmp_path, *command, f"{where}/*")
        assert code == 0
        assert "\x1b[31mred" not in shown


def test_status_in_a_terminal(sandbox: SandboxProcess, tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("#!/bin/bash\nexit 3\n")
    run_cli("submit", "run.sh", "--wait", env=sandbox.client_env("alice"), cwd=tmp_path)
    code, shown = in_terminal(sandbox, tmp_path, "status")
    assert code == 0
    assert "job_id" in shown
