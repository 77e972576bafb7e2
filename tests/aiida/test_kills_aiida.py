"""The daemon's worker killed with SIGKILL in the middle of things: nothing twice, nothing lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from support.aiida_computers import (
    SCHEDULER,
    TRANSPORT,
    auth_params,
    credential_file,
    installed_code,
    make_computer,
)
from support.aiida_profile import AiidaProfile, wait_until
from support.aiida_runs import ended_well, planned, report, scheduler_ids
from support.proxy import Proxy, start_proxy
from support.sandbox import SandboxProcess

SCRIPT = "echo run >> runs.txt; echo end > end.txt"
PLAN = {"must": ["end.txt"], "retrieve": ["end.txt", "runs.txt"]}


@dataclass(frozen=True)
class Moment:
    """Where a worker stands when it is killed: it has sent a request, and waits for the answer."""

    method: str
    path: str
    mode: str
    """`stuck`: the server has not heard of the request; `hold`: it has done it."""


MOMENTS = {
    "in the middle of the upload": Moment("POST", "/filesystem/*/ops/*", "stuck"),
    "between upload and submit": Moment("POST", "/compute/*/jobs", "stuck"),
    "between POST and answer": Moment("POST", "/compute/*/jobs", "hold"),
    "during retrieve": Moment("GET", "/filesystem/*/ops/download", "hold"),
}


class Trap:
    """A way to the sandbox that ends at one moment, until it is opened."""

    def __init__(self, portal: BlockingPortal, proxy: Proxy, node: Any = None) -> None:
        self.portal, self.proxy, self.node = portal, proxy, node

    @property
    def sprung(self) -> bool:
        """Somebody is caught in it."""
        return self.proxy.arrived.is_set()

    def open(self) -> None:
        """From now on everything passes."""

        def release() -> None:
            self.proxy.rates = {}
            self.proxy.release.set()

        self.portal.call(release)


@pytest.fixture(scope="module", params=["local", pytest.param("slurm", marks=[pytest.mark.slurm, pytest.mark.prove])])
def cluster(request: pytest.FixtureRequest) -> SandboxProcess:
    """Where the jobs run."""
    name = "local_queue" if request.param == "local" else "real_slurm"
    process: SandboxProcess = request.getfixturevalue(name)
    return process


@pytest.fixture(scope="module")
def traps(
    daemon: AiidaProfile, cluster: SandboxProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Trap]]:
    """One calculation caught at every moment, and then the worker killed: all of them at once."""
    secret = credential_file(cluster, tmp_path_factory.mktemp("secret") / "alice.toml")
    with start_blocking_portal() as portal, ExitStack() as stack:
        caught = {}
        for number, (name, moment) in enumerate(MOMENTS.items()):
            options = {"rates": {moment.mode: 1.0}, "method": moment.method, "path": moment.path}
            proxy = stack.enter_context(portal.wrap_async_context_manager(start_proxy(cluster.url, **options)))
            caught[name] = Trap(portal, proxy, planned(_code(cluster, proxy, secret, number), SCRIPT, PLAN))
        wait_until(lambda: all(trap.sprung for trap in caught.values()), 120, f"traps: {_open(caught)}")
        daemon.kill_workers()
        for trap in caught.values():
            trap.open()
        yield caught


def _open(traps: dict[str, Trap]) -> str:
    return ", ".join(name for name, trap in traps.items() if not trap.sprung)


def _code(process: SandboxProcess, proxy: Proxy, secret: Path, number: int) -> Any:
    params = {**auth_params(process, secret), "url": proxy.url}
    workdir = f"/scratch/{{username}}/victim-{number}"
    label = f"victim-{number}-{uuid4().hex[:6]}"
    computer = make_computer(label, TRANSPORT, SCHEDULER, workdir, host=process.system, **params)
    return installed_code(computer, f"bash-{label}")


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed(daemon: AiidaProfile, cluster: SandboxProcess, traps: dict[str, Trap], moment: str) -> None:
    """The process ends FINISHED[0] with all its files; one job was submitted, and it ran once."""
    trap = traps[moment]
    assert trap.sprung
    node = ended_well(trap.node, daemon, seconds=200)
    assert node.outputs.seen["retrieved"] == {"stdout.txt": "", "end.txt": "end\n", "runs.txt": "run\n"}, report(node)
    ids = scheduler_ids(cluster, node.get_remote_workdir())
    assert list(ids) == [node.get_job_id()]
    assert cluster.host_path(f"{node.get_remote_workdir()}/runs.txt").read_text() == "run\n"
