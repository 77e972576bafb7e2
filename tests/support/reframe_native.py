"""ReFrame with its own `slurm` scheduler, on the login node of a sandbox with a real Slurm: what ours is compared with.

It runs inside the cluster's namespaces, as a user there, with the cluster's own sbatch, squeue and sacct.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from support.reframe_runs import SCALE, SUITE, Outcome, configuration
from support.sandbox import SandboxProcess

PYTHON = "/opt/reframe/python"
PACKAGES = "/opt/reframe/packages"
SUITES = {SUITE: "/opt/reframe/suite", SCALE: "/opt/reframe/scale"}
SLURM_CONF = "/var/lib/cluster/slurm/etc/slurm.conf"


def exposed() -> tuple[str, ...]:
    """Flags of a sandbox that shows its cluster ReFrame, the Python that runs it, and the suites."""
    folders = {Path(sys.base_prefix): PYTHON, Path(_site_packages()): PACKAGES, **SUITES}
    return tuple(word for here, there in folders.items() for word in ("--expose", f"{here}:{there}:ro"))


def _site_packages() -> str:
    import reframe

    return str(Path(reframe.__file__).parents[1])


def run_native(
    sandbox: SandboxProcess,
    suite: Path,
    *arguments: str,
    policy: str = "async",
    user: str = "alice",
    max_jobs: int = 100,
    name: str = "native",
    timeout: float = 600,
) -> Outcome:
    """Run a suite there and read its report."""
    home = f"/scratch/{user}/{name}"
    folder = sandbox.host_path(home)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    owner = folder.parent.stat()
    (folder / "settings.py").write_text(configuration(scheduler="slurm", imports="", max_jobs=max_jobs))
    # A file, as the installed command is one: `-c` has no source, for which ReFrame's log looks at every message.
    (folder / "reframe").write_text("from reframe.frontend.cli import main\n\nmain()\n")
    os.chown(folder, owner.st_uid, owner.st_gid)
    slurmctld = next(
        process.pid
        for process in psutil.Process(sandbox.process.pid).children(recursive=True)
        if process.name() == "slurmctld"
    )
    words = [
        *("nsenter", "--mount", "--pid", "--target", str(slurmctld), f"--wdns={home}"),
        *("setpriv", f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups"),
        *("env", "-i", f"HOME=/home/{user}", f"USER={user}", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin"),
        *(f"SLURM_CONF={SLURM_CONF}", f"PYTHONPATH={PACKAGES}", "PYTHONDONTWRITEBYTECODE=1"),
        *(f"{PYTHON}/bin/python3", f"{home}/reframe"),
        *("-C", f"{home}/settings.py", "--system=cluster", "--prefix", f"{home}/rfm"),
        *("-c", SUITES[suite], "-R", "--exec-policy", policy, "--report-file", f"{home}/report.json"),
        *("--nocolor", "--flex-alloc-nodes=all", "-r", *arguments),
    ]
    extra = {name: value for name, value in os.environ.items() if name.startswith("MANY_")}
    at = words.index("-i") + 1
    words[at:at] = [f"{name}={value}" for name, value in extra.items()]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
    )
    report = folder / "report.json"
    data = json.loads(report.read_text()) if report.exists() else {}
    return Outcome(done.returncode, done.stdout, data, folder)
