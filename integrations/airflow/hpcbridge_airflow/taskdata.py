"""What a trigger may ask Airflow about its task, and what operator and trigger leave there for each other.

A triggerer can read and write XCom and ask for task states; it has no access to the task state store. All of these
calls block, so they run in threads.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from airflow.sdk.execution_time.xcom import XCom

JOB_XCOM = "firecrest_job"
"""The job that the task waits for: job id, name, system, and a link for people. Written before every deferral."""
LOG_XCOM = "firecrest_log"
"""How many bytes of each file of which job are in the task's log."""


@dataclass(frozen=True)
class TaskKey:
    """One task instance."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int

    @classmethod
    def of(cls, ti: Any) -> TaskKey:
        """The key of any of Airflow's task instance objects."""
        return cls(ti.dag_id, ti.run_id, ti.task_id, -1 if ti.map_index is None else ti.map_index)


def state_of(key: TaskKey) -> str | None:
    """The task instance's state now, None when it has none (just cleared) or is gone."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    states = RuntimeTaskInstance.get_task_states(
        dag_id=key.dag_id, task_ids=[key.task_id], run_ids=[key.run_id], map_index=key.map_index
    )
    of_run = states.get(key.run_id, {})
    state = of_run.get(key.task_id if key.map_index < 0 else f"{key.task_id}_{key.map_index}")
    return None if state is None else str(state)


async def task_state(key: TaskKey) -> str | None:
    """`state_of`, in a trigger."""
    return await asyncio.to_thread(state_of, key)


async def read_job(key: TaskKey) -> dict[str, Any] | None:
    """What `JOB_XCOM` holds for this task instance."""
    value = await asyncio.to_thread(_get, JOB_XCOM, key)
    return value if isinstance(value, dict) else None


def positions_of(job_id: str, positions: dict[str, int]) -> dict[str, Any]:
    """The value of `LOG_XCOM`."""
    return {"version": 1, "job_id": job_id, "files": dict(positions)}


class LogPositions:
    """Positions in XCom: they survive the triggerer, and end with the attempt, whose log is a new one."""

    def __init__(self, key: TaskKey, job_id: str) -> None:
        """For one task instance waiting for one job."""
        self._key = key
        self._job_id = job_id

    async def load(self) -> dict[str, int]:
        """Bytes already logged, by path."""
        value = await asyncio.to_thread(_get, LOG_XCOM, self._key)
        if not isinstance(value, dict) or value.get("job_id") != self._job_id:
            return {}
        return {path: int(offset) for path, offset in value["files"].items()}

    async def save(self, positions: dict[str, int]) -> None:
        """Remember them."""
        await asyncio.to_thread(_set, LOG_XCOM, self._key, positions_of(self._job_id, positions))


def _get(name: str, key: TaskKey) -> Any:
    return XCom.get_one(key=name, dag_id=key.dag_id, task_id=key.task_id, run_id=key.run_id, map_index=key.map_index)


def _set(name: str, key: TaskKey, value: Any) -> None:
    XCom.set(name, value, dag_id=key.dag_id, task_id=key.task_id, run_id=key.run_id, map_index=key.map_index)
