"""gitlab-runner with the custom executor, as far as an executor can see it: the contract harness.

It asks a coordinator for a job, and runs it as gitlab-runner does (read in its code up to 19.4): three attempts to
prepare, with cleanup after each; the stages in their order; after_script, caches and artifacts also after a failure, a
script time-out and a cancel while the script runs; cleanup only after a cancel before that, a job time-out and an
abort. Each executable gets a process group of its own, a private directory that all calls of an attempt share, and the
runner's environment; a stop is SIGTERM to the group, and SIGKILL ten seconds later.

    python -m support.gitlab_runner SPEC.json      # a process of its own, which a test can kill -9
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from support.gitlab_scripts import Writer

BUILD_FAILURE, SYSTEM_FAILURE = 1, 2
FORCE_KILL = 10.0
DOWNLOADS = {"get_sources": "GET_SOURCES_ATTEMPTS", "restore_cache": "RESTORE_CACHE_ATTEMPTS"}


class BuildError(Exception):
    """The job failed: `code` is its exit code."""

    def __init__(self, code: int | None) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


class SystemFailure(Exception):
    """The runner or its executor failed."""


class Stopped(Exception):
    """`reason`: cancel, abort, job_timeout, script_timeout."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class Stage:
    """One call of an executable."""

    name: str
    code: int | None
    seconds: float
    stopped: str = ""


@dataclass
class Spec:
    """How to run. `program`: the words before config, prepare, run, cleanup. Times in seconds."""

    url: str
    program: list[str]
    work: str
    env: dict[str, str] = field(repr=False)
    form: str = "19.3"
    wanted: int | None = None
    prepare_pause: float = 0.2
    script_timeout: float | None = None
    job_timeout: float | None = None
    terms: int = 1


@dataclass
class Runner:
    """Runs one job; what came of it is in `stages`, `outcome` and `arrivals`."""

    spec: Spec
    stages: list[Stage] = field(default_factory=list)
    outcome: str = ""
    arrivals: list[tuple[float, bytes]] = field(default_factory=list, repr=False)
    starts: list[float] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self._trace: list[bytes] = []
        self._sent = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._reason = ""
        self._api = httpx.Client(base_url=f"{self.spec.url}/api/v4", timeout=30, trust_env=False)
        self._directory: Path | None = None
        self._ends = threading.Event()
        self._deadline: float | None = None

    # -- the coordinator ---------------------------------------------------------------------------------------------

    def request(self) -> dict[str, Any]:
        """A job of the coordinator's."""
        asked = {"token": "glrt-runner-token-for-tests", "info": {"executor": "custom"}, "wanted": self.spec.wanted}
        answer = self._api.post("/jobs/request", json=asked)
        assert answer.status_code == 201, answer
        response: dict[str, Any] = answer.json()
        self.response = response
        return response

    def _patch(self) -> None:
        """Send what is new of the trace; hear whether the job is being cancelled."""
        with self._lock:
            data = b"".join(self._trace)
            self._trace = [data]
        new = data[self._sent :]
        headers = {
            "JOB-TOKEN": self.response["token"],
            "Content-Range": f"{self._sent}-{len(data) - 1 if new else self._sent}",
            "Content-Type": "text/plain",
        }
        answer = self._api.patch(f"/jobs/{self.response['id']}/trace", content=new, headers=headers)
        if answer.status_code == 202:
            self._sent = len(data)
        status = answer.headers.get("Job-Status")
        if status == "canceling":
            self.stop("cancel")
        elif status == "canceled" or answer.status_code == 403:
            self.stop("abort")

    def _patching(self) -> None:
        while not self._ends.wait(0.2):
            self._patch()

    def stop(self, reason: str) -> None:
        """As a cancel in the UI, or the runner's own stop ("abort")."""
        if not self._reason:
            self._reason = reason
            self._stop.set()

    def expire(self) -> None:
        """The job's time-out is over now."""
        self._deadline = 0.0

    # -- one job -----------------------------------------------------------------------------------------------------

    def run(self) -> Runner:
        """Ask for a job and run it to its end."""
        response = self.request()
        timeout = self.spec.job_timeout or response["runner_info"]["timeout"]
        self._deadline = time.monotonic() + timeout
        patching = threading.Thread(target=self._patching, daemon=True)
        patching.start()
        code: int | None = None
        try:
            self._build(response)
            self.outcome = "success"
        except BuildError as error:
            self.outcome, code = "script_failure", error.code
        except SystemFailure:
            self.outcome = "runner_system_failure"
        except Stopped as stopped:
            self.outcome = "job_execution_timeout" if "timeout" in stopped.reason else "canceled"
        self._ends.set()
        patching.join()
        self._patch()
        state = {"token": response["token"], "state": "success" if self.outcome == "success" else "failed"}
        self._api.put(f"/jobs/{response['id']}", json={**state, "failure_reason": self.outcome, "exit_code": code})
        return self

    def start(self) -> Runner:
        """The same, in a thread; see `join`."""
        self._thread = threading.Thread(target=self.run, daemon=True)
        self._thread.start()
        return self

    def join(self, timeout: float = 600) -> Runner:
        """Wait for the end."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"the job has not ended: {self.stages}\n{self.log[-3000:]}"
        return self

    @property
    def log(self) -> str:
        """What the executor has printed so far."""
        return self.output.decode("utf-8", "replace")

    @property
    def output(self) -> bytes:
        """The same, in bytes."""
        with self._lock:
            return b"".join(self._trace)

    def _build(self, response: dict[str, Any]) -> None:
        try:
            self._prepare_with_retries(response)
            self._execute(response)
        finally:
            self._cleanup()

    def _prepare_with_retries(self, response: dict[str, Any]) -> None:
        for attempt in range(3):
            if attempt:
                self._cleanup()
                time.sleep(self.spec.prepare_pause)
            self._directory = Path(tempfile.mkdtemp(prefix="custom-executor", dir=self.spec.work))
            (self._directory / "response.json").touch(mode=0o600)
            (self._directory / "response.json").write_text(json.dumps(response))
            try:
                told = json.loads(self._call("config", [], quiet=True) or b"{}")
                self._places(told)
                self._call("prepare", [])
            except (SystemFailure, ValueError) as error:
                self._say(f"ERROR: Preparation failed: {error}\n")
                continue
            return
        raise SystemFailure("prepare")

    def _places(self, told: dict[str, Any]) -> None:
        self.told = told
        self._job_env = told.get("job_env") or {}
        self._writer = Writer(self.response, self.spec.url, told["builds_dir"], told["cache_dir"], self.spec.form)

    def _execute(self, response: dict[str, Any]) -> None:
        failure: Exception | None = None
        try:
            self._stage("prepare_script")
            self._attempts("get_sources")
            self._attempts("restore_cache")
            self._stage("download_artifacts")
            self._script(response)
        except (BuildError, SystemFailure) as error:
            failure = error
        except Stopped as stopped:
            # A cancel of the script, and a script's own time-out, leave the rest to be done; all other stops do not.
            in_script = self.stages[-1].name in ("step_script", "build_script")
            if not (in_script and stopped.reason in ("cancel", "script_timeout")):
                raise
            failure = stopped
            self._stop.clear()
        started = any(stage.name in ("step_script", "build_script") for stage in self.stages)
        if started:
            with contextlib.suppress(BuildError, SystemFailure):
                self._stage("after_script")
        kind = "on_success" if failure is None else "on_failure"
        with contextlib.suppress(BuildError, SystemFailure):
            self._stage("archive_cache" if failure is None else "archive_cache_on_failure")
        try:
            self._stage(f"upload_artifacts_{kind}")
        except (BuildError, SystemFailure) as error:
            failure = failure or error
        with contextlib.suppress(BuildError, SystemFailure):
            self._stage("cleanup_file_variables")
        if failure is not None:
            raise failure

    def _script(self, response: dict[str, Any]) -> None:
        name = "build_script" if self.spec.form == "17.9" else "step_script"
        self._stage(name, timeout=self.spec.script_timeout)

    def _attempts(self, stage: str) -> None:
        wanted = int(self._writer.variables.get(DOWNLOADS[stage], "1"))
        for attempt in range(1, wanted + 1):
            try:
                self._stage(stage)
                return
            except (BuildError, SystemFailure):
                if attempt == wanted:
                    raise
                if stage == "get_sources":
                    with contextlib.suppress(BuildError, SystemFailure):
                        self._stage("clear_worktree")

    def _stage(self, name: str, timeout: float | None = None) -> None:
        script = self._writer.stage(name)
        if script is None:
            return
        assert self._directory is not None
        file = self._directory / f"script.{len(self.stages)}"
        file.touch(mode=0o700)
        file.write_bytes(script)
        self._call("run", [str(file), name], name=name, timeout=timeout)

    def _cleanup(self) -> None:
        if self._directory is None:
            return
        with contextlib.suppress(BuildError, SystemFailure, Stopped):
            self._call("cleanup", [], unstoppable=True)
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory = None

    # -- one call ----------------------------------------------------------------------------------------------------

    def _environment(self) -> dict[str, str]:
        assert self._directory is not None
        jobs = {f"CUSTOM_ENV_{name}": value for name, value in self._writer_variables().items()}
        return {
            **self.spec.env,
            **jobs,
            **getattr(self, "_job_env", {}),
            "TMPDIR": str(self._directory),
            "BUILD_FAILURE_EXIT_CODE": str(BUILD_FAILURE),
            "SYSTEM_FAILURE_EXIT_CODE": str(SYSTEM_FAILURE),
            "BUILD_EXIT_CODE_FILE": str(self._directory / "exit_code"),
            "JOB_RESPONSE_FILE": str(self._directory / "response.json"),
        }

    def _writer_variables(self) -> dict[str, str]:
        return {item["key"]: item["value"] for item in self.response["variables"]}

    def _call(
        self,
        command: str,
        words: Sequence[str],
        *,
        name: str = "",
        quiet: bool = False,
        timeout: float | None = None,
        unstoppable: bool = False,
    ) -> bytes:
        if not unstoppable:
            self._check_stops()
        began = time.monotonic()
        self.starts.append(began)
        stage = Stage(name or command, None, 0.0)
        self.stages.append(stage)
        process = subprocess.Popen(
            [*self.spec.program, command, *words],
            cwd=self._directory,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if quiet else subprocess.STDOUT,
            process_group=0,
        )
        output = bytearray()
        reader = threading.Thread(target=self._read, args=(process, output, quiet), daemon=True)
        reader.start()
        try:
            self._wait(process, stage, None if timeout is None else began + timeout, unstoppable)
        finally:
            reader.join(20)
            stage.seconds = time.monotonic() - began
        if stage.stopped:
            raise Stopped(stage.stopped)
        if stage.code == BUILD_FAILURE:
            raise BuildError(self._exit_code())
        if stage.code:
            raise SystemFailure(f"{stage.name}: exit status {stage.code}")
        return bytes(output)

    def _exit_code(self) -> int:
        assert self._directory is not None
        try:
            return int((self._directory / "exit_code").read_text())
        except OSError:
            return BUILD_FAILURE

    def _read(self, process: subprocess.Popen[bytes], output: bytearray, quiet: bool) -> None:
        assert process.stdout is not None
        while data := os.read(process.stdout.fileno(), 1 << 16):
            output += data
            if not quiet:
                self._say(data)

    def _say(self, data: bytes | str) -> None:
        data = data.encode() if isinstance(data, str) else data
        with self._lock:
            self._trace.append(data)
        self.arrivals.append((time.time(), data))

    def _check_stops(self) -> None:
        if self._stop.is_set():
            raise Stopped(self._reason)
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise Stopped("job_timeout")

    def _wait(self, process: subprocess.Popen[bytes], stage: Stage, until: float | None, unstoppable: bool) -> None:
        """Until it ends; on a stop SIGTERM to its group, and SIGKILL ten seconds later."""
        asked: float | None = None
        while (code := process.poll()) is None:
            now = time.monotonic()
            if asked is None and not unstoppable:
                if until is not None and now > until:
                    stage.stopped = "script_timeout"
                try:
                    self._check_stops()
                except Stopped as stopped:
                    stage.stopped = stopped.reason
                if stage.stopped:
                    asked = now
                    for _ in range(self.spec.terms):
                        with contextlib.suppress(ProcessLookupError):
                            os.killpg(process.pid, signal.SIGTERM)
                        time.sleep(0.3 if self.spec.terms > 1 else 0)
            elif asked is not None and now > asked + FORCE_KILL:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.02)
        stage.code = code

    def named(self, name: str) -> list[Stage]:
        """The calls of that name."""
        return [stage for stage in self.stages if stage.name == name]

    @property
    def order(self) -> list[str]:
        """Names of all calls, in order."""
        return [stage.name for stage in self.stages]


def wait_for_log(runner: Runner, text: str, seconds: float = 600) -> None:
    """Until the executor has printed it."""
    deadline = time.monotonic() + seconds
    while text not in runner.log:
        assert not runner.outcome, f"the job ended without {text!r}:\n{runner.log}"
        assert time.monotonic() < deadline, f"{text!r} did not appear:\n{runner.log}"
        time.sleep(0.05)


def start_process(spec: Spec) -> subprocess.Popen[bytes]:
    """The harness as a process of its own."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", dir=spec.work, delete=False) as file:
        json.dump(asdict(spec), file)
    return subprocess.Popen(
        [sys.executable, "-m", "support.gitlab_runner", file.name], cwd=Path(__file__).parents[1], process_group=0
    )


if __name__ == "__main__":
    Runner(Spec(**json.loads(Path(sys.argv[1]).read_text()))).run()
