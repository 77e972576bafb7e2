"""The cluster's scheduler: our own queue (``local``) or a real Slurm (``slurm``), behind one protocol (``base``)."""

from __future__ import annotations

from hpcbridge_sandbox.cluster import Cluster
from hpcbridge_sandbox.scheduling.base import Scheduler
from hpcbridge_sandbox.settings import Settings
from hpcbridge_sandbox.store import Store

__all__ = ["Scheduler", "make_scheduler"]


def make_scheduler(settings: Settings, cluster: Cluster, store: Store) -> Scheduler:
    """Return the scheduler that the settings name; ``start()`` brings it up."""
    if settings.scheduler == "slurm":
        from hpcbridge_sandbox.scheduling.slurm.scheduler import SlurmScheduler

        return SlurmScheduler(settings, cluster)
    from hpcbridge_sandbox.scheduling.local.scheduler import LocalScheduler

    return LocalScheduler(settings, cluster, store)
