"""The FirecREST v2 interface: one method per endpoint, answers as records, errors in our own terms.

Names are loaded when first used (PEP 562): the rules for paths cost next to nothing, the client a tenth of a second.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {"FirecrestClient": "client", "Stream": "stream", "check_name": "paths", "check_path": "paths"}
"""Modules of the names that are not in `models`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'models')}"), name)
    globals()[name] = value
    return value
