"""``/filesystem/{system_name}/transfer``: file operations that run as batch jobs, and staging over S3."""

from hpcbridge_sandbox.transfer.jobs import PARALLEL_PARTS, directives
from hpcbridge_sandbox.transfer.router import router

__all__ = ["PARALLEL_PARTS", "directives", "router"]
