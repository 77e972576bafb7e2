"""A real Airflow on one machine, for a demonstration or a test: scheduler, dag-processor, triggerer and api-server.

Each part is an Airflow process of its own in its own process group, so that one of them can be stalled or killed while
the others run on. Everything lives in one directory (configuration, SQLite database, logs), and `stop()` leaves nothing
behind but that directory. Not a way to run Airflow in production.
"""

from __future__ import annotations

import base64
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil
from tenacity import retry, retry_if_exception, stop_after_delay, wait_fixed

COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_FINISHED = {"success", "failed"}


def die_with_parent() -> None:
    """Runs in the child before exec: it is told to end when the process that started it is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant that loses its own, so that `end_descendants` finds it."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants(grace: float = 5.0, *, sparing: Iterable[int] = ()) -> None:
    """End what is left of the processes that this one started: SIGTERM, then SIGKILL after `grace` seconds."""
    spared = set(sparing)
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in spared]
    for child in left:
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    _, alive = psutil.wait_procs(left, timeout=grace)
    for child in alive:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(alive, timeout=grace)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _busy(error: BaseException) -> bool:
    """Whether the database refused a transaction: nothing of it was done."""
    return isinstance(error, httpx.HTTPStatusError) and "Database error" in error.response.text


class LocalAirflow:
    """One Airflow deployment in `home`; use as a context manager or call `start()` and `stop()`.

    `environment` is added to every part's environment: connections (`AIRFLOW_CONN_<ID>`), settings
    (`AIRFLOW__<SECTION>__<KEY>`) and what the DAG itself reads.
    """

    def __init__(self, home: Path, dags: Path, environment: Mapping[str, str] | None = None) -> None:
        """Nothing is started yet."""
        self.home = home
        self.port = free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = self._settings(dags) | dict(environment or {})
        self._client: httpx.Client | None = None

    def _settings(self, dags: Path) -> dict[str, str]:
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "FIRECREST", "AUTH_TOKEN"))}
        base = f"http://127.0.0.1:{self.port}"
        return keep | {
            "AIRFLOW_HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
            "PYTHONWARNINGS": "ignore",
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{base}/execution/",
            "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": base,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API__SECRET_KEY": secrets.token_urlsafe(32),
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(64),
            # Several processes write into it. Now and then one that holds the lock waits for another that waits for it
            # (Airflow 3.3.2's interface server): then all stand still for this long, which is repeated and mended.
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home}/airflow.db?timeout=8",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "60",
            "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.home / "logs"),
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
            # A worker's supervisor may notice the end of its task this late. With the default of 5 s a task that was
            # deferred and is back sooner can be failed by the scheduler ("finished with state success, but …").
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        }

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Processes

    def start(self, timeout: float = 180.0) -> None:
        """Create the database and start every part; returns when the scheduler and the triggerer report healthy."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "db-migrate.log").open("wb") as log:
            subprocess.run(
                [*_AIRFLOW, "db", "migrate"], env=self.environment, stdout=log, stderr=log, check=True, timeout=timeout
            )
        for name in COMPONENTS:
            self.start_component(name)
        self.wait_healthy(timeout)

    def start_component(self, name: str, called: str | None = None) -> subprocess.Popen[bytes]:
        """Start one part (again), or one more of it under another name; its output goes to `<home>/<called>.log`."""
        called = called or name
        own = {"AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port())} if called != name else {}
        with (self.home / f"{called}.log").open("ab") as log:
            process = subprocess.Popen(
                [*_AIRFLOW, name],
                env=self.environment | own,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,  # one prctl call: no lock is taken
            )
        self.processes[called] = process
        return process

    def signal_component(self, name: str, number: int) -> None:
        """Send a signal to one part and to everything that it started."""
        process = self.processes[name]
        victims = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for victim in victims:
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(number)

    def kill_component(self, name: str) -> None:
        """SIGKILL one part and everything that it started, and wait for its end."""
        self.signal_component(name, signal.SIGKILL)
        self.processes.pop(name).wait(30)

    def stop_component(self, called: str, grace: float = 10.0) -> None:
        """SIGTERM one part, SIGKILL after `grace` seconds."""
        process = self.processes[called]
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            self.kill_component(called)
        else:
            del self.processes[called]

    def stop(self, grace: float = 10.0) -> None:
        """End every part and what it started: SIGTERM to the group, SIGKILL after `grace` seconds."""
        if self._client is not None:
            self._client.close()
            self._client = None
        family: list[psutil.Process] = []
        for process in self.processes.values():
            with suppress(psutil.NoSuchProcess):
                family += [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=grace)
        for process_left in alive:
            with suppress(psutil.NoSuchProcess):
                process_left.kill()
        psutil.wait_procs(alive, timeout=grace)
        for process in self.processes.values():
            process.wait()
        self.processes.clear()

    def wait_healthy(self, timeout: float = 120.0) -> None:
        """Wait until Airflow's own health page calls every part healthy; raises RuntimeError with the logs' ends."""
        deadline = time.monotonic() + timeout
        while True:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"airflow {name} ended with {process.returncode}\n{self.log_tail(name)}")
            with suppress(httpx.HTTPError):
                health = httpx.get(f"http://127.0.0.1:{self.port}/api/v2/monitor/health", timeout=5).json()
                if all((health[p] or {}).get("status") == "healthy" for p in _HEALTH):
                    return
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"Airflow was not healthy after {timeout:.0f} s\n" + "\n".join(map(self.log_tail, COMPONENTS))
                )
            time.sleep(0.3)

    def log_tail(self, name: str, lines: int = 30) -> str:
        """The last lines that one part wrote."""
        path = self.home / f"{name}.log"
        text = path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
        return f"--- {name}.log\n" + "\n".join(text)

    def remove(self) -> None:
        """Delete the directory; call after `stop()`."""
        shutil.rmtree(self.home, ignore_errors=True)

    # Airflow's public REST interface

    @retry(retry=retry_if_exception(_busy), wait=wait_fixed(2), stop=stop_after_delay(180), reraise=True)
    def call(self, method: str, path: str, json: Any = None, **params: Any) -> Any:
        """One call of `/api/v2`; returns the decoded body, raises httpx.HTTPStatusError.

        It is made again while SQLite, which has one writer at a time, is busy.
        """
        if self._client is None:
            token = httpx.get(f"http://127.0.0.1:{self.port}/auth/token", timeout=120).json()["access_token"]
            self._client = httpx.Client(
                base_url=f"http://127.0.0.1:{self.port}/api/v2",
                headers={"Authorization": f"Bearer {token}"},
                timeout=120,
            )
        answer = self._client.request(method, path, json=json, params=params)
        if answer.is_error:
            raise httpx.HTTPStatusError(f"{method} {path}: {answer.text}", request=answer.request, response=answer)
        return answer.json() if answer.content else None

    def wait_for_dag(self, dag_id: str, timeout: float = 180.0) -> None:
        """Wait until the dag-processor has stored a DAG; raises RuntimeError with its import errors."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError):
                self.call("GET", f"/dags/{dag_id}")
                return
            time.sleep(0.3)
        raise RuntimeError(f"the DAG {dag_id} was not found: {self.call('GET', '/importErrors')}")

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None, run_id: str | None = None) -> str:
        """Start a run of a DAG now; returns its run id."""
        body = {"logical_date": None, "conf": dict(conf or {})} | ({"dag_run_id": run_id} if run_id else {})
        return str(self.call("POST", f"/dags/{dag_id}/dagRuns", json=body)["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """The state of a run."""
        return str(self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"])

    def tasks(self, dag_id: str, run_id: str) -> dict[str, dict[str, Any]]:
        """The task instances of a run by task id; a mapped one's key is `<task id>[<map index>]`."""
        rows = self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"]
        return {r["task_id"] + (f"[{r['map_index']}]" if r["map_index"] >= 0 else ""): r for r in rows}

    def task_state(self, dag_id: str, run_id: str, task: str) -> str | None:
        """The state of one task instance, None before it has one."""
        return self.tasks(dag_id, run_id)[task]["state"]

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """One XCom value of a task, None when there is none."""
        try:
            path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
            return self.call("GET", path, deserialize=True, stringify=False)["value"]
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND:
                return None
            raise

    def task_log(self, dag_id: str, run_id: str, task_id: str, attempt: int = 1, map_index: int = -1) -> list[str]:
        """The messages in the log of one attempt of a task, as Airflow's own log page shows them, errors included."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{attempt}"
        lines: list[str] = []
        token = None
        while True:
            answer = self.call(
                "GET", path, map_index=map_index, full_content=True, **({"token": token} if token else {})
            )
            content = answer["content"]
            for entry in content:
                lines += [entry] if isinstance(entry, str) else [str(entry.get("event", "")), *_errors_in(entry)]
            token = answer.get("continuation_token")
            if token is None or not content:
                return lines

    def wait_run(self, dag_id: str, run_id: str, timeout: float = 600.0) -> str:
        """Wait for the end of a run; returns its state, raises TimeoutError."""
        return self._wait(lambda: self.run_state(dag_id, run_id), _FINISHED, timeout)

    def wait_task(self, dag_id: str, run_id: str, task: str, states: Iterable[str], timeout: float = 300.0) -> str:
        """Wait until a task instance is in one of `states`; returns which, raises TimeoutError."""
        return self._wait(lambda: self.task_state(dag_id, run_id, task), set(states), timeout)

    def _wait(self, read: Any, states: set[str], timeout: float) -> str:
        deadline = time.monotonic() + timeout
        while (state := read()) not in states:
            if time.monotonic() > deadline:
                raise TimeoutError(f"still {state} after {timeout:.0f} s, waited for {sorted(states)}")
            time.sleep(0.3)
        return str(state)

    def set_task_state(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Mark a task instance, as the user does in the interface (`failed`, `success`)."""
        self.call("PATCH", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}", json={"new_state": state})

    def set_run_state(self, dag_id: str, run_id: str, state: str) -> None:
        """Mark a whole run."""
        self.call("PATCH", f"/dags/{dag_id}/dagRuns/{run_id}", json={"state": state})

    def clear_task(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Clear one task instance, as the user does in the interface: it runs again."""
        body = {"dry_run": False, "task_ids": [task_id], "dag_run_id": run_id, "only_failed": False}
        self.call("POST", f"/dags/{dag_id}/clearTaskInstances", json=body)


def _errors_in(entry: Mapping[str, Any]) -> list[str]:
    """The exceptions of one log entry, with where each was raised."""
    lines = []
    for error in entry.get("error_detail") or []:
        frames = [f"  {frame['filename']}:{frame['lineno']} {frame['name']}" for frame in error["frames"]]
        lines += [*frames, f"{error['exc_type']}: {error['exc_value']}"]
    return lines


_AIRFLOW = (sys.executable, "-m", "airflow")
_HEALTH = ("metadatabase", "scheduler", "triggerer", "dag_processor")
