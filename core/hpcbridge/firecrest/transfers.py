"""`/filesystem/{system}/transfer/*`: the server makes a job of its own for each, without a key.

A lost answer therefore is an AmbiguousOutcome that nobody can look up by name: a staging job may be left behind, and
ends by its own time limit. hpcbridge uses only those of S3 and the streamer; copies, moves and archives are better made
as keyed jobs, because the server's jobs of cp and rm end COMPLETED even when they failed: read their log for
"successfully".
"""

from __future__ import annotations

from typing import Any

from hpcbridge.errors import ServerError
from hpcbridge.firecrest.models import S3Download, S3Upload, TransferJob
from hpcbridge.firecrest.paths import check_path
from hpcbridge.firecrest.stream import Stream
from hpcbridge.firecrest.wire import Endpoints, json_object, part


class Transfers(Endpoints):
    """Large files and long operations, as jobs."""

    async def transfer_upload(
        self, system: str, path: str, size: int, *, account: str | None = None, patience: float | None = None
    ) -> S3Upload:
        """Presigned URLs for `size` bytes to `path`, and the ingress job that fetches them; size 0 never ends.

        Raises:
            AmbiguousOutcome: the ingress job may exist; asking again makes another one.
        """
        directives = {"transferMethod": "s3", "fileSize": size}
        answer = await self._transfer(system, "upload", path, {"transferDirectives": directives}, account, patience)
        upload = S3Upload.from_json(answer)
        if not upload.part_urls or upload.part_size <= 0:
            raise ServerError("the answer has no part URLs", system=system, path=path, job_id=upload.job_id)
        return upload

    async def transfer_download(
        self, system: str, path: str, *, account: str | None = None, patience: float | None = None
    ) -> S3Download:
        """A presigned URL for `path`, and the egress job after which it answers; not for empty files or directories."""
        answer = await self._transfer(
            system, "download", path, {"transferDirectives": {"transferMethod": "s3"}}, account, patience
        )
        return S3Download.from_json(answer)

    async def stream_upload(
        self, system: str, path: str, *, account: str | None = None, patience: float | None = None
    ) -> Stream:
        """The coordinates of a job that will receive `path` over the streamer.

        Raises:
            AlreadyExists: there is something at `path`.
            AmbiguousOutcome: the job may exist; asking again makes another one.
        """
        return await self._stream(system, "upload", path, account, patience)

    async def stream_download(
        self, system: str, path: str, *, account: str | None = None, patience: float | None = None
    ) -> Stream:
        """The coordinates of a job that will send `path` over the streamer; not for directories."""
        return await self._stream(system, "download", path, account, patience)

    async def _stream(
        self, system: str, operation: str, path: str, account: str | None, patience: float | None
    ) -> Stream:
        body = {"transferDirectives": {"transferMethod": "streamer"}}
        answer = await self._transfer(system, operation, path, body, account, patience)
        try:
            return Stream.from_json(answer)
        except ValueError as error:
            raise ServerError(str(error), system=system, path=path, job_id=_job_of(answer).job_id) from None

    async def transfer_cp(
        self,
        system: str,
        path: str,
        target: str,
        *,
        dereference: bool = False,
        account: str | None = None,
        patience: float | None = None,
    ) -> TransferJob:
        """Copy by a job of the server's."""
        body = {"targetPath": check_path(target, system), "dereference": dereference}
        return _job_of(await self._transfer(system, "cp", path, body, account, patience))

    async def transfer_mv(
        self, system: str, path: str, target: str, *, account: str | None = None, patience: float | None = None
    ) -> TransferJob:
        """Move by a job of the server's."""
        body = {"targetPath": check_path(target, system)}
        return _job_of(await self._transfer(system, "mv", path, body, account, patience))

    async def transfer_rm(
        self, system: str, path: str, *, account: str | None = None, patience: float | None = None
    ) -> TransferJob:
        """Remove by a job of the server's."""
        params = {"path": check_path(path, system)} | ({"account": account} if account else {})
        response = await self._make_job(
            "DELETE",
            f"/filesystem/{part(system)}/transfer/rm",
            params=params,
            about={"system": system, "path": path},
            patience=patience,
        )
        return _job_of(json_object(response))

    async def transfer_compress(
        self,
        system: str,
        path: str,
        target: str,
        *,
        pattern: str | None = None,
        dereference: bool = False,
        compression: str = "gzip",
        account: str | None = None,
        patience: float | None = None,
    ) -> TransferJob:
        """Archive by a job of the server's."""
        body: dict[str, Any] = {"targetPath": check_path(target, system), "compression": compression}
        body |= {"dereference": dereference} | ({"matchPattern": pattern} if pattern else {})
        return _job_of(await self._transfer(system, "compress", path, body, account, patience))

    async def transfer_extract(
        self,
        system: str,
        path: str,
        target: str,
        *,
        compression: str = "gzip",
        account: str | None = None,
        patience: float | None = None,
    ) -> TransferJob:
        """Unpack by a job of the server's."""
        body = {"targetPath": check_path(target, system), "compression": compression}
        return _job_of(await self._transfer(system, "extract", path, body, account, patience))

    async def _transfer(
        self,
        system: str,
        operation: str,
        path: str,
        body: dict[str, Any],
        account: str | None,
        patience: float | None,
    ) -> Any:
        sent = {"path": check_path(path, system), **body} | ({"account": account} if account else {})
        response = await self._make_job(
            "POST",
            f"/filesystem/{part(system)}/transfer/{operation}",
            json=sent,
            about={"system": system, "path": path},
            patience=patience,
        )
        return json_object(response)


def _job_of(answer: Any) -> TransferJob:
    return TransferJob.from_json(answer["transferJob"])
