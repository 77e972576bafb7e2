"""Processes handed to a daemon: how they end, and what they cost in requests."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from support.aiida_profile import AiidaProfile
from support.sandbox import SandboxProcess

ADD = "core.arithmetic.add"
PATIENCE = 300.0
"""Seconds that a process may take on a machine that has much else to do."""


def options(**more: Any) -> dict[str, Any]:
    """`metadata` of a calculation on one core."""
    return {"options": {"resources": {"num_machines": 1, "num_mpiprocs_per_machine": 1}, **more}}


def add(code: Any, x: int = 1, y: int = 2, **more: Any) -> Any:
    """Hand one core.arithmetic.add to the daemon."""
    from aiida import engine, orm
    from aiida.plugins import CalculationFactory

    return engine.submit(CalculationFactory(ADD), code=code, x=orm.Int(x), y=orm.Int(y), metadata=options(**more))


def planned(code: Any, script: str, plan: Mapping[str, Any] | None = None, **inputs: Any) -> Any:
    """Hand a `PlannedJob` to the daemon; keywords that are options of the scheduler go there."""
    from aiida import engine, orm

    from support.aiida_calcs import PlannedJob

    scheduler = {
        name: inputs.pop(name)
        for name in ("account", "custom_scheduler_commands", "max_wallclock_seconds", "stash")
        if name in inputs
    }
    if plan is not None:
        inputs["plan"] = orm.Dict(dict(plan))
    return engine.submit(PlannedJob, code=code, script=orm.Str(script), metadata=options(**scheduler), **inputs)


class Ended(AssertionError):
    """A process did not end as it should; the message holds everything that AiiDA knows about it."""


def report(node: Any) -> str:
    """What `verdi process report` shows of a process and of those that it called."""
    from aiida.cmdline.utils.common import get_calcjob_report, get_workchain_report
    from aiida.orm import CalcJobNode, WorkChainNode

    if isinstance(node, CalcJobNode):
        return str(get_calcjob_report(node))
    if isinstance(node, WorkChainNode):
        return str(get_workchain_report(node, "REPORT"))
    return ""


def wait(nodes: Iterable[Any], profile: AiidaProfile, seconds: float = PATIENCE) -> None:
    """Wait until every process has ended, however it did."""
    deadline = time.monotonic() + seconds
    waiting = list(nodes)
    while waiting := [node for node in waiting if not node.is_terminated]:
        if time.monotonic() > deadline or (all(node.paused for node in waiting)):
            raise Ended(
                "\n".join(f"{node} is {node.process_state}, paused={node.paused}\n{report(node)}" for node in waiting)
                + "\n"
                + profile.log()
            )
        time.sleep(0.1)


def ended_well(node: Any, profile: AiidaProfile, seconds: float = PATIENCE) -> Any:
    """Wait for a process, and insist on FINISHED[0]; returns the process."""
    wait([node], profile, seconds)
    if not node.is_finished_ok:
        raise Ended(f"{node}: {node.process_state}, exit status {node.exit_status}\n{report(node)}\n{profile.log()}")
    return node


def scheduler_ids(process: SandboxProcess, workdir: str) -> dict[str, str]:
    """State of every job that the cluster was ever given for a work directory, by job id."""
    with process.client() as client:
        answer = client.get(f"/compute/{process.system}/jobs")
        answer.raise_for_status()
        rows = answer.json()["jobs"] or []
    return {str(row["jobId"]): row["status"]["state"] for row in rows if row["workingDirectory"] == workdir}


# What all calculations of a site share: it does not grow with their number. (The issuer's requests are not counted.)
SHARED = ("GET /status/systems", "GET /compute/{}/jobs")


class Meter:
    """Requests that come in while one process is worked for, by stage of that process."""

    def __init__(self, process: SandboxProcess) -> None:
        self._process = process
        self.stages: dict[str, Counter[str]] = {}
        self._last: Counter[str] = Counter()

    def follow(self, node: Any, profile: AiidaProfile, seconds: float = PATIENCE) -> None:
        """Watch `node` until it has ended; nothing else may talk to the sandbox."""
        self._process.delete("/requests")
        deadline = time.monotonic() + seconds
        while not node.is_terminated:
            assert time.monotonic() < deadline, f"{node}\n{report(node)}\n{profile.log()}"
            state = node.get_state()
            self._note(state.value if state else "uploading")
            time.sleep(0.01)
        self._note("parsing")

    def _note(self, stage: str) -> None:
        counts = self.requests()
        if grown := counts - self._last:
            self.stages.setdefault(stage, Counter()).update(grown)
        self._last = counts

    def requests(self) -> Counter[str]:
        """What has come in since `follow` began."""
        return Counter(self._process.get("/requests")["counts"])

    @property
    def total(self) -> int:
        """Requests of this calculation alone."""
        return sum(count for name, count in self._last.items() if name not in SHARED)

    def table(self, title: str) -> str:
        """The counts as a table, one line per stage."""
        lines = [f"{title}: {self.total} requests, and {sum(self._last.values()) - self.total} shared"]
        for stage, counts in self.stages.items():
            lines.append(f"  {stage:14} " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
        return "\n".join(lines)
