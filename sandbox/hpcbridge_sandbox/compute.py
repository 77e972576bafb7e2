"""``/compute/{system_name}/jobs``: submit, list, read, cancel, metadata, attach.

Statuses, bodies and headers as recorded from a FirecREST 2.5.7 server; the scheduler's own words come from the
scheduler.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import BaseModel

from hpcbridge_sandbox.cluster import User
from hpcbridge_sandbox.context import Sandbox, SystemCondition, current_user, get_sandbox, healthy_scheduler
from hpcbridge_sandbox.errors import ApiError, SSHError, UnhandledError
from hpcbridge_sandbox.scheduling.base import JobsTimeWindow, JobSubmission, Scheduler, wrapped

router = APIRouter(prefix="/compute/{system_name}/jobs", tags=["compute"])

REST_ONLY = "Scheduler can't handle this request when configured to use rest connection mode"

SandboxDep = Annotated[Sandbox, Depends(get_sandbox)]
UserDep = Annotated[User, Depends(current_user)]
SystemDep = Annotated[SystemCondition, Depends(healthy_scheduler)]
JobId = Annotated[str, Path(pattern="^[a-zA-Z0-9]+$", description="Job id")]


class SubmitRequest(BaseModel):
    """``PostJobSubmitRequest``."""

    job: JobSubmission


class AttachRequest(BaseModel):
    """``PostJobAttachRequest``."""

    command: str | None = None


def _reachable(condition: SystemCondition) -> None:
    """Raise what a submit, cancel or attach ends in when the login node cannot be reached."""
    if condition.ssh == "refused":
        raise UnhandledError("(111, 'Connection refused')")
    if condition.ssh == "denied":
        raise SSHError("Unable to establish SSH connection.")


def _readable(condition: SystemCondition) -> None:
    """Raise what a read ends in when the login node cannot be reached: the scheduler's wrapper hides the status."""
    if condition.ssh == "refused":
        raise wrapped("[Errno 111] Connection refused")
    if condition.ssh == "denied":
        raise wrapped("Unable to establish SSH connection.")


def _scheduler(sandbox: Sandbox) -> Scheduler:
    scheduler: Scheduler = sandbox.scheduler
    return scheduler


@router.post("", status_code=201)
async def post_job_submit(
    body: SubmitRequest, sandbox: SandboxDep, user: UserDep, condition: SystemDep
) -> dict[str, str]:
    """Submit a new job."""
    mode = sandbox.settings.scheduler_mode
    if mode == "rest" and body.job.script_path:
        raise ApiError(501, REST_ONLY)
    _reachable(condition)
    return {"jobId": await _scheduler(sandbox).submit(user, body.job)}


@router.get("")
async def get_jobs(
    sandbox: SandboxDep,
    user: UserDep,
    condition: SystemDep,
    allusers: bool = False,
    account: str | None = None,
    name: Annotated[str | None, Query(max_length=235)] = None,
    time_window: JobsTimeWindow = JobsTimeWindow.LAST_24_HOURS,
) -> Response:
    """List jobs; `name` and `time_window` count from server 2.5.7 on."""
    _readable(condition)
    recent = sandbox.settings.server_version != "2.5.6"
    body = await _scheduler(sandbox).listing(
        user,
        names=name.split(",") if recent and name else None,
        all_users=allusers,
        account=account,
        window=time_window.value if recent else None,
    )
    return Response(body, media_type="application/json")


@router.get("/{job_id}")
async def get_job(job_id: JobId, sandbox: SandboxDep, user: UserDep, condition: SystemDep) -> dict[str, Any]:
    """Read one job, whoever owns it; an array answers with several rows."""
    _readable(condition)
    rows = await _scheduler(sandbox).jobs(user, ids=[job_id])
    if not rows:
        raise ApiError(404, "Job not found.")
    return {"jobs": rows}


@router.get("/{job_id}/metadata")
async def get_job_metadata(job_id: JobId, sandbox: SandboxDep, user: UserDep, condition: SystemDep) -> dict[str, Any]:
    """Script and log paths of a job that the controller still knows."""
    if sandbox.settings.scheduler_mode == "rest":
        raise ApiError(501, REST_ONLY)
    _reachable(condition)
    rows = await _scheduler(sandbox).metadata(user, job_id)
    if rows is None:
        raise ApiError(404, "Job not found.")
    return {"jobs": rows}


@router.delete("/{job_id}", status_code=204)
async def delete_job_cancel(job_id: JobId, sandbox: SandboxDep, user: UserDep, condition: SystemDep) -> Response:
    """Cancel a job."""
    _reachable(condition)
    await _scheduler(sandbox).cancel(user, job_id)
    return Response(status_code=204, media_type="application/json")


@router.put("/{job_id}/attach", status_code=204)
async def attach(
    job_id: JobId, body: AttachRequest, sandbox: SandboxDep, user: UserDep, condition: SystemDep
) -> Response:
    """Run a command in a job's allocation; in REST mode the server does nothing and says 204."""
    _reachable(condition)
    if sandbox.settings.scheduler_mode == "rest":
        return Response(status_code=204, media_type="application/json")
    if body.command is None:
        raise UnhandledError("('sequence item 3: expected str instance, NoneType found',)")
    await _scheduler(sandbox).attach(user, job_id, body.command)
    return Response(status_code=204, media_type="application/json")
