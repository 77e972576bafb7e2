"""ls, cat, cp, mv, rm, mkdir and du as typed: what they print, what they exit with, and what they leave alone."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.cli import COMMAND, clean_environment, run_cli
from support.sandbox import SandboxProcess
from support.staging import leftovers

Run = Any


@pytest.fixture
def hpcbridge(sandbox: SandboxProcess, tmp_path: Path) -> Iterator[Run]:
    """The command for alice, in `tmp_path`; nothing of ours is left behind afterwards."""

    def call(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        done = run_cli(*arguments, env=sandbox.client_env("alice"), cwd=tmp_path, **more)
        assert "Traceback" not in done.stderr
        assert "a defect of hpcbridge" not in done.stderr
        return done

    yield call
    assert leftovers(sandbox) == []


@pytest.fixture
def there(sandbox: SandboxProcess, hpcbridge: Run, tmp_path: Path) -> Iterator[str]:
    """A directory of alice's with a few files."""
    path = f"/home/alice/{tmp_path.name}"
    tree = tmp_path / "made"
    for name in ("a.txt", "b.txt", "with space.txt", ".hidden", "sub/c.txt", "sub/deep/d.dat"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(f"{name}\n")
    assert hpcbridge("put", str(tree), path, "--quiet").returncode == 0
    yield path
    assert hpcbridge("rm", "-rf", path).returncode == 0


def changing(sandbox: SandboxProcess) -> list[str]:
    """Requests that change something or make a job."""
    return [each for each in sandbox.get("/requests")["counts"] if not each.startswith("GET")]


def test_ls_prints_names_records_and_trees(hpcbridge: Run, there: str) -> None:
    assert hpcbridge("ls", there).stdout.splitlines() == ["a.txt", "b.txt", "sub", "with space.txt"]
    assert ".hidden" in hpcbridge("ls", "-a", there).stdout.splitlines()
    assert hpcbridge("ls", "-R", there).stdout.splitlines()[-2:] == ["sub/deep", "sub/deep/d.dat"]
    long = [line.split("\t") for line in hpcbridge("ls", "-l", there).stdout.splitlines()]
    assert next((row[0], row[3], row[5]) for row in long) == ("-rw-r--r--", "6", "a.txt")
    assert hpcbridge("ls", "-ld", f"{there}/sub").stdout.split("\t")[0].startswith("d")
    records = json.loads(hpcbridge("ls", "--json", there, f"{there}/a.txt").stdout)
    assert set(records[0]) == {
        "name", "path", "kind", "size", "permissions", "user", "group", "modified", "link_target"
    }  # fmt: skip
    assert [(each["name"], each["path"]) for each in records if each["name"] == "a.txt"] == [
        ("a.txt", f"{there}/a.txt"),
        ("a.txt", f"{there}/a.txt"),
    ]


def test_ls_of_several_shows_files_first_and_names_what_is_missing(hpcbridge: Run, there: str) -> None:
    done = hpcbridge("ls", f"{there}/sub", f"{there}/missing", f"{there}/a.txt")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [f"{there}/a.txt", "", f"{there}/sub:", "c.txt", "deep"]
    assert f"{there}/missing" in done.stderr


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("*.txt", ["a.txt", "b.txt", "with space.txt"]), ("a*", ["a.txt"]), ("**/*.dat", ["sub/deep/d.dat"])],
)
def test_patterns_match_many_or_one(hpcbridge: Run, there: str, pattern: str, names: list[str]) -> None:
    assert hpcbridge("ls", f"{there}/{pattern}").stdout.splitlines() == [f"{there}/{name}" for name in names]


@pytest.mark.parametrize("command", ["ls", "cat", "rm", "du", "cp {} /home/alice/x", "mv {} /home/alice/x", "get {} ."])
def test_a_pattern_that_matches_nothing_is_an_error(hpcbridge: Run, there: str, command: str) -> None:
    words = [there + "/*.nope" if word == "{}" else word for word in command.split()]
    done = hpcbridge(*words, *([] if "{}" in command else [f"{there}/*.nope"]))
    assert done.returncode == 1
    assert "nothing matches" in done.stderr
    assert f"{there}/*.nope" in done.stderr
    assert done.stdout == ""


def test_cat_is_byte_exact_and_goes_on_after_a_failure(
    hpcbridge: Run, sandbox: SandboxProcess, there: str, tmp_path: Path
) -> None:
    content = os.urandom(5_000_000)
    sandbox.host_path(f"{there}/a.txt").write_bytes(content)
    env = clean_environment(sandbox.client_env("alice"), home=tmp_path)
    paths = [f"{there}/b.txt", f"{there}/missing", f"{there}/sub", f"{there}/a.txt"]
    done = subprocess.run([*COMMAND, "cat", *paths], env=env, capture_output=True, check=False)
    assert done.stdout == b"b.txt\n" + content
    assert done.returncode == 1
    assert b"No such file or directory" in done.stderr
    assert b"is a directory" in done.stderr


def test_cat_ends_quietly_when_nobody_reads_on(
    hpcbridge: Run, sandbox: SandboxProcess, there: str, tmp_path: Path
) -> None:
    sandbox.host_path(f"{there}/a.txt").write_bytes(bytes(20_000_000))
    env = clean_environment(sandbox.client_env("alice"), home=tmp_path)
    with subprocess.Popen([*COMMAND, "cat", f"{there}/a.txt"], env=env, stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(30) != 0
    assert b"Traceback" not in said


def test_cp_and_mv_take_several_and_patterns(hpcbridge: Run, there: str) -> None:
    assert hpcbridge("mkdir", f"{there}/to").returncode == 0
    done = hpcbridge("cp", f"{there}/*.txt", f"{there}/sub/c.txt", f"{there}/to")
    assert (done.returncode, done.stdout) == (0, "")
    assert hpcbridge("ls", f"{there}/to").stdout.splitlines() == ["a.txt", "b.txt", "c.txt", "with space.txt"]
    assert hpcbridge("mv", f"{there}/to/a.txt", f"{there}/to/renamed.txt").returncode == 0
    assert hpcbridge("cp", "-r", f"{there}/to", f"{there}/again").returncode == 0
    assert hpcbridge("ls", f"{there}/again").stdout.splitlines() == ["b.txt", "c.txt", "renamed.txt", "with space.txt"]


def test_a_pattern_never_makes_a_file_of_a_name_that_was_meant_as_directory(hpcbridge: Run, there: str) -> None:
    done = hpcbridge("mv", f"{there}/a*", f"{there}/no-such-directory")
    assert done.returncode == 1
    assert "is not a directory" in done.stderr
    assert "a.txt" in hpcbridge("ls", there).stdout


def test_what_fails_is_named_and_the_rest_done(hpcbridge: Run, there: str) -> None:
    done = hpcbridge("cp", f"{there}/a.txt", f"{there}/missing", f"{there}/sub", there + "/sub/deep", "--json")
    assert done.returncode == 1
    result = json.loads(done.stdout)
    assert set(result) == {"system", "dry_run", "destination", "done", "failed"}
    assert result["done"] == [f"{there}/a.txt"]
    assert [each["path"] for each in result["failed"]] == [f"{there}/missing", f"{there}/sub"]
    assert "cp: cannot stat" in result["failed"][0]["error"]
    assert "-r not specified; omitting directory" in done.stderr


def test_rm_removes_what_it_is_told_to(hpcbridge: Run, there: str) -> None:
    directory = hpcbridge("rm", f"{there}/sub")
    assert directory.returncode == 1
    assert "Is a directory" in directory.stderr
    assert "-r removes" in directory.stderr
    assert hpcbridge("rm", f"{there}/missing").returncode == 1
    assert hpcbridge("rm", "-f", f"{there}/missing", f"{there}/*.nope").returncode == 0
    done = hpcbridge("rm", "-r", f"{there}/sub", f"{there}/*.txt", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["done"] == [
        f"{there}/sub",
        f"{there}/a.txt",
        f"{there}/b.txt",
        f"{there}/with space.txt",
    ]
    assert hpcbridge("ls", "-a", there).stdout.split() == [".hidden"]


@pytest.mark.parametrize("path", ["/", "/home", "/home/alice", "/home/alice/", "/scratch/alice", "/etc", "/home/*"])
def test_rm_refuses_what_is_dear(hpcbridge: Run, sandbox: SandboxProcess, path: str) -> None:
    sandbox.delete("/requests")
    done = hpcbridge("rm", "-rf", path)
    assert done.returncode in (1, 2)
    assert "Error:" in done.stderr
    if path == "/home/*":
        return  # others' directories fail for another reason
    assert changing(sandbox) == []


def test_mkdir_says_what_mkdir_says(hpcbridge: Run, there: str) -> None:
    assert hpcbridge("mkdir", f"{there}/x").returncode == 0
    again = hpcbridge("mkdir", f"{there}/x", f"{there}/y")
    assert again.returncode == 1
    assert "File exists" in again.stderr
    assert hpcbridge("mkdir", f"{there}/p/q").returncode == 1
    assert hpcbridge("mkdir", "-p", f"{there}/p/q", f"{there}/x").returncode == 0
    assert {"p", "x", "y"} <= set(hpcbridge("ls", there).stdout.split())


def test_du_adds_up(hpcbridge: Run, there: str) -> None:
    lines = hpcbridge("du", there).stdout.splitlines()
    assert lines == [f"15\t{there}/sub/deep", f"25\t{there}/sub", f"60\t{there}"]
    assert hpcbridge("du", "-s", f"{there}/*.txt").stdout.splitlines()[0] == f"6\t{there}/a.txt"
    records = json.loads(hpcbridge("du", "-s", "--json", there).stdout)
    assert records == [{"path": there, "bytes": 60, "files": 6, "directories": 2, "links": 0}]
    missing = hpcbridge("du", "-sh", f"{there}/missing", there)
    assert missing.returncode == 1
    assert missing.stdout == f"60\t{there}\n"


DRY = [
    ("rm -r {}/sub {}/a.txt", ["would rm {}/sub", "would rm {}/a.txt"], 0),
    ("rm {}/sub {}/a.txt", ["would rm {}/a.txt"], 1),
    ("rm {}/missing", [], 1),
    ("mkdir {}/new", ["would mkdir {}/new"], 0),
    ("mkdir {}/a.txt", [], 1),
    ("mkdir {}/no/parent", [], 1),
    ("cp {}/a.txt {}/z", ["would cp {}/a.txt -> {}/z"], 0),
    ("cp {}/sub {}/z", [], 1),
    ("mv {}/*.txt {}/sub", ["would mv {}/a.txt -> {}/sub/", "would mv {}/b.txt -> {}/sub/"], 0),
    ("mv {}/*.txt {}/missing", [], 1),
]


@pytest.mark.parametrize(("command", "lines", "code"), DRY)
def test_a_dry_run_tells_and_changes_nothing(
    hpcbridge: Run, sandbox: SandboxProcess, there: str, command: str, lines: list[str], code: int
) -> None:
    sandbox.delete("/requests")
    done = hpcbridge(*command.replace("{}", there).split(), "--dry-run")
    assert done.returncode == code
    assert {line.replace("{}", there) for line in lines} <= set(done.stdout.splitlines())
    assert bool(done.stdout) == bool(lines)
    assert changing(sandbox) == []
    assert hpcbridge("ls", there).stdout.splitlines() == ["a.txt", "b.txt", "sub", "with space.txt"]


@pytest.mark.parametrize("name", ["it's", "new\nline", "-rf", "größe", "a\tb", 'q"q', "back\\n"])
def test_odd_names_are_no_obstacle(hpcbridge: Run, there: str, name: str) -> None:
    odd = f"{there}/sub/{name}"
    assert hpcbridge("cp", f"{there}/a.txt", odd).returncode == 0
    assert hpcbridge("cat", odd).stdout == "a.txt\n"
    assert hpcbridge("du", odd).stdout.startswith("6\t")
    assert hpcbridge("mv", odd, f"{there}/back").returncode == 0
    assert hpcbridge("mkdir", odd).returncode == 0
    assert hpcbridge("rm", "-r", odd).returncode == 0
    assert hpcbridge("ls", f"{there}/sub").stdout.split() == ["c.txt", "deep"]


def test_requests_stay_within_the_limiter(hpcbridge: Run, sandbox: SandboxProcess, there: str) -> None:
    """Forty removals at once, on a site that allows its users six sessions."""
    assert hpcbridge("mkdir", *(f"{there}/{index}" for index in range(40))).returncode == 0
    sandbox.post("/sessions", {"max": 6})
    assert hpcbridge("rm", "-r", f"{there}/[0-9]*").returncode == 0
    sandbox.post("/sessions", {"max": None})
    assert "0" not in hpcbridge("ls", there).stdout.split()
