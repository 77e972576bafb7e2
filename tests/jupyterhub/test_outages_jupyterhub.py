"""The fault matrix, while FirecREST or the issuer fails: no live server dropped, none doubled, a truthful page.

One outage hits a server that waits in the queue and one that runs; each is a test of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest

from support.jupyterhub_fleet import Fleet, launch
from support.jupyterhub_hub import cancel, wait_for
from support.sandbox import SandboxProcess
from support.scale import PROVE

ALL = ("refused", "http-503", "http-429", "hang", "issuer-down", "token-expired", "token-rotated", "login-ended")
"""token-rotated: two expiries in a row, so that the refresh token of the first is used. login-ended: no refresh token
is good any more, and the user logs in again afterwards."""
OUTAGES = ALL if PROVE else ("refused", "hang", "issuer-down", "token-rotated")
SECONDS = 5
"""Of each outage: several polls."""


@pytest.fixture(scope="module")
def fleet(cluster: SandboxProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with launch(cluster, tmp_path_factory.mktemp("outages"), len(OUTAGES)) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def held_by(fleet: Fleet) -> dict[str, str]:
    """For each outage a server that waits and one that runs; the job that holds the former back."""
    held = {kind: fleet.start_in("pending", f"{kind}-pending") for kind in OUTAGES}
    for kind in OUTAGES:
        fleet.start_in("running", f"{kind}-running")
    for kind in OUTAGES:
        fleet.wait_in("pending", f"{kind}-pending")
        fleet.wait_in("running", f"{kind}-running")
    return held


@dataclass
class Outage:
    """What was seen of it."""

    kind: str
    refresh_token: str
    jobs: dict[str, str]
    pending: list[str | None] = field(default_factory=list)
    running: list[bool] = field(default_factory=list)
    page: str = ""


@pytest.fixture(scope="module", params=OUTAGES)
def outage(request: pytest.FixtureRequest, fleet: Fleet, held_by: dict[str, str]) -> Outage:
    """An outage that is over; the server that runs did not answer while it lasted."""
    kind, hub = request.param, fleet.hub
    names = (f"{kind}-pending", f"{kind}-running")
    before = {name: hub.state("alice", name)["job_id"] for name in names}
    seen = Outage(kind, hub.api("GET", "users/alice")["auth_state"]["refresh_token"], before)
    try:
        with fleet.deaf(names[1]):
            begin(fleet, kind)
            end, again = time.monotonic() + SECONDS, kind == "token-rotated"
            while time.monotonic() < end:
                time.sleep(0.5)
                shown = hub.server("alice", names[0])
                seen.pending.append(shown["pending"] if shown else "dropped")
                shown = hub.server("alice", names[1])
                seen.running.append(bool(shown and shown["ready"]))
                seen.page = seen.page or fleet.page(names[0])
                if again and time.monotonic() > end - SECONDS / 2:
                    again = False
                    fleet.cluster.post("/expire-tokens")
            fleet.back_to_normal()
    finally:
        fleet.back_to_normal()
    if kind == "login-ended":
        fleet.client = hub.login("alice")
    return seen


def begin(fleet: Fleet, kind: str) -> None:
    cluster = fleet.cluster
    if kind in ("refused", "http-503", "hang"):
        cluster.post("/outage", {"kind": kind.removeprefix("http-"), "seconds": 10 * SECONDS})
    elif kind == "http-429":
        cluster.post("/faults", [{"kind": "status", "status": 429, "headers": {"Retry-After": "1"}}])
    elif kind == "issuer-down":
        fleet.issuer.rates = {"undelivered": 1.0}
        cluster.post("/expire-tokens")
    elif kind == "login-ended":
        token = fleet.hub.api("GET", "users/alice")["auth_state"]["refresh_token"]
        for _ in range(2):  # the second use of a refresh token ends the login
            form = {"grant_type": "refresh_token", "refresh_token": token}
            httpx.post(cluster.token_url, data=form, auth=("hub", cluster.users["hub"]))
        cluster.post("/expire-tokens")
    else:
        cluster.post("/expire-tokens")


def test_a_server_that_waits_keeps_its_place(fleet: Fleet, held_by: dict[str, str], outage: Outage) -> None:
    name = f"{outage.kind}-pending"
    assert set(outage.pending) == {"spawn"}
    assert "Your server is starting up" in outage.page
    cancel(fleet.cluster, held_by[outage.kind])
    fleet.hub.wait_ready("alice", name)
    assert fleet.answers(name)
    assert fleet.hub.state("alice", name)["job_id"] == outage.jobs[name]
    assert fleet.one_job(name)["jobId"] == outage.jobs[name]


def test_a_server_that_runs_is_not_dropped(fleet: Fleet, outage: Outage) -> None:
    name = f"{outage.kind}-running"
    assert all(outage.running)
    wait_for(lambda: fleet.answers(name), 20, "the running server to answer again")
    for other in OUTAGES:
        assert fleet.hub.server("alice", f"{other}-running"), f"{other}-running was dropped"
    assert fleet.hub.state("alice", name)["job_id"] == outage.jobs[name]
    assert fleet.one_job(name)["jobId"] == outage.jobs[name]
    if outage.kind in ("token-expired", "token-rotated"):
        assert fleet.hub.api("GET", "users/alice")["auth_state"]["refresh_token"] != outage.refresh_token


def test_the_form_in_an_outage(fleet: Fleet) -> None:
    """It is shown, says so, and a server can be asked for; bob has not been here, so nothing of his is remembered."""
    fleet.cluster.post("/outage", {"kind": "hang", "seconds": 120})
    try:
        page = fleet.hub.login("bob").get("hub/spawn")
    finally:
        fleet.back_to_normal()
    assert page.status_code == 200
    assert "does not answer now" in page.text
    assert 'name="now:time"' in page.text


def test_no_job_is_left_behind(fleet: Fleet) -> None:
    fleet.check_nothing_is_left()


def test_no_secret_is_seen(fleet: Fleet) -> None:
    fleet.check_no_secret_is_seen()
