"""Many servers of one user on one hub, each in trouble of its own.

Every server is a job of its own, PENDING behind a blocker or RUNNING; a running one that is to be judged by the
scheduler is made deaf (SIGSTOP), so that its own answer does not save it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from hpcbridge_jupyterhub.state import slug
from support.jupyterhub_hub import LIGHT, Hub, blockers, cancel, live, servers_of, wait_for
from support.jupyterhub_proxies import proxy_before
from support.proxy import Proxy
from support.sandbox import SandboxProcess

LAG = 3
"""Seconds by which the hub believes accounting to be late."""
LATE = "late"
"""Servers whose names begin with it have only some seconds to start."""
LATE_SECONDS = 4


@dataclass
class Fleet:
    """Alice's servers.

    Systems: `now` starts at once, `silent` never says where it listens, `gated` submits through `gate`, `uncancellable`
    cancels through `cutter`; `queue()` gives one whose jobs wait.
    """

    hub: Hub
    cluster: SandboxProcess
    issuer: Proxy
    gate: Proxy
    cutter: Proxy
    blockers: list[str]
    client: httpx.Client
    used: int = 0

    def queue(self) -> tuple[str, str]:
        """A system whose jobs wait, and the job that they wait for."""
        self.used += 1
        return f"q{self.used - 1}", self.blockers[self.used - 1]

    def start(self, name: str, system: str) -> None:
        self.hub.start_server("alice", name, system=system)

    def start_in(self, state: str, name: str) -> str:
        """Start a server that stays PENDING, or one that gets RUNNING; returns the job that the former waits for."""
        system, blocker = self.queue() if state == "pending" else ("now", "")
        self.start(name, system)
        return blocker

    def wait_in(self, state: str, name: str) -> str:
        """Wait until it is so; returns its job's id."""
        if state == "running":
            self.hub.wait_ready("alice", name)
        return str(self.hub.wait_state("alice", name, "job_id"))

    def page(self, name: str) -> str:
        """What its user sees of a server that starts or has failed to."""
        answer = self.client.get(f"hub/spawn-pending/alice/{name}")
        assert answer.status_code in (200, 500, 504), answer.text
        return answer.text

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
        """The only job that a server ever had; a listing may leave it out for a moment."""
        wait_for(lambda: self.jobs(name), 30, f"the job of {name}")
        rows = self.jobs(name)
        assert len({row["jobId"] for row in rows}) == 1, rows
        return rows[0]

    def lose(self, *jobs: str) -> None:
        """Neither queue nor accounting know them any more, though they go on."""
        self.cluster.post("/scheduler-faults", {"lost_jobs": jobs})

    def back_to_normal(self) -> None:
        self.cluster.reset()
        self.issuer.rates, self.gate.rates, self.cutter.rates = {}, {}, {}

    def check_nothing_is_left(self) -> None:
        """Every live job is a server's that the hub knows."""

        def strays() -> set[str]:
            known = {
                model["state"]["hpcbridge"]["job_id"]
                for model in self.hub.api("GET", "users/alice")["servers"].values()
                if "hpcbridge" in (model.get("state") or {})
            }
            return set(live(servers_of(self.cluster))) - known

        wait_for(lambda: not strays(), 60, "no job without a server")

    def check_no_secret_is_seen(self) -> None:
        """Not in a command line, a batch script, accounting, a job's output or the hub's log."""
        state = self.hub.api("GET", "users/alice")["auth_state"]
        secrets = {
            state["access_token"],
            state["refresh_token"],
            self.cluster.users["hub"],
            self.cluster.users["alice"],
        }
        commands, others = [], len(secrets)
        for process in psutil.process_iter(["cmdline", "environ"]):
            environment = process.info["environ"] or {}
            if environment.get("JUPYTERHUB_USER") == "alice":
                secrets.add(environment["JUPYTERHUB_API_TOKEN"])
            commands.append("\0".join(process.info["cmdline"] or []))
        assert len(secrets) > others, "no server runs"
        texts = {"ps": "\n".join(commands), "the hub's log": self.hub.log.read_text(errors="replace")}
        with self.cluster.client("alice") as client:
            for row in servers_of(self.cluster):
                answer = client.get(f"/compute/{self.cluster.system}/jobs/{row['jobId']}/metadata")
                texts[f"the script of {row['jobId']}"] = answer.text
                texts[f"accounting of {row['jobId']}"] = repr(row)
        home = self.cluster.host_path("/home/alice/.hpcbridge")
        texts |= {str(path): path.read_text(errors="replace") for path in home.glob("*.log")}
        assert any("script of" in name and "hpcbridge" in text for name, text in texts.items())
        for name, text in texts.items():
            for secret in secrets:
                assert secret not in text, f"a secret is in {name}"
        running = {row["name"] for row in servers_of(self.cluster) if row["status"]["state"] == "RUNNING"}
        private = {path.name.removesuffix(".private") for path in home.glob("*.private")}
        assert not private & running, "an environment file outlived its reading"


@contextlib.contextmanager
def launch(cluster: SandboxProcess, folder: Path, waiting: int) -> Iterator[Fleet]:
    """A hub with alice logged in, and queues for `waiting` servers; what is left of them is cancelled at the end."""
    base = cluster.token_url.removesuffix("/auth/token")
    with (
        proxy_before(base, "/auth/token") as issuer,
        proxy_before(base, "/compute/*/jobs") as gate,
        proxy_before(base, "/compute/*/jobs/*", "DELETE") as cutter,
        blockers(cluster, waiting) as jobs,
    ):
        light = {"command": ["python3", "-c", LIGHT]}
        systems: dict[str, dict[str, Any]] = {"now": light, "silent": {"command": ["sleep", "1000"]}}
        systems["gated"] = {**light, "url": gate.url}
        systems["uncancellable"] = {**light, "url": cutter.url}
        for index, job in enumerate(jobs):
            systems[f"q{index}"] = {**light, "directives": [f"--dependency=afterany:{job}"]}
            systems[f"gated-q{index}"] = {**systems[f"q{index}"], "url": gate.url}
        hub = Hub(
            folder,
            cluster,
            systems=systems,
            traits={
                "FirecRESTSpawner": {"accounting_lag": LAG, "stop_timeout": 5, "submit_grace": 1},
                "Authenticator": {"auth_refresh_age": 0},  # the hub's own refresh is not what is tested here
            },
            environment={"AUTH_TOKEN_URL": f"{issuer.url}/auth/token"},
            extra="c.Spawner.pre_spawn_hook = lambda spawner: setattr(spawner, 'start_timeout', "
            f"{LATE_SECONDS} if spawner.name.startswith({LATE!r}) else 3600)",
        )
        with hub:
            yield Fleet(hub, cluster, issuer, gate, cutter, jobs, hub.login("alice"))
        cluster.reset()
        for row in live(servers_of(cluster)):
            cancel(cluster, row, "alice")
