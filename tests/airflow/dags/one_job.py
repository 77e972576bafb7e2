"""DAGs of one submit task each; the run's conf says which script, where, and where a worker is to be killed."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from typing import Any

import httpx
from airflow.sdk import DAG, Param

from hpcbridge_airflow import attempts
from hpcbridge_airflow.operators import FirecRESTSubmitOperator

PARAMS = {
    "script": Param("#!/bin/bash\ntrue", type="string"),
    "workdir": Param("one-job", type="string"),
    "kill_at": Param("", type="string"),
    "system": Param("", type="string"),
    "conn": Param("firecrest_default", type="string"),
    "secret": Param("", type="string"),
}


class KilledWorker(FirecRESTSubmitOperator):
    """Its worker process is killed with SIGKILL at one point of the first attempt; or its task is marked as failed."""

    def execute(self, context: Any) -> Any:
        point, first = context["params"]["kill_at"], context["ti"].try_number == 1
        if first and point == "before_post":
            _kill_after(attempts.AttemptIntents, "begin")
        if first and point == "before_bind":
            _kill_before(attempts.AttemptIntents, "bind")
        if first and point == "after_bind":
            _kill_after(attempts.AttemptIntents, "bind")
        if first and point == "before_defer":
            _kill_before(type(self), "_trigger")
        if point == "mark":
            _mark_after(self, "_publish")
        return super().execute(context)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_before(owner: type, name: str) -> None:
    setattr(owner, name, lambda *args, **kwargs: _die())


def _kill_after(owner: type, name: str) -> None:
    original = getattr(owner, name)

    async def then_die(*args: Any, **kwargs: Any) -> None:
        await original(*args, **kwargs)
        _die()

    setattr(owner, name, then_die)


def _mark_after(operator: FirecRESTSubmitOperator, name: str) -> None:
    """As a user does in the interface."""
    original = getattr(operator, name)

    def then_mark(context: Any, launched: Any) -> None:
        original(context, launched)
        ti, base = context["ti"], os.environ["AIRFLOW__API__BASE_URL"]
        token = httpx.get(f"{base}/auth/token").json()["access_token"]
        path = f"dags/{ti.dag_id}/dagRuns/{ti.run_id}/taskInstances/{ti.task_id}"
        headers = {"Authorization": f"Bearer {token}"}
        answer = httpx.patch(f"{base}/api/v2/{path}", json={"new_state": "failed"}, headers=headers, timeout=30)
        answer.raise_for_status()

    setattr(operator, name, then_mark)


def one_job(dag_id: str, kind: type[FirecRESTSubmitOperator] = FirecRESTSubmitOperator, **options: Any) -> None:
    with DAG(dag_id, schedule=None, params=PARAMS, render_template_as_native_obj=False):
        kind(
            task_id="job",
            script="{{ params.script }}",
            workdir="{{ params.workdir }}",
            system="{{ params.system }}",
            firecrest_conn_id="{{ params.conn }}",
            env={"SECRET_VALUE": "{{ params.secret or conn.firecrest_default.password }}"},
            **({"deferrable": True, "retry_delay": timedelta(seconds=1)} | options),
        )


one_job("one_job")
one_job("one_job_here", deferrable=False)
one_job("one_job_deadline", execution_timeout=timedelta(seconds=12))
one_job("one_job_here_deadline", deferrable=False, execution_timeout=timedelta(seconds=12))
one_job("one_job_killed", KilledWorker, retries=2)
one_job("one_job_retried", retries=1)

with DAG("mapped_jobs", schedule=None, params=PARAMS):
    FirecRESTSubmitOperator.partial(
        task_id="job", script="{{ params.script }}", workdir="{{ params.workdir }}", deferrable=True
    ).expand(env=[{"INDEX": str(index)} for index in range(3)])
