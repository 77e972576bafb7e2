"""The FirecREST v2 interface: one method per endpoint, answers as records, errors in our own terms."""

from __future__ import annotations

from hpcbridge.firecrest.client import FirecrestClient
from hpcbridge.firecrest.models import (
    FileContent,
    FileEntry,
    FileStat,
    FileSystem,
    JobMetadata,
    JobRow,
    S3Download,
    S3Upload,
    Scheduler,
    ServiceHealth,
    SSHTimeouts,
    SystemInfo,
    TransferJob,
    UserInfo,
)
from hpcbridge.firecrest.paths import check_name, check_path
from hpcbridge.firecrest.stream import Stream

__all__ = [
    "FileContent",
    "FileEntry",
    "FileStat",
    "FileSystem",
    "FirecrestClient",
    "JobMetadata",
    "JobRow",
    "S3Download",
    "S3Upload",
    "SSHTimeouts",
    "Scheduler",
    "ServiceHealth",
    "Stream",
    "SystemInfo",
    "TransferJob",
    "UserInfo",
    "check_name",
    "check_path",
]
