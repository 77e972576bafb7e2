"""The command itself: env file, ready line, options, state across restarts, and a clean end."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from support.sandbox import SandboxProcess, start_sandbox


def test_env_file_and_ready_line(sandbox: SandboxProcess) -> None:
    env_file = sandbox.state.parent / "env"
    lines = env_file.read_text().splitlines()
    names = ["FIRECREST_URL", "AUTH_TOKEN_URL", "FIRECREST_CLIENT_ID", "FIRECREST_CLIENT_SECRET", "FIRECREST_SYSTEM"]
    assert [line.split("=")[0] for line in lines] == [
        f"export {name}" for name in [*names, "HPCBRIDGE_SANDBOX_CONTROL"]
    ]
    assert stat.S_IMODE(env_file.stat().st_mode) == 0o600
    sourced = subprocess.run(
        ["sh", "-c", f". '{env_file}'; echo $FIRECREST_CLIENT_ID $FIRECREST_SYSTEM"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert sourced.stdout == "alice sandbox\n"
    assert sandbox.url in sandbox.ready_line
    assert "not a production service" in sandbox.ready_line


def test_secrets_are_not_shown(sandbox: SandboxProcess) -> None:
    with sandbox.client() as client:
        client.get("/status/systems")
    log = sandbox.log.read_text()
    arguments = "\n".join(" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"]))
    for secret in (*sandbox.users.values(), sandbox.control.rsplit("/", 1)[1], sandbox.token()):
        assert secret not in log
        assert secret not in arguments
        assert secret not in sandbox.ready_line
    assert stat.S_IMODE((sandbox.state / "sandbox.db").stat().st_mode) == 0o600


def test_given_users_systems_and_root_path(tmp_path: Path) -> None:
    flags = ("--user", "carol:s3cret", "--user", "dave", "--system", "daint", "--system", "eiger")
    with start_sandbox(*flags, "--root-path", "/hpc/firecrest/v2", "--server-version", "2.5.6") as sandbox:
        assert sandbox.users["carol"] == "s3cret"
        assert sandbox.url.endswith("/hpc/firecrest/v2")
        with sandbox.client("carol") as client:
            answer = client.get("/status/systems")
            assert [system["name"] for system in answer.json()["systems"]] == ["daint", "eiger"]
            assert answer.headers["f7t-appversion"] == "2.5.6"
            assert client.get("/filesystem/eiger/ops/ls", params={"path": "/home/carol"}).status_code == 200
            redirect = client.get("/status/liveness")
            assert redirect.headers["location"] == f"{sandbox.url}/status/liveness/"
        outside = httpx.get(sandbox.url.removesuffix("/hpc/firecrest/v2") + "/status/systems")
        assert (outside.status_code, outside.json()["message"]) == (404, "Not Found")


def test_a_restart_keeps_keys_secrets_logins_files_and_ports(tmp_path: Path) -> None:
    with start_sandbox("--accounting-lag", "0") as sandbox:
        token, secrets, url, control = sandbox.token(), sandbox.users, sandbox.url, sandbox.control
        issuer = sandbox.token_url.removesuffix("/token")
        begin = httpx.post(f"{issuer}/device_authorization", data={"client_id": "hpcbridge-cli"}).json()
        form = {"user_code": begin["user_code"], "username": "alice", "password": secrets["alice"]}
        assert httpx.post(begin["verification_uri"], data=form).status_code == 200
        grant = {"grant_type": "urn:ietf:params:oauth:grant-type:device_code", "client_id": "hpcbridge-cli"}
        refresh = httpx.post(sandbox.token_url, data={**grant, "device_code": begin["device_code"]}).json()[
            "refresh_token"
        ]
        with sandbox.client() as client:
            path = {"path": "/home/alice"}
            client.post(f"/filesystem/{sandbox.system}/ops/upload", params=path, files={"file": ("kept", b"data")})
        sandbox.kill()
        sandbox.restart()
        assert (sandbox.url, sandbox.control, sandbox.users) == (url, control, secrets)
        headers = {"Authorization": f"Bearer {token}"}
        kept = {"path": "/home/alice/kept"}
        answer = httpx.get(f"{url}/filesystem/{sandbox.system}/ops/download", params=kept, headers=headers)
        assert answer.content == b"data"
        data = {"grant_type": "refresh_token", "refresh_token": refresh, "client_id": "hpcbridge-cli"}
        assert httpx.post(sandbox.token_url, data=data).status_code == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="hiding programs needs root")
def test_missing_programs_are_told_at_the_start(tmp_path: Path) -> None:
    hidden = [name for name in ("/usr/bin/curl", "/usr/bin/file") if Path(name).exists()]
    hide = "\n".join(f"mount --bind /dev/null {name}" for name in hidden)
    script = f'set -e\n{hide}\nexec "$@"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    command += [sys.executable, "-m", "hpcbridge_sandbox", "--env-file", str(tmp_path / "env")]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("hpcbridge sandbox ready: ")
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert (out, process.returncode) == ("", 0)
    told = [line for line in err.splitlines() if "is missing" in line]
    assert told[:2] == [
        "hpcbridge sandbox: the program curl is missing: S3 staging (transfer/upload and transfer/download) will fail; "
        "install the package curl",
        "hpcbridge sandbox: the program file is missing: the type of a file (ops/file) will fail; "
        "install the package file",
    ]


def test_without_state_nothing_is_left_behind(tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "hpcbridge_sandbox", "--env-file", str(tmp_path / "env")]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("hpcbridge sandbox ready: http://127.0.0.1:")
        process.terminate()
        assert process.stdout.read() == ""
    assert process.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["env"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--user", "Bad Name"], "not a user name"),
        (["--system", "DAINT"], "not a system name"),
        (["--scheduler", "pbs"], "scheduler"),
        (["--expose", "/nosuch/place"], "does not exist"),
        (["--host", "0.0.0.0"], "loopback"),
    ],
)
def test_wrong_options_are_told_and_exit_2(flags: list[str], words: str) -> None:
    command = [sys.executable, "-m", "hpcbridge_sandbox", *flags]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}, timeout=30, check=False
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_told() -> None:
    with start_sandbox() as sandbox:
        port = httpx.URL(sandbox.url).port
        command = [sys.executable, "-m", "hpcbridge_sandbox", "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert "in use" in done.stderr
        assert "Traceback" not in done.stderr


def test_help_loads_nothing_heavy() -> None:
    heavy = "{'fastapi', 'uvicorn', 'pydantic', 'authlib', 'boto3'}"
    code = f"import hpcbridge_sandbox.cli, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    done = subprocess.run(
        [sys.executable, "-m", "hpcbridge_sandbox", "--help"], capture_output=True, text=True, check=True
    )
    assert "--env-file" in done.stdout


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--port 99999", "--port: Input should be less than or equal to 65535"),
        ("--latency -1", "--latency: Input should be greater than or equal to 0"),
        ("--user A", "--user: "),
        ("--expose /nowhere/at/all", "/nowhere/at/all does not exist"),
    ],
)
def test_wrong_settings_are_named(flags: str, told: str) -> None:
    command = [sys.executable, "-m", "hpcbridge_sandbox", *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={"COLUMNS": "200"})
    assert (done.returncode, done.stdout) == (2, "")
    assert told in " ".join(done.stderr.split())


def test_a_port_in_use_is_named(sandbox: SandboxProcess) -> None:
    port = sandbox.url.rpartition(":")[2]
    command = [sys.executable, "-m", "hpcbridge_sandbox", "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1: Address already in use; choose another --port" in done.stderr
