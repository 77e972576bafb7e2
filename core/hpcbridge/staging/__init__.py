"""Files between this machine and a cluster: `put_file` and `get_file`."""

from __future__ import annotations

from hpcbridge.staging.files import get_file, put_file
from hpcbridge.staging.plan import Route, Verify
from hpcbridge.staging.progress import Phase, Progress, TransferResult

__all__ = ["Phase", "Progress", "Route", "TransferResult", "Verify", "get_file", "put_file"]
