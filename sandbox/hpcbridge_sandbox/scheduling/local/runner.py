"""How slurmd starts a batch script: the spooled copy, its environment, its output files."""

from __future__ import annotations

import os
import posixpath
import shutil
from pathlib import Path

from hpcbridge_sandbox.cluster import Cluster, ClusterProcess, User
from hpcbridge_sandbox.cluster.view import SPOOL
from hpcbridge_sandbox.scheduling.local.job import Job
from hpcbridge_sandbox.scheduling.local.rows import CLUSTER, NODE
from hpcbridge_sandbox.scheduling.local.values import expand_pattern

IO_FAILURE = 53
"""The signal that Slurm reports for a job whose output file could not be opened (exit code 0:53)."""

NO_TASK = 4294967294
"""What ``%a`` gives outside an array."""

# Opens the files and enters the directory as the user, so that the user's rights count, and becomes the script.
_LAUNCH = f"""
mode=$1 input=$2 output=$3 error=$4 dir=$5 script=$6
if cd -- "$dir" 2>/dev/null; then lost=; else lost=$dir; cd /tmp; fi
if [ "$mode" = truncate ]; then (: >"$output" && : >"$error") 2>/dev/null || kill -{IO_FAILURE} $$; fi
(: <"$input" >>"$output" && : >>"$error") 2>/dev/null || kill -{IO_FAILURE} $$
exec <"$input" >>"$output" 2>>"$error"
[ -z "$lost" ] || echo "slurmstepd: error: couldn't chdir to \\`$lost': No such file or directory: \\
going to /tmp instead" >&2
unset OLDPWD
export SLURM_TASK_PID=$$
exec "$script"
"""

_SRUN = """#!/bin/sh
# The local queue's srun: runs the command once per task, side by side, on this machine.
tasks=${SLURM_NTASKS:-1}
while [ $# -gt 0 ]; do
  case $1 in
    -n|--ntasks) tasks=$2; shift 2 ;;
    -n*) tasks=${1#-n}; shift ;;
    --ntasks=*) tasks=${1#*=}; shift ;;
    -N|-c|-t|-J|-p|-A|-w|-o|-e|-i|-D|-C|-m|-x) shift 2 ;;
    --) shift; break ;;
    -*) shift ;;
    *) break ;;
  esac
done
task=0 code=0 pids=
while [ "$task" -lt "$tasks" ]; do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_STEP_NUM_TASKS=$tasks SLURM_STEP_ID=0 "$@" &
  pids="$pids $!" task=$((task + 1))
done
for pid in $pids; do wait "$pid" || code=$?; done
exit $code
"""


def log_paths(job: Job) -> tuple[str, str, str]:
    """Return the job's standard input, output and error as absolute paths, patterns replaced."""
    request = job.request
    values = {
        "j": str(job.job_id),
        "J": f"{job.job_id}.batch",
        "A": str(job.master),
        "a": str(job.task if job.task is not None else (job.pending or [NO_TASK])[-1] if job.pending else NO_TASK),
        "x": job.name,
        "u": request.user,
        "N": NODE,
        "n": "0",
        "t": "0",
        "s": "batch",
    }
    default = "slurm-%A_%a.out" if job.array_id is not None else "slurm-%j.out"
    output = request.stdout or default
    names = (request.stdin, output, request.stderr or output)
    stdin, stdout, stderr = (posixpath.join(request.workdir, expand_pattern(name, values)) for name in names)
    return stdin, stdout, stderr


def slurm_environment(job: Job) -> dict[str, str]:
    """Return the variables that Slurm 22.05 sets for the batch script."""
    request = job.request
    values = {
        "ENVIRONMENT": "BATCH",
        "HOSTNAME": NODE,
        "SLURMD_NODENAME": NODE,
        "SLURM_CLUSTER_NAME": CLUSTER,
        "SLURM_CPUS_ON_NODE": str(request.cpus),
        "SLURM_GET_USER_ENV": "1",
        "SLURM_GTIDS": "0",
        "SLURM_JOBID": str(job.job_id),
        "SLURM_JOB_ACCOUNT": request.account,
        "SLURM_JOB_CPUS_PER_NODE": str(request.cpus),
        "SLURM_JOB_GID": "100",
        "SLURM_JOB_ID": str(job.job_id),
        "SLURM_JOB_NAME": job.name,
        "SLURM_JOB_NODELIST": NODE,
        "SLURM_JOB_NUM_NODES": str(request.nodes),
        "SLURM_JOB_PARTITION": request.partition,
        "SLURM_JOB_QOS": request.options.qos or "normal",
        "SLURM_JOB_UID": str(request.uid),
        "SLURM_JOB_USER": request.user,
        "SLURM_LOCALID": "0",
        "SLURM_NNODES": str(request.nodes),
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": NODE,
        "SLURM_PRIO_PROCESS": "0",
        "SLURM_PROCID": "0",
        "SLURM_SUBMIT_DIR": request.workdir,
        "SLURM_SUBMIT_HOST": NODE,
        "SLURM_TASKS_PER_NODE": str(request.tasks),
        "SLURM_TOPOLOGY_ADDR": NODE,
        "SLURM_TOPOLOGY_ADDR_PATTERN": "node",
        "TMPDIR": "/tmp",  # noqa: S108 (the cluster's own)
    }
    if request.options.ntasks is not None:
        values |= {"SLURM_NTASKS": str(request.tasks), "SLURM_NPROCS": str(request.tasks)}
    if request.options.cpus_per_task > 1:
        values["SLURM_CPUS_PER_TASK"] = str(request.options.cpus_per_task)
    if job.restarts:
        values["SLURM_RESTART_COUNT"] = str(job.restarts)
    array = request.options.array
    if job.task is not None and array is not None:
        step = array.indices[1] - array.indices[0] if len(array.indices) > 1 else 1
        values |= {
            "SLURM_ARRAY_JOB_ID": str(job.array_id),
            "SLURM_ARRAY_TASK_ID": str(job.task),
            "SLURM_ARRAY_TASK_COUNT": str(len(array.indices)),
            "SLURM_ARRAY_TASK_MAX": str(array.indices[-1]),
            "SLURM_ARRAY_TASK_MIN": str(array.indices[0]),
            "SLURM_ARRAY_TASK_STEP": str(step),
        }
    return values


class Runner:
    """Starts batch scripts in the cluster and keeps their spooled copies until they end."""

    def __init__(self, cluster: Cluster, *, offline: bool = False) -> None:
        """Put the queue's own ``srun`` into every user's spool."""
        self._cluster = cluster
        self._offline = offline
        for name in cluster.users:
            tools = cluster.host_path(f"{SPOOL}/{name}/bin")
            tools.mkdir(mode=0o755, exist_ok=True)
            self._write(tools / "srun", _SRUN, 0o555, None)

    @staticmethod
    def _write(path: Path, text: str, mode: int, owner: User | None) -> None:
        path.unlink(missing_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
        if owner is not None and os.geteuid() == 0:
            os.chown(path, owner.uid, owner.gid)
        path.chmod(mode)

    def _directory(self, job: Job) -> Path:
        return self._cluster.host_path(f"{SPOOL}/{job.request.user}/job{job.job_id:05d}")

    async def start(self, user: User, job: Job) -> ClusterProcess:
        """Start the job's script as its user, in the environment that ``--export=ALL`` carries over."""
        directory = self._directory(job)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o755)
        self._write(directory / "slurm_script", job.request.script, 0o500, user)
        base = {} if job.request.rest else user.environment()
        environment = {**base, **slurm_environment(job), **job.request.env}
        if "PATH" in environment:
            environment["PATH"] = f"{SPOOL}/{user.name}/bin:{environment['PATH']}"
        mode = "append" if job.request.options.append or job.restarts else "truncate"
        script = f"{SPOOL}/{user.name}/{directory.name}/slurm_script"
        argv = ["/bin/sh", "-c", _LAUNCH, "slurmstepd", mode, *log_paths(job), job.request.workdir, script]
        return await self._cluster.spawn(user, argv, cwd="/", env=environment, clean_env=True, offline=self._offline)

    def clean(self, job: Job) -> None:
        """Drop the spooled copy of a job that has ended."""
        shutil.rmtree(self._directory(job), ignore_errors=True)
