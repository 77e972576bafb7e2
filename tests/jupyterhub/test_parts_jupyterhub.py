"""The parts by themselves: options, addresses, the form, the node's side, tokens, the doctor."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from bs4 import BeautifulSoup

from hpcbridge.errors import ConfigurationError, LoginRequired
from hpcbridge_jupyterhub import form, options, singleuser
from hpcbridge_jupyterhub.clusters import minutes_of, parse_clusters
from hpcbridge_jupyterhub.options import Offer, OptionsError
from hpcbridge_jupyterhub.script import batch_script, spec_of
from hpcbridge_jupyterhub.state import ServerState, slug
from hpcbridge_jupyterhub.tokens import AuthStateCredential
from support.jupyterhub_hub import EXAMPLE, LIGHT, wait_for
from support.sandbox import SandboxProcess

CLUSTERS = parse_clusters(
    {
        "daint": {"url": "https://f.example/v2", "max_time": "08:00:00", "partitions": ["debug"], "max_cpus": 8},
        "eiger": {
            "url": "https://f.example/v2",
            "title": "Eiger",
            "max_gpus": 4,
            "allowed_hosts": ["nid*", "10.0.0.0/8"],
        },
    }
)

# What users may ask for


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"system": "dom"}, "system: 'dom' is not one of daint, eiger"),
        ({"system": "daint", "partition": "normal"}, "partition: 'normal' is not there on daint (debug)"),
        ({"system": "daint", "partition": "debug; rm -rf"}, "partition"),
        ({"system": "daint", "account": "a\n#SBATCH --uid=0"}, "account"),
        ({"system": "daint", "time": "09:00:00"}, "time: at most 480 minutes on daint"),
        ({"system": "daint", "time": "soon"}, "time: must be minutes"),
        ({"system": "daint", "cpus": 9}, "cpus: at most 8 on daint"),
        ({"system": "daint", "gpus": 1}, "gpus: cannot be chosen on daint"),
        ({"system": "daint", "cpus": -1}, "cpus"),
        ({"system": "daint", "command": ["id"]}, "command"),
    ],
)
def test_options_out_of_bounds_are_refused_by_name(given: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionsError) as refusal:
        options.check(given, CLUSTERS)
    assert says in str(refusal.value)


def test_no_options_are_the_first_systems_default() -> None:
    assert options.check({}, CLUSTERS) == options.ServerOptions(system="daint")


def test_a_form_sends_the_chosen_systems_fields() -> None:
    data = {
        "system": ["eiger"],
        "daint:time": ["10"],
        "eiger:time": ["1:00:00"],
        "eiger:gpus": ["2"],
        "eiger:account": [""],
    }
    assert options.from_form(data, CLUSTERS) == {"system": "eiger", "time": 60, "gpus": 2}


def test_what_the_system_says_counts() -> None:
    wanted = options.check({"system": "eiger", "reservation": "course"}, CLUSTERS)
    options.check_offer(wanted, CLUSTERS["eiger"], Offer())
    with pytest.raises(OptionsError, match="reservation: 'course' is not there on Eiger"):
        options.check_offer(wanted, CLUSTERS["eiger"], Offer(reservations=[]))


@pytest.mark.parametrize(
    ("text", "minutes"), [(90, 90), ("90", 90), ("01:30:00", 90), ("1-00:00:00", 1440), ("2:30", 3)]
)
def test_time_limits(text: Any, minutes: int) -> None:
    assert minutes_of(text) == minutes


@pytest.mark.parametrize(
    ("system", "host", "port", "allowed"),
    [
        ("daint", "nid1", 8888, True),
        ("daint", "nid1", 80, False),
        ("daint", "nid1/../x", 8888, False),
        ("daint", "http://evil", 8888, False),
        ("daint", None, 8888, False),
        ("daint", "nid1", "8888", False),
        ("eiger", "nid0001", 8888, True),
        ("eiger", "10.1.2.3", 8888, True),
        ("eiger", "169.254.169.254", 8888, False),
        ("eiger", "metadata.internal", 8888, False),
    ],
)
def test_a_server_cannot_send_the_proxy_anywhere(system: str, host: Any, port: Any, allowed: bool) -> None:
    with contextlib.nullcontext() if allowed else pytest.raises(ConfigurationError, match="not allowed here"):
        assert CLUSTERS[system].check_host(host, port) == (host, port)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"colour": "red"}, "colour"),
        ({"max_time": "long"}, "max_time"),
        ({"ports": "1-2"}, "ports"),
        ({"service": {}}, "client_id"),
    ],
)
def test_a_wrong_setting_is_named(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        parse_clusters({"daint": fields})
    assert "systems['daint']" in str(refusal.value)
    assert says in str(refusal.value)


# The form


async def test_every_field_has_a_label_and_a_description() -> None:
    class Room:
        clusters = CLUSTERS

        async def offer(self, key: str, user: Any) -> Offer:
            return Offer(partitions=["debug", "<script>"], stale=key == "eiger")

    last = {"system": "eiger", "time": 30}
    page = BeautifulSoup(await form.render(Room(), None, last), "html5lib")  # type: ignore[arg-type]
    fields = page.select("input:not([type=hidden]), select")
    assert len(fields) > 6
    for field in fields:
        assert page.select_one(f"label[for='{field['id']}']"), field
        if field["id"] != "hpcbridge-system":
            assert page.select_one(f"#{field['aria-describedby']}"), field
    assert page.select_one("option[value=eiger]").has_attr("selected")
    assert page.select_one("#hpcbridge-eiger-time")["value"] == "30"
    assert "does not answer now" in page.select_one("[data-hpcbridge-system=eiger] [role=status]").text
    assert page.select_one("[data-hpcbridge-system=daint] [role=status]") is None
    assert [option["value"] for option in page.select("#hpcbridge-eiger-partition option")] == ["", "debug", "<script>"]
    assert page.select_one("#hpcbridge-daint-gpus") is None


# The job


def test_secrets_are_in_the_environment_file_only() -> None:
    state = ServerState.begin("daint", "my server").with_(workdir="/home/alice")
    wanted = options.check({"system": "daint", "cpus": 4, "partition": "debug"}, CLUSTERS)
    spec = spec_of(
        CLUSTERS["daint"], wanted, state, ["jupyterhub-singleuser"], {"JUPYTERHUB_API_TOKEN": "s3cret-token"}
    )
    assert "s3cret-token" not in f"{spec.script}{spec!r}{spec.directives}"
    assert spec.directives == ("--cpus-per-task=4", "--no-requeue", "--open-mode=truncate")
    assert state.rendezvous == f"/home/alice/.hpcbridge/{slug('my server')}.json"


def test_yesterdays_state_loads_and_tomorrows_too() -> None:
    state = ServerState.begin("daint", "").with_(job_id="17", host="nid1", port=8888)
    data = json.loads(json.dumps(state.to_json()))
    assert data["format"] == 1
    assert ServerState.from_json(data) == state
    del data["format"]
    assert ServerState.from_json({**data, "colour": "red"}) == state
    assert ServerState.from_json(None) is None
    assert ServerState.from_json({"job_id": "1"}) is None


# The node's side: the system's Python without any package


@contextlib.contextmanager
def on_a_node(folder: Path, command: list[str], **settings: str) -> Any:
    """The batch script, as the job runs it."""
    environment = {
        "PATH": os.environ["PATH"],
        "JUPYTERHUB_SERVICE_URL": "http://:0/user/alice/",
        "JUPYTERHUB_API_URL": "http://127.0.0.1:8081/hub/api",
        "HPCBRIDGE_RENDEZVOUS": str(folder / "there.json"),
        "HPCBRIDGE_KEY": "k1",
        **settings,
    }
    script = batch_script(parse_clusters({"here": {"python": "/usr/bin/python3"}})["here"], command)
    process = subprocess.Popen(
        ["bash", "-c", script], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def rendezvous(folder: Path) -> Any:
    path = folder / "there.json"
    wait_for(path.exists, 30, "the rendezvous file")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return json.loads(path.read_text())


def test_the_node_says_where_the_server_listens(tmp_path: Path) -> None:
    with on_a_node(tmp_path, [sys.executable, "-c", LIGHT]) as job:
        word = rendezvous(tmp_path)
        assert (word["key"], word["host"]) == ("k1", "127.0.0.1")
        assert httpx.get(f"http://127.0.0.1:{word['port']}/user/alice/").text == "/user/alice/"
        os.killpg(job.pid, signal.SIGTERM)
        job.wait(30)
        assert not (tmp_path / "there.json").exists()


def test_the_servers_exit_code_is_the_jobs(tmp_path: Path) -> None:
    with on_a_node(tmp_path, ["sh", "-c", "echo no module >&2; exit 3"]) as job:
        assert job.wait(30) == 3
        assert "no module" in job.stderr.read()
    assert not (tmp_path / "there.json").exists()


def test_the_servers_environment_holds_nothing_of_ours(tmp_path: Path) -> None:
    with on_a_node(tmp_path, ["sh", "-c", "! env | grep HPCBRIDGE"], HPCBRIDGE_SSL_KEY="x") as job:
        assert job.wait(30) == 0


def test_a_taken_port_is_not_said_to_be_ours(tmp_path: Path) -> None:
    """In a range of two, one is in use: the other is taken."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with on_a_node(tmp_path, [sys.executable, "-c", LIGHT], HPCBRIDGE_PORTS=f"{taken}-{taken + 9}"):
            assert taken < rendezvous(tmp_path)["port"] <= taken + 9


def test_certificates_are_files_of_the_user_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KEYFILE", "CERTFILE", "CLIENT_CA"):
        monkeypatch.setenv(f"JUPYTERHUB_SSL_{name}", "a path of the hub's")
    directory = singleuser._store_certificates({"SSL_KEY": "key", "SSL_CERT": "cert", "SSL_CA": "ca"})
    assert directory is not None
    key = Path(os.environ["JUPYTERHUB_SSL_KEYFILE"])
    assert key.read_text() == "key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(directory).stat().st_mode) == 0o700


# Tokens


class Person:
    """What the hub's user offers: a name and an auth_state."""

    def __init__(self, name: str, state: dict[str, Any] | None) -> None:
        self.name, self.state, self.saved = name, state, 0

    async def get_auth_state(self) -> dict[str, Any] | None:
        await asyncio.sleep(0)
        return None if self.state is None else dict(self.state)

    async def save_auth_state(self, state: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        self.state, self.saved = dict(state), self.saved + 1


def device_login(sandbox: SandboxProcess, user: str) -> dict[str, Any]:
    """The answer of the token endpoint to a login as the hub's client."""
    auth, client = sandbox.token_url.removesuffix("/token"), {"client_id": user, "client_secret": sandbox.users[user]}
    begun = httpx.post(f"{auth}/device_authorization", data={**client, "scope": "openid offline_access"}).json()
    form_data = {
        "user_code": begun["user_code"],
        "username": user,
        "password": sandbox.users[user],
        "decision": "allow",
    }
    assert httpx.post(f"{auth}/device", data=form_data).status_code == 200
    grant = "urn:ietf:params:oauth:grant-type:device_code"
    answer = httpx.post(sandbox.token_url, data={**client, "grant_type": grant, "device_code": begun["device_code"]})
    return dict(answer.json())


def authenticator_of(sandbox: SandboxProcess, user: str) -> Any:
    from oauthenticator.generic import GenericOAuthenticator

    return GenericOAuthenticator(
        client_id=user,
        client_secret=sandbox.users[user],
        token_url=sandbox.token_url,
        userdata_url=sandbox.token_url.removesuffix("/token") + "/userinfo",
        username_claim="preferred_username",
        enable_auth_state=True,
        allow_all=True,
    )


async def test_hub_and_spawner_renew_one_token_after_the_other(cluster: SandboxProcess) -> None:
    """Used twice, a refresh token ends the login: ten callers of ours and the hub's own refresh at the same moment."""
    answer = device_login(cluster, "bob")
    person = Person("bob", {**answer, "token_response": answer})
    authenticator = authenticator_of(cluster, "bob")
    credential = AuthStateCredential(person, authenticator)
    for _ in range(3):
        before = person.state["refresh_token"] if person.state else None
        cluster.post("/expire-tokens")
        credential.invalidate(str(person.state and person.state["access_token"]))
        callers = [credential.access_token() for _ in range(10)]
        *tokens, model = await asyncio.gather(*callers, authenticator.refresh_user(person))
        assert model
        assert len(set(tokens)) == 1
        assert person.state is not None
        assert person.state["refresh_token"] != before


async def test_without_a_token_the_user_is_told_what_to_do(cluster: SandboxProcess) -> None:
    credential = AuthStateCredential(Person("carol", None), authenticator_of(cluster, "carol"))
    with pytest.raises(LoginRequired, match="Log out of the hub and in again"):
        await credential.access_token()
    assert "carol" in credential.identity
    other = type("Local", (), {})()
    expired = AuthStateCredential(Person("carol", {"access_token": "x", "refresh_token": "y"}), other)
    with pytest.raises(ConfigurationError, match="client_id and token_url"):
        await expired.access_token()


# The doctor


def doctor(cluster: SandboxProcess, config: Path, **changes: str) -> tuple[int, str]:
    auth = cluster.token_url.removesuffix("/token")
    environment = {
        **os.environ,
        "FIRECREST_URL": cluster.url,
        "AUTH_TOKEN_URL": cluster.token_url,
        "FIRECREST_SYSTEM": cluster.system,
        "OIDC_CLIENT_ID": "hub",
        "OIDC_CLIENT_SECRET": cluster.users["hub"],
        "OIDC_AUTHORIZE_URL": f"{auth}/authorize",
        "OIDC_USERINFO_URL": f"{auth}/userinfo",
        "HUB_PUBLIC_URL": "http://127.0.0.1:8000",
        "HUB_API_URL": "http://127.0.0.1:8081",
        "JUPYTERHUB_CRYPT_KEY": "00" * 32,
        **changes,
    }
    command = [sys.executable, "-m", "hpcbridge", "jupyterhub", "doctor", "--config", str(config)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert cluster.users["hub"] not in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr


def test_doctor_says_that_one_listing_watches_everybody(cluster: SandboxProcess) -> None:
    cluster.post("/jobs", {"user": "dave", "count": 1, "duration": 30})
    wait_for(lambda: "one listing watches everybody" in doctor(cluster, EXAMPLE)[1], 30)
    code, text = doctor(cluster, EXAMPLE)
    assert code == 0, text
    assert "the users' own tokens are kept" in text


def test_doctor_says_what_is_wrong(cluster: SandboxProcess, tmp_path: Path) -> None:
    code, text = doctor(cluster, EXAMPLE, JUPYTERHUB_CRYPT_KEY="", OIDC_CLIENT_SECRET="wrong-secret")
    assert code == 1
    assert "JUPYTERHUB_CRYPT_KEY is not set" in text
    assert "FAIL cluster" in text
    (tmp_path / "empty.py").write_text("c.JupyterHub.spawner_class = 'simple'\n")
    code, text = doctor(cluster, tmp_path / "empty.py")
    assert code == 1
    assert 'not "firecrest"' in text
    assert "one listing per user who waits" in text
    assert doctor(cluster, tmp_path / "none.py")[0] != 0
