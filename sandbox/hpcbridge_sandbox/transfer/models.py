"""Bodies of the transfer endpoints, with the names of FirecREST 2.5's OpenAPI document."""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class _Body(BaseModel):
    """Camel case outside; both spellings are read, as the real server does for pyfirecrest."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class CompressionType(StrEnum):
    """Compression of an archive."""

    none = "none"
    bzip2 = "bzip2"
    gzip = "gzip"
    xz = "xz"

    @property
    def tar_flag(self) -> str:
        """The letter ``tar`` takes for it."""
        return {"none": "", "bzip2": "j", "gzip": "z", "xz": "J"}[self.value]


class DataTransferType(str, Enum):  # noqa: UP042  the real server's validation errors print this kind of enumeration
    """How bytes move between client and cluster."""

    s3 = "s3"
    streamer = "streamer"
    wormhole = "wormhole"


class WormholeTransferUploadRequest(_Body):
    """Directives of a Magic Wormhole upload, which this server does not offer."""

    transfer_method: Literal[DataTransferType.wormhole]
    wormhole_code: str = Field(description="Wormhole code to use for the transfer")


class WormholeTransferRequest(_Body):
    """Directives of a Magic Wormhole download, which this server does not offer."""

    transfer_method: Literal[DataTransferType.wormhole]


class S3TransferRequest(_Body):
    """Directives of a transfer over S3."""

    transfer_method: Literal[DataTransferType.s3]
    file_size: int | None = Field(None, description="Size of the file to upload in bytes")


class StreamerTransferRequest(_Body):
    """Directives of a transfer over the streamer."""

    transfer_method: Literal[DataTransferType.streamer]


class _PathBody(_Body):
    path: str | None = Field(validation_alias=AliasChoices("sourcePath", "source_path", "path"))
    account: str | None = Field(None, description="Name of the account in the scheduler")


class PostFileUploadRequest(_PathBody):
    """Body of ``POST transfer/upload``."""

    transfer_directives: WormholeTransferUploadRequest | S3TransferRequest | StreamerTransferRequest = Field(
        description="Data transfer parameters specific to the transfer method"
    )


class PostFileDownloadRequest(_PathBody):
    """Body of ``POST transfer/download``."""

    transfer_directives: WormholeTransferRequest | S3TransferRequest | StreamerTransferRequest = Field(
        description="Data transfer parameters specific to the transfer method"
    )


class MoveRequest(_PathBody):
    """Body of ``POST transfer/mv``."""

    target_path: str = Field(description="Target path of the move operation")


class CopyRequest(_PathBody):
    """Body of ``POST transfer/cp``."""

    target_path: str = Field(description="Target path of the copy operation")
    dereference: bool = False


class CompressRequest(_PathBody):
    """Body of ``POST transfer/compress``."""

    target_path: str = Field(description="Target path of the compress operation")
    match_pattern: str | None = Field(None, description="Regex pattern to filter files to compress")
    dereference: bool = False
    compression: CompressionType = CompressionType.gzip


class ExtractRequest(_PathBody):
    """Body of ``POST transfer/extract``."""

    target_path: str = Field(description="Path to the directory where to extract the compressed file")
    compression: CompressionType = CompressionType.gzip


class TransferJobLogs(_Body):
    """Paths of a transfer job's two logs."""

    output_log: str
    error_log: str


class TransferJob(_Body):
    """The batch job that does a transfer."""

    job_id: str
    system: str
    working_directory: str
    logs: TransferJobLogs


class S3TransferResponse(_Body):
    """What a client needs to move its side of an S3 transfer."""

    transfer_method: Literal[DataTransferType.s3] = DataTransferType.s3
    download_url: str | None = None
    parts_upload_urls: list[str] | None = None
    complete_upload_url: str | None = None
    max_part_size: int | None = None


class StreamerTransferResponse(_Body):
    """Where and with which secret a client reaches the job of a streamer transfer."""

    transfer_method: Literal[DataTransferType.streamer] = DataTransferType.streamer
    coordinates: str | None = None


class TransferResponse(_Body):
    """Answer of every transfer endpoint but the two that move bytes."""

    transfer_job: TransferJob


class StagedTransferResponse(TransferResponse):
    """Answer of ``transfer/upload`` and ``transfer/download``."""

    transfer_directives: S3TransferResponse | StreamerTransferResponse
