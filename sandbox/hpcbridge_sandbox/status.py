"""``/status``: the systems and their health, liveness, and what a scheduler says of its machines and of the user."""

from __future__ import annotations

import os
import re
import time
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from hpcbridge_sandbox.cluster import User
from hpcbridge_sandbox.context import (
    Sandbox,
    SystemCondition,
    authenticated,
    current_user,
    get_sandbox,
    healthy_ssh,
    system,
)
from hpcbridge_sandbox.errors import ApiError
from hpcbridge_sandbox.scheduling.base import SCHEDULER_ERROR, Scheduler, command_error

router = APIRouter(prefix="/status", tags=["status"])

CHECK_INTERVAL = 60
"""Seconds between two rounds of the real server's health checks."""

_STARTED = time.time()

SandboxDep = Annotated[Sandbox, Depends(get_sandbox)]
UserDep = Annotated[User, Depends(current_user)]
SystemDep = Annotated[SystemCondition, Depends(system)]
HealthySSHDep = Annotated[SystemCondition, Depends(healthy_ssh)]


def _last_check() -> datetime:
    """When the last round of health checks was, had there been rounds."""
    now = time.time()
    return datetime.fromtimestamp(now - (now - _STARTED) % CHECK_INTERVAL, UTC)


def _stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _health(condition: SystemCondition, file_systems: list[str], checked: str, *, s3: bool) -> list[dict[str, Any]]:
    """One entry per service; a file system adds its path, an unhealthy one its reason."""

    def entry(service: str, latency: float, message: str | None, **more: str) -> dict[str, Any]:
        healthy = service not in condition.unhealthy
        said = message if healthy else f"The {service} service is marked unhealthy"
        return {
            "serviceType": service,
            "lastChecked": checked,
            "latency": latency,
            "healthy": healthy,
            "message": said,
            **more,
        }

    ping = f"[{{'mode': 'primary', 'hostname': '{os.uname().nodename}', 'pinged': 'UP'}}]"
    checks = [entry("scheduler", 0.012, ping), entry("ssh", 0.008, None)]
    checks += [entry("filesystem", 0.011, None, path=path) for path in file_systems]
    if s3:
        checks.append(entry("s3", 0.009, None))
    return checks


def _data_transfer(sandbox: Sandbox) -> dict[str, Any] | None:
    settings = sandbox.settings
    match settings.transfer:
        case "s3":
            return {
                "serviceType": "s3",
                "name": "s3-storage",
                "privateUrl": "**********",
                "publicUrl": sandbox.s3.endpoint,
                "accessKeyId": "**********",
                "secretAccessKey": "**********",
                "region": "us-east-1",
                "ttl": 604800,
                "tenant": None,
                "multipart": {
                    "use_split": False,
                    "max_part_size": settings.s3_part_size,
                    "parallel_runs": 3,
                    "tmp_folder": "tmp",
                },
                "bucketLifecycleConfiguration": {"days": 10},
            }
        case "streamer":
            return {
                "serviceType": "streamer",
                "pypiIndexUrl": None,
                "host": settings.host,
                "portRange": list(settings.streamer_ports),
                "publicIps": [settings.host],
                "waitTimeout": settings.streamer_wait,
                "inboundTransferLimit": settings.streamer_limit,
            }
        case _:
            return None


def _system_document(sandbox: Sandbox, condition: SystemCondition) -> dict[str, Any]:
    settings = sandbox.settings
    checked = _stamp(_last_check())
    mode = settings.scheduler_mode
    by_rest = mode != "ssh"
    with_s3 = settings.transfer == "s3"
    file_systems = [
        {"path": "/home", "dataType": "users", "defaultWorkDir": True},
        {"path": "/scratch", "dataType": "scratch", "defaultWorkDir": False},
    ]
    directives = ["#SBATCH --nodes=1", "#SBATCH --ntasks=1", "#SBATCH --partition=xfer", "#SBATCH --time=0-00:15:00"]
    if settings.require_account:
        directives.append("#SBATCH --account={account}")
    return {
        "name": condition.name,
        "ssh": {
            "host": settings.host,
            "port": 22,
            "proxyHost": None,
            "proxyPort": None,
            "maxClients": 500,
            "timeout": {
                "connection": 5,
                "login": 5,
                "commandExecution": round(settings.command_timeout) or 1,
                "idleTimeout": 60,
                "keepAlive": 5,
            },
        },
        "scheduler": {
            "type": "slurm",
            "version": sandbox.scheduler.version,
            "apiUrl": f"http://{settings.host}:6820" if by_rest else None,
            "apiVersion": "0.0.38" if by_rest else None,
            "connectionMode": mode,
            "timeout": 10,
        },
        "servicesHealth": _health(condition, [str(entry["path"]) for entry in file_systems], checked, s3=with_s3),
        "probing": {
            "intervalCheck": CHECK_INTERVAL,
            "services": {
                "scheduler": {"timeout": 5},
                "ssh": {"timeout": 5},
                "filesystem": {"timeout": 5},
                **({"s3": {"timeout": 10}} if with_s3 else {}),
            },
        },
        "lastHealthCheck": checked,
        "fileSystems": file_systems,
        "dataOperation": {
            "max_ops_file_size": settings.max_ops_file_size,
            "datatransfer_jobs_directives": directives,
            "data_transfer": _data_transfer(sandbox),
        },
    }


@router.get("/systems", dependencies=[Depends(authenticated)])
async def get_systems(sandbox: SandboxDep) -> dict[str, Any]:
    """All systems with their configuration, limits and health."""
    return {"systems": [_system_document(sandbox, condition) for condition in sandbox.systems.values()]}


@router.get("/liveness/")
async def get_liveness(sandbox: SandboxDep) -> dict[str, Any]:
    """When each system was checked last, and how many seconds ago; needs no token."""
    checked = _last_check()
    age = int(time.time() - checked.timestamp())
    return {"healthcheckRuns": {name: _stamp(checked) for name in sandbox.systems}, "lastUpdate": age}


def _scheduler(sandbox: Sandbox, condition: SystemCondition) -> Scheduler:
    """Return the scheduler, or raise what a call ends in when the login node cannot be reached."""
    if condition.ssh == "refused":
        raise ApiError(500, "[Errno 111] Connection refused")
    if condition.ssh == "denied":
        words = "Unable to establish SSH connection."
        raise ApiError(500, words, caused_by=[words])
    scheduler: Scheduler = sandbox.scheduler
    return scheduler


@router.get("/{system_name}/nodes")
async def get_system_nodes(sandbox: SandboxDep, user: UserDep, condition: SystemDep) -> dict[str, Any]:
    """Nodes of a system."""
    return {"nodes": await _scheduler(sandbox, condition).nodes(user)}


@router.get("/{system_name}/reservations")
async def get_system_reservations(sandbox: SandboxDep, user: UserDep, condition: SystemDep) -> dict[str, Any]:
    """Reservations of a system."""
    return {"reservations": await _scheduler(sandbox, condition).reservations(user)}


@router.get("/{system_name}/partitions")
async def get_system_partitions(
    sandbox: SandboxDep, user: UserDep, condition: SystemDep, show_hidden: bool = False
) -> dict[str, Any]:
    """Partitions of a system; hidden ones on request."""
    return {"partitions": await _scheduler(sandbox, condition).partitions(user, show_hidden=show_hidden)}


@router.get("/{system_name}/userinfo")
async def get_userinfo(sandbox: SandboxDep, user: UserDep, condition: HealthySSHDep) -> dict[str, Any]:
    """The user as the system's ``id`` command names them, and the user's accounts."""
    if condition.ssh != "ok":
        raise ApiError(500, SCHEDULER_ERROR, caused_by=[SCHEDULER_ERROR])
    accounts = await _scheduler(sandbox, condition).accounts(user)
    result = await sandbox.cluster.run(user, ["/usr/bin/id"])
    if result.returncode != 0:
        raise ApiError(500, command_error(result.returncode, result.stderr.decode(errors="replace")))
    return {**parse_id(result.stdout.decode(errors="replace")), "accounts": accounts}


def parse_id(text: str) -> dict[str, Any]:
    """Return user, group and groups of ``uid=2001(alice) gid=100(users) groups=100(users)``."""

    def identities(field: str) -> list[dict[str, str]]:
        match = re.search(rf"\b{field}=(\S+)", text)
        pairs = re.findall(r"(\d+)(?:\(([^)]*)\))?", match[1]) if match else []
        return [{"id": number, "name": name or number} for number, name in pairs]

    return {"user": identities("uid")[0], "group": identities("gid")[0], "groups": identities("groups")}
