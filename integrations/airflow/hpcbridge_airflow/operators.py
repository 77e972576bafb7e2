"""FirecRESTSubmitOperator: one batch job per intended attempt of a task, whatever crashes in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator, conf
from airflow.sdk.exceptions import AirflowException, AirflowTaskTimeout, TaskDeferred
from anyio.from_thread import BlockingPortal, start_blocking_portal

from hpcbridge import JobInfo, JobSpec, errors
from hpcbridge_airflow import attempts, submitting, taskdata
from hpcbridge_airflow.hooks import DEFAULT_CONNECTION, FirecRESTHook
from hpcbridge_airflow.links import FirecRESTJobLink
from hpcbridge_airflow.triggers import FirecRESTJobTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

    from hpcbridge import Hpc
    from hpcbridge_airflow.submitting import Launched
    from hpcbridge_airflow.watching import Outcome

KILL_PATIENCE = 4.0
"""Seconds that on_kill may take: Airflow sends SIGKILL five seconds after SIGTERM."""
PATIENCE = 60.0
"""Seconds that a cancel may take where nobody waits with a SIGKILL."""


@dataclass
class _Work:
    """What is under way in this worker, for on_kill."""

    portal: BlockingPortal
    hpc: Hpc
    launching: Future[Launched]


class FirecRESTSubmitOperator(BaseOperator):
    """Submit a batch job, wait for its end without holding a worker, fail with its post-mortem.

    The job's output appears in the task's log while it runs. When the task is killed, marked, cleared or past its
    deadline, the job is cancelled. A worker lost at any point leaves one job, which the retry attaches to.

    Args:
        script: text of the batch script, or the name of a `.sbatch`, `.slurm` or `.sh` file beside the DAG; its
            `#SBATCH` lines are honoured.
        workdir: where the job runs; a path that does not begin with `/` is under the user's own directory on the
            system, which is also the default.
        firecrest_conn_id: connection of type FirecREST.
        system: cluster; default: the connection's.
        job_name: label in the scheduler's listings, at most 40 characters; default: from DAG and task.
        account, partition, reservation, constraint, time, nodes, ntasks, array, directives: as in hpcbridge.JobSpec;
            they win over the script's `#SBATCH` lines.
        stdout, stderr: files of the job's streams, as `output` and `error` in JobSpec.
        env: the job's environment; values travel in a private file, never in the request or the script.
        log_output: whether the job's output is copied into the task's log while it runs.
        deferrable: wait in the triggerer and hold no worker; default: `[operators] default_deferrable`.

    `execution_timeout` counts from the start of the attempt, deferred time included: past it the job is cancelled and
    the task fails with AirflowTaskTimeout. Raises hpcbridge.errors.JobFailed and its kinds (OutOfMemory, TimeLimit,
    NodeFailure …), which `ExceptionRetryPolicy` can tell apart; SubmitRejected in the scheduler's words.

    Returns (XCom): job_id, name, state, exit_code, times and nodes as hpcbridge.JobInfo has them, and `system`,
    `workdir`, `stdout`, `stderr`.
    """

    template_fields: Sequence[str] = (
        "script",
        "workdir",
        "firecrest_conn_id",
        "system",
        "job_name",
        "account",
        "partition",
        "reservation",
        "constraint",
        "time",
        "array",
        "directives",
        "stdout",
        "stderr",
        "env",
    )
    template_ext: Sequence[str] = (".sbatch", ".slurm", ".sh")
    template_fields_renderers: ClassVar[dict[str, str]] = {"script": "bash", "env": "py"}
    ui_color = "#d7e7f4"
    operator_extra_links = (FirecRESTJobLink(),)

    def __init__(
        self,
        *,
        script: str,
        workdir: str | None = None,
        firecrest_conn_id: str = DEFAULT_CONNECTION,
        system: str | None = None,
        job_name: str | None = None,
        account: str | None = None,
        partition: str | None = None,
        reservation: str | None = None,
        constraint: str | None = None,
        time: str | int | None = None,
        nodes: int | None = None,
        ntasks: int | None = None,
        array: str | None = None,
        directives: Sequence[str] = (),
        stdout: str | None = None,
        stderr: str | None = None,
        env: Mapping[str, str] | None = None,
        log_output: bool = True,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        """Nothing is looked up here: a DAG parses without connection, network or environment."""
        super().__init__(**kwargs)
        self.script = script
        self.workdir = workdir
        self.firecrest_conn_id = firecrest_conn_id
        self.system = system
        self.job_name = job_name
        self.account = account
        self.partition = partition
        self.reservation = reservation
        self.constraint = constraint
        self.time = time
        self.nodes = nodes
        self.ntasks = ntasks
        self.array = array
        self.directives = directives
        self.stdout = stdout
        self.stderr = stderr
        self.env = env
        self.log_output = log_output
        self.deferrable = deferrable
        self._work: _Work | None = None

    def spec(self) -> JobSpec:
        """The job as it stands after templating. Raises InvalidSpec, InvalidName, InvalidPath."""
        label = self.job_name or attempts.label_of(self.dag_id, self.task_id)
        fields = {name: getattr(self, name) or None for name in _SPEC_FIELDS}
        fields |= {"output": self.stdout or None, "error": self.stderr or None}
        given = {name: value for name, value in fields.items() if value is not None}
        script = self.script if self.script.endswith("\n") else f"{self.script}\n"
        return JobSpec(name=label, script=script, directives=tuple(self.directives or ()), **given)

    def execute(self, context: Context) -> dict[str, Any]:
        """Submit once, then defer (or wait here)."""
        hpc = FirecRESTHook(self.firecrest_conn_id).open()
        deadline = deadline_of(self, context)
        outcome: Outcome | None = None
        with start_blocking_portal("asyncio", name="firecrest") as portal:
            launching = portal.start_task_soon(
                submitting.launch, hpc, self.system, self.spec(), self.workdir, context, self.log
            )
            self._work = _Work(portal, hpc, launching)
            try:
                launched = launching.result()
                self._publish(context, launched)
                if not self.deferrable:
                    outcome = self._wait_here(context, launched, deadline)
                elif self._taken_away(context):
                    self._stop(PATIENCE)
                    raise AirflowException(f"The task was taken away while it submitted job {launched.job_id}")
            except AirflowTaskTimeout:
                # Airflow's own clock. It calls on_kill only after this frame, when nothing can be sent any more.
                self._stop(PATIENCE)
                raise
            finally:
                self._work = None
        if outcome is not None:
            return self._conclude(outcome, launched)
        trigger = self._trigger(launched, deadline)
        raise TaskDeferred(trigger=trigger, method_name="execute_complete", kwargs={"launched": launched.to_json()})

    def _wait_here(self, context: Context, launched: Launched, deadline: datetime | None) -> Outcome:
        assert self._work is not None
        try:
            return self._work.portal.call(
                submitting.attend_here, self._work.hpc, launched, self.log_output, deadline, self.log
            )
        except errors.HpcBridgeError:
            self._give_up(context, launched.to_json())
            raise

    def _conclude(self, outcome: Outcome, launched: Launched) -> dict[str, Any]:
        if outcome.deadline_passed:
            raise _too_late(outcome.info)
        return self._result(outcome.info, outcome.tail, launched.to_json())

    def _taken_away(self, context: Context) -> bool:
        """Whether the task was marked while it submitted: its deferral would be refused and its job forgotten.

        A worker hears of that only with its next heartbeat, which may come after it has ended.
        """
        try:
            state = taskdata.state_of(taskdata.TaskKey.of(context["ti"]))
        except Exception:
            self.log.exception("Whether the task is still wanted could not be found out; it goes on")
            return False
        return state != "running"

    def execute_complete(self, context: Context, event: dict[str, Any], launched: dict[str, Any]) -> dict[str, Any]:
        """What the trigger saw becomes the task's result, or its failure."""
        if event["outcome"] == "error":
            self._give_up(context, launched)
            kind = getattr(errors, event.get("error") or "", errors.HpcBridgeError)
            raise kind(event["message"], system=launched["system"], job_id=launched["job_id"])
        info = JobInfo.from_json(event["info"])
        if event["outcome"] == "deadline":
            raise _too_late(info)
        return self._result(info, event.get("tail"), launched)

    def _result(self, info: JobInfo, tail: str | None, launched: dict[str, Any]) -> dict[str, Any]:
        failure = info.failure(tail, system=launched["system"])
        if failure is not None:
            raise failure
        self.log.info("%s", info.describe())
        places = {name: launched[name] for name in ("system", "workdir", "stdout", "stderr")}
        return info.to_json() | places

    def _give_up(self, context: Context, launched: dict[str, Any]) -> None:
        """Watching is impossible. A retry attaches to the job; without one nobody would, so it is cancelled."""
        ti = context["ti"]
        if ti.try_number <= (ti.max_tries or 0):
            return
        try:
            with FirecRESTHook(self.firecrest_conn_id).get_conn() as hpc:
                hpc.system(launched["system"]).job(launched["job_id"]).cancel()
        except errors.HpcBridgeError as error:
            self.log.error("Job %s could not be cancelled and may still run: %s", launched["job_id"], error)

    def on_kill(self) -> None:
        """The worker is told to stop (not while deferred): cancel the job, also one whose POST is still under way."""
        self._stop(KILL_PATIENCE)

    def _stop(self, patience: float) -> None:
        work = self._work
        if work is None:
            return
        try:
            cancelling = work.portal.start_task_soon(submitting.stop, work.hpc, work.launching, self.log)
            cancelling.result(patience)
        except FutureTimeout:
            self.log.error("The job was not seen to end within %s s", patience)
        except Exception:
            self.log.exception("The job could not be cancelled and may still run")

    def _publish(self, context: Context, launched: Launched) -> None:
        """Under its own XCom key: what the trigger's guard compares, and what the link shows."""
        data = {"version": 1, "job_id": launched.job_id, "name": launched.name, "system": launched.system}
        connection = FirecRESTHook.get_connection(self.firecrest_conn_id)
        template = connection.extra_dejson.get("job_url")
        if template:
            data["url"] = str(template).replace("{system}", launched.system).replace("{job_id}", launched.job_id)
        context["ti"].xcom_push(key=taskdata.JOB_XCOM, value=data)
        context["ti"].xcom_push(key=taskdata.LOG_XCOM, value=taskdata.positions_of(launched.job_id, {}))

    def _trigger(self, launched: Launched, deadline: datetime | None) -> FirecRESTJobTrigger:
        return FirecRESTJobTrigger(
            firecrest_conn_id=self.firecrest_conn_id,
            system=launched.system,
            job_id=launched.job_id,
            job_name=launched.name,
            submitted_at=launched.submitted_at,
            array=self.array,
            output=launched.stderr or launched.stdout,
            private=launched.private,
            log_files=launched.log_files() if self.log_output else {},
            deadline=deadline.isoformat() if deadline else None,
        )


_SPEC_FIELDS = (
    "account",
    "partition",
    "reservation",
    "constraint",
    "time",
    "nodes",
    "ntasks",
    "array",
    "env",
)


def deadline_of(operator: BaseOperator, context: Context) -> datetime | None:
    """`execution_timeout` after the start of this attempt; Airflow's own clock does not count deferred time."""
    if operator.execution_timeout is None:
        return None
    start = context["ti"].start_date or datetime.now(UTC)
    return start + operator.execution_timeout


def _too_late(info: JobInfo) -> BaseException:
    return AirflowTaskTimeout(f"The deadline (execution_timeout) passed; {info.describe()}")
