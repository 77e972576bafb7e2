"""`hpcbridge login` as a person does it: a code on another device, or a browser on this machine."""

from __future__ import annotations

import re
import stat
import subprocess
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx

from support.cli import run_cli, start_cli
from support.sandbox import SandboxProcess

PUBLIC_CLIENT = "hpcbridge-cli"


def person(sandbox: SandboxProcess) -> dict[str, str]:
    """The environment of somebody who knows the deployment and has no client secret."""
    known = {name: value for name, value in sandbox.client_env("alice").items() if "SECRET" not in name}
    return known | {"FIRECREST_CLIENT_ID": PUBLIC_CLIENT}


def said(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if match := re.search(pattern, line):
            return match
    raise AssertionError(f"{pattern!r} was never said: {seen}")


def test_login_by_device_code_and_logout(sandbox: SandboxProcess, tmp_path: Path) -> None:
    env = person(sandbox)
    before = run_cli("systems", env=env, cwd=tmp_path)
    assert before.returncode == 77
    assert "hpcbridge login" in before.stderr

    process = start_cli("login", env=env, cwd=tmp_path)
    url, code = said(process, r"Open (\S+) in any browser and enter the code (\S+)").groups()
    form = {"user_code": code, "username": "alice", "password": sandbox.users["alice"], "decision": "allow"}
    assert httpx.post(url, data=form, timeout=20).status_code == 200
    _, rest = process.communicate(timeout=40)
    assert process.returncode == 0
    assert f"Systems there: {sandbox.system}" in rest

    assert run_cli("home", env=env, cwd=tmp_path).stdout == "/home/alice\n"
    kept = [path for path in (tmp_path / ".local/state/hpcbridge").rglob("*") if path.is_file()]
    assert kept
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in kept)

    assert run_cli("logout", env=env, cwd=tmp_path).returncode == 0
    assert run_cli("home", env=env, cwd=tmp_path).returncode == 77


def test_login_in_a_browser(sandbox: SandboxProcess, tmp_path: Path) -> None:
    browser = tmp_path / "browser.sh"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/url.tmp; mv {tmp_path}/url.tmp {tmp_path}/url\n')
    browser.chmod(0o755)
    env = person(sandbox) | {"BROWSER": f"{browser} %s"}
    process = start_cli("login", "--browser", env=env, cwd=tmp_path)
    url = said(process, r"(http\S+/authorize\?\S+)")[1]
    assert (tmp_path / "url").read_text().strip() == url
    parts = urlsplit(url)
    form = {name: values[0] for name, values in parse_qs(parts.query).items()}
    assert form["code_challenge_method"] == "S256"
    answer = httpx.post(
        url.partition("?")[0],
        data={**form, "username": "alice", "password": sandbox.users["alice"], "decision": "allow"},
        follow_redirects=True,
        timeout=20,
    )
    assert "You may close this page" in answer.text
    process.communicate(timeout=40)
    assert process.returncode == 0
    assert run_cli("home", env=env, cwd=tmp_path).stdout == "/home/alice\n"


def test_login_is_not_needed_with_a_secret(sandbox: SandboxProcess, tmp_path: Path) -> None:
    done = run_cli("login", env=sandbox.client_env("alice"), cwd=tmp_path)
    assert done.returncode == 78
    assert "no login is needed" in done.stderr
    assert run_cli("login", "--browser", "--device", env=person(sandbox), cwd=tmp_path).returncode == 2
