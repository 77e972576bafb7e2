"""What a request handler may reach: the sandbox, the caller, and the system named in the path."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request

from hpcbridge_sandbox.cluster.users import User
from hpcbridge_sandbox.errors import ApiError, SSHError, UnhandledError
from hpcbridge_sandbox.streamer.rules import StreamerFaults

if TYPE_CHECKING:
    from hpcbridge_sandbox.auth import TokenVerifier
    from hpcbridge_sandbox.cluster import Cluster
    from hpcbridge_sandbox.faults import Faults
    from hpcbridge_sandbox.issuer import Issuer
    from hpcbridge_sandbox.settings import Settings
    from hpcbridge_sandbox.store import Store


@dataclass
class SystemCondition:
    """Health of one system, as the control URL sets it.

    Attributes:
        unhealthy: service types (``scheduler``, ``ssh``, ``filesystem``, ``s3``) whose check fails.
        ssh: ``ok``; ``refused`` (connection refused); ``denied`` (authentication refused).
    """

    name: str
    unhealthy: set[str] = field(default_factory=set)
    ssh: str = "ok"


@dataclass
class Sandbox:
    """One running sandbox; `get_sandbox` finds it from a request."""

    settings: Settings
    store: Store
    cluster: Cluster
    faults: Faults
    issuer: Issuer
    verifier: TokenVerifier
    systems: dict[str, SystemCondition]
    scheduler: Any = None
    """`scheduling.base.Scheduler`, set by the application's lifespan."""
    streamer_faults: StreamerFaults = field(default_factory=StreamerFaults)
    s3: Any = None
    """The S3 server of `hpcbridge_sandbox.s3`, set by the application's lifespan."""
    base_url: str = ""
    """Public URL of the REST interface, root path included, without a slash at the end."""
    control_url: str = ""


def sandbox_of(request: Request) -> Sandbox:
    """Return the sandbox that serves this request."""
    sandbox: Sandbox = request.app.state.sandbox
    return sandbox


async def get_sandbox(request: Request) -> Sandbox:
    """Dependency: the sandbox that serves this request."""
    return sandbox_of(request)


async def current_user(request: Request) -> User:
    """Dependency: the user whom the bearer token names.

    Raises:
        ApiError: 401 or 400, worded as the real server words them; 500 for a name unknown to the cluster.
    """
    sandbox = sandbox_of(request)
    name = sandbox.verifier.username(request.headers.get("authorization"))
    request.state.username = name
    user = sandbox.cluster.users.get(name)
    if user is None:
        # The real server fails later, when it looks for the user's SSH key.
        message = f"No SSH credentials found for user:{name}"
        if request.url.path.startswith(f"{sandbox.settings.root_path}/filesystem/"):
            raise ApiError(500, f"('{message}',)")
        raise ApiError(500, "Error executing Slurm command.", caused_by=["Error executing Slurm command.", message])
    return user


async def authenticated(request: Request) -> str:
    """Dependency for answers that need a good token but no account on the cluster: the user's name."""
    name: str = sandbox_of(request).verifier.username(request.headers.get("authorization"))
    request.state.username = name
    return name


def find_system(request: Request, system_name: str) -> SystemCondition:
    """Return the system of that name (any case); 404 when there is none."""
    condition = sandbox_of(request).systems.get(system_name.lower())
    if condition is None:
        raise ApiError(404, "System not found")
    return condition


async def system(request: Request, system_name: str) -> SystemCondition:
    """Dependency: the system of the path; 404 when there is none of that name. Health is not looked at."""
    return find_system(request, system_name)


def require_healthy(condition: SystemCondition, *services: str) -> None:
    """Raise 503 when one of ``services`` (``scheduler``, ``ssh``) is marked unhealthy on this system."""
    for service in services:
        if service in condition.unhealthy:
            raise ApiError(503, f"The {service} service for the requested system ({condition.name}) is unhealthy.")


def require_ssh(condition: SystemCondition) -> None:
    """Raise what a command (not a scheduler call) answers while the login node refuses connections or keys."""
    if condition.ssh == "refused":
        raise UnhandledError("(111, 'Connection refused')")
    if condition.ssh == "denied":
        raise SSHError("Unable to establish SSH connection.")


async def healthy_scheduler(request: Request, system_name: str) -> SystemCondition:
    """Dependency of the scheduler's endpoints: 404 unknown system, 503 unhealthy scheduler or SSH."""
    condition = find_system(request, system_name)
    require_healthy(condition, "scheduler", "ssh")
    return condition


async def healthy_ssh(request: Request, system_name: str) -> SystemCondition:
    """Dependency of endpoints that only run commands: 404 unknown system, 503 unhealthy SSH."""
    condition = find_system(request, system_name)
    require_healthy(condition, "ssh")
    return condition


SandboxDep = Annotated[Sandbox, Depends(get_sandbox)]
UserDep = Annotated[User, Depends(current_user)]
