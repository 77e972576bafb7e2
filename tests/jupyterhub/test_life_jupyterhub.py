"""A server's life from login to stop: what a program sees, and what a person sees in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium.webdriver.support.select import Select

from support.jupyterhub_browser import open_browser
from support.jupyterhub_hub import EXPOSE, Hub, cancel, job_state, live, servers_of, wait_for
from support.sandbox import SandboxProcess, start_sandbox
from support.scale import PROVE

MACHINES = ["local", pytest.param("slurm", marks=pytest.mark.slurm)]


def sleeper(machine: SandboxProcess) -> str:
    """A job that others can be made to wait for."""
    job = {"script": "#!/bin/bash\nsleep 3000\n", "workingDirectory": "/home/alice", "name": "before-the-server"}
    with machine.client("alice") as client:
        answer = client.post(f"/compute/{machine.system}/jobs", json={"job": job})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["jobId"])


@dataclass
class Place:
    """A hub before a machine, with a queue in which servers wait for the job `before`."""

    hub: Hub
    machine: SandboxProcess
    scheduler: str
    before: str


@pytest.fixture(scope="module", params=MACHINES if PROVE else MACHINES[:1])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with ExitStack() as stack:
        if request.param == "local":
            machine = request.getfixturevalue("cluster")
        else:
            request.getfixturevalue("slurm_installed")
            flags = ("--scheduler", "slurm", "--accounting-lag", "1", "--user", "alice", "--user", "hub")
            machine = stack.enter_context(start_sandbox(*flags, *EXPOSE, timeout=300))
        before = sleeper(machine)
        systems = {
            "queue": {"title": "Busy queue", "directives": [f"--dependency=afterany:{before}"], "max_cpus": 4},
            "other": {"title": "Other system"},
        }
        hub = stack.enter_context(Hub(tmp_path_factory.mktemp("life"), machine, systems=systems))
        yield Place(hub, machine, request.param, before)


@pytest.mark.timeout(900)
def test_by_the_api(place: Place) -> None:
    hub, machine = place.hub, place.machine
    alice = hub.login("alice")
    hub.start_server("alice", "api", system="other")
    hub.wait_ready("alice", "api", 240)
    state = hub.state("alice", "api")
    assert state["workdir"] == "/home/alice"
    assert job_state(machine, state["job_id"]) == "RUNNING"
    assert alice.get("user/alice/api/lab").status_code == 200
    answer = alice.get("user/alice/api/api/status")
    assert answer.status_code == 200, answer.text
    assert answer.json()["kernels"] == 0
    hub.stop_server("alice", "api")
    hub.wait_gone("alice", "api")
    assert job_state(machine, state["job_id"]) == "CANCELLED"
    wait_for(lambda: not live(servers_of(machine)), 30, "no job to be left")


@pytest.mark.timeout(1200)
def test_in_a_browser(place: Place, tmp_path: Path) -> None:
    hub, machine = place.hub, place.machine
    with open_browser(place.scheduler, tmp_path / "profile") as browser:
        browser.log_in(hub.url, "alice", machine.users["alice"])

        # The form: two systems, the fields of the chosen one.
        select = Select(browser.find("#hpcbridge-system"))
        assert [option.text for option in select.options] == ["Busy queue", "Other system"]
        assert browser.find("fieldset[data-hpcbridge-system='queue']").is_displayed()
        partitions = Select(browser.find("#hpcbridge-queue-partition"))
        assert "normal" in [option.text for option in partitions.options]
        partitions.select_by_visible_text("normal")
        time = browser.find("#hpcbridge-queue-time")
        time.clear()
        time.send_keys("30")
        browser.shot("form")
        browser.click("#spawn_form button[type='submit']")

        # The queue, and why.
        browser.text("#progress-message", "waits in the queue (Dependency)")
        browser.shot("queue")
        cancel(machine, place.before, "alice")

        # JupyterLab, on a cluster that does not see the hub's files.
        browser.until(lambda driver: "/user/alice/lab" in driver.current_url, "the address of JupyterLab")
        browser.click(".jp-LauncherCard[data-category='Notebook']")
        browser.find(".jp-Notebook .jp-CodeCell .cm-content")
        browser.text("#jp-main-statusbar", "| Idle")  # before that, what is run is not kept for the kernel
        job = hub.state("alice")["job_id"]
        source = f"import os, socket; x = 41; print('job', os.environ['SLURM_JOB_ID'], os.path.exists('{hub.folder}'))"
        assert f"job {job} False" in browser.run_cell(source, 1, "job ")
        browser.shot("cell")

        # The hub dies and comes back; the kernel has not noticed.
        hub.restart()
        hub.wait_ready("alice")
        assert "still 42" in browser.run_cell("print('still', x + 1)", 2, "still ")
        browser.shot("same-kernel")
        assert hub.state("alice")["job_id"] == job

        # The home page tells the time that is left, and stops the server.
        browser.driver.get(f"{hub.url}hub/home")
        browser.text("#hpcbridge-limits + ul", "in ")
        browser.shot("home")
        browser.click("#stop")
        browser.until(lambda driver: "Start My Server" in driver.page_source, "the server's end")
        wait_for(lambda: hub.server("alice") is None, 60, "the hub to have no server")
        browser.shot("stopped")
    assert job_state(machine, job, "alice") == "CANCELLED"
    assert not live(servers_of(machine))
