"""Run work on any HPC centre that speaks the FirecREST v2 REST interface.

    async with hpcbridge.connect() as hpc:
        daint = hpc.system("daint")
        await daint.put("input.dat", "/scratch/me/run1/input.dat")
        job = await daint.submit(hpcbridge.JobSpec(script=SCRIPT, workdir="/scratch/me/run1"), key="fig3-17")
        info = await job.wait()
        await daint.get("/scratch/me/run1/out.dat", "out.dat")

`hpcbridge.blocking` has the same names without `await`. Names are loaded when first used (PEP 562), so that importing
the package costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcbridge import blocking, errors
    from hpcbridge.errors import HpcBridgeError
    from hpcbridge.hpc import Hpc, connect
    from hpcbridge.job import Job
    from hpcbridge.jobs.spec import JobSpec
    from hpcbridge.jobs.state import JobInfo, JobState
    from hpcbridge.sites import Site, load_site
    from hpcbridge.system import System

__version__ = "0.1.0"

__all__ = [
    "Hpc",
    "HpcBridgeError",
    "Job",
    "JobInfo",
    "JobSpec",
    "JobState",
    "Site",
    "System",
    "__version__",
    "blocking",
    "connect",
    "errors",
    "load_site",
]

_HOMES = {
    "Hpc": "hpcbridge.hpc",
    "HpcBridgeError": "hpcbridge.errors",
    "Job": "hpcbridge.job",
    "JobInfo": "hpcbridge.jobs.state",
    "JobSpec": "hpcbridge.jobs.spec",
    "JobState": "hpcbridge.jobs.state",
    "Site": "hpcbridge.sites",
    "System": "hpcbridge.system",
    "connect": "hpcbridge.hpc",
    "load_site": "hpcbridge.sites",
}
_MODULES = ("blocking", "errors")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
