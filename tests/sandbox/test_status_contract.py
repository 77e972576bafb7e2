"""``/status`` answers as the recorded server does, on both schedulers."""

import httpx
import pytest


@pytest.fixture
def http(any_sandbox):
    with any_sandbox.client() as client:
        yield client


def test_systems_have_limits_file_systems_scheduler_and_health(any_sandbox, http):
    answer = http.get("/status/systems")
    assert answer.status_code == 200
    (system,) = answer.json()["systems"]
    assert set(system) == {
        *("name", "ssh", "scheduler", "servicesHealth", "probing", "lastHealthCheck", "fileSystems", "dataOperation"),
    }
    assert system["name"] == any_sandbox.system
    assert system["ssh"]["timeout"] == {
        "connection": 5, "login": 5, "commandExecution": 5, "idleTimeout": 60, "keepAlive": 5,
    }  # fmt: skip
    assert system["scheduler"] == {
        "type": "slurm", "version": "22.05.8", "apiUrl": None, "apiVersion": None, "connectionMode": "ssh",
        "timeout": 10,
    }  # fmt: skip
    assert system["fileSystems"][0] == {"path": "/home", "dataType": "users", "defaultWorkDir": True}
    data = system["dataOperation"]
    assert data["max_ops_file_size"] == 5242880
    assert data["datatransfer_jobs_directives"][2] == "#SBATCH --partition=xfer"
    assert data["data_transfer"]["serviceType"] == "s3"
    assert data["data_transfer"]["publicUrl"].startswith("http://127.0.0.1:")
    assert data["data_transfer"]["secretAccessKey"] == "*" * 10
    assert [entry["serviceType"] for entry in system["servicesHealth"]] == [
        "scheduler", "ssh", "filesystem", "filesystem", "s3",
    ]  # fmt: skip
    assert all(entry["healthy"] for entry in system["servicesHealth"])


def test_an_unhealthy_service_shows_and_stops_what_needs_it(any_sandbox, http):
    any_sandbox.post(f"/systems/{any_sandbox.system}", {"unhealthy": ["ssh"]})
    try:
        (system,) = http.get("/status/systems").json()["systems"]
        assert {entry["serviceType"] for entry in system["servicesHealth"] if not entry["healthy"]} == {"ssh"}
        answer = http.get(f"/status/{any_sandbox.system}/userinfo")
        assert answer.status_code == 503
        words = f"The ssh service for the requested system ({any_sandbox.system}) is unhealthy."
        assert answer.json()["message"] == words
        assert http.get(f"/status/{any_sandbox.system}/nodes").status_code == 200
    finally:
        any_sandbox.post(f"/systems/{any_sandbox.system}", {"unhealthy": []})


def test_nodes(any_sandbox, http):
    (node,) = http.get(f"/status/{any_sandbox.system.upper()}/nodes").json()["nodes"]
    assert set(node) == {
        *("address", "allocCpus", "allocMemory", "cores", "cpuLoad", "cpus", "features", "freeMemory", "hostname"),
        *("idleCpus", "name", "partitions", "sockets", "state", "threads", "weight"),
    }
    assert (node["name"], node["address"], node["cpus"], node["features"]) == ("localhost", "127.0.0.1", 64, "f7t,mc")
    assert set(node["partitions"]) == {"normal", "debug", "xfer", "hidden"}
    assert node["allocCpus"] + node["idleCpus"] == 64


def test_partitions_and_the_hidden_one(any_sandbox, http):
    path = f"/status/{any_sandbox.system}/partitions"
    shown = http.get(path).json()["partitions"]
    assert shown[0] == {"name": "normal", "cpus": 64, "totalNodes": 1, "partition": "UP"}
    assert [entry["name"] for entry in shown] == ["normal", "debug", "xfer"]
    everything = http.get(path, params={"show_hidden": "true"}).json()["partitions"]
    assert [entry["name"] for entry in everything] == ["normal", "debug", "xfer", "hidden"]


def test_reservations_and_userinfo(any_sandbox, http):
    any_sandbox.post("/reservations", {"name": "contract", "duration": 600})
    rows = http.get(f"/status/{any_sandbox.system}/reservations").json()["reservations"]
    (row,) = [row for row in rows if row["name"] == "contract"]
    assert set(row) == {"name", "nodeList", "startTime", "endTime", "features", "state"}
    assert (row["nodeList"], row["state"], row["endTime"] - row["startTime"]) == ("localhost", "active", 600)
    assert http.get(f"/status/{any_sandbox.system}/userinfo").json() == {
        "user": {"id": "2001", "name": "alice"},
        "group": {"id": "100", "name": "users"},
        "groups": [{"id": "100", "name": "users"}],
        "accounts": [
            {"name": "limited", "default": False},
            {"name": "proj1", "default": False},
            {"name": "staff", "default": True},
        ],
    }


@pytest.mark.parametrize("what", ["nodes", "partitions", "reservations", "userinfo"])
def test_unknown_systems_are_404(http, what):
    answer = http.get(f"/status/nosuch/{what}")
    assert answer.status_code == 404
    assert answer.json() == {
        "errorType": "error", "message": "System not found", "data": None, "causedBy": None, "user": "alice",
    }  # fmt: skip
    assert answer.headers["f7t-authusername"] == "alice"


def test_a_login_node_that_cannot_be_reached(any_sandbox, http):
    system = f"/status/{any_sandbox.system}"
    try:
        any_sandbox.post(f"/systems/{any_sandbox.system}", {"ssh": "refused"})
        answer = http.get(f"{system}/nodes")
        assert (answer.status_code, answer.json()["message"]) == (500, "[Errno 111] Connection refused")
        answer = http.get(f"{system}/userinfo")
        assert (answer.status_code, answer.json()["causedBy"]) == (500, ["Error executing Slurm command."])
        any_sandbox.post(f"/systems/{any_sandbox.system}", {"ssh": "denied"})
        body = http.get(f"{system}/nodes").json()
        assert body["message"] == "Unable to establish SSH connection."
        assert body["causedBy"] == ["Unable to establish SSH connection."]
    finally:
        any_sandbox.post(f"/systems/{any_sandbox.system}", {"ssh": "ok"})


def test_liveness_needs_no_token(any_sandbox):
    answer = httpx.get(f"{any_sandbox.url}/status/liveness/")
    assert answer.status_code == 200
    assert list(answer.json()["healthcheckRuns"]) == [any_sandbox.system]
    assert 0 <= answer.json()["lastUpdate"] < 60
    answer = httpx.get(f"{any_sandbox.url}/status/liveness")
    assert answer.status_code == 307
    assert answer.headers["location"].endswith("/status/liveness/")
