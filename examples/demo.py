"""`make demo`: the sandbox, a real Airflow and the DAG of examples/airflow/, from nothing to a checked result.

Everything runs on this machine, on loopback, in a temporary directory, and is gone at the end. Exits 0 when the DAG
succeeded and its result was right, 1 with the evidence when not.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from demo_view import View, make_view
from local_airflow import LocalAirflow, adopt_orphans, end_descendants
from local_sandbox import LocalSandbox

DAG = "rock_salt"
STEPS = (
    "wait_for_structure",
    "upload_structure",
    "upload_potential",
    "relax",
    "download_result",
    "check_result",
    "clean_up",
)
DAG_FILES = Path(__file__).parent / "airflow"
TIMEOUT = 420.0
"""Seconds for the whole run."""


def connection(sandbox: LocalSandbox) -> str:
    """An Airflow connection of type FirecREST, as JSON for an AIRFLOW_CONN_… variable."""
    env = sandbox.environment
    return json.dumps(
        {
            "conn_type": "firecrest",
            "host": env["FIRECREST_URL"],
            "login": env["FIRECREST_CLIENT_ID"],
            "password": env["FIRECREST_CLIENT_SECRET"],
            "extra": {"token_url": env["AUTH_TOKEN_URL"], "system": env["FIRECREST_SYSTEM"]},
        }
    )


def follow_run(airflow: LocalAirflow, run_id: str, view: View, inbox: Path) -> str:
    """Show every step as it happens, and let the structure arrive when the sensor waits. Returns the run's state."""
    deadline = time.monotonic() + TIMEOUT
    shown = 0
    while time.monotonic() < deadline:
        state = airflow.run_state(DAG, run_id)
        tasks = airflow.tasks(DAG, run_id)
        job = airflow.xcom(DAG, run_id, "relax", "firecrest_job") if tasks["relax"]["start_date"] else None
        view.steps([tasks[step] for step in STEPS], {"relax": job["job_id"]} if job else {})
        if tasks["wait_for_structure"]["state"] == "deferred" and not (inbox / "structure.dat").exists():
            drop_structure(inbox)
            view.say("the structure file arrives in the inbox")
        if tasks["relax"]["state"] in ("deferred", "success", "failed"):
            shown = show_output(airflow, run_id, view, shown)
        if state in ("success", "failed"):
            return state
        time.sleep(0.5)
    return f"still running after {TIMEOUT:.0f} s"


def drop_structure(inbox: Path) -> None:
    """As a program that produces structures would: complete at once."""
    shutil.copy(DAG_FILES / "structure.dat", inbox / ".arriving")
    (inbox / ".arriving").rename(inbox / "structure.dat")


def show_output(airflow: LocalAirflow, run_id: str, view: View, shown: int) -> int:
    """Lines of the job's own output that came into the task's log since the last time."""
    lines = [line for line in airflow.task_log(DAG, run_id, "relax") if line.startswith(("relaxing", "step", "done"))]
    for line in lines[shown:]:
        view.output(line)
    return len(lines)


def evidence(airflow: LocalAirflow, sandbox: LocalSandbox, run_id: str | None) -> str:
    """What helps to find out why it failed: the logs of the failed tasks, then those of the processes."""
    parts = []
    if run_id is not None:
        for name, task in airflow.tasks(DAG, run_id).items():
            if task["state"] in ("failed", "up_for_retry", "running", "deferred"):
                log = "\n".join(airflow.task_log(DAG, run_id, name, task["try_number"])[-40:])
                parts.append(f"--- task {name}: {task['state']}\n{log}")
    parts += [airflow.log_tail(name, 15) for name in ("scheduler", "triggerer")]
    return "\n".join([*parts, sandbox.log_tail()])


def run(home: Path, view: View) -> int:
    """The whole demonstration; returns the exit code."""
    inbox, dags = home / "inbox", home / "dags"
    inbox.mkdir()
    shutil.copytree(DAG_FILES, dags, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(DAG_FILES / "potential.dat", inbox)
    view.say("starting the sandbox: a FirecREST v2 server with a scheduler and storage")
    with LocalSandbox(home / "sandbox.log") as sandbox:
        view.say(f"sandbox: {sandbox.environment['FIRECREST_URL']}, user {sandbox.environment['FIRECREST_CLIENT_ID']}")
        view.say("starting Airflow: api-server, scheduler, dag-processor, triggerer")
        settings = {"AIRFLOW_CONN_FIRECREST_DEFAULT": connection(sandbox), "AIRFLOW_CONN_FS_DEFAULT": "fs://"}
        airflow = LocalAirflow(home / "airflow", dags, settings)
        run_id = None
        with airflow:
            view.say(f"Airflow: {airflow.environment['AIRFLOW__API__BASE_URL']}")
            try:
                airflow.wait_for_dag(DAG)
                run_id = airflow.trigger(DAG, {"inbox": str(inbox)})
                view.say(f"run {run_id} of the DAG {DAG}")
                state = follow_run(airflow, run_id, view, inbox)
                if state == "success":
                    view.result(airflow.xcom(DAG, run_id, "check_result"), airflow.xcom(DAG, run_id, "relax"))
                    return 0
                view.failure(f"the run is {state}", evidence(airflow, sandbox, run_id))
            except Exception as error:  # whatever it is, the reader gets the logs with it
                view.failure(f"{type(error).__name__}: {error}", evidence(airflow, sandbox, run_id))
    return 1


def main() -> int:
    """Set up, run, and leave nothing behind, also when interrupted."""
    adopt_orphans()
    signal.signal(signal.SIGTERM, _end)
    home = Path(tempfile.mkdtemp(prefix="hpcbridge-demo-"))
    view = make_view(STEPS)
    began = time.monotonic()
    code = 1
    try:
        with view:
            code = run(home, view)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:  # starting failed: say so, clean up all the same
        print(f"demo: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        end_descendants()
        shutil.rmtree(home, ignore_errors=True)
    print(
        f"{'done' if code == 0 else 'FAILED'} in {time.monotonic() - began:.0f} s; everything was stopped and removed"
    )
    return code


def _end(number: int, _frame: FrameType | None) -> Any:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    sys.exit(main())
