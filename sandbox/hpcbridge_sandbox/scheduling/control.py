"""The scheduler's part of the control interface: faults of accounting, and jobs without processes.

Mounted under the control URL; never part of the REST interface or of its OpenAPI document.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from hpcbridge_sandbox.context import Sandbox, get_sandbox
from hpcbridge_sandbox.errors import ApiError
from hpcbridge_sandbox.scheduling.local.job import Simulation
from hpcbridge_sandbox.scheduling.local.scheduler import LocalScheduler

router = APIRouter(tags=["control"])

SandboxDep = Annotated[Sandbox, Depends(get_sandbox)]


class SchedulerFaults(BaseModel):
    """``POST …/scheduler-faults``: fields left out stay as they are. Times in seconds."""

    model_config = ConfigDict(extra="forbid")
    accounting_lag: float | None = Field(default=None, ge=0)
    missing_fraction: float | None = Field(default=None, ge=0, le=1)
    allocation_rows: bool | None = None
    listing_error: bool | None = None
    lost_jobs: frozenset[str] | None = None


class SimulatedJobs(BaseModel):
    """``POST …/jobs``: jobs that wait, run and end without a process; ``{i}`` in the name counts from 0."""

    model_config = ConfigDict(extra="forbid")
    user: str
    count: int = Field(default=1, ge=1, le=100_000)
    duration: float = Field(default=1.0, ge=0)
    queued: float = Field(default=0.0, ge=0)
    name: str = "sim-{i}"
    state: str = "COMPLETED"
    exit_code: int = 0
    signal: int = 0
    reason: str = "None"


class NewReservation(BaseModel):
    """``POST …/reservations``: it begins ``delay`` seconds from now and lasts ``duration`` seconds."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    duration: float = Field(default=600, gt=0)
    delay: float = Field(default=0, ge=0)


def _local(sandbox: Sandbox) -> LocalScheduler:
    if not isinstance(sandbox.scheduler, LocalScheduler):
        raise ApiError(501, "Only the local queue can do this: start the sandbox with --scheduler local")
    return sandbox.scheduler


@router.post("/scheduler-faults")
async def set_scheduler_faults(faults: SchedulerFaults, sandbox: SandboxDep) -> dict[str, Any]:
    """Change the lag and the faults of accounting; answers with what holds now."""
    accounting = _local(sandbox).accounting
    if faults.accounting_lag is not None:
        accounting.lag = faults.accounting_lag
    for name in ("missing_fraction", "allocation_rows", "listing_error", "lost_jobs"):
        value = getattr(faults, name)
        if value is not None:
            setattr(accounting, name, value)
    return {
        "accounting_lag": accounting.lag,
        "missing_fraction": accounting.missing_fraction,
        "allocation_rows": accounting.allocation_rows,
        "listing_error": accounting.listing_error,
        "lost_jobs": sorted(accounting.lost_jobs),
    }


@router.delete("/scheduler-faults")
async def clear_scheduler_faults(sandbox: SandboxDep) -> dict[str, Any]:
    """Back to the lag that the sandbox was started with, and no faults; a real Slurm has none to take back."""
    if not isinstance(sandbox.scheduler, LocalScheduler):
        return {}
    lag = sandbox.settings.scaled_accounting_lag
    quiet = SchedulerFaults(
        accounting_lag=lag, missing_fraction=0, allocation_rows=False, listing_error=False, lost_jobs=frozenset()
    )
    return await set_scheduler_faults(quiet, sandbox)


@router.post("/jobs")
async def add_simulated_jobs(jobs: SimulatedJobs, sandbox: SandboxDep) -> dict[str, list[str]]:
    """Queue simulated jobs and return their ids."""
    user = sandbox.cluster.users.get(jobs.user)
    if user is None:
        raise ApiError(404, f"There is no user {jobs.user!r}; there are {', '.join(sandbox.cluster.users)}")
    simulation = Simulation(
        duration=jobs.duration,
        queued=jobs.queued,
        state=jobs.state,
        exit_code=jobs.exit_code,
        signal=jobs.signal,
        reason=jobs.reason,
    )
    names = [jobs.name.replace("{i}", str(index)) for index in range(jobs.count)]
    return {"job_ids": _local(sandbox).simulate(user, names, simulation)}


@router.post("/reservations")
async def add_reservation(wanted: NewReservation, sandbox: SandboxDep) -> dict[str, str]:
    """Make a reservation that any user's job may name."""
    await sandbox.scheduler.reserve(wanted.name, time.time() + wanted.delay, wanted.duration)
    return {"name": wanted.name}
