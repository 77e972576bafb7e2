"""The sandbox's own Slurm for aiida-core's own plugins: what `core.slurm` runs enters the cluster's namespaces."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import psutil

from support.sandbox import SandboxProcess

COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "scontrol")
CONF = "/var/lib/cluster/slurm/etc/slurm.conf"

# A work directory that this machine's AiiDA made belongs to root; the job runs as the cluster's user.
WRAPPER = """#!/bin/sh
dir=/
case $PWD in {root}/*) dir=${{PWD#{root}}}; chown -R {uid}:{gid} . ;; esac
exec nsenter --target {pid} --mount --pid --root --wd -- \\
  setpriv --reuid {uid} --regid {gid} --clear-groups \\
  env -i HOME=/home/alice USER=alice LOGNAME=alice PATH=/usr/local/bin:/usr/bin:/bin LC_ALL=C SLURM_CONF={conf} \\
  sh -c 'cd "$1" && shift && exec "$@"' sh "$dir" {name} "$@"
"""


def as_operator(process: SandboxProcess, *words: str) -> str:
    """Run one of Slurm's commands as the cluster's operator; returns what it printed."""
    enter = ["nsenter", "--target", str(keeper_of(process)), "--mount", "--pid", "--root", "--wd"]
    done = subprocess.run(
        [*enter, "--", "env", "-i", "PATH=/usr/local/bin:/usr/bin:/bin", f"SLURM_CONF={CONF}", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}"
    return done.stdout


def keeper_of(process: SandboxProcess) -> int:
    """The process that stands in the cluster's namespaces."""
    for child in psutil.Process(process.process.pid).children(recursive=True):
        # Its own pid namespace: there it is number one.
        status = Path(f"/proc/{child.pid}/status").read_text()
        numbers = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
        if len(numbers) > 1 and numbers[-1] == "1":
            return child.pid
    raise AssertionError("the sandbox has no process in a pid namespace of its own")


def write_commands(process: SandboxProcess, directory: Path) -> Path:
    """Put Slurm's commands for the sandbox's cluster into `directory`; returns the work directory to use with them."""
    home = process.host_path("/scratch/alice")
    owner, root = home.stat(), str(process.state / "cluster")
    directory.mkdir(exist_ok=True)
    for name in COMMANDS:
        path = directory / name
        path.write_text(
            WRAPPER.format(root=root, uid=owner.st_uid, gid=owner.st_gid, pid=keeper_of(process), conf=CONF, name=name)
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return home / "native"
