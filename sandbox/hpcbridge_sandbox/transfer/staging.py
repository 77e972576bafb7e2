"""The two transfers over S3: presigned URLs for the client, one batch job for the cluster's side."""

from __future__ import annotations

import asyncio
import posixpath
import uuid
from math import ceil
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from hpcbridge_sandbox.cluster.users import User
from hpcbridge_sandbox.context import Sandbox
from hpcbridge_sandbox.errors import ApiError, UnhandledError
from hpcbridge_sandbox.s3 import StoreUnavailable
from hpcbridge_sandbox.transfer.jobs import PARALLEL_PARTS, size_of, submit_job
from hpcbridge_sandbox.transfer.models import S3TransferResponse, StagedTransferResponse

MAX_PARTS = 10_000
"""Parts of one S3 object, at most (S3's own limit)."""


async def upload(
    sandbox: Sandbox, user: User, system: str, path: str, size: int | None, account: str | None
) -> StagedTransferResponse:
    """Answer a ``transfer/upload`` over S3 and start its ingress job.

    A size of zero gives no part at all, so its job never finds an object (as recorded). The target is not looked at.
    """
    key = f"{uuid.uuid4()}/{posixpath.basename(path)}"
    if size is None:
        raise UnhandledError("(\"unsupported operand type(s) for /: 'NoneType' and 'int'\",)")
    part_size = sandbox.settings.s3_part_size
    parts = max(0, ceil(size / part_size))
    urls = await _Multipart.begin(sandbox, user, key, parts)
    job = await submit_job(
        sandbox,
        user,
        system,
        "IngressFileTransfer",
        "ingress",
        account,
        target_path=path,
        head_url=urls.sign("head_object", "HEAD"),
        download_url=urls.sign("get_object", "GET"),
        part_size=part_size,
        look_seconds=f"{sandbox.settings.scaled_ingress_look:g}",
    )
    return StagedTransferResponse(
        transfer_job=job,
        transfer_directives=S3TransferResponse(
            parts_upload_urls=urls.parts, complete_upload_url=urls.complete, max_part_size=part_size
        ),
    )


async def download(sandbox: Sandbox, user: User, system: str, path: str, account: str | None) -> StagedTransferResponse:
    """Answer a ``transfer/download`` over S3 and start its egress job.

    Raises:
        ApiError: 404 or 403 as ``stat`` says; an empty file or a directory only fails in the job (as recorded).
    """
    size = await size_of(sandbox, user, path)
    key = f"{uuid.uuid4()}/{posixpath.basename(path)}"
    urls = await _Multipart.begin(sandbox, user, key, ceil(size / sandbox.settings.s3_part_size))
    job = await submit_job(
        sandbox,
        user,
        system,
        "OutgressFileTransfer",
        "egress",
        account,
        source_path=path,
        part_urls=urls.parts,
        complete_url=urls.complete,
        scratch=f"tmp/{uuid.uuid1()}/",
        parallel=PARALLEL_PARTS,
    )
    return StagedTransferResponse(
        transfer_job=job, transfer_directives=S3TransferResponse(download_url=urls.sign("get_object", "GET"))
    )


class _Multipart:
    """Presigned URLs of one multipart upload."""

    def __init__(self, store: Any, params: dict[str, str], upload_id: str, parts: int) -> None:
        self._store, self._params = store, params
        upload = {**params, "UploadId": upload_id}
        self.parts = [store.sign("upload_part", "PUT", **upload, PartNumber=number + 1) for number in range(parts)]
        self.complete = store.sign("complete_multipart_upload", "POST", **upload)

    @classmethod
    async def begin(cls, sandbox: Sandbox, user: User, key: str, parts: int) -> _Multipart:
        if parts > MAX_PARTS:
            raise ApiError(400, f"A file of more than {MAX_PARTS} parts cannot be staged.")
        store = sandbox.s3
        try:
            bucket = await store.bucket(user.name)
            upload_id = await store.begin_upload(bucket, key)
        except StoreUnavailable as error:
            address = f"{store.endpoint}/{user.name}"
            raise UnhandledError(f"('Could not connect to the endpoint URL: \"{address}\"',)") from error
        except (BotoCoreError, ClientError, UnicodeError) as error:
            # Such as a name that no object can have; the real server does not catch what its client raises either.
            raise UnhandledError(str(error.args)) from error
        return await asyncio.to_thread(cls, store, {"Bucket": bucket, "Key": key}, upload_id, parts)

    def sign(self, action: str, method: str) -> str:
        url: str = self._store.sign(action, method, **self._params)
        return url
