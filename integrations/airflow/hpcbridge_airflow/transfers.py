"""FirecRESTUploadOperator and FirecRESTDownloadOperator: one file each way, checked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator, conf
from airflow.sdk.exceptions import AirflowTaskTimeout, TaskDeferred
from anyio.from_thread import start_blocking_portal

from hpcbridge import errors
from hpcbridge_airflow.hooks import DEFAULT_CONNECTION, FirecRESTHook
from hpcbridge_airflow.moving import Direction, Move, move_file
from hpcbridge_airflow.operators import deadline_of
from hpcbridge_airflow.triggers import FirecRESTTransferTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context


class _TransferOperator(BaseOperator):
    """What both directions share."""

    direction: ClassVar[Direction]
    template_fields: Sequence[str] = ("local_path", "remote_path", "firecrest_conn_id", "system", "account")
    ui_color = "#e4f0da"

    def __init__(
        self,
        *,
        local_path: str,
        remote_path: str,
        firecrest_conn_id: str = DEFAULT_CONNECTION,
        system: str | None = None,
        route: str | None = None,
        verify: str | None = "auto",
        account: str | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.local_path = local_path
        self.remote_path = remote_path
        self.firecrest_conn_id = firecrest_conn_id
        self.system = system
        self.route = route
        self.verify = verify
        self.account = account
        self.deferrable = deferrable

    def _move(self) -> Move:
        return Move(
            direction=self.direction,
            local=str(self.local_path),
            remote=self.remote_path,
            system=self.system,
            route=self.route,
            verify=self.verify,
            account=self.account,
        )

    def execute(self, context: Context) -> str:
        """Move the file here, or defer to the triggerer."""
        if self.deferrable:
            deadline = deadline_of(self, context)
            trigger = FirecRESTTransferTrigger(
                firecrest_conn_id=self.firecrest_conn_id,
                move=self._move().to_json(),
                deadline=deadline.isoformat() if deadline else None,
            )
            raise TaskDeferred(trigger=trigger, method_name="execute_complete")
        hpc = FirecRESTHook(self.firecrest_conn_id).open()
        with start_blocking_portal("asyncio", name="firecrest") as portal:
            return self._result(portal.call(move_file, hpc, self._move(), self.log))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> str:  # noqa: ARG002 - Airflow's signature
        """The trigger moved the file, or says why not."""
        if event["outcome"] == "deadline":
            limit = self.execution_timeout or timedelta()
            raise AirflowTaskTimeout(f"The deadline (execution_timeout, {limit}) passed during the transfer")
        if event["outcome"] == "error":
            raise getattr(errors, event.get("error") or "", errors.TransferError)(event["message"])
        return self._result(event["remote"])

    def _result(self, remote: str) -> str:
        return remote if self.direction is Direction.UP else str(self.local_path)


class FirecRESTUploadOperator(_TransferOperator):
    """Copy one file to the system, by the quickest route that the system offers, and check it.

    Args:
        local_path: the file here.
        remote_path: the file on the system; missing directories are made. A path that does not begin with `/` is under
            the user's own directory.
        firecrest_conn_id, system: as in FirecRESTSubmitOperator.
        route: "direct", "chunked" or "s3"; default: the quickest.
        verify: "auto", "size", "sha256" or None.
        account: charged for the jobs that some routes need; default: the connection's.
        atomic: publish the file by one rename, so that no reader sees half of it (costs one job).
        deferrable: let the triggerer move the file, which must then see it (one machine, or a shared file system);
            otherwise it passes through the worker. Default: `[operators] default_deferrable`.

    Returns (XCom): the absolute remote path. Raises hpcbridge.errors.TransferError, IntegrityError, PathNotFound,
    PermissionDenied.
    """

    direction = Direction.UP

    def __init__(self, *, atomic: bool = False, **kwargs: Any) -> None:
        """Nothing is looked up here."""
        super().__init__(**kwargs)
        self.atomic = atomic

    def _move(self) -> Move:
        return super()._move().replace(atomic=self.atomic)


class FirecRESTDownloadOperator(_TransferOperator):
    """Copy one file from the system, and check it; what an interrupted download has is kept for the retry.

    Args:
        remote_path: the file on the system; a path that does not begin with `/` is under the user's own directory.
        local_path: the file here; missing directories are made.
        firecrest_conn_id, system, route, verify, account, deferrable: as in FirecRESTUploadOperator.

    Returns (XCom): the local path. Raises hpcbridge.errors.TransferError, IntegrityError, PathNotFound,
    PermissionDenied.
    """

    direction = Direction.DOWN
