"""A real Slurm as a `Scheduler`: the commands that FirecREST gives over SSH, run as the user inside the cluster."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from typing import Any

from hpcbridge_sandbox.cluster import Cluster, CommandResult, User
from hpcbridge_sandbox.errors import ApiError, UnhandledError
from hpcbridge_sandbox.scheduling.base import (
    SCHEDULER_ERROR,
    WINDOWS,
    JobSubmission,
    check_encodable,
    command_error,
    listing_body,
    refused,
    wrapped,
)
from hpcbridge_sandbox.scheduling.slurm import parsing
from hpcbridge_sandbox.scheduling.slurm.config import CONF
from hpcbridge_sandbox.scheduling.slurm.daemons import Daemons
from hpcbridge_sandbox.settings import Settings

_ENVIRONMENT = {"SLURM_CONF": CONF}
_UNIX_TIMES = {**_ENVIRONMENT, "SLURM_TIME_FORMAT": "%s"}


def sbatch_options(job: JobSubmission, *, rest: bool) -> list[str]:
    """Return the options that the server puts on sbatch's command line; `rest` exports only what the call names."""
    assert isinstance(job.env, dict)
    variables = ",".join(f"{key}={value}" for key, value in job.env.items())
    options = [f"--export={'' if rest else 'ALL,'}{variables}" if variables or not rest else "--export=NONE"]
    options.append(f"--chdir={job.working_directory}")
    given = (
        ("partition", job.partition),
        ("reservation", job.reservation),
        ("account", job.account),
        ("job-name", job.name or ("allocation" if rest else None)),
        ("error", job.standard_error),
        ("output", job.standard_output),
        ("input", job.standard_input),
        ("constraint", job.constraints),
    )
    return options + [f"--{option}={value}" for option, value in given if value]


def without_directives(script: str) -> str:
    """Return the script so that sbatch reads no ``#SBATCH`` in it, as slurmrestd does not."""
    first, newline, rest = script.partition("\n")
    return f"{first}{newline}:\n{rest}"


class SlurmScheduler:
    """Slurm's own daemons in the cluster's namespaces."""

    kind = "slurm"

    def __init__(self, settings: Settings, cluster: Cluster) -> None:
        """Make the scheduler; `start` brings the daemons up."""
        self.version = "22.05.8"
        self._settings = settings
        self._cluster = cluster
        self._daemons = Daemons(cluster, default_account=not settings.require_account)

    async def start(self) -> None:
        """Start the daemons. Raises `SlurmUnavailable`."""
        await self._daemons.start()
        said = await self._cluster.run_root(["sbatch", "--version"], env=_ENVIRONMENT)
        match = re.search(rb"\d+(?:\.\d+)+", said.stdout)
        if match:
            self.version = match[0].decode()

    async def stop(self) -> None:
        """Stop the daemons."""
        await self._daemons.stop()

    async def _run(self, user: User, argv: Sequence[str], **options: Any) -> CommandResult:
        # The format must not reach sbatch, which would carry it into the job's environment.
        environment = _ENVIRONMENT if argv[0] == "sbatch" else _UNIX_TIMES
        return await self._cluster.run(user, argv, env=environment, **options)

    async def _text(self, user: User, argv: Sequence[str]) -> str:
        """Run a command that must succeed and return its output."""
        result = await self._run(user, argv)
        if result.returncode != 0:
            raise ApiError(500, command_error(result.returncode, _stderr(result)))
        return result.stdout.decode(errors="replace")

    # -- jobs ---------------------------------------------------------------------------------------------------------

    async def submit(self, user: User, request: JobSubmission) -> str:
        """Run sbatch and return the job's id. Raises ApiError in its words."""
        check_encodable(request)
        mode = self._settings.scheduler_mode
        rest = mode == "rest" or (mode == "hybrid" and not request.script_path)
        if isinstance(request.env, list):
            if not rest:
                raise UnhandledError("(\"'list' object has no attribute 'items'\",)")
            pairs = dict(piece.split("=", 1) for piece in request.env if "=" in piece)
            request = request.model_copy(update={"env": pairs})
        argv = ["sbatch", *sbatch_options(request, rest=rest)]
        if request.script_path:
            result = await self._run(user, [*argv, "--", request.script_path])
        elif not request.script:
            result = await self._run(user, argv, hold_stdin=True)
        else:
            script = without_directives(request.script) if rest else request.script
            result = await self._run(user, argv, input=script.encode(errors="surrogateescape"))
        if result.returncode != 0:
            raise refused(result.returncode, _stderr(result))
        match = re.search(rb"Submitted batch job (\d+)", result.stdout)
        if not match:
            raise ApiError(500, "Unable to submit new job")
        return match[1].decode()

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
        """Run sacct and squeue side by side and merge them."""
        sacct = ["sacct", "--noheader", "--parsable2", f"--format={parsing.SACCT_FIELDS}"]
        squeue = ["squeue", "--noheader", f"--Format={parsing.SQUEUE_FORMAT}"]
        if ids is not None or all_users:
            sacct.append("--allusers")
        else:
            squeue.append(f"--user={user.name}")
        if ids is not None:
            for argv in (sacct, squeue):
                argv.append(f"--jobs={','.join(ids)}")
        else:
            sacct.append(f"--starttime=now-{WINDOWS[window or '7d'] // 3600}hours")
        for argv in (sacct, squeue):
            argv += [f"--account={account}"] if account else []
            argv += [f"--name={','.join(names)}"] if names is not None else []
        try:
            accounting, queue = await asyncio.gather(self._run(user, sacct), self._run(user, squeue))
            return parsing.merge(_rows(accounting, minutes=True), _rows(queue, minutes=False))
        except parsing.BarInName as error:
            raise wrapped(None) from error
        except ApiError as error:
            raise error if error.message == SCHEDULER_ERROR else wrapped(error.message) from error

    async def listing(
        self,
        user: User,
        *,
        names: Sequence[str] | None = None,
        all_users: bool = False,
        account: str | None = None,
        window: str | None = None,
    ) -> bytes:
        """Return the listing's body."""
        rows = await self.jobs(user, names=names, all_users=all_users, account=account, window=window)
        return listing_body(rows)

    async def metadata(self, user: User, job_id: str) -> list[dict[str, Any]] | None:
        """Ask the controller for paths and script; None once it has forgotten the job."""
        shown, script = await asyncio.gather(
            self._run(user, ["scontrol", "show", "-o", "job", job_id]),
            self._run(user, ["scontrol", "write", "batch_script", job_id, "-"]),
        )
        paths = parsing.log_paths(shown.stdout.decode(errors="replace")) if shown.returncode == 0 else None
        if paths is None:
            return None
        text = script.stdout.decode(errors="replace") if script.returncode == 0 else ""
        return [{"jobId": job_id, "script": text, **paths}]

    async def cancel(self, user: User, job_id: str) -> None:
        """Run scancel, whose exit status says little: its words decide."""
        result = await self._run(user, ["scancel", "--verbose", job_id])
        if result.returncode != 0 or re.search(r".+error:", _stderr(result)):
            raise refused(result.returncode, _stderr(result))

    async def attach(self, user: User, job_id: str, command: str) -> None:
        """Run srun in the job's allocation; the login node's shell reads the command."""
        result = await self._run(user, ["/bin/sh", "-c", f"srun --jobid='{job_id}' --overlap {command}"])
        if result.returncode != 0:
            raise refused(result.returncode, _stderr(result))

    # -- the machine --------------------------------------------------------------------------------------------------

    async def nodes(self, user: User) -> list[dict[str, Any]]:
        """Run sinfo."""
        return parsing.node_rows(
            await self._text(user, ["sinfo", "-a", "-N", "--noheader", f"--format={parsing.SINFO_FORMAT}"])
        )

    async def partitions(self, user: User, *, show_hidden: bool) -> list[dict[str, Any]]:
        """Ask scontrol for the partitions."""
        text = await self._text(user, ["scontrol", "-a", "show", "-o", "partitions"])
        return parsing.partition_rows(text, show_hidden=show_hidden)

    async def reservations(self, user: User) -> list[dict[str, Any]]:
        """Ask scontrol for the reservations."""
        return parsing.reservation_rows(await self._text(user, ["scontrol", "-a", "show", "-o", "reservations"]))

    async def reserve(self, name: str, start: float, duration: float) -> None:
        """Make a reservation of one processor for every user; `start` is Unix time, `duration` seconds."""
        begin = "now" if start <= time.time() + 1 else time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(start))
        words = [f"ReservationName={name}", f"StartTime={begin}", f"Duration={max(1, round(duration / 60))}"]
        words += [f"Users={','.join(self._cluster.users)}", "CoreCnt=1", "Nodes=localhost"]
        said = await self._cluster.run_root(["scontrol", "create", "reservation", *words], env=_ENVIRONMENT)
        if said.returncode != 0:
            raise ApiError(400, said.stderr.decode(errors="replace").strip())

    async def accounts(self, user: User) -> list[dict[str, Any]]:
        """Ask sacctmgr for the user's accounts and the default one."""
        base = ["sacctmgr", "--noheader", "--parsable2", "show"]
        names, default = await asyncio.gather(
            self._text(user, [*base, "assoc", f"user={user.name}", "format=account"]),
            self._text(user, [*base, "user", user.name, "format=defaultaccount"]),
        )
        own = sorted({*names.split()})
        return [{"name": name, "default": name == default.strip()} for name in own]


def _stderr(result: CommandResult) -> str:
    return result.stderr.decode(errors="replace")


def _rows(result: CommandResult, *, minutes: bool) -> list[dict[str, Any]]:
    if result.returncode != 0:
        if result.returncode == 1 and "Invalid job id specified" in _stderr(result):
            return []
        raise wrapped(command_error(result.returncode, _stderr(result)))
    return parsing.job_rows(result.stdout.decode(errors="replace"), limit_in_minutes=minutes)
