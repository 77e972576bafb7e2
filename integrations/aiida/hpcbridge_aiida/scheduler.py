"""The scheduler plugin `hpcbridge.slurm`."""

from __future__ import annotations

from aiida.schedulers.plugins.slurm import SlurmScheduler


class HpcbridgeSlurmScheduler(SlurmScheduler):
    """Slurm behind a FirecREST API, without a shell."""
