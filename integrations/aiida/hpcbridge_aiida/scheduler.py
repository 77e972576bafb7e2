"""The scheduler plugin `hpcbridge.slurm`: Slurm behind a FirecREST API.

Headers and resources are those of AiiDA's own Slurm plugin; no command is run anywhere. A job is submitted once per
work directory, whatever is lost or killed in between, and is done only when accounting says so.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from aiida.common.exceptions import FeatureNotAvailable
from aiida.schedulers import SchedulerError
from aiida.schedulers.datastructures import JobInfo, JobState
from aiida.schedulers.plugins.slurm import SlurmScheduler

from hpcbridge import errors
from hpcbridge_aiida.failures import as_oserror
from hpcbridge_aiida.transport import HpcbridgeTransport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiida.engine import ExitCode

    from hpcbridge.firecrest import JobRow
    from hpcbridge.jobs.state import JobInfo as RemoteInfo
    from hpcbridge_aiida.sessions import Session

T = TypeVar("T")

FIELDS = ("JobID", "JobName", "State", "ExitCode", "Signal", "Reason", "Submit", "Start", "End", "NodeList")
"""Columns of the detailed job info, called as sacct calls them."""
REFUSED = 130
"""Exit status of a calculation whose job the scheduler has refused for good; beside AiiDA's own 1xx."""
_HELD = frozenset({"Dependency", "JobHeldUser", "JobHeldAdmin", "BeginTime"})
_SUSPENDED = frozenset({"SUSPENDED", "STOPPED"})


class HpcbridgeSlurmScheduler(SlurmScheduler):
    """Slurm behind a FirecREST API, without a shell."""

    _logger = SlurmScheduler._logger.getChild("hpcbridge")
    _features = {"can_query_by_user": False}  # noqa: RUF012 (AiiDA's own declaration)

    def submit_job(self, working_directory: str, filename: str) -> str | ExitCode:
        """Submit the script `filename` of the work directory, once: the same call again finds the same job.

        Returns the job's id, or an exit code where the scheduler's refusal is final. Raises OSError for what may pass.
        """
        return self._run(self._submit, str(working_directory), filename)

    def get_jobs(  # type: ignore[override]
        self, jobs: list[str] | None = None, user: str | None = None, as_dict: bool = False
    ) -> list[JobInfo] | dict[str, JobInfo]:
        """The state of `jobs`, every one of them; without a list, of all live jobs of the user."""
        if user:
            raise FeatureNotAvailable("Cannot query by user in SLURM")
        ids = [jobs] if isinstance(jobs, str) else jobs
        found = self._run(self._look, None if ids is None else [str(each) for each in ids])
        return {each.job_id: each for each in found} if as_dict else found

    def kill_job(self, jobid: str) -> bool:
        """Ask the scheduler to end a job; False when it knows no such job."""
        return self._run(self._kill, str(jobid))

    def get_detailed_job_info(self, job_id: str) -> dict[str, str | int]:
        """What accounting says of a job, as `sacct --parsable` would print it."""
        return self._run(self._detail, str(job_id))

    def parse_output(
        self,
        detailed_job_info: dict[str, str | int] | None = None,
        stdout: str | None = None,
        stderr: str | None = None,
    ) -> ExitCode | None:
        """The exit code for how the job ended, with the scheduler's reason in its message; None for others.

        What is no exit code of AiiDA's (FAILED, CANCELLED …) is left to the parser, and said in the process's report.
        """
        from aiida.engine import CalcJob, ExitCode

        data = _parsed(detailed_job_info)
        state = data.get("State", "")
        found = _EXITS.get(state)
        if found is not None:
            code = CalcJob.exit_codes[found]
            return ExitCode(code.status, f"{code.message} {_said(data)}", code.invalidates_cache)
        if state not in ("", "COMPLETED"):
            _report(_said(data))
        return super().parse_output(None, stdout, stderr)

    # ----------------------------------------------------------------------------------------------------------------

    def _run(self, work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """`await work(session, …)` in AiiDA's event loop, which goes on meanwhile."""
        transport = self.transport
        if not isinstance(transport, HpcbridgeTransport):
            raise SchedulerError(
                f"The scheduler hpcbridge.slurm needs the transport hpcbridge, not {type(transport).__name__}: "
                "set the computer up with `verdi computer setup -T hpcbridge -S hpcbridge.slurm`"
            )

        async def translated() -> T:
            try:
                return await work(await transport.shared(), *arguments)
            except errors.HpcBridgeError as error:
                raise as_oserror(error) from error

        return transport.run_command_blocking(translated)

    async def _submit(self, session: Session, workdir: str, filename: str) -> str | ExitCode:
        from hpcbridge.jobs.spec import JobSpec

        script = await session.script_for(workdir, filename)
        now = datetime.now(UTC)
        try:
            spec = JobSpec(script=script, workdir=workdir, name=_label(script), account=_account(script))
            job = await session.handle.submit(spec, key=f"aiida {filename}", store=session.intents)
        except (errors.SubmitRejected, errors.InvalidRequest, errors.KeyConflict) as error:
            self.logger.error("the job of %s was refused: %s", workdir, error)
            return _refusal(error)
        session.watch.submitted(job.id, job.name or "", now)
        return job.id

    async def _look(self, session: Session, ids: list[str] | None) -> list[JobInfo]:
        if ids is None:
            rows = await session.handle.jobs()
            return [each for each in map(_of_row, rows) if each.job_state is not JobState.DONE]
        known = await session.watch.look(ids)
        return [_job_info(job_id, info) for job_id, info in known.items()]

    async def _kill(self, session: Session, job_id: str) -> bool:
        try:
            await session.handle.job(job_id).cancel(verify=False)
        except errors.JobNotFound as error:
            self.logger.warning("%s", error)
            return False
        return True

    async def _detail(self, session: Session, job_id: str) -> dict[str, str | int]:
        try:
            info = await session.watch.end(job_id)
        except errors.JobNotFound as error:
            return {"retval": 1, "stdout": "", "stderr": str(error)}
        values = (
            info.job_id,
            info.name,
            info.raw_state if info.raw_state == "VANISHED" else str(info.state),
            info.exit_code,
            info.signal,
            info.reason,
            *(when and when.isoformat() for when in (info.submitted, info.started, info.ended)),
            info.nodes,
        )
        line = "|".join("" if value is None else re.sub(r"[|\n]", " ", str(value)) for value in values)
        return {"retval": 0, "stdout": f"{'|'.join(FIELDS)}\n{line}\n", "stderr": ""}


_EXITS = {
    "OUT_OF_MEMORY": "ERROR_SCHEDULER_OUT_OF_MEMORY",
    "TIMEOUT": "ERROR_SCHEDULER_OUT_OF_WALLTIME",
    "DEADLINE": "ERROR_SCHEDULER_OUT_OF_WALLTIME",
    "NODE_FAIL": "ERROR_SCHEDULER_NODE_FAILURE",
    "BOOT_FAIL": "ERROR_SCHEDULER_NODE_FAILURE",
    "LAUNCH_FAILED": "ERROR_SCHEDULER_NODE_FAILURE",
}


def _parsed(detailed: dict[str, str | int] | None) -> dict[str, str]:
    """The columns of the detailed job info; raises ValueError for what is none, as AiiDA's own plugin does."""
    if detailed is None:
        return {}
    if not isinstance(detailed, dict):
        raise TypeError("the `detailed_job_info` is not a dictionary")
    lines = str(detailed.get("stdout", "")).splitlines()
    if len(lines) < 2:
        raise ValueError("the `detailed_job_info.stdout` contained less than two lines.")
    names, values = lines[0].split("|"), lines[1].split("|")
    if len(names) != len(values):
        raise ValueError("first and second line in `detailed_job_info.stdout` differ in length")
    return dict(zip(names, values, strict=True))


def _said(data: dict[str, str]) -> str:
    parts = [f"Job {data.get('JobID')} ended as {data.get('State')}"]
    if data.get("Signal") not in (None, "", "0"):
        parts.append(f"killed by signal {data['Signal']}")
    elif data.get("ExitCode") not in (None, "", "0"):
        parts.append(f"exit code {data['ExitCode']}")
    if data.get("Reason") not in (None, "", "None"):
        parts.append(f"reason {data['Reason']}")
    return ", ".join(parts) + "."


def _report(words: str) -> None:
    """Write into the report of the process that is being parsed, where there is one."""
    from aiida.engine import Process

    process = Process.current()
    if process is not None:
        process.logger.warning(words)


def _refusal(error: errors.HpcBridgeError) -> ExitCode:
    from aiida.engine import CalcJob, ExitCode

    if "invalid account" in error.message.lower():
        code = CalcJob.exit_codes.ERROR_SCHEDULER_INVALID_ACCOUNT
        return ExitCode(code.status, f"{code.message} {error}", code.invalidates_cache)
    return ExitCode(REFUSED, f"The scheduler refused the job: {error}", True)


def _label(script: str) -> str:
    """The job's name in the script, as a label of hpcbridge's."""
    found = re.search(r'^#SBATCH --job-name="?([^"\n]*)', script, re.MULTILINE)
    label = re.sub(r"[^A-Za-z0-9_.-]", "", found[1] if found else "")
    return (label if re.match(r"[A-Za-z]", label) else f"aiida{label}")[:40]


def _account(script: str) -> str | None:
    """The account that the script names: it wins over the site's default, as for any other script it would not."""
    from hpcbridge.jobs.guard import directives_in, options_in

    named = [value for option, value in options_in(directives_in(script)) if option in ("-A", "--account")]
    return named[-1] if named else None


def _of_row(row: JobRow) -> JobInfo:
    from hpcbridge.jobs.state import JobInfo as RemoteInfo

    return _job_info(row.job_id, RemoteInfo.from_row(row))


def _job_info(job_id: str, info: RemoteInfo | None) -> JobInfo:
    """What hpcbridge knows, in AiiDA's terms; UNDETERMINED where no answer has told anything yet."""
    job = JobInfo()
    job.job_id = job_id
    job.job_state = JobState.UNDETERMINED
    if info is None:
        job.annotation = "no answer has told of this job yet"
        return job
    job.job_state = _state(info)
    job.title, job.raw_data = info.name, info.raw_state
    job.annotation = info.describe() if job.job_state is JobState.DONE else info.reason or ""
    if job.job_state is JobState.DONE and info.exit_code is not None:
        job.exit_status = info.exit_code
    times = {"submission_time": info.submitted, "dispatch_time": info.started, "finish_time": info.ended}
    job.update({name: when for name, when in times.items() if when is not None})
    if info.nodes:
        job.allocated_machines_raw = info.nodes
    if info.started and info.ended:
        job.wallclock_time_seconds = int((info.ended - info.started).total_seconds())
    return job


def _state(info: RemoteInfo) -> JobState:
    if info.is_terminal or info.raw_state == "VANISHED":
        return JobState.DONE
    if str(info.state) in _SUSPENDED:
        return JobState.SUSPENDED
    if info.state.is_queued:
        return JobState.QUEUED_HELD if info.reason in _HELD else JobState.QUEUED
    return JobState.UNDETERMINED if str(info.state) == "UNKNOWN" else JobState.RUNNING
