"""The transfer endpoints. Statuses, bodies and quirks as recorded from a FirecREST 2.5.7 server.

Only the source of cp, mv, rm, compress and extract is checked against the file systems; targets, uploads and downloads
are not. The jobs of those five end COMPLETED with exit code 0 whatever happened: the truth is in their logs.
"""

from __future__ import annotations

import posixpath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from hpcbridge_sandbox.cluster.users import User
from hpcbridge_sandbox.context import (
    Sandbox,
    SandboxDep,
    SystemCondition,
    UserDep,
    healthy_scheduler,
    healthy_ssh,
    require_ssh,
)
from hpcbridge_sandbox.errors import ApiError, UnhandledError
from hpcbridge_sandbox.filesystem.paths import checked_body_path, checked_query_path
from hpcbridge_sandbox.transfer import staging, streaming
from hpcbridge_sandbox.transfer.jobs import submit_job
from hpcbridge_sandbox.transfer.models import (
    CompressRequest,
    CopyRequest,
    ExtractRequest,
    MoveRequest,
    PostFileDownloadRequest,
    PostFileUploadRequest,
    StagedTransferResponse,
    TransferResponse,
)

router = APIRouter(prefix="/filesystem/{system_name}/transfer", tags=["filesystem"])

SchedulerDep = Annotated[SystemCondition, Depends(healthy_scheduler)]
FilesDep = Annotated[SystemCondition, Depends(healthy_ssh)]
SourceDep = Annotated[str, Depends(checked_body_path)]


def _staged_path(sandbox: Sandbox, request: PostFileUploadRequest | PostFileDownloadRequest) -> str:
    if request.transfer_directives.transfer_method.value != sandbox.settings.transfer:
        raise ApiError(400, "Requested transfer method is not available.")
    if request.path is None:
        raise UnhandledError("('expected str, bytes or os.PathLike object, not NoneType',)")
    return request.path


async def _job(
    sandbox: Sandbox,
    user: User,
    condition: SystemCondition,
    name: str,
    template: str,
    account: str | None,
    **values: Any,
) -> TransferResponse:
    require_ssh(condition)
    job = await submit_job(sandbox, user, condition.name, name, template, account, **values)
    return TransferResponse(transfer_job=job)


@router.post(
    "/upload",
    status_code=201,
    response_model_exclude_none=True,
    description="Create asynchronous upload operation",
    response_description="Upload operation created successfully",
)
async def post_upload(
    body: PostFileUploadRequest, sandbox: SandboxDep, user: UserDep, condition: SchedulerDep
) -> StagedTransferResponse:
    """Presigned part URLs or coordinates for the client, an ingress job for the cluster."""
    path = _staged_path(sandbox, body)
    size = getattr(body.transfer_directives, "file_size", None)
    require_ssh(condition)
    if sandbox.settings.transfer == "streamer":
        return await streaming.upload(sandbox, user, condition.name, path, body.account)
    return await staging.upload(sandbox, user, condition.name, path, size, body.account)


@router.post(
    "/download",
    status_code=201,
    response_model_exclude_none=True,
    description="Create asynchronous download operation",
    response_description="Download operation created successfully",
)
async def post_download(
    body: PostFileDownloadRequest, sandbox: SandboxDep, user: UserDep, condition: SchedulerDep
) -> StagedTransferResponse:
    """An egress job for the cluster, a presigned URL or coordinates for the client."""
    path = _staged_path(sandbox, body)
    require_ssh(condition)
    if sandbox.settings.transfer == "streamer":
        return await streaming.download(sandbox, user, condition.name, path, body.account)
    return await staging.download(sandbox, user, condition.name, path, body.account)


@router.post(
    "/mv",
    status_code=201,
    description="Create move file or directory operation (`mv`)",
    response_description="Move file or directory operation created successfully",
)
async def move_mv(
    body: MoveRequest, sandbox: SandboxDep, user: UserDep, condition: FilesDep, path: SourceDep
) -> TransferResponse:
    """Move by a batch job."""
    return await _job(
        sandbox,
        user,
        condition,
        "MoveFiles",
        "move",
        body.account,
        source_path=path,
        target_path=body.target_path,
        verb="move",
        done="moved",
    )


@router.post(
    "/cp",
    status_code=201,
    description="Create copy file or directory operation (`cp`)",
    response_description="Copy file or directory operation created successfully",
)
async def post_cp(
    body: CopyRequest, sandbox: SandboxDep, user: UserDep, condition: FilesDep, path: SourceDep
) -> TransferResponse:
    """Copy by a batch job."""
    return await _job(
        sandbox,
        user,
        condition,
        "CopyFiles",
        "copy",
        body.account,
        source_path=path,
        target_path=body.target_path,
        dereference=body.dereference,
        verb="copy",
        done="copied",
    )


@router.delete(
    "/rm",
    description="Create remove file or directory operation (`rm`)",
    response_description="Remove file or directory operation created successfully",
)
async def delete_rm(
    sandbox: SandboxDep,
    user: UserDep,
    condition: FilesDep,
    path: Annotated[str, Depends(checked_query_path)],
    account: Annotated[str | None, Query()] = None,
) -> TransferResponse:
    """Remove by a batch job."""
    return await _job(
        sandbox, user, condition, "DeleteFiles", "delete", account, source_path=path, verb="delete", done="deleted"
    )


@router.post(
    "/compress",
    status_code=201,
    description="Create compress file or directory operation (`tar`)",
    response_description="Compress file or directory operation created successfully",
)
async def compress(
    body: CompressRequest, sandbox: SandboxDep, user: UserDep, condition: FilesDep, path: SourceDep
) -> TransferResponse:
    """Archive by a batch job: one file or directory, or the plain files whose path matches a regular expression."""
    return await _job(
        sandbox,
        user,
        condition,
        "CompressFiles",
        "compress",
        body.account,
        source_directory=posixpath.dirname(path),
        source_name=posixpath.basename(path),
        target_path=body.target_path,
        match_pattern=body.match_pattern,
        dereference="--dereference" if body.dereference else "",
        compression=body.compression.tar_flag,
        verb="compress",
        done="compressed",
    )


@router.post(
    "/extract",
    status_code=201,
    description="Create extract file operation (`tar`)",
    response_description="Extract file or directory operation created successfully",
)
async def extract(
    body: ExtractRequest, sandbox: SandboxDep, user: UserDep, condition: FilesDep, path: SourceDep
) -> TransferResponse:
    """Extract by a batch job."""
    return await _job(
        sandbox,
        user,
        condition,
        "CompressFiles",  # the real server's name for this job too
        "extract",
        body.account,
        source_path=path,
        target_path=body.target_path,
        compression=body.compression.tar_flag,
        verb="extract",
        done="extracted",
    )
