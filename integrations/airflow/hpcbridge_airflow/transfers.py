"""FirecRESTUploadOperator and FirecRESTDownloadOperator: one file each way, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from anyio.from_thread import start_blocking_portal

from hpcbridge_airflow.hooks import DEFAULT_CONNECTION, FirecRESTHook
from hpcbridge_airflow.submitting import resolve_path

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import Logger

    from hpcbridge import System
    from hpcbridge.staging import Progress, TransferResult


class _TransferOperator(BaseOperator):
    """What both directions share. The bytes pass through the worker, which is where the local file is."""

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

    def execute(self, context: Context) -> str:  # noqa: ARG002 - Airflow's signature
        """Move the file; returns the remote path."""
        hpc = FirecRESTHook(self.firecrest_conn_id).open()

        async def move() -> str:
            async with hpc:
                system = hpc.system(self.system)
                await system.resolve()
                remote = await resolve_path(system, self.remote_path)
                done = await self._move(system, remote, _reporter(self.log))
                rate = done.bytes / done.seconds / 1e6 if done.seconds else 0.0
                checked = f", SHA-256 {done.sha256}" if done.sha256 else ""
                figures = (done.bytes, done.seconds, rate, done.route, checked)
                self.log.info("%d bytes in %.1f s (%.1f MB/s, %s)%s", *figures)
                return remote

        with start_blocking_portal("asyncio", name="firecrest") as portal:
            return portal.call(move)

    async def _move(self, system: System, remote: str, progress: Callable[[Progress], None]) -> TransferResult:
        raise NotImplementedError


class FirecRESTUploadOperator(_TransferOperator):
    """Copy one file from the worker to the system, by the quickest route that the system offers, and check it.

    Args:
        local_path: file on the worker.
        remote_path: file on the system; missing directories are made. A path that does not begin with `/` is under the
            user's own directory.
        firecrest_conn_id, system, account: as in FirecRESTSubmitOperator; the account is charged for the jobs that
            some routes need.
        route: "direct", "chunked" or "s3"; default: the quickest.
        verify: "auto", "size", "sha256" or None.
        atomic: publish the file by one rename, so that no reader sees half of it (costs one job).

    Returns (XCom): the absolute remote path. Raises hpcbridge.errors.TransferError, IntegrityError, PathNotFound,
    PermissionDenied.
    """

    def __init__(self, *, atomic: bool = False, **kwargs: Any) -> None:
        """Nothing is looked up here."""
        super().__init__(**kwargs)
        self.atomic = atomic

    async def _move(self, system: System, remote: str, progress: Callable[[Progress], None]) -> TransferResult:
        self.log.info("Uploading %s to %s:%s", self.local_path, system.name, remote)
        await system.mkdir(remote.rpartition("/")[0] or "/")
        return await system.put(
            self.local_path,
            remote,
            route=self.route,
            verify=self.verify,
            atomic=self.atomic,
            account=self.account,
            progress=progress,
        )


class FirecRESTDownloadOperator(_TransferOperator):
    """Copy one file from the system to the worker, and check it; an interrupted download is resumed by the retry.

    Args:
        remote_path: file on the system; a path that does not begin with `/` is under the user's own directory.
        local_path: file on the worker; missing directories are made.
        firecrest_conn_id, system, account, route, verify: as in FirecRESTUploadOperator.

    Returns (XCom): the local path. Raises hpcbridge.errors.TransferError, IntegrityError, PathNotFound,
    PermissionDenied.
    """

    async def _move(self, system: System, remote: str, progress: Callable[[Progress], None]) -> TransferResult:
        self.log.info("Downloading %s:%s to %s", system.name, remote, self.local_path)
        Path(self.local_path).parent.mkdir(parents=True, exist_ok=True)
        return await system.get(
            remote, self.local_path, route=self.route, verify=self.verify, account=self.account, progress=progress
        )

    def execute(self, context: Context) -> str:
        """Move the file; returns the local path."""
        super().execute(context)
        return self.local_path


def _reporter(log: Logger) -> Callable[[Progress], None]:
    """Phases and each tenth of the bytes into the task's log."""
    last: list[Any] = [None, -1]

    def report(progress: Progress) -> None:
        tenth = progress.done * 10 // progress.total if progress.total else 0
        if [progress.phase, tenth] != last:
            last[:] = [progress.phase, tenth]
            total = f" of {progress.total}" if progress.total is not None else ""
            log.info("%s: %d%s bytes %s", progress.phase, progress.done, total, progress.detail)

    return report
