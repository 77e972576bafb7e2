"""A server's life through a real hub: login, start, work, stop."""

from __future__ import annotations

from support.jupyterhub_hub import Hub, job_state, live, servers_of
from support.sandbox import SandboxProcess


def test_a_server_from_login_to_stop(hub: Hub, cluster: SandboxProcess) -> None:
    alice = hub.login("alice")
    hub.start_server("alice")
    hub.wait_ready("alice")
    state = hub.state("alice")
    assert state["workdir"] == "/home/alice"
    assert job_state(cluster, state["job_id"]) == "RUNNING"
    assert alice.get("user/alice/lab").status_code == 200
    answer = alice.get("user/alice/api/status")
    assert answer.status_code == 200, answer.text
    assert answer.json()["kernels"] == 0
    hub.stop_server("alice")
    hub.wait_gone("alice")
    assert job_state(cluster, state["job_id"]) == "CANCELLED"
    assert not live(servers_of(cluster))
