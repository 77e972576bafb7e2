"""State for the replay of recorded answers: users, files and jobs as they were when the answers were recorded."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from support.recorded import ANSWERS, OTHER, USER
from support.sandbox import SandboxProcess

SYSTEMS = ("lab-s3", "lab-unhealthy", "lab-sshdown", "lab-slow", "lab-s3down")
COMMAND_TIMEOUT = 3.0
MIB = 1024 * 1024
SIZES = {"max": 5 * MIB, "m39": 3_932_159, "m393": 3_932_160, "empty": 0}


class World:
    """One sandbox in the state of the recorded server; jobs are made once, files anew for every answer."""

    def __init__(self, sandbox: SandboxProcess, with_account: SandboxProcess, scheduler: str) -> None:
        self.sandbox, self.with_account, self.scheduler = sandbox, with_account, scheduler
        self._numbers = count()
        self._clients: dict[str, httpx.Client] = {}
        sandbox.post("/systems/lab-unhealthy", {"unhealthy": ["scheduler", "ssh"]})
        sandbox.post("/systems/lab-sshdown", {"ssh": "refused"})
        self._private_files()

    def _private_files(self) -> None:
        home = self.sandbox.host_path(f"/home/{OTHER}")
        (home / ".ssh").mkdir(exist_ok=True)
        (home / ".ssh" / "authorized_keys").touch()
        (home / ".bashrc").touch()
        self._give(home, OTHER)
        (home / ".ssh").chmod(0o700)
        home.chmod(0o755)

    def _give(self, path: Path, user: str) -> None:
        if os.geteuid() == 0:
            uid = str(2001 + list(self.sandbox.users).index(user))
            subprocess.run(["chown", "-hR", f"{uid}:100", str(path)], check=True)

    # Files

    def new_base(self, absent: frozenset[str] = frozenset()) -> str:
        """Make a directory with the recorded files, except *absent* (``.``: the directory itself)."""
        base = f"/home/{USER}/rec-{next(self._numbers)}"
        if "." not in absent:
            self._plant(self.sandbox.host_path(base), base, absent)
        return base

    def _plant(self, here: Path, base: str, absent: frozenset[str]) -> None:
        here.mkdir()
        contents = {"s.txt": b"hello world\n" * 100, "bin": bytes(range(256)), "env.txt": b'Q=it\'s "q" $HOME\n'}
        contents |= {name: b"\0" * size for name, size in SIZES.items()} | {"sp ace é.txt": b"x", "it's.txt": b"x"}
        for name, content in contents.items():
            if name not in absent:
                (here / name).write_bytes(content)
        if "a" not in absent:
            (here / "a" / "b").mkdir(parents=True)
        if "l" not in absent:
            (here / "l").symlink_to(f"{base}/s.txt")
        if "s.tgz" not in absent:
            subprocess.run(["tar", "-czf", here / "s.tgz", "-C", here, "s.txt"], check=True)
        self._give(here, USER)

    def drop(self, base: str) -> None:
        """Remove a directory made by `new_base`."""
        shutil.rmtree(self.sandbox.host_path(base), ignore_errors=True)

    # Requests

    def client(self, user: str = USER) -> httpx.Client:
        """Client of the main sandbox that follows no redirects."""
        if user not in self._clients:
            # The server closes the connection after an unhandled error: each request has one of its own.
            self._clients[user] = self.sandbox.client(user, limits=httpx.Limits(max_keepalive_connections=0))
        return self._clients[user]

    def jobs(self, method: str, rest: str = "", user: str = USER, **options: Any) -> httpx.Response:
        """Call ``/compute/lab-s3/jobs…``."""
        return self.client(user).request(method, f"/compute/lab-s3/jobs{rest}", **options)

    def submit(self, script: str, user: str = USER, **job: Any) -> str:
        """Submit a job and return its id."""
        body = {"workingDirectory": f"/home/{user}", "script": script, **job}
        answer = self.jobs("POST", user=user, json={"job": body})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["jobId"])

    def rows(self, job_id: str) -> list[dict[str, Any]]:
        """Rows of a job by its id; none while accounting does not know it."""
        answer = self.jobs("GET", f"/{job_id}")
        return answer.json()["jobs"] if answer.status_code == 200 else []

    def wait(self, job_id: str, good: Callable[[dict[str, Any]], bool], seconds: float = 60) -> str:
        """Wait until any row of the job is *good* and return the id."""
        end = time.monotonic() + seconds
        while not any(good(row) for row in self.rows(job_id)):
            assert time.monotonic() < end, f"job {job_id}: {self.rows(job_id)}"
            time.sleep(0.1)
        return job_id

    def wait_state(self, job_id: str, state: str, reason: str | None = None, seconds: float = 60) -> str:
        """Wait for a state (its beginning) and perhaps a reason; accounting's placeholder does not count."""

        def good(row: dict[str, Any]) -> bool:
            status = row["status"]
            # Until accounting has the steps, exit codes are not to be had.
            known = bool(row["tasks"]) or state == "PENDING"
            return status["state"].startswith(state) and reason in (None, status["stateReason"]) and known

        return self.wait(job_id, good, seconds)

    # Jobs of the recorded answers, by what they show

    def recorded_submit(self, name: str) -> str:
        """Submit again what the answer *name* submitted, in the home directory."""
        job = dict(ANSWERS[name]["request"]["json"]["job"])
        job["workingDirectory"] = f"/home/{USER}"
        # What is to run until it is cancelled must outlast the whole replay.
        return self.submit(job.pop("script").replace("sleep 60", "sleep 900"), **job)

    @cached_property
    def running(self) -> str:
        """112: runs, and had a step attached."""
        job_id = self.wait_state(self.recorded_submit("jobs_submit_201"), "RUNNING")
        answer = self.jobs("PUT", f"/{job_id}/attach", json={"command": "hostname"})
        assert answer.status_code == 204, answer.text
        return self.wait(job_id, lambda row: len(row["tasks"]) == 2)

    @cached_property
    def cancelled(self) -> str:
        """112, later."""
        job_id = self.wait_state(self.recorded_submit("jobs_submit_201"), "RUNNING")
        assert self.jobs("DELETE", f"/{job_id}").status_code == 204
        return self.wait_state(job_id, "CANCELLED")

    @cached_property
    def failed(self) -> str:
        """124."""
        return self.wait_state(self.recorded_submit("jobs_submit_fail_201"), "FAILED")

    @cached_property
    def signalled(self) -> str:
        """125."""
        return self.wait_state(self.recorded_submit("jobs_submit_signal_201"), "FAILED")

    @cached_property
    def steps(self) -> str:
        """126."""
        return self.wait_state(self.recorded_submit("jobs_submit_srun_201"), "COMPLETED")

    @cached_property
    def array(self) -> str:
        """120, ended; the listings count on its name."""
        job_id = self.recorded_submit("jobs_submit_array_201")
        for task in range(3):
            name = f"{job_id}_{task}"
            self.wait(job_id, lambda row, name=name: row["jobId"] == name and row["status"]["state"] == "COMPLETED")
        return job_id

    @cached_property
    def mixed_array(self) -> str:
        """144: some tasks run, some wait."""
        job_id = self.submit("#!/bin/bash\n#SBATCH --array=0-4%2\nsleep 6\n", name="arrmix")
        self.wait(job_id, lambda row: row["jobId"].startswith(f"{job_id}_["))
        return self.wait_state(job_id, "RUNNING")

    @cached_property
    def mixed_array_later(self) -> str:
        """144: the first tasks have ended."""
        return self.wait(
            self.mixed_array,
            lambda row: row["jobId"].endswith("_0") and row["status"]["state"] == "COMPLETED" and bool(row["tasks"]),
        )

    @cached_property
    def held(self) -> str:
        """121."""
        return self.wait_state(self.recorded_submit("jobs_submit_hold_201"), "PENDING", "JobHeldUser")

    def dependent(self, other: str, reason: str) -> str:
        """122."""
        job_id = self.submit(f"#!/bin/bash\n#SBATCH -d afterok:{other}\ntrue\n", name="dep")
        return self.wait_state(job_id, "PENDING", reason)

    @cached_property
    def suspended(self) -> str:
        """152, suspended by an operator; here a job without a process that takes the state."""
        return self.wait_state(self.simulated("SUSPENDED", duration=0), "SUSPENDED")

    @cached_property
    def requeued(self) -> str:
        """152, requeued by an operator: it has a time from which it may begin again."""
        job_id = self.submit("#!/bin/bash\n#SBATCH --begin=now+1hour\ntrue\n", name="sbatch")
        return self.wait_state(job_id, "PENDING", "BeginTime")

    @cached_property
    def timed_out(self) -> str:
        """123; without waiting for a minute."""
        return self.wait_state(self.simulated("TIMEOUT", duration=0.1), "TIMEOUT")

    def simulated(self, state: str, duration: float) -> str:
        """Make a job without a process that ends in *state*."""
        order = {"user": USER, "state": state, "duration": duration, "name": "sbatch"}
        return str(self.sandbox.post("/jobs", order)["job_ids"][0])

    @cached_property
    def reservation(self) -> str:
        """The reservation ``res1``, in force."""
        return str(self.sandbox.post("/reservations", {"name": "res1"})["name"])

    @cached_property
    def reserved(self) -> str:
        """175: ran in the reservation."""
        script = "#!/bin/bash\n#SBATCH -o /dev/null\ntrue\n"
        return self.wait_state(self.submit(script, reservation=self.reservation), "COMPLETED")

    @cached_property
    def quoted_name(self) -> str:
        """150."""
        return self.wait_state(self.submit("#!/bin/bash\nsleep 1\n", name="quo'te `d` é"), "COMPLETED")

    @cached_property
    def piped_name(self) -> str:
        """147, on the other sandbox: from now on the listings there fail."""
        body = {"workingDirectory": f"/home/{USER}", "script": "#!/bin/bash\ntrue\n", "name": "a|b", "account": "staff"}
        answer = self.with_pipe.post("/compute/lab-acct/jobs", json={"job": body})
        assert answer.status_code == 201, answer.text
        time.sleep(0.5)
        return str(answer.json()["jobId"])

    @cached_property
    def with_pipe(self) -> httpx.Client:
        """Client of the other sandbox."""
        return self.with_account.client(USER)

    @cached_property
    def too_large(self) -> str:
        """153."""
        return self.wait_state(self.recorded_submit("jobs_submit_500_too_many_nodes"), "PENDING")

    # Transfers

    def transfer(self, name: str, base: str, request: Callable[[str, str], httpx.Response]) -> dict[str, Any]:
        """Ask again what the answer *name* asked, wait for its job and return the ``transferJob``."""
        answer = request(name, base)
        assert answer.is_success, answer.text
        job: dict[str, Any] = answer.json()["transferJob"]
        live = {"PENDING", "RUNNING"} if name != "xfer_upload_zero_size" else {"PENDING"}
        self.wait(job["jobId"], lambda row: row["status"]["state"] not in live and bool(row["tasks"]))
        end = time.monotonic() + 30
        while self.view(job["logs"]["errorLog"]).status_code == 404 and time.monotonic() < end:
            time.sleep(0.1)  # a job reads as running a moment before its logs are there
        return job

    def view(self, path: str) -> httpx.Response:
        """View a file."""
        return self.client().get(f"/filesystem/lab-s3/ops/view?path={quote(path, safe='')}")
