"""Mistakes on the command line are answered before anything is sent: what is wrong, what was expected, exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.cli import run_cli

NOWHERE = {"FIRECREST_URL": "http://127.0.0.1:9", "AUTH_TOKEN_URL": "http://127.0.0.1:9/token"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run.sh").write_text("#!/bin/bash\ntrue\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "inputs").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("sumbit run.sh", "Did you mean 'submit'"),
        ("submit", "Missing argument 'SCRIPT'"),
        ("submit nothing.sh", "'nothing.sh' does not exist on this machine"),
        ("submit inputs", "'inputs' is a directory"),
        ("submit binary", "'binary' is not a text file"),
        ("submit run.sh --nodes two", "is not a valid int"),
        ("submit run.sh --nodes 0", "--nodes"),
        ("submit run.sh --env UNSET_VARIABLE", "UNSET_VARIABLE=VALUE"),
        ("submit run.sh --queue-timeout 5", "with --wait only"),
        ("submit run.sh --key=", "a key must not be empty"),
        ("put", "Missing argument 'LOCAL...'"),
        ("put run.sh", "put [OPTIONS] LOCAL... REMOTE Try"),
        ("put run.sh", "Missing argument 'REMOTE'"),
        ("put run.sh somewhere", "write /absolute/path or system:/absolute/path"),
        ("put run.sh daint:somewhere", "did you mean daint:/somewhere?"),
        ("put nothing /x", "'nothing' does not exist on this machine"),
        ("put nothing* /x", "'nothing*' does not exist on this machine"),
        ("put run.sh /x --max-size big", "'big' is not a size"),
        ("put run.sh /x --exclude-from missing", "'missing' cannot be read: No such file or directory"),
        ("put daint:/x y", "'y' is not a remote path"),
        ("put daint:/x /y", "hpcbridge get daint:/x LOCAL"),
        ("put run.sh /x --route carrier-pigeon", "direct, chunked, s3, streamer"),
        ("put run.sh /x --verify crc", "auto, size, sha256, none"),
        ("get run.sh /x", "are the two paths swapped?"),
        ("get daint:/x daint:/y", "the last one must be on this machine"),
        ("get daint:/x eiger:/y .", "on several systems (daint, eiger)"),
        ("sync inputs elsewhere", "neither is a remote path"),
        ("sync daint:/x daint:/y", "both are on the cluster"),
        ("sync /x /y", "which one is on the cluster? Write it with its system, SYSTEM:/y or SYSTEM:/x"),
        ("sync nothing daint:/x", "'nothing' does not exist on this machine"),
        ("sync run.sh daint:/x", "hpcbridge put"),
        ("sync daint:/x run.sh", "'run.sh' is a file"),
        ("cp /x", "Missing argument 'DESTINATION'"),
        ("cp daint:/x eiger:/y", "on several systems (daint, eiger)"),
        ("mv a daint:/y", "'a' is not a remote path"),
        ("rm", "Missing argument 'PATH...'"),
        ("ls relative/path", "'relative/path' is not a remote path"),
        ("logs", "Missing argument 'JOB'"),
        ("--site", "--site"),
        ("--no-such-option", "No such option"),
    ],
)
def test_wrong_usage_is_told(arguments: str, said: str, folder: Path) -> None:
    done = run_cli(*arguments.split(), env=NOWHERE, cwd=folder)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    ["systems", "doctor", "submit run.sh", "status 1", "logs 1", "cancel 1", "ls", "home", "cat /x", "rm /x", "du"],
)
def test_without_configuration_it_says_what_to_set(command: str, folder: Path) -> None:
    done = run_cli(*command.split(), cwd=folder)
    assert done.returncode == 78
    assert "FIRECREST_URL" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_an_unknown_site_names_those_there_are(folder: Path) -> None:
    config = folder / "sites.toml"
    config.write_text('[sites.daint]\nurl = "https://example.org"\n')
    done = run_cli("--site", "dianth", "systems", env={"HPCBRIDGE_CONFIG": str(config)}, cwd=folder)
    assert done.returncode == 78
    assert "'dianth'" in done.stderr
    assert "daint" in done.stderr.replace("dianth", "")


def test_a_script_that_sbatch_would_refuse_is_refused_here(folder: Path) -> None:
    (folder / "bad.sh").write_text("echo no interpreter\n")
    env = {**NOWHERE, "FIRECREST_CLIENT_ID": "me", "FIRECREST_CLIENT_SECRET": "secret-value", "FIRECREST_SYSTEM": "x"}
    done = run_cli("submit", "bad.sh", env=env, cwd=folder)
    assert done.returncode == 2
    assert "#!" in done.stderr


def test_a_name_with_a_pipe_is_refused_here(folder: Path) -> None:
    env = {**NOWHERE, "FIRECREST_CLIENT_ID": "me", "FIRECREST_CLIENT_SECRET": "secret-value", "FIRECREST_SYSTEM": "x"}
    done = run_cli("submit", "run.sh", "--name", "a|b", env=env, cwd=folder)
    assert done.returncode == 2
    assert "[A-Za-z]" in done.stderr


def test_a_server_that_is_not_there_is_named(folder: Path) -> None:
    env = {**NOWHERE, "FIRECREST_CLIENT_ID": "me", "FIRECREST_CLIENT_SECRET": "secret-value", "FIRECREST_SYSTEM": "x"}
    done = run_cli("systems", env=env, cwd=folder)
    assert done.returncode == 69
    assert "127.0.0.1:9" in done.stderr
    assert "secret-value" not in done.stderr
    assert "Traceback" not in done.stderr


def test_version(folder: Path) -> None:
    done = run_cli("--version", cwd=folder)
    assert done.returncode == 0
    assert done.stdout.startswith("hpcbridge 0.")
