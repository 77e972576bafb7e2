"""The two transfers over the streamer: a batch job that listens, and the coordinates with which a client reaches it."""

from __future__ import annotations

import base64
import json
import secrets
import shlex

from hpcbridge_sandbox.cluster.users import User
from hpcbridge_sandbox.context import Sandbox
from hpcbridge_sandbox.errors import ApiError
from hpcbridge_sandbox.streamer import LIBRARY, interpreter
from hpcbridge_sandbox.transfer.jobs import size_of, submit_job
from hpcbridge_sandbox.transfer.models import StagedTransferResponse, StreamerTransferResponse


async def upload(sandbox: Sandbox, user: User, system: str, path: str, account: str | None) -> StagedTransferResponse:
    """Answer a ``transfer/upload`` over the streamer and start the job that receives.

    Raises:
        ApiError: 403 when there is something at *path* already.
    """
    found = await sandbox.cluster.run(user, ["stat", "--dereference", "-c", "%s", "--", path])
    if found.returncode == 0:
        raise ApiError(403, f"Target file '{path}' already exists.")
    return await _start(sandbox, user, system, "IngressFileTransfer", "receive", path, account)


async def download(sandbox: Sandbox, user: User, system: str, path: str, account: str | None) -> StagedTransferResponse:
    """Answer a ``transfer/download`` over the streamer and start the job that sends.

    Raises:
        ApiError: 404 or 403 as ``stat`` says; a directory only fails in the job.
    """
    await size_of(sandbox, user, path)
    return await _start(sandbox, user, system, "OutgressFileTransfer", "send", path, account)


async def _start(
    sandbox: Sandbox, user: User, system: str, name: str, operation: str, path: str, account: str | None
) -> StagedTransferResponse:
    settings = sandbox.settings
    secret = secrets.token_urlsafe(16)
    faults = sandbox.streamer_faults.draw()
    delay = faults.pop("start_delay", 0)
    python = shlex.quote(interpreter()[0])
    job = await submit_job(
        sandbox,
        user,
        system,
        name,
        "streamer",
        account,
        operation=operation,
        path=path,
        secret=secret,
        python=python,
        library=LIBRARY,
        program=f"{LIBRARY}/faulty.py {shlex.quote(json.dumps(faults))}" if faults else "-m streamer",
        start_delay=f"{delay:g}",
        host=settings.host,
        ports=settings.streamer_ports,
        wait=settings.streamer_wait,
        limit=settings.streamer_limit,
    )
    told = {"ports": list(settings.streamer_ports), "ips": [settings.host], "secret": secret}
    coordinates = base64.urlsafe_b64encode(json.dumps(told).encode()).decode()
    return StagedTransferResponse(
        transfer_job=job, transfer_directives=StreamerTransferResponse(coordinates=coordinates)
    )
