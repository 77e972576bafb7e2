"""What a sandbox is told when it starts: one frozen model, filled by the command line."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

USER_NAME = re.compile(r"^[a-z_][a-z0-9_-]{0,30}$")
SYSTEM_NAME = re.compile(r"^[a-z0-9][a-z0-9_-]{0,62}$")
FIRST_UID = 2001
USERS_GID = 100
"""Debian's group ``users``: the primary group of every cluster user, as on the recorded server."""
COMMAND_OUTPUT_LIMIT = 5 * 1024 * 1024
"""FirecREST reads at most this many bytes of a command's output (``SSHClient.buffer_limit``)."""


class UserSettings(BaseModel):
    """A cluster user and OAuth client: ``NAME[:SECRET]`` on the command line."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    secret: str = Field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    @field_validator("name")
    @classmethod
    def _portable_name(cls, name: str) -> str:
        if not USER_NAME.match(name) or name in {"root", "nobody", "munge", "slurm", "mysql"}:
            raise ValueError(f"{name!r} is not a user name this sandbox can make (letters, digits, _ and -)")
        return name


class Exposed(BaseModel):
    """A directory of this machine that the cluster sees: ``HOST[:TARGET][:ro]``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    host: Path
    target: str
    read_only: bool = False

    @classmethod
    def parse(cls, text: str) -> Exposed:
        """Read ``HOST[:TARGET][:ro]``; raises `ValueError` when HOST is missing or TARGET is relative."""
        parts = text.split(":")
        read_only = len(parts) > 1 and parts[-1] in {"ro", "rw"}
        mode = parts.pop() if read_only else "rw"
        host = Path(parts[0]).expanduser().resolve()
        target = parts[1] if len(parts) > 1 and parts[1] else str(host)
        if not host.exists():
            raise ValueError(f"--expose: {host} does not exist")
        if not target.startswith("/") or len(parts) > 2:
            raise ValueError(f"--expose: {text!r} is not HOST[:TARGET][:ro] with an absolute TARGET")
        return cls(host=host, target=target, read_only=mode == "ro")


class Settings(BaseModel):
    """Everything that is fixed for the life of one sandbox. All times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    state: Path
    env_file: Path | None = None
    users: tuple[UserSettings, ...] = ()
    systems: tuple[str, ...] = ("sandbox",)
    account: str = "staff"
    root_path: str = ""

    scheduler: Literal["local", "slurm"] = "local"
    scheduler_mode: Literal["ssh", "hybrid", "rest"] = "ssh"
    server_version: Literal["2.5.6", "2.5.7"] = "2.5.7"
    require_account: bool = False

    transfer: Literal["s3", "streamer", "none"] = "s3"
    """How large files move: over the object store, over the streamer, or not at all."""
    s3_part_size: int = Field(default=67_108_864, ge=5 * 1024**2)
    """Bytes of one S3 part (FirecREST: ``max_part_size``); S3 takes none under 5 MiB but the last."""
    streamer_ports: tuple[int, int] = (5665, 5675)
    """First and last port that a streamer may listen on; a job takes the first free one."""
    streamer_wait: int = Field(default=600, gt=0)
    """Seconds for which a streamer waits for its client."""
    streamer_limit: int = Field(default=5 * 1024**3, gt=0)
    """Most bytes that a streamer receives (FirecREST: ``inboundTransferLimit``)."""

    ingress_look: float = Field(default=60.0, gt=0)
    """The S3 ingress job looks for its object at once and then every this many seconds."""
    accounting_lag: float = Field(default=5.0, ge=0)
    """Longest time for which accounting rows are placeholders or missing from listings."""
    time_scale: float = Field(default=1.0, gt=0)
    """Multiplies `ingress_look` and `accounting_lag` (0.1 makes them ten times shorter)."""
    latency: float = Field(default=0.0, ge=0)
    """Added before every REST answer."""
    token_lifetime: float = Field(default=300.0, gt=0)
    command_timeout: float = Field(default=5.0, gt=0)
    """Longest run of one command on the "login node" (FirecREST: ``timeout.commandExecution``)."""
    max_sessions: int | None = Field(default=None, ge=1)
    """Concurrent commands per user before "Unable to open a new SSH channel" (OpenSSH's default is 10)."""
    offline_jobs: bool = False
    """Jobs have no network, as on compute nodes behind no router; transfer jobs are jobs."""
    max_ops_file_size: int = 5 * 1024 * 1024
    isolation: Literal["auto", "namespace", "bwrap"] = "auto"
    expose: tuple[Exposed, ...] = ()

    @field_validator("host")
    @classmethod
    def _only_loopback(cls, host: str) -> str:
        if not host.startswith("127.") or not ipaddress.IPv4Address(host).is_loopback:
            raise ValueError(f"{host} is not a loopback address; the sandbox serves this machine only")
        return host

    @field_validator("offline_jobs")
    @classmethod
    def _only_our_own_jobs(cls, wanted: bool, given: ValidationInfo) -> bool:
        if wanted and given.data.get("scheduler") != "local":
            raise ValueError("Slurm starts its jobs itself; the local queue's can be without network")
        if wanted and os.geteuid() != 0:
            raise ValueError("only root can take the network away from jobs")
        return wanted

    @field_validator("streamer_ports", mode="before")
    @classmethod
    def _port_range(cls, given: object) -> object:
        if isinstance(given, str):
            first, _, last = given.partition("-")
            if not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last) < 65536):
                raise ValueError(f"{given!r} is not a range of ports such as 5665-5675")
            return int(first), int(last)
        return given

    @field_validator("systems")
    @classmethod
    def _system_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            # The server lower-cases request paths, so a name with capitals could never be reached.
            if not SYSTEM_NAME.match(name) or name in {"systems", "liveness"}:
                raise ValueError(f"{name!r} is not a system name: lower-case letters, digits, - and _")
        return names

    @property
    def scaled_ingress_look(self) -> float:
        """Seconds between two looks of an ingress job, after ``--time-scale``."""
        return self.ingress_look * self.time_scale

    @property
    def scaled_accounting_lag(self) -> float:
        """Seconds of accounting lag, after ``--time-scale``."""
        return self.accounting_lag * self.time_scale
