"""The local queue as a `Scheduler`: FirecREST's calls, answered from the queue's records."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from hpcbridge_sandbox.cluster import Cluster, User
from hpcbridge_sandbox.errors import SSHError, UnhandledError
from hpcbridge_sandbox.scheduling.base import (
    ACCOUNTING_ROW_BYTES,
    LISTING_LIMIT,
    WINDOWS,
    JobSubmission,
    check_encodable,
    no_script,
    refused,
    wrapped,
)
from hpcbridge_sandbox.scheduling.local.accounting import Accounting, View
from hpcbridge_sandbox.scheduling.local.admission import CPUS, FEATURES, PARTITIONS, accounts_of, admit
from hpcbridge_sandbox.scheduling.local.dependencies import parse_dependency
from hpcbridge_sandbox.scheduling.local.job import Job, Simulation, Step
from hpcbridge_sandbox.scheduling.local.queue import Queue, simulated_request
from hpcbridge_sandbox.scheduling.local.rows import NODE, job_rows
from hpcbridge_sandbox.scheduling.local.runner import log_paths
from hpcbridge_sandbox.scheduling.local.values import unix_now
from hpcbridge_sandbox.settings import Settings
from hpcbridge_sandbox.store import Store

COMMAND_SECONDS = 0.05
"""How long a command of the real server holds its SSH session; only waited for where sessions are limited."""

FORGET_AFTER = 300.0
"""Seconds after its end for which the controller knows a job (Slurm's MinJobAge): metadata is 404 after that."""


class LocalScheduler:
    """Slurm's behaviour on a queue of the sandbox's own."""

    kind = "slurm"
    version = "22.05.8"

    def __init__(self, settings: Settings, cluster: Cluster, store: Store) -> None:
        """Make the scheduler; `start` brings it up."""
        self.accounting = Accounting(lag=settings.scaled_accounting_lag)
        self._settings = settings
        self._cluster = cluster
        self._store = store
        self._queue: Queue | None = None
        self._reservations: dict[str, tuple[int, int]] = {}

    @property
    def queue(self) -> Queue:
        """The running queue."""
        assert self._queue is not None, "the scheduler has not been started"
        return self._queue

    async def start(self) -> None:
        """Take up the jobs that the state directory knows."""
        self._queue = Queue(self._cluster, self._store, self.accounting, offline=self._settings.offline_jobs)
        self._queue.start()

    async def stop(self) -> None:
        """End every job's processes."""
        if self._queue is not None:
            await self._queue.stop()

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def _by_rest(self, request: JobSubmission) -> bool:
        """Whether the call goes to slurmrestd instead of sbatch."""
        mode = self._settings.scheduler_mode
        return mode == "rest" or (mode == "hybrid" and not request.script_path)

    @asynccontextmanager
    async def _commands(self, user: User, count: int = 1) -> AsyncIterator[None]:
        """Take the SSH sessions that the real commands would take; under a limit, for as long as they would."""
        if self._settings.scheduler_mode == "rest":
            yield
            return
        with ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(self._cluster.session(user))
            if self._cluster.max_sessions is not None:
                await asyncio.sleep(COMMAND_SECONDS)
            yield

    @asynccontextmanager
    async def _reading(self, user: User) -> AsyncIterator[None]:
        """The sessions of ``sacct`` and ``squeue``, whose errors the server wraps."""
        try:
            async with self._commands(user, 2):
                yield
        except SSHError as error:
            raise wrapped(error.message) from error

    async def submit(self, user: User, request: JobSubmission) -> str:
        """Queue a job and return its id. Raises ApiError in sbatch's words (500, 403), or 408 without a script."""
        rest = self._by_rest(request)
        if isinstance(request.env, list) and not rest:
            raise UnhandledError("(\"'list' object has no attribute 'items'\",)")
        check_encodable(request)
        if request.script_path or not request.script:
            script = await self._script(user, request)
        else:
            async with self._commands(user):
                script = request.script
        now = unix_now()
        live = self.queue.live_by_account
        admitted, name = admit(
            user,
            request,
            script,
            submitted=live,
            now=now,
            rest=rest,
            require_account=self._settings.require_account,
            reservations=[row["name"] for row in self._reservation_rows(now) if row["state"] == "active"],
        )
        if admitted.options.dependency:
            self._check_dependency(admitted.options.dependency)
        return str(self.queue.add(admitted, name, now).job_id)

    async def _script(self, user: User, request: JobSubmission) -> str:
        if request.script_path:
            result = await self._cluster.run(user, ["/bin/cat", "--", request.script_path])
            if result.returncode != 0:
                raise refused(1, f"sbatch: error: Unable to open file {request.script_path}\n")
            return result.stdout.decode(errors="surrogateescape")
        # sbatch waits for a script on its standard input, for as long as the server lets it.
        await self._cluster.run(user, ["/bin/cat"], hold_stdin=True)
        raise no_script()

    @staticmethod
    def _check_dependency(text: str) -> None:
        problem = "sbatch: error: Batch job submission failed: Job dependency problem\n"
        try:
            parse_dependency(text)
        except ValueError as error:
            raise refused(1, problem) from error

    async def jobs(
        self,
        user: User,
        *,
        ids: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        all_users: bool = False,
        account: str | None = None,
        window: str | None = None,
    ) -> list[dict[str, Any]]:
        """Rows of the given ids, or of the listing."""
        async with self._reading(user):
            now = unix_now()
        if ids is None:
            jobs = self._listed(user, names, all_users=all_users, account=account, window=window, now=now)
            return [row for job in jobs for row in self._rows(job, now, listing=True)]
        rows = []
        for job_id in ids:
            if not job_id.isdigit():
                raise wrapped(_sacct_error(job_id))
            if job_id in self.accounting.lost_jobs:
                continue
            for job in self.queue.records(int(job_id)):
                _check_name(job)
                rows += self._rows(job, now, listing=False)
        return rows

    def _rows(self, job: Job, now: float, *, listing: bool) -> list[dict[str, Any]]:
        return job_rows(job, now, self.accounting.view(job, now, listing=listing), listing=listing)

    def _listed(
        self,
        user: User,
        names: Sequence[str] | None,
        *,
        all_users: bool,
        account: str | None,
        window: str | None,
        now: float,
    ) -> list[Job]:
        """Return the jobs of a listing. Raises ApiError 500 when the commands of a real server would have failed."""
        seconds = WINDOWS[window] if window else WINDOWS["7d"]
        jobs: Iterable[Job] = self.queue.listed(None if all_users else user.name, now - seconds)
        if account:
            jobs = (job for job in jobs if job.request.account == account)
        if names is not None:
            wanted = set(names)
            jobs = (job for job in jobs if job.name in wanted)
        lost = self.accounting.lost_jobs
        found = [job for job in jobs if str(job.job_id) not in lost]
        if self.accounting.listing_error:
            raise wrapped(None)
        for job in found:
            _check_name(job)
        if len(found) * ACCOUNTING_ROW_BYTES >= LISTING_LIMIT:
            raise wrapped("Command output exceeded buffer limit.")
        return found

    async def listing(
        self,
        user: User,
        *,
        names: Sequence[str] | None = None,
        all_users: bool = False,
        account: str | None = None,
        window: str | None = None,
    ) -> bytes:
        """Return the listing's body; rows of jobs that cannot change any more are rendered once."""
        async with self._reading(user):
            now = unix_now()
        pieces = []
        for job in self._listed(user, names, all_users=all_users, account=account, window=window, now=now):
            view = self.accounting.view(job, now, listing=True)
            if view is View.MISSING:
                continue
            if job.rendered is not None:
                pieces.append(job.rendered)
                continue
            rows = job_rows(job, now, view, listing=True)
            text = b",".join(json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode() for row in rows)
            if self.accounting.settled(job, now):
                job.rendered = text
            pieces.append(text)
        return b'{"jobs":[' + b",".join(pieces) + b"]}"

    async def metadata(self, user: User, job_id: str) -> list[dict[str, Any]] | None:
        """Script and log paths while the controller knows the job; the script only for its owner."""
        async with self._commands(user, 2):
            records = self.queue.records(int(job_id)) if job_id.isdigit() else []
        known = [job for job in records if job.end is None or unix_now() - job.end < FORGET_AFTER]
        if not known:
            return None
        job = known[-1]
        stdin, stdout, stderr = log_paths(job)
        return [
            {
                "jobId": job_id,
                "script": job.request.script if job.request.user == user.name else "",
                "standardInput": stdin,
                "standardOutput": stdout,
                "standardError": stderr,
            }
        ]

    async def cancel(self, user: User, job_id: str) -> None:
        """Cancel a job or an array. Raises ApiError 500 in scancel's words."""
        if not job_id.isdigit():
            raise refused(1, f"scancel: error: Invalid job id {job_id}\n")
        async with self._commands(user):
            records = self.queue.records(int(job_id))
        said = f"scancel: Terminating job {job_id}\nscancel: error: Kill job error on job id {job_id}: "
        if not records:
            raise refused(0, f"{said}Invalid job id specified\n")
        if records[0].request.user != user.name:
            raise refused(210, f"{said}Access/permission denied\n")
        live = [job for job in records if not job.terminal]
        if not live:
            raise refused(0, f"{said}Job/step already completing or completed\n")
        for job in live:
            self.queue.cancel(job, user.uid)

    async def attach(self, user: User, job_id: str, command: str) -> None:
        """Run a command as a step of the job; the shell that reads it is the login node's, in the user's home."""
        records = self.queue.records(int(job_id)) if job_id.isdigit() else []
        running = [job for job in records if job.state == "RUNNING" and job.request.user == user.name]
        if not running:
            trouble = "Invalid job id specified" if not records else "Job/step already completing or completed"
            raise refused(
                1,
                f"srun: error: Unable to confirm allocation for job {job_id}: {trouble}\n"
                f"srun: Check SLURM_JOB_ID environment variable. Expired or invalid job {job_id}\n",
            )
        job = running[0]
        words = command.split()
        step = Step(len(job.steps), words[0].rsplit("/", 1)[-1] if words else "", unix_now())
        job.steps.append(step)
        environment = {"SLURM_JOB_ID": str(job.job_id), "SLURM_JOB_NODELIST": NODE, "SLURM_STEP_ID": str(step.number)}
        try:
            result = await self._cluster.run(user, ["/bin/sh", "-c", command], env=environment)
        finally:
            step.end = unix_now()
            self.queue.touch(job)
        step.exit_code, step.signal = (result.returncode, 0) if result.returncode >= 0 else (0, -result.returncode)
        if result.returncode != 0:
            task = f"srun: error: {NODE}: task 0: Exited with exit code {result.returncode}\n"
            raise refused(result.returncode, result.stderr.decode(errors="replace") + task)

    # -- the machine --------------------------------------------------------------------------------------------------

    async def nodes(self, user: User) -> list[dict[str, Any]]:
        """The one node, as Slurm would show it."""
        del user
        used = min(CPUS, self.queue.used)
        state = "IDLE" if not used else "ALLOCATED" if used == CPUS else "MIXED"
        return [
            {
                "sockets": CPUS,
                "cores": CPUS,
                "threads": CPUS,
                "cpus": CPUS,
                "cpuLoad": 0.0,
                "freeMemory": 16000,
                "features": ",".join(FEATURES),
                "name": NODE,
                "address": "127.0.0.1",
                "hostname": NODE,
                "state": [state],
                "partitions": list(PARTITIONS),
                "weight": 1,
                "allocMemory": 16000,
                "allocCpus": used,
                "idleCpus": CPUS - used,
            }
        ]

    async def partitions(self, user: User, *, show_hidden: bool) -> list[dict[str, Any]]:
        """The partitions; hidden ones only when asked for."""
        del user
        shown = (partition for partition in PARTITIONS.values() if show_hidden or not partition.hidden)
        return [{"name": part.name, "cpus": CPUS, "totalNodes": 1, "partition": "UP"} for part in shown]

    async def reservations(self, user: User) -> list[dict[str, Any]]:
        """What `reserve` made and did not end; the queue sets nothing aside for them."""
        del user
        return self._reservation_rows(unix_now())

    def _reservation_rows(self, now: float) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "state": "active" if start <= now else "inactive",
                "nodeList": NODE,
                "endTime": end,
                "startTime": start,
                "features": None,
            }
            for name, (start, end) in self._reservations.items()
            if now < end
        ]

    async def accounts(self, user: User) -> list[dict[str, Any]]:
        """The user's accounts, the default one marked."""
        async with self._reading(user):
            return [{"name": name, "default": name == user.account} for name in accounts_of(user)]

    async def reserve(self, name: str, start: float, duration: float) -> None:
        """Make or replace a reservation; `start` is Unix time, `duration` seconds."""
        self._reservations[name] = (int(start), int(start + duration))

    # -- for tests ----------------------------------------------------------------------------------------------------

    def simulate(self, user: User, names: Sequence[str], simulation: Simulation) -> list[str]:
        """Queue one job without a process per name and return the ids."""
        now = unix_now()
        submission = JobSubmission(working_directory=user.home)
        request, _ = admit(user, submission, "#!/bin/sh\n", submitted={}, now=now, rest=False)
        return [str(job_id) for job_id in self.queue.add_simulated(simulated_request(request, simulation), names, now)]


def _check_name(job: Job) -> None:
    """A ``|`` in a name gives the row one column too many, which ends the server's parsing."""
    if "|" in job.name:
        raise wrapped(None)


def _sacct_error(job_id: str) -> str:
    return f"Unexpected Slurm command response. exit_status:1 std_err:sacct: fatal: Bad job/step specified: {job_id}\n"
