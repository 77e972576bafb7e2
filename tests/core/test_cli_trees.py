"""put, get and sync of directories and of several files, as typed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.cli import run_cli, start_cli
from support.sandbox import SandboxProcess

Run = Any
RESULT = {"source", "target", "bytes", "seconds", "route", "sha256"}
TREE = RESULT | {"files", "directories", "links", "unchanged", "deleted", "skipped", "changes"}


@pytest.fixture
def hpcbridge(sandbox: SandboxProcess, tmp_path: Path) -> Run:
    def call(*arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
        done = run_cli(*arguments, env=sandbox.client_env("alice"), cwd=tmp_path, **more)
        assert "Traceback" not in done.stderr
        assert "a defect of hpcbridge" not in done.stderr
        return done

    return call


@pytest.fixture
def there(hpcbridge: Run, tmp_path: Path) -> Iterator[str]:
    path = f"/home/alice/{tmp_path.name}"
    assert hpcbridge("mkdir", path).returncode == 0
    yield path
    hpcbridge("rm", "-rf", path)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    root = tmp_path / "inputs"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "a.txt").write_text("a\n")
    (root / "run.sh").write_text("#!/bin/bash\n")
    (root / "run.sh").chmod(0o755)
    (root / "sub" / "b.tmp").write_text("b\n")
    (root / "sub" / "deep" / "größe.dat").write_bytes(b"x" * 2000)
    (root / "link").symlink_to("a.txt")
    return root


def content(root: Path) -> dict[str, tuple[int, bytes]]:
    """Relative path -> (mode, content or where a link leads)."""
    found = {}
    for path in sorted(root.rglob("*")):
        data = os.fsencode(path.readlink()) if path.is_symlink() else b"" if path.is_dir() else path.read_bytes()
        found[str(path.relative_to(root))] = (path.lstat().st_mode, data)
    return found


def changing(sandbox: SandboxProcess) -> list[str]:
    return [each for each in sandbox.get("/requests")["counts"] if not each.startswith("GET")]


def test_a_directory_becomes_the_directory_that_is_named_and_comes_back(
    hpcbridge: Run, there: str, inputs: Path, tmp_path: Path
) -> None:
    for slash in ("", "/"):
        put = hpcbridge("put", f"inputs{slash}", f"{there}/run1{slash}")
        assert put.returncode == 0
        assert f"{there}/run1/: 4 files" in put.stderr
    assert hpcbridge("ls", f"{there}/run1").stdout.split() == ["a.txt", "empty", "link", "run.sh", "sub"]
    get = hpcbridge("get", f"{there}/run1", "results")
    assert get.returncode == 0
    assert "-> results/: 4 files" in get.stderr
    assert content(tmp_path / "results") == content(inputs)


def test_the_result_of_a_tree_as_json(hpcbridge: Run, there: str, inputs: Path) -> None:
    put = json.loads(hpcbridge("put", inputs, f"{there}/run1", "--json").stdout)
    assert set(put) == TREE
    assert (put["files"], put["links"], put["skipped"]) == (4, 1, [])
    get = json.loads(hpcbridge("get", f"{there}/run1", "back", "--json").stdout)
    assert set(get) == TREE
    assert get["files"] == 4
    sync = json.loads(hpcbridge("sync", inputs, f"{there}/run1", "--json").stdout)
    assert set(sync) == TREE


def test_patterns_and_sizes_choose_what_goes(hpcbridge: Run, there: str, inputs: Path) -> None:
    (inputs.parent / "patterns").write_text("# not these\n/empty/\n")
    done = hpcbridge(
        "put", "inputs", f"{there}/x", "--exclude", "*.tmp", "--exclude-from", "patterns", "--max-file-size", "1k"
    )
    assert done.returncode == 0
    assert hpcbridge("ls", "-R", f"{there}/x").stdout.split() == ["a.txt", "link", "run.sh", "sub", "sub/deep"]
    assert "left out: sub/deep/größe.dat" in done.stderr
    assert hpcbridge("put", "inputs", f"{there}/y", "--include", "*.dat").returncode == 0
    assert hpcbridge("ls", "-R", f"{there}/y").stdout.split() == ["sub", "sub/deep", "sub/deep/größe.dat"]
    assert hpcbridge("get", f"{there}/x", "back", "--exclude", "sub").returncode == 0
    assert sorted(path.name for path in (inputs.parent / "back").iterdir()) == ["a.txt", "link", "run.sh"]


@pytest.mark.parametrize(
    "command", ["put inputs {}/z", "put inputs/a.txt {}/z", "get {}/there back", "sync inputs {}/z"]
)
def test_more_than_max_size_is_refused_before_anything_is_sent(
    hpcbridge: Run, sandbox: SandboxProcess, there: str, inputs: Path, command: str
) -> None:
    assert hpcbridge("put", inputs, f"{there}/there").returncode == 0
    sandbox.delete("/requests")
    done = hpcbridge(*command.replace("{}", there).split(), "--max-size", "1")
    assert done.returncode == 1
    assert "more than" in done.stderr
    if not command.startswith("get"):
        assert changing(sandbox) == []


def test_sync_sends_what_differs_and_deletes_when_told(
    hpcbridge: Run, there: str, inputs: Path, tmp_path: Path
) -> None:
    assert hpcbridge("sync", "inputs", f"{there}/run1").returncode == 0
    (inputs / "a.txt").write_text("changed\n")
    (inputs / "sub" / "b.tmp").unlink()
    again = json.loads(hpcbridge("sync", "inputs", f"{there}/run1", "--json").stdout)
    assert again["files"] == 1
    assert "b.tmp" in hpcbridge("ls", f"{there}/run1/sub").stdout
    deleted = hpcbridge("sync", "inputs", f"{there}/run1", "--delete")
    assert "1 removed" in deleted.stderr
    assert "b.tmp" not in hpcbridge("ls", f"{there}/run1/sub").stdout
    down = hpcbridge("sync", f"{there}/run1", "results")
    assert down.returncode == 0
    assert content(tmp_path / "results") == content(inputs)
    nothing = hpcbridge("sync", f"{there}/run1", "results")
    assert "nothing to transfer in" in nothing.stderr


def test_a_sync_tells_what_came_alone(hpcbridge: Run, there: str, inputs: Path) -> None:
    assert hpcbridge("sync", "inputs", f"{there}/run1").returncode == 0
    (inputs / "another").symlink_to("a.txt")
    assert "0 files, 1 link, 8 unchanged" in hpcbridge("sync", "inputs", f"{there}/run1").stderr
    (inputs / "a.txt").chmod(0o600)
    assert "0 files, 1 changed in mode or time, 8 unchanged" in hpcbridge("sync", "inputs", f"{there}/run1").stderr


def test_what_is_told_stays_on_its_line(hpcbridge: Run, there: str, inputs: Path) -> None:
    (inputs / "new\nline").write_text("x")
    os.mkfifo(inputs / "a\npipe")
    done = hpcbridge("put", "inputs", f"{there}/x", "-n")
    assert "would copy new\\nline (1 byte)" in done.stdout.splitlines()
    assert "left out: a\\npipe: a named pipe" in done.stderr.splitlines()


def test_a_dry_run_is_sorted_and_counts_content_only(hpcbridge: Run, there: str, inputs: Path) -> None:
    assert hpcbridge("put", inputs, f"{there}/x").returncode == 0
    told = json.loads(hpcbridge("get", f"{there}/x", "back", "-n", "--json").stdout)
    paths = [change["path"] for change in told["changes"]]
    assert paths == sorted(paths)
    assert told["bytes"] == sum(
        path.stat().st_size for path in inputs.rglob("*") if path.is_file() and not path.is_symlink()
    )


def test_a_sync_of_what_is_not_there_makes_nothing(hpcbridge: Run, sandbox: SandboxProcess, there: str) -> None:
    before = hpcbridge("ls", "-a", "/home/alice").stdout
    sandbox.delete("/requests")
    done = hpcbridge("sync", f"{there}/nothing", "back")
    assert done.returncode == 1
    assert f"{there}/nothing" in done.stderr
    assert changing(sandbox) == []
    assert hpcbridge("ls", "-a", "/home/alice").stdout == before


@pytest.mark.parametrize("route", [(), ("-n",), ("--route", "chunked"), ("--route", "s3"), ("--atomic",)])
def test_a_file_for_a_directory_that_does_not_exist(hpcbridge: Run, there: str, inputs: Path, route: list[str]) -> None:
    done = hpcbridge("put", "inputs/a.txt", f"{there}/nothing/a.txt", *route)
    assert done.returncode == 1
    assert f"the directory {there}/nothing does not exist" in done.stderr
    assert f"Next: Make it: hpcbridge mkdir -p {there}/nothing" in done.stderr
    assert "uploading 100" not in done.stderr
    assert hpcbridge("ls", "-a", there).stdout == ""


def test_a_file_does_not_become_what_is_written_as_a_directory(hpcbridge: Run, there: str, inputs: Path) -> None:
    assert hpcbridge("put", "inputs/a.txt", there).returncode == 0
    done = hpcbridge("get", f"{there}/a.txt", "results/")
    assert done.returncode == 2
    assert "the directory 'results' does not exist on this machine" in done.stderr
    assert not (inputs.parent / "results").exists()
    (inputs.parent / "results").mkdir()
    assert hpcbridge("get", f"{there}/a.txt", "results/").returncode == 0
    assert (inputs.parent / "results" / "a.txt").read_text() == "a\n"


@pytest.mark.parametrize("command", ["put inputs {}/run1", "sync inputs {}/run1", "get {}/run1 results"])
def test_a_dry_run_lists_and_changes_nothing(
    hpcbridge: Run, there: str, inputs: Path, tmp_path: Path, command: str
) -> None:
    assert hpcbridge("put", inputs, f"{there}/run1").returncode == 0
    (inputs / "a.txt").write_text("another\n")
    (inputs / "new.txt").write_text("new\n")
    before = hpcbridge("ls", "-lR", f"{there}/run1").stdout
    done = hpcbridge(*command.replace("{}", there).split(), "--dry-run")
    assert done.returncode == 0
    assert "would copy a.txt" in done.stdout
    assert hpcbridge("ls", "-lR", f"{there}/run1").stdout == before
    assert not (tmp_path / "results").exists()


def test_a_dry_run_of_files(hpcbridge: Run, sandbox: SandboxProcess, there: str, inputs: Path) -> None:
    sandbox.delete("/requests")
    done = hpcbridge("put", "inputs/a.txt", "inputs/run.sh", there, "-n")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"would copy inputs/a.txt -> {sandbox.system}:{there}/a.txt (2 bytes)",
        f"would copy inputs/run.sh -> {sandbox.system}:{there}/run.sh (12 bytes)",
    ]
    assert changing(sandbox) == []


def test_several_files_go_side_by_side_and_failures_are_named(
    hpcbridge: Run, sandbox: SandboxProcess, there: str, inputs: Path, tmp_path: Path
) -> None:
    done = hpcbridge("put", "inputs/a.txt", "inputs/sub", "inputs/*.sh", there)
    assert done.returncode == 1
    assert "omitting the directory inputs/sub" in done.stderr
    assert "1 of 3 did not arrive" in done.stderr
    assert hpcbridge("ls", there).stdout.split() == ["a.txt", "run.sh"]
    hpcbridge("mkdir", f"{there}/d")
    (tmp_path / "results").mkdir()
    get = hpcbridge("get", f"{there}/*", f"{there}/missing", "results", "--json")
    assert get.returncode == 1
    records = json.loads(get.stdout)
    assert [set(each) for each in records[:2]] == [RESULT, RESULT]
    assert [set(each) for each in records[2:]] == [{"source", "target", "error"}] * 2
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["a.txt", "run.sh"]


def test_files_of_one_name_do_not_overwrite_each_other(hpcbridge: Run, there: str, inputs: Path) -> None:
    shutil.copy(inputs / "a.txt", inputs / "sub" / "a.txt")
    done = hpcbridge("put", "inputs/a.txt", "inputs/sub/a.txt", there)
    assert done.returncode == 2
    assert "would both become" in done.stderr
    assert hpcbridge("ls", there).stdout == ""


def test_several_need_a_directory(hpcbridge: Run, there: str, inputs: Path) -> None:
    put = hpcbridge("put", "inputs/a.txt", "inputs/run.sh", f"{there}/missing")
    assert put.returncode == 1
    assert f"hpcbridge mkdir -p sandbox:{there}/missing" in put.stderr
    assert hpcbridge("put", "inputs/a.txt", there).returncode == 0
    get = hpcbridge("get", f"{there}/*", "missing")
    assert get.returncode == 2
    assert "mkdir missing" in get.stderr


@pytest.mark.parametrize(
    ("command", "said", "code"),
    [
        ("get {} ", "is a directory: say where its content goes", 2),
        ("get {}/a.txt missing/x", "the directory 'missing' does not exist on this machine", 2),
        ("put inputs/a.txt {}/x --exclude *.tmp", "is a file", 2),
        ("get {}/a.txt x --exclude *.tmp", "is a file", 2),
        ("put inputs {}/x --exclude [", "pattern", 2),
        ("put inputs {}/a.txt", "is a file", 1),
        ("get {}/missing/ x", "No such file", 1),
        ("put inputs /etc/x", "in none of the system's file systems", 2),
        ("sync {}/missing x", "/missing", 1),
        ("sync inputs /home/bob/x", "ermission denied", 77),
    ],
)
def test_what_cannot_be_is_told(
    hpcbridge: Run, there: str, inputs: Path, command: str, said: str, code: int, tmp_path: Path
) -> None:
    assert hpcbridge("put", "inputs/a.txt", there).returncode == 0
    done = hpcbridge(*command.replace("{}", there).split())
    assert said in " ".join(done.stderr.split())
    assert done.returncode == code
    assert not (tmp_path / "x").exists()


def test_quiet_says_nothing(hpcbridge: Run, there: str, inputs: Path) -> None:
    for command in ("put inputs {}/q", "get {}/q back", "sync inputs {}/q", "cp -r {}/q {}/r", "du {}/q"):
        done = hpcbridge(*command.replace("{}", there).split(), "--quiet")
        assert done.returncode == 0
        assert done.stderr == ""


def test_interrupting_a_tree_says_how_to_go_on(
    sandbox: SandboxProcess, hpcbridge: Run, there: str, tmp_path: Path
) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "file").write_bytes(os.urandom(60_000_000))
    sandbox.post("/latency", {"seconds": 0.5})
    with start_cli("put", "large", f"{there}/large", env=sandbox.client_env("alice"), cwd=tmp_path) as process:
        assert process.stderr is not None
        assert any("uploading" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert "Repeat the command" in said
    assert "Traceback" not in said
    sandbox.post("/latency", {"seconds": 0})
    assert hpcbridge("put", "large", f"{there}/large").returncode == 0
