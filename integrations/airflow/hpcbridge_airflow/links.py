"""The link from a task to its job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseOperatorLink

from hpcbridge_airflow.taskdata import JOB_XCOM

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class FirecRESTJobLink(BaseOperatorLink):
    """The site's own page about the job, where the connection's `job_url` says how its address is made."""

    name = "Job"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002 - Airflow's signature
        """The address, "" where there is none. Runs in the worker, at deferral and at the end."""
        from airflow.sdk.execution_time.xcom import XCom

        job = XCom.get_value(ti_key=ti_key, key=JOB_XCOM)
        return str(job.get("url") or "") if isinstance(job, dict) else ""
