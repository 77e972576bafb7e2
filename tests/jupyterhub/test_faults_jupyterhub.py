"""The fault matrix: no live server dropped, no job left behind, none doubled, a truthful page.

Every server of the fleet is a job of its own, PENDING behind a blocker or RUNNING; a running one that is to be judged
by the scheduler is made deaf (SIGSTOP), so that its own answer does not save it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import pytest

from hpcbridge_jupyterhub.state import slug
from support.jupyterhub_hub import LIGHT, Hub, blockers, cancel, job_state, live, servers_of, wait_for
from support.jupyterhub_proxies import proxy_before
from support.proxy import Proxy
from support.sandbox import SandboxProcess

OUTAGES = ("refused", "http-503", "http-429", "hang", "issuer-down", "token-expired", "token-rotated")
SECONDS = 5
"""Of each outage: several polls."""


@dataclass
class Fleet:
    """Alice's servers: `pending` and `running` for each outage; `blocker` frees a pending one."""

    hub: Hub
    cluster: SandboxProcess
    issuer: Proxy
    gate: Proxy
    blockers: list[str]
    client: httpx.Client
    used: int = 0

    def queue(self) -> tuple[str, str]:
        """A system whose jobs wait, and the job that they wait for."""
        self.used += 1
        return f"q{self.used - 1}", self.blockers[self.used - 1]

    def start(self, name: str, system: str) -> None:
        self.hub.start_server("alice", name, system=system)

    def pid(self, name: str) -> int:
        """The server's process."""
        for process in psutil.process_iter(["cmdline", "environ"]):
            environment = process.info["environ"] or {}
            # The node's side has the server's command in its own command line.
            if environment.get("JUPYTERHUB_SERVER_NAME") == name and (process.info["cmdline"] or [])[1:] == [
                "-c",
                LIGHT,
            ]:
                return process.pid
        raise AssertionError(f"no process of {name}")

    @contextlib.contextmanager
    def deaf(self, name: str) -> Iterator[None]:
        """The server does not answer, and lives."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):  # ended meanwhile
                os.kill(pid, signal.SIGCONT)

    def answers(self, name: str) -> bool:
        """Whether the user reaches the server through the hub's proxy."""
        answer = self.client.get(f"user/alice/{name}/api", follow_redirects=False)
        return answer.status_code == 200 and "x-jupyterhub-version" in answer.headers

    def jobs(self, name: str) -> list[dict[str, Any]]:
        """Every job that a server ever had."""
        return [row for row in servers_of(self.cluster) if row["name"].startswith(f"{slug(name)}.")]

    def all_cancelled(self, name: str) -> bool:
        """Whether its jobs, of which there must be some, have been cancelled; a listing may leave them out."""
        rows = self.jobs(name)
        return bool(rows) and all(row["status"]["state"].startswith("CANCELLED") for row in rows)

    def one_job(self, name: str) -> dict[str, Any]:
        """The only job that a server ever had."""
        rows = self.jobs(name)
        assert len(rows) == 1, rows
        return rows[0]


@pytest.fixture(scope="module")
def fleet(cluster: SandboxProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    count = 16
    base = cluster.token_url.removesuffix("/auth/token")
    with (
        proxy_before(base, "/auth/token") as issuer,
        proxy_before(base, "/compute/*/jobs") as gate,
        blockers(cluster, count) as jobs,
    ):
        light = {"command": ["python3", "-c", LIGHT]}
        systems: dict[str, dict[str, Any]] = {"now": light, "silent": {"command": ["sleep", "1000"]}}
        systems["gated"] = {**light, "url": gate.url}
        for index, job in enumerate(jobs):
            systems[f"q{index}"] = {**light, "directives": [f"--dependency=afterany:{job}"]}
            systems[f"gated-q{index}"] = {**systems[f"q{index}"], "url": gate.url}
        hub = Hub(
            tmp_path_factory.mktemp("faults"),
            cluster,
            systems=systems,
            traits={"FirecRESTSpawner": {"accounting_lag": 3, "stop_timeout": 5, "submit_grace": 1}},
            environment={"AUTH_TOKEN_URL": f"{issuer.url}/auth/token"},
            extra="c.Spawner.pre_spawn_hook = lambda spawner: setattr("
            "spawner, 'start_timeout', 4 if spawner.name.startswith('late') else 3600)",
        )
        with hub:
            fleet = Fleet(hub, cluster, issuer, gate, jobs, hub.login("alice"))
            yield fleet
        cluster.reset()
        for row in live(servers_of(cluster)):
            cancel(cluster, row, "alice")


@pytest.fixture(autouse=True)
def back_to_normal(fleet: Fleet) -> Iterator[None]:
    yield
    fleet.cluster.reset()
    fleet.issuer.rates, fleet.gate.rates = {}, {}


@pytest.fixture(scope="module")
def outage_servers(fleet: Fleet) -> dict[str, str]:
    """For each outage a server that waits and one that runs; the job that holds the former back."""
    held = {}
    for kind in OUTAGES:
        system, blocker = fleet.queue()
        held[kind] = blocker
        fleet.start(f"{kind}-pending", system)
        fleet.start(f"{kind}-running", "now")
    for kind in OUTAGES:
        fleet.hub.wait_ready("alice", f"{kind}-running")
        fleet.hub.wait_state("alice", f"{kind}-pending", "job_id")
    return held


def begin(fleet: Fleet, kind: str) -> None:
    cluster = fleet.cluster
    if kind in ("refused", "http-503", "hang"):
        cluster.post("/outage", {"kind": kind.removeprefix("http-"), "seconds": SECONDS})
    elif kind == "http-429":
        cluster.post("/faults", [{"kind": "status", "status": 429, "headers": {"Retry-After": "1"}}])
    elif kind == "issuer-down":
        fleet.issuer.rates = {"undelivered": 1.0}
        cluster.post("/expire-tokens")
    else:
        cluster.post("/expire-tokens")


@pytest.mark.parametrize("kind", OUTAGES)
def test_outage(fleet: Fleet, outage_servers: dict[str, str], kind: str) -> None:
    hub, pending, running = fleet.hub, f"{kind}-pending", f"{kind}-running"
    before = {name: hub.state("alice", name)["job_id"] for name in (pending, running)}
    rotated = hub.api("GET", "users/alice")["auth_state"]["refresh_token"]
    with fleet.deaf(running):
        begin(fleet, kind)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            time.sleep(0.5)
            shown = hub.server("alice", pending)
            assert shown is not None
            assert shown["pending"] == "spawn"
            shown = hub.server("alice", running)
            assert shown is not None
            assert shown["ready"]
        fleet.cluster.delete("/faults")
        fleet.issuer.rates = {}
    wait_for(lambda: fleet.answers(running), 20, "the running server to answer again")
    for name in (f"{other}-running" for other in OUTAGES):
        assert hub.server("alice", name), f"{name} was dropped"
    cancel(fleet.cluster, outage_servers[kind])
    hub.wait_ready("alice", pending)
    assert fleet.answers(pending)
    assert {name: hub.state("alice", name)["job_id"] for name in (pending, running)} == before
    assert fleet.one_job(pending)["jobId"] == before[pending]
    if kind == "token-rotated":
        after = hub.api("GET", "users/alice")["auth_state"]["refresh_token"]
        assert after != rotated


def test_the_form_in_an_outage(fleet: Fleet) -> None:
    """It is shown, says so, and a server can be asked for; bob has not been here, so nothing of his is remembered."""
    fleet.cluster.post("/outage", {"kind": "hang", "seconds": 120})
    page = fleet.hub.login("bob").get("hub/spawn")
    assert page.status_code == 200
    assert "does not answer now" in page.text
    assert 'name="now:time"' in page.text


@pytest.mark.parametrize("state", ["pending", "running"])
def test_answer_of_the_submit_lost(fleet: Fleet, state: str) -> None:
    system, blocker = fleet.queue() if state == "pending" else ("now", None)
    fleet.cluster.post("/faults", [{"method": "POST", "path": "/compute/*/jobs", "kind": "drop_after", "count": 1}])
    name = f"lost-{state}"
    fleet.start(name, system)
    fleet.hub.wait_state("alice", name, "job_id")
    if blocker:
        cancel(fleet.cluster, blocker)
    fleet.hub.wait_ready("alice", name)
    assert fleet.one_job(name)["jobId"] == fleet.hub.state("alice", name)["job_id"]


@pytest.mark.parametrize("state", ["pending", "running"])
def test_cancelled_outside(fleet: Fleet, state: str) -> None:
    name = f"outside-{state}"
    fleet.start(name, fleet.queue()[0] if state == "pending" else "now")
    job = fleet.hub.wait_state("alice", name, "job_id")
    if state == "running":
        fleet.hub.wait_ready("alice", name)
    cancel(fleet.cluster, job, "alice")
    fleet.hub.wait_gone("alice", name)
    if state == "pending":
        page = fleet.client.get(f"hub/spawn-pending/alice/{name}")
        assert "CANCELLED" in page.text
        assert job in page.text


def test_vanished_while_it_runs_is_kept(fleet: Fleet) -> None:
    """Accounting has lost it, the server answers: it lives."""
    fleet.start("kept", "now")
    fleet.hub.wait_ready("alice", "kept")
    job = fleet.hub.state("alice", "kept")["job_id"]
    vanish(fleet, job)
    time.sleep(8)
    assert fleet.answers("kept")
    assert fleet.hub.server("alice", "kept")


def test_vanished_with_its_server_is_gone_after_confirmation(fleet: Fleet) -> None:
    fleet.start("vanished-running", "now")
    fleet.hub.wait_ready("alice", "vanished-running")
    job = fleet.hub.state("alice", "vanished-running")["job_id"]
    vanish(fleet, job)
    with fleet.deaf("vanished-running"):
        fleet.hub.wait_gone("alice", "vanished-running", 90)
    fleet.cluster.reset()
    wait_for(lambda: job_state(fleet.cluster, job) == "CANCELLED", 60, "the job to be ended all the same")


def test_vanished_while_it_waits(fleet: Fleet) -> None:
    fleet.start("vanished-pending", fleet.queue()[0])
    job = fleet.hub.wait_state("alice", "vanished-pending", "job_id")
    vanish(fleet, job)
    cancel(fleet.cluster, job, "alice")
    fleet.hub.wait_gone("alice", "vanished-pending", 240)
    page = fleet.client.get("hub/spawn-pending/alice/vanished-pending")
    assert "Neither the queue nor accounting knows the job" in page.text


def vanish(fleet: Fleet, job: str) -> None:
    fleet.cluster.post("/scheduler-faults", {"missing_fraction": 1})
    rule = {"method": "GET", "path": f"/compute/*/jobs/{job}", "kind": "status", "status": 404}
    fleet.cluster.post("/faults", [{**rule, "message": "Job not found."}])


@pytest.mark.parametrize("state", ["pending", "running"])
def test_start_time_out_cancels_the_job(fleet: Fleet, state: str) -> None:
    name = f"late-{state}"
    fleet.start(name, fleet.queue()[0] if state == "pending" else "silent")
    job = fleet.hub.wait_state("alice", name, "job_id")
    fleet.hub.wait_gone("alice", name)
    wait_for(lambda: job_state(fleet.cluster, job) == "CANCELLED", 30, "the job to be cancelled")


@pytest.mark.parametrize("state", ["pending", "running"])
@pytest.mark.parametrize("fate", ["hold", "late"])
def test_delete_during_the_submit_leaves_no_job(fleet: Fleet, state: str, fate: str) -> None:
    """The answer does not come; or the connection breaks and the job is made some seconds later."""
    name = f"delete-{state}-{fate}"
    fleet.gate.rates, fleet.gate.late_by = {fate: 1.0}, 4.0
    before = fleet.gate.fates[fate]
    fleet.start(name, f"gated-{fleet.queue()[0]}" if state == "pending" else "gated")
    wait_for(lambda: fleet.gate.fates[fate] > before, 30, "the submit to be under way")
    fleet.hub.stop_server("alice", name)
    fleet.hub.wait_gone("alice", name)
    wait_for(lambda: fleet.jobs(name), 30, "the job that nobody wants any more")
    wait_for(lambda: fleet.all_cancelled(name), 60, "the job to be cancelled")


@pytest.mark.parametrize("state", ["pending", "running"])
def test_hub_killed(fleet: Fleet, state: str) -> None:
    name, (system, blocker) = f"killed-{state}", fleet.queue() if state == "pending" else ("now", "")
    fleet.start(name, system)
    job = fleet.hub.wait_state("alice", name, "job_id")
    if state == "running":
        fleet.hub.wait_ready("alice", name)
    others = {f"{kind}-running" for kind in OUTAGES if fleet.hub.server("alice", f"{kind}-running")}
    fleet.hub.restart()
    if state == "pending":
        assert fleet.hub.server("alice", name)
        cancel(fleet.cluster, blocker)
    fleet.hub.wait_ready("alice", name)
    assert fleet.hub.state("alice", name)["job_id"] == job
    wait_for(lambda: fleet.answers(name), 30, "the adopted server to answer through the proxy")
    assert fleet.one_job(name)["jobId"] == job
    for other in others:
        fleet.hub.wait_ready("alice", other)


def test_hub_killed_in_the_submit(fleet: Fleet) -> None:
    """The answer to the POST never comes; the next process finds the job by its name."""
    fleet.gate.rates, before = {"hold": 1.0}, fleet.gate.delivered
    fleet.start("killed-submit", "gated")
    wait_for(lambda: fleet.gate.delivered > before, 30, "the submit to be under way")
    fleet.hub.kill()
    fleet.gate.rates = {}
    fleet.hub.start()
    fleet.hub.wait_ready("alice", "killed-submit", 120)
    wait_for(lambda: fleet.answers("killed-submit"), 30)
    fleet.one_job("killed-submit")


def test_hub_killed_before_the_submit(fleet: Fleet) -> None:
    """The intention is known, and nothing was sent: after a restart the hub has no such server, nor is there a job."""
    fleet.gate.rates, before = {"undelivered": 1.0}, fleet.gate.fates["undelivered"]
    fleet.start("killed-before", "gated")
    wait_for(lambda: fleet.gate.fates["undelivered"] > before, 30, "the submit to be tried")
    fleet.hub.kill()
    fleet.gate.rates = {}
    fleet.hub.start()
    fleet.hub.wait_gone("alice", "killed-before", 120)
    assert not fleet.jobs("killed-before")


def test_stopped_in_an_outage_is_ended_after_it(fleet: Fleet) -> None:
    fleet.start("orphan", "now")
    fleet.hub.wait_ready("alice", "orphan")
    job = fleet.hub.state("alice", "orphan")["job_id"]
    fleet.cluster.post("/outage", {"kind": "refused", "seconds": 12})
    fleet.hub.stop_server("alice", "orphan")
    fleet.hub.wait_gone("alice", "orphan")
    assert "hpcbridge_orphans 1.0" in fleet.hub.metrics()
    fleet.hub.restart()
    wait_for(lambda: job_state(fleet.cluster, job) == "CANCELLED", 90, "the orphan to be ended")


def test_no_job_is_left_behind(fleet: Fleet) -> None:
    """At the end of all the trouble: every live job is a server's that the hub knows."""
    known = {
        model["state"]["hpcbridge"]["job_id"]
        for model in fleet.hub.api("GET", "users/alice")["servers"].values()
        if "hpcbridge" in (model.get("state") or {})
    }
    wait_for(lambda: set(live(servers_of(fleet.cluster))) <= known, 60, "no job without a server")


def test_no_token_is_seen(fleet: Fleet) -> None:
    """Not in a command line, a batch script, a job's output or the hub's log."""
    state = fleet.hub.api("GET", "users/alice")["auth_state"]
    secrets = {state["access_token"], state["refresh_token"], fleet.cluster.users["hub"], fleet.cluster.users["alice"]}
    commands = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        environment = process.info["environ"] or {}
        if environment.get("JUPYTERHUB_USER") == "alice":
            secrets.add(environment["JUPYTERHUB_API_TOKEN"])
        commands.append("\0".join(process.info["cmdline"] or []))
    assert len(secrets) > 6
    texts = {"ps": "\n".join(commands), "the hub's log": fleet.hub.log.read_text(errors="replace")}
    with fleet.cluster.client("alice") as client:
        for row in servers_of(fleet.cluster):
            answer = client.get(f"/compute/{fleet.cluster.system}/jobs/{row['jobId']}/metadata")
            texts[f"the script of {row['jobId']}"] = answer.text
            texts[f"accounting of {row['jobId']}"] = repr(row)
    home = fleet.cluster.host_path("/home/alice/.hpcbridge")
    texts |= {str(path): path.read_text(errors="replace") for path in home.glob("*.log")}
    assert any("script of" in name and "hpcbridge" in text for name, text in texts.items())
    for name, text in texts.items():
        for secret in secrets:
            assert secret not in text, f"a secret is in {name}"
    running = {row["name"] for row in servers_of(fleet.cluster) if row["status"]["state"] == "RUNNING"}
    private = {path.name.removesuffix(".private") for path in home.glob("*.private")}
    assert not private & running, "an environment file outlived its reading"
