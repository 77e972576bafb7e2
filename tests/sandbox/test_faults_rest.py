"""Faults and outages on demand: what was done, what was answered, and when it is over."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from support.sandbox import SandboxProcess

BASE = "/home/alice"


def mkdir(client: httpx.Client, system: str, name: str) -> httpx.Response:
    return client.post(f"/filesystem/{system}/ops/mkdir", json={"path": f"{BASE}/{name}"})


def exists(sandbox: SandboxProcess, name: str) -> bool:
    path: Path = sandbox.host_path(f"{BASE}/{name}")
    return path.exists()


def rule(kind: str, **more: object) -> list[dict[str, object]]:
    return [{"method": "POST", "path": "/filesystem/*/ops/mkdir", "kind": kind, **more}]


def test_a_status_without_work(sandbox: SandboxProcess) -> None:
    sandbox.post("/faults", rule("status", status=429, headers={"Retry-After": "7"}, count=1))
    with sandbox.client() as client:
        answer = mkdir(client, sandbox.system, "f1")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
        assert answer.json()["errorType"] == "error"
        assert not exists(sandbox, "f1")
        assert mkdir(client, sandbox.system, "f1").status_code == 201


@pytest.mark.parametrize("status", [408, 424, 500, 503])
def test_a_status_after_the_work(sandbox: SandboxProcess, status: int) -> None:
    sandbox.post("/faults", rule("status_after", status=status))
    with sandbox.client() as client:
        assert mkdir(client, sandbox.system, f"after{status}").status_code == status
    assert exists(sandbox, f"after{status}")


@pytest.mark.parametrize("kind", ["status", "status_after"])
@pytest.mark.parametrize("status", [200, 204, 304])
def test_a_status_with_or_without_a_body(sandbox: SandboxProcess, kind: str, status: int) -> None:
    begin = sandbox.log.stat().st_size
    sandbox.post("/faults", rule(kind, status=status, headers={"Connection": "close"}))
    with sandbox.client() as client:
        answer = mkdir(client, sandbox.system, f"{kind}{status}")
        assert (answer.status_code, bool(answer.content)) == (status, status == 200)
        assert client.head("/status/systems").status_code == 405
    assert "Traceback" not in sandbox.log.read_text()[begin:]


@pytest.mark.parametrize(
    "impossible",
    [
        {"status": 100},
        {"status": 1000},
        {"headers": {"Content-Length": "1"}},
        {"headers": {"transfer-encoding": "chunked"}},
        {"headers": {"X": "a\r\nb"}},
        {"headers": {"X": "\u20ac"}},
        {"headers": {"X Y": "a"}},
    ],
)
def test_a_rule_that_no_server_could_answer_is_refused(sandbox: SandboxProcess, impossible: dict[str, object]) -> None:
    answer = httpx.post(f"{sandbox.control}/faults", json=rule("status", **impossible))
    assert answer.status_code == 422, answer.text


@pytest.mark.parametrize(("kind", "done"), [("drop_before", False), ("drop_after", True)])
def test_a_lost_answer(sandbox: SandboxProcess, kind: str, done: bool) -> None:
    sandbox.post("/faults", rule(kind))
    with sandbox.client() as client, pytest.raises(httpx.TransportError):
        mkdir(client, sandbox.system, kind)
    assert exists(sandbox, kind) is done


def test_hang_and_latency(sandbox: SandboxProcess) -> None:
    with sandbox.client() as client:
        sandbox.post("/faults", rule("hang"))
        with pytest.raises(httpx.ReadTimeout):
            client.post(f"/filesystem/{sandbox.system}/ops/mkdir", json={"path": f"{BASE}/hung"}, timeout=0.5)
        assert not exists(sandbox, "hung")
        sandbox.post("/faults", rule("latency", seconds=0.5))
        start = time.monotonic()
        assert mkdir(client, sandbox.system, "late").status_code == 201
        assert time.monotonic() - start > 0.5
        sandbox.delete("/faults")
        sandbox.post("/latency", {"seconds": 0.3})
        start = time.monotonic()
        client.get("/status/liveness/")
        assert time.monotonic() - start > 0.3


def test_probability(sandbox: SandboxProcess) -> None:
    sandbox.post("/faults", [{"path": "/status/*", "kind": "status", "status": 503, "probability": 0.5}])
    with sandbox.client() as client:
        statuses = [client.get("/status/systems").status_code for _ in range(80)]
    assert 15 < statuses.count(503) < 65


def test_every_third(sandbox: SandboxProcess) -> None:
    sandbox.post("/faults", [{"method": "GET", "path": "/status/*", "kind": "status", "status": 502, "every": 3}])
    with sandbox.client() as client:
        codes = [client.get("/status/systems").status_code for _ in range(7)]
    assert codes == [200, 200, 502, 200, 200, 502, 200]
    assert sandbox.get("/faults")[0]["every"] == 3


def test_an_unknown_rule_is_refused(sandbox: SandboxProcess) -> None:
    assert httpx.post(f"{sandbox.control}/faults", json=[{"kind": "explode"}]).status_code == 422
    assert httpx.get(sandbox.control.rsplit("/", 1)[0] + "/guess/faults").status_code == 404


def test_refused_outage_cuts_and_comes_back_on_the_same_port(sandbox: SandboxProcess) -> None:
    with sandbox.client() as client:
        assert client.get("/status/systems").status_code == 200
        start = time.monotonic()
        sandbox.post("/outage", {"kind": "refused", "seconds": 1.5})
        with pytest.raises(httpx.TransportError):
            client.get("/status/systems")
        with pytest.raises(httpx.ConnectError):
            client.get("/status/systems")
        while True:
            try:
                assert client.get("/status/systems").status_code == 200
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        assert 1.3 < time.monotonic() - start < 4


def test_an_outage_can_be_ended_early(sandbox: SandboxProcess) -> None:
    sandbox.post("/outage", {"kind": "refused", "seconds": 600})
    sandbox.delete("/outage")
    time.sleep(0.2)
    with sandbox.client() as client:
        assert client.get("/status/systems").status_code == 200


def test_gateway_outage_and_hang(sandbox: SandboxProcess) -> None:
    with sandbox.client() as client:
        sandbox.post("/outage", {"kind": "503", "seconds": 600, "retry_after": 3})
        answer = client.get("/status/systems")
        assert (answer.status_code, answer.headers["content-type"]) == (503, "text/html")
        assert answer.headers["retry-after"] == "3"
        sandbox.post("/outage", {"kind": "hang", "seconds": 1})
        with pytest.raises(httpx.ReadTimeout):
            client.get("/status/systems", timeout=0.4)
        with pytest.raises(httpx.RemoteProtocolError):
            client.get("/status/systems", timeout=5)
        assert client.get("/status/systems").status_code == 200


def test_max_sessions(sandbox: SandboxProcess) -> None:
    sandbox.post("/sessions", {"max": 2})
    url = f"/filesystem/{sandbox.system}/ops/upload"
    with sandbox.client() as client, ThreadPoolExecutor(4) as pool:
        uploads = [
            # Empty uploads hold their sessions until the time limit.
            pool.submit(client.post, url, params={"path": BASE}, files={"file": (f"hold{index}", b"")})
            for index in range(2)
        ]
        time.sleep(1)
        answer = client.get(f"/filesystem/{sandbox.system}/ops/ls", params={"path": BASE})
        assert (answer.status_code, answer.json()["message"]) == (424, "Unable to open a new SSH channel.")
        assert answer.json()["user"] == "alice"
        assert [upload.result().status_code for upload in uploads] == [408, 408]
        assert client.get(f"/filesystem/{sandbox.system}/ops/ls", params={"path": BASE}).status_code == 200


def test_unhealthy_services_and_an_unreachable_login_node(sandbox: SandboxProcess) -> None:
    ls = f"/filesystem/{sandbox.system}/ops/ls?path=/home"
    with sandbox.client() as client:
        try:
            sandbox.post(f"/systems/{sandbox.system}", {"unhealthy": ["ssh"]})
            answer = client.get(ls)
            message = f"The ssh service for the requested system ({sandbox.system}) is unhealthy."
            assert (answer.status_code, answer.json()["message"]) == (503, message)
            sandbox.post(f"/systems/{sandbox.system}", {"unhealthy": [], "ssh": "denied"})
            answer = client.get(ls)
            assert (answer.status_code, answer.json()["message"]) == (424, "Unable to establish SSH connection.")
            sandbox.post(f"/systems/{sandbox.system}", {"ssh": "refused"})
            answer = client.get(ls)
            assert (answer.status_code, answer.json()["user"]) == (500, None)
            assert answer.json()["message"] == "(111, 'Connection refused')"
        finally:
            sandbox.post(f"/systems/{sandbox.system}", {"unhealthy": [], "ssh": "ok"})


def test_an_unhandled_500_closes_the_connection(sandbox: SandboxProcess) -> None:
    ls = f"/filesystem/{sandbox.system}/ops/ls?path=/home"
    try:
        sandbox.post(f"/systems/{sandbox.system}", {"ssh": "refused"})
        failed = 0
        for _ in range(10):
            with sandbox.client() as client:  # a pool that no earlier answer has left a connection in
                assert client.get(ls).status_code == 500
                try:
                    client.get(ls)
                except httpx.TransportError:
                    failed += 1
        assert failed >= 8, "a request on the pooled connection should have met its end"
    finally:
        sandbox.post(f"/systems/{sandbox.system}", {"ssh": "ok"})


def test_requests_and_commands_are_counted(sandbox: SandboxProcess) -> None:
    sandbox.delete("/requests")
    with sandbox.client() as client:
        client.get("/status/systems")
        client.get(f"/compute/{sandbox.system}/jobs/123")
        client.get(f"/compute/{sandbox.system}/jobs")
        for _ in range(3):
            client.get(f"/filesystem/{sandbox.system}/ops/ls", params={"path": BASE})
    seen = sandbox.get("/requests")
    assert seen["counts"] == {
        "GET /status/systems": 1,
        "GET /compute/{}/jobs/{}": 1,
        "GET /compute/{}/jobs": 1,
        "GET /filesystem/{}/ops/ls": 3,
    }
    assert seen["commands"] >= 3
