"""DAG runs of one task each, for many scenarios at once: what each does, and what became of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local_airflow import LocalAirflow

from support.airflow_cluster import Cluster

LINES = """#!/bin/bash
echo "$SLURM_JOB_ID" >> executions
for i in $(seq 1 {lines}); do echo "line $i of the output"; done
echo "one line of errors" >&2
exit {code}
"""

UNTIL_TOLD = """#!/bin/bash
echo "$SLURM_JOB_ID" >> executions
echo started
for i in $(seq 1 900); do
  if [ -e end ]; then echo finished; exit 0; fi
  echo "tick $i."
  sleep 1
done
exit 9
"""
"""Runs until the test makes a file `end` in its directory."""


def lines(count: int = 3, code: int = 0) -> str:
    """A script that writes so many lines and ends with a code."""
    return LINES.format(lines=count, code=code)


@dataclass(frozen=True)
class Scenario:
    """What is run: a DAG whose only task is `job`, and the script."""

    dag: str
    script: str
    conf: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One run of it."""

    airflow: LocalAirflow
    cluster: Cluster
    dag: str
    id: str
    workdir: str

    @classmethod
    def start(cls, airflow: LocalAirflow, cluster: Cluster, scenario: Scenario) -> Run:
        """Trigger it, in a directory of its own."""
        workdir = cluster.workdir()
        conf = {"script": scenario.script, "workdir": workdir, **scenario.conf}
        return cls(airflow, cluster, scenario.dag, airflow.trigger(scenario.dag, conf), workdir)

    def end(self) -> str:
        """Wait for it; its state."""
        return self.airflow.wait_run(self.dag, self.id)

    def log(self, attempt: int = 1) -> list[str]:
        """The log of an attempt."""
        return self.airflow.task_log(self.dag, self.id, "job", attempt)

    def log_files(self) -> str:
        """All that any process has written into the log files of the run."""
        files = Path(self.airflow.home, "logs", f"dag_id={self.dag}", f"run_id={self.id}").rglob("*.log*")
        return "".join(path.read_text(errors="replace") for path in files)

    def task(self) -> dict[str, Any]:
        """The task instance as Airflow's interface has it."""
        return self.airflow.tasks(self.dag, self.id)["job"]

    def result(self) -> Any:
        """What the task returned."""
        return self.airflow.xcom(self.dag, self.id, "job")

    def executions(self) -> list[str]:
        """Job ids as the scripts wrote them down when they ran."""
        return self.cluster.executions(self.workdir)

    def ids(self) -> dict[str, str]:
        """State of every job that was made, by job id."""
        return self.cluster.ids(self.workdir)

    def watched_job(self) -> str:
        """The id of the job, once it has begun, and its output comes through the triggerer."""
        self.airflow.wait_task(self.dag, self.id, "job", ["deferred"])
        wait_for(lambda: "started" in self.log(), 90)
        (job,) = self.executions()
        return job

    def let_end(self) -> None:
        """Tell the job to end well."""
        self.cluster.process.host_path(f"{self.workdir}/end").touch()

    def mark(self, state: str) -> None:
        """Mark the task, as the user does in the interface."""
        self.airflow.set_task_state(self.dag, self.id, "job", state)

    def clear(self) -> None:
        """Clear the task, as the user does in the interface."""
        self.airflow.clear_task(self.dag, self.id, "job")


def wait_for(what: Callable[[], object], seconds: float) -> None:
    """Until it is so; AssertionError if not in time: `seconds` if quiet, four times as many if busy."""
    seconds *= 4
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"it did not happen in {seconds:.0f} s"
        time.sleep(0.3)


def wait_state(cluster: Cluster, job_id: str, state: str, seconds: float = 60) -> None:
    """Until the scheduler says so of a job."""
    wait_for(lambda: str(cluster.system.job(job_id).info().state) == state, seconds)


_POINTS = ("before_post", "before_bind", "after_bind", "before_defer")
_SECRETIVE = '#!/bin/bash\n[ "$(printf %s "$SECRET_VALUE" | wc -c)" -gt 8 ] && echo "it arrived"\nsleep 3\n'
_COUNTS_TO_TWO = '#!/bin/bash\necho "$SLURM_JOB_ID" >> executions\n[ "$(wc -l < executions)" -ge 2 ]\n'

SCENARIOS = {
    "live": Scenario("one_job", UNTIL_TOLD),
    "secret": Scenario("one_job", _SECRETIVE),
    "marked failed": Scenario("one_job", UNTIL_TOLD, {"system": "unwilling"}),
    "marked success": Scenario("one_job", UNTIL_TOLD, {"system": "slow"}),
    "run failed": Scenario("one_job", UNTIL_TOLD),
    "cleared": Scenario("one_job", UNTIL_TOLD),
    "deadline": Scenario("one_job_deadline", UNTIL_TOLD),
    "deadline here": Scenario("one_job_here_deadline", UNTIL_TOLD, {"system": "slow"}),
    "killed here": Scenario("one_job_here", UNTIL_TOLD),
    "marked while submitting": Scenario("one_job_killed", UNTIL_TOLD, {"kill_at": "mark"}),
    **{point: Scenario("one_job_killed", lines(), {"kill_at": point}) for point in _POINTS},
    "retry": Scenario("one_job_retried", _COUNTS_TO_TWO),
    "answer lost": Scenario("one_job", lines(), {"system": "lossy"}),
    "lines": Scenario("one_job", lines(40)),
    "failed": Scenario("one_job", lines(code=3)),
    "failed here": Scenario("one_job_here", lines(code=3)),
    "here": Scenario("one_job_here", lines()),
    "refused": Scenario("one_job", "#!/bin/bash\n#SBATCH --partition=no-such-partition\ntrue"),
    "mapped": Scenario("mapped_jobs", "#!/bin/bash\necho $INDEX >> executions\n"),
    "cleared later": Scenario("one_job", lines()),
    "killed triggerer": Scenario("one_job", UNTIL_TOLD),
    "stalled triggerer": Scenario("one_job", UNTIL_TOLD),
}
"""The longest first: all are started together, and none waits for another."""

FAULTS = [
    {"method": "POST", "path": "/compute/lossy/jobs", "kind": "drop_after", "count": 1},
    {"method": "DELETE", "path": "/compute/slow/jobs/*", "kind": "latency", "seconds": 4},
    {"method": "DELETE", "path": "/compute/unwilling/jobs/*", "kind": "status", "status": 503, "count": 6},
]
"""What goes wrong on which system."""
SYSTEMS = ("sandbox", "lossy", "slow", "unwilling")
