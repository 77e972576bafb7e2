"""ReFrame's runtime inside the test process: a partition and its scheduler, for what needs no whole run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import reframe.core.config as config
import reframe.core.runtime as runtime
from reframe.core.backends import getlauncher
from reframe.core.schedulers import Job

from support.reframe_runs import configuration


@contextlib.contextmanager
def partition(folder: Path, client: Mapping[str, str], **settings: Any) -> Iterator[Any]:
    """The one partition of a configuration, in `folder`, as client of a sandbox; ends what it began there."""
    file = folder / "settings.py"
    file.write_text(configuration(**settings))
    before, here = dict(os.environ), Path.cwd()
    for name in [name for name in os.environ if name.startswith("FIRECREST")]:
        del os.environ[name]
    os.environ.update(client, HPCBRIDGE_STATE_DIR=str(folder / "state"))
    try:
        runtime._runtime_context = None  # ReFrame has one per process
        site = config.load_config(str(file))
        os.chdir(folder)
        site.select_subconfig("cluster")
        site.add_sticky_option("systems/prefix", str(folder / "rfm"))
        runtime.init_runtime(site)
        (found,) = runtime.runtime().system.partitions
        yield found
    finally:
        from hpcbridge_reframe.session import Session

        for session in list(Session._all.values()):
            session.finish()
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)


def make_job(part: Any, workdir: Path, commands: list[str], **settings: Any) -> Job:
    """A job with its script, ready to be submitted."""
    workdir.mkdir(parents=True, exist_ok=True)
    job = Job.create(
        part.scheduler,
        getlauncher("local")(),
        name="rfm_job",
        script_filename="rfm_job.sh",
        workdir=str(workdir),
        sched_access=part.access,
        **settings,
    )
    job.time_limit = "10m"
    here = Path.cwd()
    os.chdir(workdir)
    try:
        job.prepare(commands)
    finally:
        os.chdir(here)
    return job
