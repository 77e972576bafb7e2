"""A real JupyterHub before a sandbox: configurable-http-proxy and the hub as processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx

from support.programs import give_up
from support.sandbox import SandboxProcess

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/jupyterhub/jupyterhub_config.py"
PROXY = ROOT / ".env/proxy/node_modules/.bin/configurable-http-proxy"
CLUSTER = ROOT / ".env/cluster"
EXPOSE = ("--expose", f"{CLUSTER}:/opt/software:ro")
T = TypeVar("T")
HUB_USER = "hub"
"""The sandbox's user who is the hub as an OAuth client, and the service that watches."""

LIGHT = """
import http.server, os, urllib.parse
class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("X-JupyterHub-Version", "6.1.1")
        self.end_headers()
        self.wfile.write(self.path.encode())
    def log_message(self, *_):
        pass
url = urllib.parse.urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"])
http.server.ThreadingHTTPServer((url.hostname, url.port), Server).serve_forever()
"""
"""In place of jupyterhub-singleuser where a test needs many servers and no notebook: it starts in a moment."""

_TEST_CONFIG = """
import json, os
exec(compile(open({example!r}).read(), {example!r}, "exec"))
given = json.loads(open({settings!r}).read())
for name, values in given["traits"].items():
    for trait, value in values.items():
        setattr(c[name], trait, value)
if given["systems"]:
    base = c.FirecRESTSpawner.systems["cluster"]
    c.FirecRESTSpawner.systems = {{key: {{**base, **own}} for key, own in given["systems"].items()}}
    for own in c.FirecRESTSpawner.systems.values():
        if own.get("service") is None:
            own.pop("service", None)
c.JupyterHub.services = [{{"name": "tests", "api_token": {token!r}}}]
c.JupyterHub.load_roles = [{{"name": "tests", "services": ["tests"], "scopes": [
    "admin:users", "admin:servers", "admin:auth_state", "list:users", "read:metrics", "tokens"]}}]
"""


def needs_programs() -> None:
    """Skip, by name, without the cluster's software or the proxy; fail in CI."""
    if not (CLUSTER / ".ready").exists():
        give_up("the cluster's software is missing: make env-cluster")
    if not PROXY.exists():
        give_up("configurable-http-proxy is missing: make env-proxy")


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(look: Callable[[], T], seconds: float = 60, what: str = "") -> T:
    """The first truthy result. Fails after `seconds`, saying what was waited for."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or look}")
        time.sleep(0.25)
    return found


class Hub:
    """A hub with its proxy; both end with the context. `url` ends with a slash."""

    def __init__(
        self,
        folder: Path,
        sandbox: SandboxProcess,
        *,
        systems: dict[str, dict[str, Any]] | None = None,
        traits: dict[str, dict[str, Any]] | None = None,
        firecrest: str | None = None,
        environment: dict[str, str] | None = None,
        extra: str = "",
        python: str = sys.executable,
    ) -> None:
        """`systems` are laid over the example's one; `firecrest` goes through a proxy instead of straight there."""
        self.folder, self.sandbox, self._python = folder, sandbox, python
        self.token = secrets.token_hex(16)
        self.port, self._hub_port, self._api_port = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.log = folder / "hub.log"
        auth = sandbox.token_url.removesuffix("/token")
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("FIRECREST", "AUTH_TOKEN"))},
            "FIRECREST_URL": firecrest or sandbox.url,
            "AUTH_TOKEN_URL": sandbox.token_url,
            "FIRECREST_SYSTEM": sandbox.system,
            "OIDC_CLIENT_ID": HUB_USER,
            "OIDC_CLIENT_SECRET": sandbox.users[HUB_USER],
            "OIDC_AUTHORIZE_URL": f"{auth}/authorize",
            "OIDC_USERINFO_URL": f"{auth}/userinfo",
            "HUB_PUBLIC_URL": self.url,
            "HUB_API_URL": f"http://127.0.0.1:{self._hub_port}",
            "PROXY_API_URL": f"http://127.0.0.1:{self._api_port}",
            "JUPYTERHUB_CRYPT_KEY": secrets.token_hex(32),
            "CONFIGPROXY_AUTH_TOKEN": secrets.token_hex(32),
            "HPCBRIDGE_STATE_DIR": str(folder / "state"),
            **(environment or {}),
        }
        settings = folder / "settings.json"
        quick = {
            "JupyterHub": {"init_spawners_timeout": 1, "tornado_settings": {"slow_spawn_timeout": 0.1}},
            "Spawner": {"poll_interval": 1, "http_timeout": 30},
        }
        merged = {name: {**quick.get(name, {}), **(traits or {}).get(name, {})} for name in {*quick, *(traits or {})}}
        settings.write_text(json.dumps({"systems": systems, "traits": merged}))
        config = _TEST_CONFIG.format(example=str(EXAMPLE), settings=str(settings), token=self.token)
        self.config = folder / "jupyterhub_config.py"
        self.config.write_text(f"{config}\n{extra}\n")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._http = httpx.Client(base_url=self.url, headers={"Authorization": f"token {self.token}"}, timeout=60)

    def __enter__(self) -> Hub:
        needs_programs()
        proxy = [str(PROXY), "--ip", "127.0.0.1", "--port", str(self.port), "--api-ip", "127.0.0.1"]
        proxy += ["--api-port", str(self._api_port), "--error-target", f"http://127.0.0.1:{self._hub_port}/hub/error"]
        try:
            self._run("proxy", proxy)
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()
        for process in reversed(list(self._processes.values())):
            process.terminate()
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            if process.poll() is None:
                process.kill()
                process.wait()

    def _run(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, cwd=self.folder, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def start(self) -> None:
        """Start the hub and wait until it answers."""
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._run("hub", [self._python, "-m", "jupyterhub", "-f", str(self.config)])
        wait_for(self._is_up, 240, "the hub to answer\n" + self.tail())

    def _is_up(self) -> bool:
        if self._processes["hub"].poll() is not None:
            raise AssertionError(f"the hub has ended:\n{self.tail()}")
        with contextlib.suppress(httpx.HTTPError):
            return self._http.get("hub/api/", headers={"Authorization": ""}).status_code == 200
        return False

    @property
    def pid(self) -> int:
        """Of the hub's process."""
        return self._processes["hub"].pid

    def kill(self) -> None:
        """SIGKILL to the hub alone: proxy and servers live on."""
        self._processes["hub"].send_signal(signal.SIGKILL)
        self._processes["hub"].wait()

    def restart(self) -> None:
        """As after a crash."""
        self.kill()
        self.start()

    def tail(self, size: int = 6000) -> str:
        """The end of the hub's log."""
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""

    def said(self, text: str) -> int:
        """How often the hub has said so since it was last started."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().count(text.encode())

    def doctor(self) -> str:
        """What `hpcbridge jupyterhub doctor` says of the hub's configuration."""
        command = [self._python, "-m", "hpcbridge", "jupyterhub", "doctor", "--config", str(self.config)]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    # -- the API, as an administrator --------------------------------------------------------------------------------

    def api(self, method: str, path: str, *, ok: tuple[int, ...] = (200, 201, 202, 204), **options: Any) -> Any:
        """The JSON answer of the hub's API."""
        answer = self._http.request(method, f"hub/api/{path}", **options)
        assert answer.status_code in ok, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.headers.get("content-type", "").startswith("application/json") else answer.text

    def server(self, user: str, name: str = "") -> dict[str, Any] | None:
        """The hub's model of one server, None when it has none."""
        found = self.api("GET", f"users/{user}?include_stopped_servers=1").get("servers", {}).get(name)
        return found if found and not found.get("stopped") else None

    def wait_ready(self, user: str, name: str = "", seconds: float = 90) -> dict[str, Any]:
        """Wait until the hub calls the server ready."""

        def ready() -> dict[str, Any] | None:
            found = self.server(user, name)
            return found if found is not None and found["ready"] else None

        return wait_for(ready, seconds, f"the server {user}/{name} to be ready")

    def wait_gone(self, user: str, name: str = "", seconds: float = 60) -> None:
        """Wait until the hub has no such server."""
        wait_for(lambda: self.server(user, name) is None, seconds, f"the server {user}/{name} to be gone")

    def start_server(self, user: str, name: str = "", **user_options: Any) -> None:
        """Ask for a server; it is pending or ready afterwards."""
        path = f"users/{user}/servers/{name}" if name else f"users/{user}/server"
        self.api("POST", path, json=user_options)

    def stop_server(self, user: str, name: str = "") -> None:
        """Ask for its end."""
        path = f"users/{user}/servers/{name}" if name else f"users/{user}/server"
        self.api("DELETE", path)

    def state(self, user: str, name: str = "") -> dict[str, Any]:
        """What the spawner remembers of the server."""
        found = self.server(user, name) or {}
        return ((found.get("state") or {}).get("hpcbridge")) or {}

    def wait_state(self, user: str, name: str, field: str, seconds: float = 60) -> Any:
        """Wait until the spawner remembers `field`."""
        return wait_for(lambda: self.state(user, name).get(field), seconds, f"{field} of {user}/{name}")

    def metrics(self) -> str:
        """Prometheus' text."""
        return self._http.get("hub/metrics").text

    # -- as a person -------------------------------------------------------------------------------------------------

    def login(self, user: str) -> httpx.Client:
        """Log in at the issuer as a browser would; the client holds the hub's cookies."""
        client = httpx.Client(base_url=self.url, follow_redirects=True, timeout=60)
        page = client.get("hub/oauth_login")
        assert page.status_code == 200, page.text
        fields = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page.text))
        fields = {name: value.replace("&amp;", "&") for name, value in fields.items()}
        form = {**fields, "username": user, "password": self.sandbox.users[user], "decision": "allow"}
        answer = client.post(str(page.url).partition("?")[0], data=form)
        assert answer.status_code == 200, answer.text
        assert "jupyterhub-session-id" in client.cookies
        return client


@contextlib.contextmanager
def blockers(sandbox: SandboxProcess, count: int) -> Iterator[list[str]]:
    """Jobs that run until they are cancelled: others may be made to wait for one of them."""
    jobs = sandbox.post("/jobs", {"user": HUB_USER, "count": count, "duration": 100_000, "name": "blocker-{i}"})
    yield jobs["job_ids"]


def job_state(sandbox: SandboxProcess, job_id: str, user: str = HUB_USER) -> str:
    """The state that the scheduler gives, "" while it knows none."""
    with sandbox.client(user) as client:
        answer = client.get(f"/compute/{sandbox.system}/jobs/{job_id}")
    state = str(answer.json()["jobs"][0]["status"]["state"]) if answer.status_code == 200 else ""
    return state.partition(" ")[0]


def cancel(sandbox: SandboxProcess, job_id: str, user: str = HUB_USER) -> None:
    """scancel."""
    with sandbox.client(user) as client:
        assert client.delete(f"/compute/{sandbox.system}/jobs/{job_id}").status_code == 204


def servers_of(sandbox: SandboxProcess, user: str = HUB_USER) -> list[dict[str, Any]]:
    """Every job that is a server's, of all users, as the listing has it."""
    with sandbox.client(user) as client:
        rows = client.get(f"/compute/{sandbox.system}/jobs", params={"allusers": "true"}).json()["jobs"] or []
    return [row for row in rows if row["name"].startswith("jupyter")]


def live(rows: list[dict[str, Any]]) -> list[str]:
    """Ids of those that have not ended."""
    return [row["jobId"] for row in rows if row["status"]["state"] in ("PENDING", "RUNNING", "COMPLETING")]


__all__ = ["EXPOSE", "Hub", "blockers", "cancel", "job_state", "live", "servers_of", "wait_for"]
