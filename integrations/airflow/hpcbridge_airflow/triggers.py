"""What runs in the triggerer while no worker is held: attending a batch job, moving a file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.configuration import conf
from airflow.triggers.base import BaseTrigger, TriggerEvent

from hpcbridge.errors import HpcBridgeError
from hpcbridge_airflow import taskdata
from hpcbridge_airflow.hooks import FirecRESTHook
from hpcbridge_airflow.moving import Move, move_file
from hpcbridge_airflow.watching import LogPump, attend, cancel

if TYPE_CHECKING:
    from hpcbridge_airflow.watching import Outcome

VERSION = 1

_detached: set[asyncio.Task[None]] = set()
"""Cancels under way. The event loop keeps only weak references to tasks."""


class FirecRESTJobTrigger(BaseTrigger):
    """Waits for the end of one job, copies its output into the task's log, and cancels it when the task is taken away.

    Everything in it is JSON; the connection is named, never its token. It may run twice at a time (a stalled triggerer
    comes back): both only watch, and only one fires. Payload of its event, `version` 1: `outcome` is "ended",
    "deadline" or "error"; `info` the job as `JobInfo.to_json` gives it; `tail` its last lines; `error` and `message`
    what went wrong while watching.
    """

    def __init__(
        self,
        firecrest_conn_id: str,
        system: str,
        job_id: str,
        job_name: str | None = None,
        submitted_at: str | None = None,
        array: str | None = None,
        output: str | None = None,
        log_files: dict[str, str] | None = None,
        private: str | None = None,
        deadline: str | None = None,
        version: int = VERSION,
        **newer: Any,
    ) -> None:
        """Everything is JSON; times are ISO 8601 with an offset.

        `log_files` maps a prefix for the log to a path; `private` is the directory of the job's environment file, which
        is removed with the job.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.firecrest_conn_id = firecrest_conn_id
        self.system = system
        self.job_id = job_id
        self.job_name = job_name
        self.submitted_at = submitted_at
        self.array = array
        self.output = output
        self.log_files = log_files or {}
        self.private = private
        self.deadline = deadline
        self.version = version
        self._newer = newer  # of a trigger that a newer hpcbridge wrote, before a downgrade

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments, as Airflow stores them."""
        fields = ("firecrest_conn_id", "system", "job_id", "job_name", "submitted_at", "array", "output", "log_files")
        arguments = {name: getattr(self, name) for name in (*fields, "private", "deadline", "version")}
        return "hpcbridge_airflow.triggers.FirecRESTJobTrigger", arguments | self._newer

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Fire once: at the end of the job, past the deadline, or when watching it is impossible."""
        began = time.monotonic()
        payload: dict[str, Any]
        try:
            outcome = await self._attend()
        except HpcBridgeError as error:
            payload = {"outcome": "error", "error": type(error).__name__, "message": str(error)}
        except Exception as error:
            # A trigger that raises fails its task without the operator having a say, and the job would be left behind.
            self.log.exception("Watching job %s failed", self.job_id)
            payload = {"outcome": "error", "error": None, "message": f"{type(error).__name__}: {error}"}
        else:
            payload = {
                "outcome": "deadline" if outcome.deadline_passed else "ended",
                "info": outcome.info.to_json(),
                "tail": outcome.tail,
            }
        await _let_the_worker_end(began)
        yield TriggerEvent({"version": VERSION, "job_id": self.job_id, **payload})  # type: ignore[no-untyped-call]

    async def _attend(self) -> Outcome:
        async with await FirecRESTHook(self.firecrest_conn_id).aget_conn() as hpc:
            system = hpc.system(self.system)
            pump = None
            if self.log_files and self.task_instance is not None:
                positions = taskdata.LogPositions(taskdata.TaskKey.of(self.task_instance), self.job_id)
                pump = LogPump(system, self.log, self.log_files, positions)
            return await attend(
                system,
                self.job_id,
                self.job_name,
                self.log,
                submitted_at=_time(self.submitted_at),
                array=self.array,
                output=self.output,
                private=self.private,
                pump=pump,
                deadline=_time(self.deadline),
            )

    async def on_kill(self) -> None:
        """The triggerer was told to drop this trigger: cancel the job unless the task still waits for it.

        Airflow cancels this coroutine again on every tick of its runner (about 1 s), so the work is done in a task of
        its own, out of reach.
        """
        task = asyncio.create_task(self._cancel_if_abandoned(), name=f"firecrest-cancel-{self.job_id}")
        _detached.add(task)
        task.add_done_callback(_detached.discard)
        await asyncio.shield(task)

    async def _cancel_if_abandoned(self) -> None:
        try:
            if await self._task_still_waits():
                self.log.warning("Job %s is kept: its task still waits for it (trigger moved elsewhere)", self.job_id)
                return
        except Exception:
            # Nothing is known: a job too many is less bad than a healthy one killed.
            self.log.exception("Job %s is kept: whether its task still waits could not be found out", self.job_id)
            return
        try:
            async with await FirecRESTHook(self.firecrest_conn_id).aget_conn() as hpc:
                self.log.info("The task was taken away: cancelling job %s", self.job_id)
                await cancel(hpc.system(self.system), self.job_id, self.log, private=self.private)
        except Exception:
            self.log.exception("Job %s could not be cancelled and may still run", self.job_id)

    async def _task_still_waits(self) -> bool:
        """Whether this trigger was only moved: the task is deferred, and on this very job."""
        if self.task_instance is None:
            raise RuntimeError("the trigger belongs to no task")
        key = taskdata.TaskKey.of(self.task_instance)
        if await taskdata.task_state(key) != "deferred":
            return False
        waited_for = await taskdata.read_job(key)
        return waited_for is not None and waited_for.get("job_id") == self.job_id


class FirecRESTTransferTrigger(BaseTrigger):
    """Moves one file; the triggerer must see it.

    A restarted one begins again, which does no harm: what is there already is recognised, and the file is checked.

    Payload of its event, `version` 1: `outcome` is "done" (with `remote`), "deadline" or "error" (`error`, `message`).
    """

    def __init__(
        self,
        firecrest_conn_id: str,
        move: dict[str, Any],
        deadline: str | None = None,
        version: int = VERSION,
        **newer: Any,
    ) -> None:
        """`move` is a `moving.Move` as JSON; `deadline` is ISO 8601 with an offset."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.firecrest_conn_id = firecrest_conn_id
        self.move = move
        self.deadline = deadline
        self.version = version
        self._newer = newer

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments, as Airflow stores them."""
        names = ("firecrest_conn_id", "move", "deadline", "version")
        arguments = {name: getattr(self, name) for name in names}
        return "hpcbridge_airflow.triggers.FirecRESTTransferTrigger", arguments | self._newer

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Fire once, at the end of the transfer."""
        began = time.monotonic()
        payload: dict[str, Any]
        limit = asyncio.timeout(_seconds_until(self.deadline))
        try:
            async with limit:
                hpc = await FirecRESTHook(self.firecrest_conn_id).aget_conn()
                payload = {"outcome": "done", "remote": await move_file(hpc, Move.from_json(self.move), self.log)}
        except HpcBridgeError as error:
            payload = {"outcome": "error", "error": type(error).__name__, "message": str(error)}
        except Exception as error:
            if limit.expired():
                payload = {"outcome": "deadline"}
            else:
                self.log.exception("The transfer failed")
                payload = {"outcome": "error", "error": None, "message": f"{type(error).__name__}: {error}"}
        await _let_the_worker_end(began)
        yield TriggerEvent({"version": VERSION, **payload})  # type: ignore[no-untyped-call]


async def _let_the_worker_end(began: float) -> None:
    """Wait until the supervisor of the task that deferred has surely noticed its end.

    It looks every `[workers] min_heartbeat_interval` seconds; a task that is back sooner is failed by the scheduler
    ("finished with state success, but …"; Airflow 3.3.2).
    """
    earliest = began + conf.getfloat("workers", "min_heartbeat_interval", fallback=5.0) + 2.0
    await asyncio.sleep(max(0.0, earliest - time.monotonic()))


def _seconds_until(deadline: str | None) -> float | None:
    moment = _time(deadline)
    return None if moment is None else max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
