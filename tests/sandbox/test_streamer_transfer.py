"""A server that moves large files by streamer: the real package runs in the job, with its own faults and ours."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import inspect
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import firecrest
import httpx
import pytest
from streamer import streamer_client
from streamer.streamer_core import CHUNK_SIZE

from hpcbridge_sandbox.settings import Settings
from hpcbridge_sandbox.streamer import StreamerFaults
from support.recorded import ANSWERS, differences
from support.sandbox import SandboxProcess, start_sandbox, with_streamer

APPENDED = 98
"""Bytes that the package's own client leaves at the end of what it sends, and of what it receives."""
SIZE = 2 * CHUNK_SIZE + 1234


@pytest.fixture(scope="module", params=["local", "unprivileged", pytest.param("slurm", marks=pytest.mark.slurm)])
def started(request: pytest.FixtureRequest) -> Iterator[SandboxProcess]:
    if request.param == "slurm":
        request.getfixturevalue("slurm_installed")
    slurm = ("--scheduler", "slurm") if request.param == "slurm" else ()
    as_root = request.param != "unprivileged"
    with start_sandbox("--accounting-lag", "0.5", *with_streamer(), *slurm, timeout=180, as_root=as_root) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(started: SandboxProcess) -> Iterator[SandboxProcess]:
    yield started
    started.reset()


@pytest.fixture
def local(tmp_path: Path) -> Path:
    path = tmp_path / "local"
    path.write_bytes(os.urandom(SIZE))
    return path


def listens(coordinates: str) -> bool:
    """Whether anything does on the ports of a streamer; nobody else uses them here."""
    told = json.loads(base64.urlsafe_b64decode(coordinates))
    for port in range(told["ports"][0], told["ports"][1] + 1):
        with socket.socket() as probe:
            if probe.connect_ex((told["ips"][0], port)) == 0:
                return True
    return False


class Job:
    """A transfer that was asked for, and the real package's client for it."""

    def __init__(self, sandbox: SandboxProcess, way: str, path: str) -> None:
        self._client = sandbox.client()
        self._sandbox = sandbox
        body = {"path": path, "transferDirectives": {"transferMethod": "streamer"}}
        answer = self._client.post(f"/filesystem/{sandbox.system}/transfer/{way}", json=body)
        assert answer.status_code == 201, answer.text
        self.job: dict[str, Any] = answer.json()["transferJob"]
        self.coordinates: str = answer.json()["transferDirectives"]["coordinates"]

    def log(self, which: str = "outputLog") -> str:
        path = self._sandbox.host_path(self.job["logs"][which])
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_until_it_listens(self) -> None:
        """Without its telling: its words are buffered."""
        end = time.monotonic() + 30
        while not listens(self.coordinates):
            assert time.monotonic() < end, self.log("errorLog")
            time.sleep(0.05)

    def wait_for_the_end(self, seconds: float = 30) -> str:
        end = time.monotonic() + seconds
        while True:
            answer = self._client.get(f"/compute/{self._sandbox.system}/jobs/{self.job['jobId']}")
            states = [row["status"]["state"] for row in answer.json()["jobs"]] if answer.is_success else []
            if states and states[0] not in ("PENDING", "RUNNING", "COMPLETING"):
                return str(states[0])
            assert time.monotonic() < end, states
            time.sleep(0.1)

    def run(self, function: Any, target: Path) -> None:
        config = streamer_client.set_coordinates(self.coordinates)
        config.target = str(target)
        asyncio.run(function(config))


def test_the_system_is_described_as_the_recorded_one(sandbox: SandboxProcess) -> None:
    with sandbox.client() as client:
        (system,) = client.get("/status/systems").json()["systems"]
    rows = ANSWERS["status_systems_200"]["body"]["systems"]
    recorded = next(row for row in rows if isinstance(row, dict) and row["name"] == "lab-stream-local")
    assert differences(recorded["dataOperation"], system["dataOperation"]) == []
    assert system["dataOperation"]["data_transfer"]["serviceType"] == "streamer"
    assert {entry["serviceType"] for entry in system["servicesHealth"]} == {"scheduler", "ssh", "filesystem"}
    assert set(system["probing"]["services"]) == set(recorded["probing"]["services"])


def test_the_packages_own_client_leaves_98_bytes_too_many(sandbox: SandboxProcess, local: Path, tmp_path: Path) -> None:
    path = f"/home/alice/own-{time.time_ns()}"
    up = Job(sandbox, "upload", path)
    told = json.loads(base64.urlsafe_b64decode(up.coordinates))
    assert set(told) == {"ips", "ports", "secret"}
    up.wait_until_it_listens()
    # What it says is buffered as long as it runs.
    assert "Starting firecrest streamer" in up.log()
    assert "listening" not in up.log()
    up.run(streamer_client.client_send, local)
    assert up.wait_for_the_end() == "COMPLETED"
    assert "Server is listening on" in up.log()
    content, arrived = local.read_bytes(), sandbox.host_path(path).read_bytes()
    assert arrived[:SIZE] == content
    assert json.loads(arrived[SIZE:]) == {"type": "eof", "sha256_hash": hashlib.sha256(content).hexdigest()}
    assert len(arrived) == SIZE + APPENDED
    down = Job(sandbox, "download", path)
    down.wait_until_it_listens()
    down.run(streamer_client.client_receive, tmp_path / "back")
    assert (tmp_path / "back").read_bytes()[: len(arrived)] == arrived
    assert (tmp_path / "back").stat().st_size == len(arrived) + APPENDED
    assert down.wait_for_the_end() == "COMPLETED"
    assert list(sandbox.host_path("/home/alice").glob(".venv-*")) == []


@pytest.fixture(params=["sync", "async"])
async def pyfirecrest(request: pytest.FixtureRequest, sandbox: SandboxProcess) -> AsyncIterator[Any]:
    env = sandbox.client_env()
    authorization = firecrest.ClientCredentialsAuth("alice", env["FIRECREST_CLIENT_SECRET"], env["AUTH_TOKEN_URL"])
    kind = firecrest.v2.AsyncFirecrest if request.param == "async" else firecrest.v2.Firecrest
    client = kind(firecrest_url=env["FIRECREST_URL"], authorization=authorization)
    client.timeout = 60
    yield client
    if request.param == "async":
        await client.close_session()


async def ready(transfer: Any) -> None:
    while not listens(transfer._transfer_info["transferDirectives"]["coordinates"]):
        await asyncio.sleep(0.05)


async def test_pyfirecrest_moves_files_where_its_streamer_is_ready_in_time(
    pyfirecrest: Any, sandbox: SandboxProcess, local: Path, tmp_path: Path
) -> None:
    async def call(function: Any, *arguments: Any) -> Any:
        if inspect.iscoroutinefunction(function):
            return await function(*arguments)
        return await asyncio.to_thread(function, *arguments)

    path = Path(f"/home/alice/pf-{time.time_ns()}")
    options = {"account": None, "blocking": False, "transfer_method": "streamer"}
    answer = pyfirecrest.upload(sandbox.system, local, str(path.parent), path.name, **options)
    upload = await answer if inspect.isawaitable(answer) else answer
    await call(upload.wait_for_streamer_job_to_listen)
    # It looks at the job's state, which says RUNNING long before anything listens.
    await ready(upload)
    await call(upload.upload_file_streamer)
    for _ in range(100):
        if sandbox.host_path(str(path)).exists() and sandbox.host_path(str(path)).stat().st_size >= SIZE + APPENDED:
            break
        await asyncio.sleep(0.1)
    assert sandbox.host_path(str(path)).read_bytes()[:SIZE] == local.read_bytes()
    back = tmp_path / "back"
    answer = pyfirecrest.download(sandbox.system, str(path), str(back), **options)
    download = await answer if inspect.isawaitable(answer) else answer
    await call(download.wait_for_streamer_job_to_listen)
    await ready(download)
    await call(download.download_file_streamer)
    assert back.read_bytes()[:SIZE] == local.read_bytes()


def test_the_cluster_sees_the_package_and_nothing_else_of_the_client(sandbox: SandboxProcess) -> None:
    code = (
        "import os, sys, json, streamer, websockets, click; "
        "print(json.dumps([sys.path, sorted(os.listdir('/opt/firecrest-streamer/lib')), streamer.__file__, "
        "os.access('/opt/firecrest-streamer/lib', os.W_OK), os.path.exists(os.environ['CHECKOUT'])]))"
    )
    checkout = str(Path(__file__).parents[2])
    python = "$(ls /opt/firecrest-streamer/python/bin/python3.?? 2>/dev/null || ls /usr/bin/python3.??)"
    lines = ["#!/bin/bash", "export PYTHONPATH=/opt/firecrest-streamer/lib", f"export CHECKOUT={checkout}"]
    lines += [f'set -- {python}; "$1" -c "{code}" > seen.json']
    with sandbox.client() as client:
        job = {"workingDirectory": "/home/alice", "script": "\n".join(lines) + "\n"}
        answer = client.post(f"/compute/{sandbox.system}/jobs", json={"job": job})
        assert answer.status_code == 201, answer.text
    seen = sandbox.host_path("/home/alice/seen.json")
    end = time.monotonic() + 30
    while not (seen.exists() and seen.read_text().endswith("\n")):
        assert time.monotonic() < end
        time.sleep(0.1)
    path, names, where, writable, checkout_is_there = json.loads(seen.read_text())
    assert where.startswith("/opt/firecrest-streamer/lib/")
    assert {name.partition("-")[0] for name in names} == {
        "click",
        "faulty.py",
        "firecrest_streamer",
        "streamer",
        "websockets",
    }
    assert not writable
    assert not checkout_is_there
    assert not any(checkout in entry or str(Path.home()) in entry for entry in path)


def test_a_target_that_exists_is_refused_and_a_link_is_followed(sandbox: SandboxProcess) -> None:
    home = sandbox.host_path("/home/alice")
    (home / "there").write_bytes(b"x" * 10)
    (home / "to-there").unlink(missing_ok=True)
    (home / "to-there").symlink_to("there")
    body = {"transferDirectives": {"transferMethod": "streamer"}}
    with sandbox.client() as client:
        url = f"/filesystem/{sandbox.system}/transfer"
        for path in ("/home/alice/there", "/home/alice/to-there", "/home/alice"):
            answer = client.post(f"{url}/upload", json=body | {"path": path})
            assert (answer.status_code, answer.json()["message"]) == (403, f"Target file '{path}' already exists.")
        answer = client.post(f"{url}/download", json=body | {"path": "/home/alice"})
        assert answer.status_code == 201
        answer = client.post(
            f"{url}/upload",
            json={"path": "/home/alice/x", "transferDirectives": {"transferMethod": "s3", "fileSize": 1}},
        )
        assert (answer.status_code, answer.json()["message"]) == (400, "Requested transfer method is not available.")


def test_a_streamer_takes_its_own_secret_only(sandbox: SandboxProcess) -> None:
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    job = Job(sandbox, "upload", f"/home/alice/secret-{time.time_ns()}")
    job.wait_until_it_listens()
    told = json.loads(base64.urlsafe_b64decode(job.coordinates))
    statuses = []
    for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": f"Bearer {told['secret']}"}):
        for port in range(told["ports"][0], told["ports"][1] + 1):
            try:
                with connect(f"ws://{told['ips'][0]}:{port}", additional_headers=headers):
                    statuses.append(101)
                break
            except InvalidStatus as refused:
                statuses.append(refused.response.status_code)
                break
            except OSError:
                continue
    assert statuses == [401, 403, 101]
    assert job.wait_for_the_end() == "COMPLETED"


def test_nobody_comes(tmp_path: Path) -> None:
    with start_sandbox("--accounting-lag", "0.2", "--streamer-wait", "2", *with_streamer()) as sandbox:
        job = Job(sandbox, "upload", "/home/alice/nobody")
        assert job.wait_for_the_end(15) == "COMPLETED"
        assert not sandbox.host_path("/home/alice/nobody").exists()


def test_too_much_is_refused_by_the_streamer_itself(tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(bytes(SIZE))
    with start_sandbox("--accounting-lag", "0.2", "--streamer-limit", str(CHUNK_SIZE), *with_streamer()) as sandbox:
        job = Job(sandbox, "upload", "/home/alice/large")
        job.wait_until_it_listens()
        job.run(streamer_client.client_send, local)
        assert job.wait_for_the_end() == "COMPLETED"
        assert "Inbound transfer limit exceeded" in job.log()
        assert not sandbox.host_path("/home/alice/large").exists()


def test_a_server_may_offer_nothing(tmp_path: Path) -> None:
    with start_sandbox("--transfer", "none") as sandbox, sandbox.client() as client:
        (system,) = client.get("/status/systems").json()["systems"]
        assert system["dataOperation"]["data_transfer"] is None
        for method in ({"transferMethod": "streamer"}, {"transferMethod": "s3", "fileSize": 5}):
            body = {"path": "/home/alice/x", "transferDirectives": method}
            for way in ("upload", "download"):
                answer = client.post(f"/filesystem/{sandbox.system}/transfer/{way}", json=body)
                assert answer.status_code == 400
                assert answer.json()["message"] == "Requested transfer method is not available."


def test_faults_have_names_and_amounts() -> None:
    faults = StreamerFaults()
    faults.replace({"drop_after": 10, "count": 1})
    assert faults.draw() == {"drop_after": 10}
    assert faults.draw() == {}
    faults.replace({"corruption": 0.0, "deaf": 1})
    assert faults.draw() == {"deaf": 1}
    with pytest.raises(ValueError, match="unknown streamer fault hurricane; known: "):
        faults.replace({"hurricane": 1})
    with pytest.raises(ValueError, match="wants a number of zero or more"):
        faults.replace({"deaf": True})


def test_the_controls_refuse_what_they_do_not_know(local_queue: SandboxProcess) -> None:
    answer = httpx.post(f"{local_queue.control}/streamer-faults", json={"hurricane": 1})
    assert answer.status_code == 400
    assert httpx.post(f"{local_queue.control}/streamer-faults", json={"deaf": 1}).json() == {"deaf": 1}
    assert httpx.delete(f"{local_queue.control}/streamer-faults").json() == {}


@pytest.mark.parametrize("ports", ["5665", "5675-5665", "0-5", "5665-70000", "a-b"])
def test_a_range_of_ports_is_checked(tmp_path: Path, ports: str) -> None:
    with pytest.raises(ValueError, match="is not a range of ports"):
        Settings(state=tmp_path, streamer_ports=ports)  # type: ignore[arg-type]
