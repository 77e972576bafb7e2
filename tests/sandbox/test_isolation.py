"""What runs on the cluster sees the cluster only: neither this machine's directories nor other users' files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from support.programs import give_up, require
from support.sandbox import SandboxProcess, alive, children_of, start_sandbox

CHECKOUT = Path(__file__).resolve().parents[2]


def as_unprivileged(isolation: str) -> str:
    if isolation == "bwrap":
        require("bwrap")
    return isolation


@pytest.fixture(scope="module", params=["root", "bwrap", "namespace"])
def isolated(request: pytest.FixtureRequest) -> Iterator[SandboxProcess]:
    """A sandbox of root, and one of an unprivileged user with either way to make namespaces."""
    if request.param == "root":
        if os.geteuid() != 0:
            pytest.skip("real uids need root")
        with start_sandbox("--accounting-lag", "0") as started:
            yield started
        return
    with start_sandbox(
        "--accounting-lag", "0", "--isolation", as_unprivileged(request.param), as_root=False
    ) as started:
        yield started


def run_job(sandbox: SandboxProcess, script: str, user: str = "alice") -> str:
    """Run a script as a job and return what it wrote to its output file."""
    with sandbox.client(user) as client:
        home = f"/home/{user}"
        body = {"job": {"workingDirectory": home, "script": f"#!/bin/bash\n{script}\n", "standardOutput": "job.out"}}
        job = client.post(f"/compute/{sandbox.system}/jobs", json=body).json()["jobId"]
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            rows = client.get(f"/compute/{sandbox.system}/jobs/{job}").json().get("jobs") or []
            if rows and rows[0]["status"]["state"] in {"COMPLETED", "FAILED"}:
                return client.get(f"/filesystem/{sandbox.system}/ops/download", params={"path": f"{home}/job.out"}).text
            time.sleep(0.2)
    raise AssertionError("the job did not end")


def test_jobs_without_network_reach_nothing() -> None:
    if os.geteuid() != 0:
        give_up("only root can take the network away from jobs")
    with start_sandbox("--accounting-lag", "0", "--offline-jobs") as sandbox:
        reach = f"(exec 3<>/dev/tcp/127.0.0.1/{urlsplit(sandbox.url).port}) 2>&1 && echo reached"
        told = run_job(sandbox, f"{reach}; cat /proc/net/dev | wc -l")
    assert "Network is unreachable" in told
    assert told.endswith("3\n"), "the loopback device alone, which is down"


def test_the_jobs_of_slurm_keep_their_network() -> None:
    command = [sys.executable, "-m", "hpcbridge_sandbox", "--scheduler", "slurm", "--offline-jobs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--offline-jobs" in done.stderr


def test_jobs_do_not_see_the_clients_directories(isolated: SandboxProcess, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.write_text("local")
    in_tmp = Path(tempfile.gettempdir()) / f"hpcbridge-marker-{os.getpid()}"
    in_tmp.write_text("local")
    home_file = next(iter(Path.home().iterdir()), Path.home() / ".profile")
    hidden = [marker, in_tmp, CHECKOUT / "pyproject.toml", CHECKOUT, home_file, isolated.state, isolated.log]
    try:
        script = "\n".join(f"test -e '{path}' && echo 'VISIBLE {path}'" for path in hidden)
        output = run_job(isolated, f"{script}\nls /tmp; echo done")
    finally:
        in_tmp.unlink()
    assert output == "done\n"


def test_other_users_files_are_out_of_reach(isolated: SandboxProcess) -> None:
    with isolated.client("bob") as bob:
        url = f"/filesystem/{isolated.system}/ops"
        answer = bob.post(f"{url}/upload", params={"path": "/home/bob"}, files={"file": ("secret", b"bob's")})
        assert answer.status_code == 204
    with isolated.client("alice") as alice:
        for name in ("ls", "download", "view", "stat", "head"):
            answer = alice.get(f"{url}/{name}", params={"path": "/home/bob/secret"})
            assert answer.status_code == 403, answer.text
        assert alice.get(f"{url}/ls", params={"path": "/home/bob"}).status_code == 403
        assert alice.delete(f"{url}/rm", params={"path": "/home/bob/secret"}).status_code == 403
        answer = alice.post(f"{url}/upload", params={"path": "/home/bob"}, files={"file": ("x", b"y")})
        assert answer.status_code == 403
        traversal = alice.post(f"{url}/upload", params={"path": "/home/alice"}, files={"file": ("../bob/x", b"y")})
        assert traversal.status_code == 403
        link = alice.post(f"{url}/symlink", json={"path": "/home/bob/secret", "linkPath": "/home/alice/link"})
        assert link.status_code == 201
        assert alice.get(f"{url}/download", params={"path": "/home/alice/link"}).status_code == 403
    assert "bob's" not in run_job(
        isolated, "chmod 777 /home/bob 2>/dev/null; cat /home/bob/secret /proc/*/root/home/bob/secret"
    )


def test_what_others_own_cannot_be_changed(isolated: SandboxProcess) -> None:
    url = f"/filesystem/{isolated.system}/ops"
    with isolated.client("alice") as alice:
        for path in ("/home/bob", "/scratch/bob", "/home", "/scratch"):
            answer = alice.put(f"{url}/chmod", json={"path": path, "mode": "777"})
            assert (answer.status_code, "Operation not permitted" in answer.text) == (403, True), answer.text
        for path in ("/home/bob/x", "/home/new", "/scratch/bob/x"):
            answer = alice.post(f"{url}/mkdir", json={"path": path})
            assert (answer.status_code, "Permission denied" in answer.text) == (403, True), answer.text
        answer = alice.post(f"{url}/upload", params={"path": "/home"}, files={"file": ("x", b"y")})
        assert answer.status_code == 403, answer.text
    places = "/home/bob /home / /scratch /opt /dev /run /var/log"
    changed = f"for place in {places}; do chmod 777 $place 2>/dev/null; touch $place/x 2>/dev/null && echo $place; done"
    assert run_job(isolated, f"{changed}; echo done; touch /tmp/x /dev/shm/x ~/x && echo >/dev/null") == "done\n"


def test_the_user_is_who_the_token_says(isolated: SandboxProcess) -> None:
    output = run_job(isolated, "whoami; id -u; id -gn; getent passwd bob | cut -d: -f6; echo ~; pwd", "bob")
    assert output == "bob\n2002\nusers\n/home/bob\n/home/bob\n/home/bob\n"


def test_the_machine_cannot_be_changed_from_inside(isolated: SandboxProcess) -> None:
    output = run_job(
        isolated,
        "touch /etc/x /usr/x /x /opt/x /home/x /var/x 2>&1 | grep -c 'cannot touch'; cat /etc/shadow 2>/dev/null",
    )
    assert output == "6\n"


def test_no_set_uid_program_gives_root(isolated: SandboxProcess) -> None:
    output = run_job(isolated, "grep NoNewPrivs /proc/self/status; unshare -m true 2>/dev/null && echo mounted")
    assert "mounted" not in output


def test_processes_of_the_machine_are_invisible(isolated: SandboxProcess) -> None:
    output = run_job(isolated, f"ls -d /proc/{isolated.process.pid} 2>/dev/null; ps ax | grep -c -- --env-file; true")
    assert int(output.split()[-1]) <= 2  # the script's own grep


@pytest.mark.parametrize("as_root", [True, False])
def test_expose_shows_a_directory_of_this_machine(tmp_path: Path, as_root: bool) -> None:
    if as_root and os.geteuid() != 0:
        pytest.skip("real uids need root")
    software = Path(tempfile.mkdtemp(prefix="hpcbridge-expose-"))
    try:
        software.chmod(0o777)
        (software / "tool").write_text("#!/bin/sh\necho from the machine\n")
        (software / "tool").chmod(0o755)
        flags = (
            "--accounting-lag",
            "0",
            "--expose",
            f"{software}:/opt/software:ro",
            "--expose",
            f"{software}:/data/shared",
        )
        with start_sandbox(*flags, as_root=as_root) as sandbox:
            output = run_job(
                sandbox, "/opt/software/tool; touch /opt/software/x 2>&1; touch /data/shared/y && echo written"
            )
        assert output.startswith("from the machine\ntouch: cannot touch '/opt/software/x': Read-only file system\n")
        assert "written" in output
        assert (software / "y").exists()
    finally:
        shutil.rmtree(software)


def long_job(sandbox: SandboxProcess) -> list[int]:
    """Start a job that would outlive anything, and return every process of the sandbox."""
    with sandbox.client() as client:
        script = "#!/bin/bash\n(setsid sleep 1000 &)\nsleep 1000\n"
        body = {"job": {"workingDirectory": "/home/alice", "script": script}}
        assert client.post(f"/compute/{sandbox.system}/jobs", json=body).status_code == 201
        # Begins an S3 upload, so that the object store runs too.
        client.post(
            f"/filesystem/{sandbox.system}/transfer/upload",
            json={"path": "/home/alice/x", "transferDirectives": {"transferMethod": "s3", "fileSize": 10}},
        )
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = children_of(sandbox.process.pid)
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in found if Path(f"/proc/{pid}").exists()]
        if sum(b"sleep\x001000" in command for command in commands) >= 2:
            return found
        time.sleep(0.1)
    raise AssertionError("the job did not start")


@pytest.mark.parametrize("as_root", [True, False])
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_the_end_of_the_server_is_the_end_of_everything(how: str, as_root: bool) -> None:
    if as_root and os.geteuid() != 0:
        pytest.skip("real uids need root")
    with start_sandbox("--accounting-lag", "0", as_root=as_root) as sandbox:
        started = long_job(sandbox)
        assert len(started) > 3
        if how == "SIGTERM":
            begin = time.monotonic()
            assert sandbox.stop() == 0
            assert time.monotonic() - begin < 10
        else:
            sandbox.kill()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and any(alive(pid) for pid in started):
            time.sleep(0.05)
        assert [pid for pid in started if alive(pid)] == []


def test_the_passwd_of_the_machine_is_untouched(isolated: SandboxProcess) -> None:
    assert "/home/alice" not in Path("/etc/passwd").read_text()
    assert not Path("/home/alice").exists()


def test_the_api_is_on_loopback_only(isolated: SandboxProcess) -> None:
    assert httpx.URL(isolated.url).host == "127.0.0.1"
    assert httpx.URL(isolated.control).host == "127.0.0.1"


def test_forbidden_user_namespaces_are_told_with_what_to_do(tmp_path: Path) -> None:
    """As in many containers, and without bubblewrap: in a namespace of its own, where no further ones are allowed."""
    for program in ("unshare", "true"):
        (tmp_path / program).symlink_to(shutil.which(program) or program)
    code = """import os, pathlib
pathlib.Path("/proc/sys/user/max_user_namespaces").write_text("0")
os.geteuid = lambda: 1000  # the mapped user counts as root otherwise
from hpcbridge_sandbox.cluster.isolation import unsupported
print(unsupported())"""
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", code]
    env = os.environ | {"PATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert "user namespaces are not allowed here" in done.stdout, done.stderr
    assert "install the package bubblewrap" in done.stdout
