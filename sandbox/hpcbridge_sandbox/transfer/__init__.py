"""``/filesystem/{system_name}/transfer``: file operations that run as batch jobs, and staging over S3."""

from hpcbridge_sandbox.transfer.jobs import MAX_PART_SIZE, PARALLEL_PARTS, directives
from hpcbridge_sandbox.transfer.router import router

__all__ = ["MAX_PART_SIZE", "PARALLEL_PARTS", "directives", "router"]
