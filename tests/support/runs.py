"""`hpcbridge run` as CI services and people call it: in a folder of its own, against a sandbox."""

from __future__ import annotations

import json
import re
import subprocess
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.cli import COMMAND, clean_environment, run_cli
from support.sandbox import SandboxProcess

CI_VARIABLES = ("CI", "GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL")


class Runs:
    """A user's folder, and the sandbox.

    Attributes:
        name: a job name that no other test uses.
    """

    def __init__(self, sandbox: SandboxProcess, folder: Path) -> None:
        self.sandbox = sandbox
        self.folder = folder
        self.name = f"t{uuid.uuid4().hex[:10]}"
        self.env = {**dict.fromkeys(CI_VARIABLES, ""), **sandbox.client_env("alice")}

    def script(self, body: str, name: str = "job.sh") -> str:
        """A batch script in the folder."""
        (self.folder / name).write_text(f"#!/bin/bash\n{body}\n")
        return name

    def __call__(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`hpcbridge ARGUMENTS` in this process."""
        return run_cli(*arguments, env=self.env | dict(env or {}), cwd=self.folder)

    def run(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """`hpcbridge run` under the test's own name."""
        return self("run", "--name", self.name, *arguments, env=env)

    def start(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """`hpcbridge run` as a process of its own."""
        return self.start_any("run", "--name", self.name, *arguments, env=env)

    def start_any(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Any command as a process of its own; what it prints is bytes."""
        return subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            env=clean_environment(self.env | dict(env or {}), home=self.folder),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def jobs(self, name: str | None = None) -> dict[str, str]:
        """Job id -> state, of all jobs of a name (the test's own by default), by the user's listing."""
        with self.sandbox.client("alice") as client:
            answer = client.get(f"/compute/{self.sandbox.system}/jobs")
        rows = answer.raise_for_status().json()["jobs"] or []
        return {
            row["jobId"]: str(row["status"]["state"]).partition(" ")[0]
            for row in rows
            if str(row["name"]).startswith(f"{name or self.name}.")
        }

    def wait_for_job(self, *states: str) -> str:
        """The id of the test's job as soon as it is in one of the states."""
        for _ in range(240):
            for job_id, state in self.jobs().items():
                if state in states:
                    return job_id
            time.sleep(0.25)
        raise AssertionError(f"no job {self.name} in {states}: {self.jobs()}")

    def states(self) -> set[str]:
        """The states of the test's jobs, of which there is one at least: accounting may tell of it a moment late."""
        deadline = time.monotonic() + 60
        while not (jobs := self.jobs()) and time.monotonic() < deadline:
            time.sleep(0.25)
        return set(map(self.state_of, jobs))

    def state_of(self, job_id: str) -> str:
        """By id, as the scheduler has it now."""
        return str(json.loads(self("status", job_id, "--json").stdout)["state"])

    def there(self, path: str) -> Path:
        """Where this machine finds a path of the cluster, absolute or below alice's own directory."""
        return self.sandbox.host_path(path if path.startswith("/") else f"/home/alice/{path}")


def read_until(process: subprocess.Popen[bytes], pattern: str) -> re.Match[str]:
    """Read standard error up to a line that matches."""
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line.decode()
        if found := re.search(pattern, line.decode()):
            return found
    raise AssertionError(f"{pattern!r} was not said (exit {process.wait()}): {seen}")


def end(process: subprocess.Popen[bytes], timeout: float = 90) -> tuple[int, bytes, str]:
    """Exit code, standard output, the rest of standard error."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"it did not end: {out!r} {err!r}") from None
    print(err.decode(errors="replace"))
    return process.returncode, out, err.decode(errors="replace")


def parsed(text: str) -> dict[str, Any]:
    """The one JSON value on standard output."""
    value: dict[str, Any] = json.loads(text)
    return value
