"""From a task attempt to its one batch job: new, found again, or instead of an earlier one that is cancelled first."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from hpcbridge.errors import HpcBridgeError, JobNotFound
from hpcbridge.jobs.guard import Places
from hpcbridge_airflow import attempts, watching
from hpcbridge_airflow.attempts import Attempt, AttemptIntents

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import Logger

    from hpcbridge import Hpc, Job, JobInfo, JobSpec, System

APPEARANCE = timedelta(seconds=watching.ABSENT_AFTER)
"""After its POST a job is listed, and known by its id, within this time."""


@dataclass(frozen=True)
class Launched:
    """A job that exists. Paths are absolute; `stdout` and `stderr` are None where they cannot be told (arrays).

    `private` is the directory of the environment file, None where there is none.
    """

    system: str
    job_id: str
    name: str
    workdir: str
    submitted_at: str | None = None
    array: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    private: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def log_files(self) -> dict[str, str]:
        """Prefix in the task's log -> path."""
        files = {"": self.stdout, "stderr: ": self.stderr if self.stderr != self.stdout else None}
        return {prefix: path for prefix, path in files.items() if path}


async def launch(
    hpc: Hpc, system_name: str | None, spec: JobSpec, workdir: str | None, context: Context, log: Logger
) -> Launched:
    """The job of this attempt. Raises what `hpcbridge.System.submit` raises."""
    async with hpc:
        system = hpc.system(system_name)
        name = await system.resolve()
        spec = await placed(system, spec, workdir)
        store = attempts.attempts_of(context)
        found = await asyncio.to_thread(store.read)
        wanted: dict[str, Any] = {
            "clear_number": attempts.clear_number(context),
            "spec_hash": spec.fingerprint(),
            "system": name,
        }
        number = 1
        new = True
        if found is not None and found.stands_for(**wanted):
            number, new = found.number, found.refused
            if found.job_id is not None and await _ended_badly(system, found, log):
                number, new = found.number + 1, True
        elif found is not None:
            number = found.number + 1
            await _end_earlier(hpc, found, log)
        if new:
            attempt = Attempt(number=number, key=attempts.key_of(context, number), **wanted)
        else:
            assert found is not None
            attempt = found
            log.info("An earlier worker was lost: looking for its job %s", found.name)
        job = await system.submit(spec, key=attempt.key, store=AttemptIntents(store, attempt, new=new))
        how = "Attached to" if job.adopted or not new else "Submitted"
        log.info("%s job %s (%s) on %s", how, job.id, job.name, name)
        stdout, stderr = await _streams(job, spec, log)
        return Launched(
            system=name,
            job_id=job.id,
            name=job.name or "",
            workdir=spec.workdir or "",
            submitted_at=datetime.now(UTC).isoformat() if new else None,
            array=spec.array,
            stdout=stdout,
            stderr=stderr,
            private=Places(spec.workdir or "", job.name or "").private if spec.env else None,
        )


async def placed(system: System, spec: JobSpec, workdir: str | None) -> JobSpec:
    """The spec with an absolute, existing working directory, and with its output where we can find it."""
    place = await resolve_path(system, workdir)
    await system.mkdir(place)
    changes: dict[str, Any] = {"workdir": place}
    if spec.array is None and not _names_streams(spec):
        changes["output"] = _default_output(place)
    return spec.replace(**changes)


async def resolve_path(system: System, path: str | None) -> str:
    """An absolute remote path; one that does not begin with `/` is under the user's own directory."""
    if path and path.startswith("/"):
        return path
    home = await system.home()
    return f"{home}/{path}" if path else home


async def _ended_badly(system: System, attempt: Attempt, log: Logger) -> bool:
    """Whether a retry needs a new job. A job that still runs, or has ended well, is the one to attach to."""
    assert attempt.job_id is not None
    info = await _look(system, attempt, attempt.job_id)
    if info is None:
        log.warning("Job %s of the attempt before is not known any more", attempt.job_id)
        return True
    log.info("Job %s of the attempt before is %s", attempt.job_id, info.raw_state or info.state)
    return info.is_terminal and not info.ok


async def _look(system: System, attempt: Attempt, job_id: str) -> JobInfo | None:
    """The job as it is now; None when it is certainly not known, which accounting shows late."""
    settled = datetime.fromisoformat(attempt.since) + APPEARANCE
    while True:
        asked = datetime.now(UTC)
        try:
            return await system.job(job_id).info()
        except JobNotFound:
            if asked > settled:
                return None
        await asyncio.sleep(2)


async def _end_earlier(hpc: Hpc, attempt: Attempt, log: Logger) -> None:
    """The task was cleared, or its script changed: the recorded job must not run beside the new one."""
    system = hpc.system(attempt.system)
    ids = [attempt.job_id] if attempt.job_id else await _find_by_name(system, attempt)
    for job_id in ids:
        info = await _look(system, attempt, job_id)
        if info is not None and not info.is_terminal:
            log.warning("Cancelling job %s of the attempt before: another job is wanted now", job_id)
            await watching.cancel(system, job_id, log)


async def _find_by_name(system: System, attempt: Attempt) -> list[str]:
    """Ids of a job whose POST was never answered; waits until it would certainly be listed."""
    if not attempt.name or attempt.refused:
        return []
    settled = datetime.fromisoformat(attempt.since) + APPEARANCE
    while True:
        asked = datetime.now(UTC)
        rows = await system.client.jobs(system.name, names=[attempt.name])
        ids = sorted({row.array_job_id or row.job_id for row in rows if row.name == attempt.name})
        if ids or asked > settled:
            return ids
        await asyncio.sleep(2)


async def attend_here(
    hpc: Hpc, launched: Launched, log_output: bool, deadline: datetime | None, log: Logger
) -> watching.Outcome:
    """Wait in the worker."""
    async with hpc:
        system = hpc.system(launched.system)
        files = launched.log_files() if log_output else {}
        pump = watching.LogPump(system, log, files, watching.NoPositions()) if files else None
        submitted = datetime.fromisoformat(launched.submitted_at) if launched.submitted_at else None
        output = launched.stderr or launched.stdout
        return await watching.attend(
            system,
            launched.job_id,
            launched.name,
            log,
            submitted_at=submitted,
            array=launched.array,
            output=output,
            private=launched.private,
            pump=pump,
            deadline=deadline,
        )


async def stop(hpc: Hpc, launching: Future[Launched], log: Logger) -> None:
    """Cancel what `launch` made, or is just making: its answer is waited for, or the job would be left behind."""
    async with hpc:
        try:
            launched = await asyncio.wrap_future(launching)
        except HpcBridgeError:
            return
        await watching.cancel(hpc.system(launched.system), launched.job_id, log, private=launched.private)


_STREAM_OPTION = re.compile(r"^#SBATCH\b.*\s(-o|--output|-e|--error)(?=[\s=]|$)", re.MULTILINE)


def _names_streams(spec: JobSpec) -> bool:
    """Whether the user says where a stream goes; then only the scheduler knows for sure."""
    options = "\n".join(f"#SBATCH {line}" for line in spec.directives)
    given = spec.output is not None or spec.error is not None
    return given or any(_STREAM_OPTION.search(text) for text in (spec.script or "", options))


async def _streams(job: Job, spec: JobSpec, log: Logger) -> tuple[str | None, str | None]:
    """Where the job's two streams are; None of an array, whose tasks have files of their own."""
    if spec.array is not None:
        return None, None
    if spec.output == _default_output(spec.workdir or ""):
        return spec.output.replace("%j", job.id), None
    try:
        return await job.output_path("stdout"), await job.output_path("stderr")
    except HpcBridgeError as error:
        log.warning("Where job %s writes could not be found out; its output is not shown here: %s", job.id, error)
        return None, None


def _default_output(workdir: str) -> str:
    return f"{workdir}/slurm-%j.out"
