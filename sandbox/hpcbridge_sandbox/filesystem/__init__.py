"""File operations (``/filesystem/{system}/ops``): real commands, run as the user inside the cluster."""

from hpcbridge_sandbox.filesystem.router import router

__all__ = ["router"]
