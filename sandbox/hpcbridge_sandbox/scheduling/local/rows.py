"""Rows of the REST interface, made as the server makes them from ``sacct`` and ``squeue``.

The server runs both and merges them by job id: accounting first, then a row of the queue where accounting has none or
where the queue says PENDING. So a waiting job shows the queue's row (exit code null, no nodes), a running task of an
array shows twice (``144_0`` and its raw id), and the waiting tasks show as ``144`` and, by id, as ``144_[2-4%2]`` too.
"""

from __future__ import annotations

from typing import Any

from hpcbridge_sandbox.scheduling.local.accounting import View
from hpcbridge_sandbox.scheduling.local.job import Job

NODE = "localhost"
CLUSTER = "cluster"

Row = dict[str, Any]


def _status(state: str, reason: str | None, exit_code: int | None, signal: int | None) -> Row:
    return {"state": state, "stateReason": reason, "exitCode": exit_code, "interruptSignal": signal}


def _time(elapsed: int, start: float | None, end: float | None, suspended: int | None, limit: int | None) -> Row:
    return {
        "elapsed": elapsed,
        "start": None if start is None else int(start),
        "end": None if end is None else int(end),
        "suspended": suspended,
        "limit": limit,
    }


def _row(job: Job, row_id: str, **values: Any) -> Row:
    request = job.request
    return {
        "jobId": row_id,
        "name": job.name,
        "status": None,
        "tasks": [],
        "time": None,
        "account": request.account,
        "allocationNodes": request.nodes,
        "cluster": CLUSTER,
        "group": request.group,
        "nodes": NODE,
        "partition": request.partition,
        "killRequestUser": None,
        "user": request.user,
        "workingDirectory": request.workdir,
        "priority": job.priority,
    } | values


def _batch_state(job: Job) -> str:
    """The batch step's own state: a step that a signal ended is CANCELLED, whatever the job is called."""
    if job.state in ("TIMEOUT", "CANCELLED", "NODE_FAIL", "PREEMPTED", "DEADLINE") or (job.signal and job.terminal):
        return "OUT_OF_MEMORY" if job.state == "OUT_OF_MEMORY" else "CANCELLED"
    return job.state


def _steps(job: Job, now: float, state: str | None) -> list[Row]:
    if job.start is None:
        return []
    running = state == "RUNNING"
    batch = _status(
        state or _batch_state(job),
        None,
        0 if running else job.exit_code,
        0 if running else job.batch_signal or job.signal,
    )
    end = None if running else job.end
    elapsed = int(now) - int(job.start) if running else job.elapsed(now)
    steps = [{"id": f"{job.accounting_id}.batch", "name": "batch", "status": batch}]
    steps[0]["time"] = _time(elapsed, job.start, end, job.suspended, None)
    for step in job.steps:
        step_end = step.end if step.end is not None else job.end
        step_state = "RUNNING" if step_end is None else "FAILED" if step.exit_code or step.signal else "COMPLETED"
        seconds = int(step_end if step_end is not None else now) - int(step.start)
        steps.append(
            {
                "id": f"{job.accounting_id}.{step.number}",
                "name": step.name,
                "status": _status(step_state, None, step.exit_code, step.signal),
                "time": _time(seconds, step.start, step_end, 0, None),
            }
        )
    return steps


def accounting_row(job: Job, now: float, view: View) -> Row:
    """Return what ``sacct`` shows of the job."""
    row_id, limit = job.accounting_id, job.request.limit
    if job.start is None:
        return _row(
            job,
            row_id,
            allocationNodes=0,
            nodes="None assigned",
            status=_status(job.shown_state, job.reason, 0, 0),
            time=_time(0, None, job.end, 0, limit),
        )
    if view is View.PENDING:
        return _row(
            job, row_id, status=_status("PENDING", "None", 0, 0), time=_time(0, job.start, None, 0, limit), tasks=[]
        )
    if view is View.RUNNING:
        elapsed = max(0, int(now) - int(job.start))
        return _row(
            job,
            row_id,
            status=_status("RUNNING", "None", 0, 0),
            time=_time(elapsed, job.start, None, 0, limit),
            tasks=_steps(job, now, "RUNNING"),
        )
    row = _row(
        job,
        row_id,
        status=_status(job.shown_state, job.reason, job.exit_code, job.signal),
        time=_time(job.elapsed(now), job.start, job.end, job.suspended, limit),
        tasks=_steps(job, now, None),
    )
    if view is View.ALLOCATION:
        row |= {"name": "allocation", "partition": "", "workingDirectory": "", "tasks": []}
        row["time"]["limit"] = None
    return row


def queue_row(job: Job, now: float) -> Row:
    """Return what ``squeue`` shows of the job; its ids are the raw ones."""
    expected_end = None
    if job.start is not None and job.request.limit is not None:
        expected_end = job.start + job.request.limit
    return _row(
        job,
        str(job.job_id),
        allocationNodes=job.request.nodes,
        nodes="" if job.start is None or job.state == "PENDING" else NODE,
        status=_status(job.state, job.reason, None, None),
        time=_time(job.elapsed(now), job.start, expected_end, None, job.request.limit),
    )


def job_rows(job: Job, now: float, view: View, *, listing: bool) -> list[Row]:
    """Return the rows of one record in one answer, merged as the server merges them."""
    if view is View.MISSING:
        return []
    if job.state == "PENDING" and view is View.TRUE:
        waiting = queue_row(job, now)
        if job.array_id is not None and not listing:
            return [accounting_row(job, now, view), waiting]
        return [waiting]
    rows = [accounting_row(job, now, view)]
    if job.array_id is not None and not job.terminal and job.task is not None:
        rows.append(queue_row(job, now))
    return rows
