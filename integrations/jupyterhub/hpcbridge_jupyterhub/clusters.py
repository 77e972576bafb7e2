"""`c.FirecRESTSpawner.systems`: the clusters that a hub offers, as frozen models; how each is reached."""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from hpcbridge import Hpc, Site, connect
from hpcbridge.credentials import Credential, credential_for
from hpcbridge.errors import ConfigurationError
from hpcbridge.sites import resolve_site

ADAPTER = "jupyterhub"
"""The adapter's name in the User-Agent."""

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._:-]{0,252}[A-Za-z0-9])?", re.ASCII)


def minutes_of(value: Any) -> int:
    """Minutes, from an int or from Slurm's text (`90`, `01:30:00`, `1-00:00:00`). Raises ValueError."""
    text = str(value).strip()
    match = re.fullmatch(r"(?:(\d{1,4})-)?(\d{1,6})(?::([0-5]?\d))?(?::([0-5]?\d))?", text, re.ASCII)
    if not match:
        raise ValueError("must be minutes, HH:MM:SS or D-HH:MM:SS")
    days, first, second, third = (int(part) if part else None for part in match.groups())
    if days is not None:
        minutes = days * 1440 + (first or 0) * 60 + (second or 0)
    elif second is None:
        minutes = first or 0
    elif third is None:  # MM:SS
        minutes = (first or 0) + (1 if second else 0)
    else:
        minutes = (first or 0) * 60 + second + (1 if third else 0)
    if minutes < 1:
        raise ValueError("must be at least one minute")
    return minutes


Minutes = Annotated[int, BeforeValidator(minutes_of)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Service(_Model):
    """The service credential that watches everybody's jobs, and what it narrows the listing to.

    Attributes:
        client_id: OAuth client. Its secret comes from a variable of the hub's environment, a file or a command.
        account: list the jobs of this account only; for machines where a listing of everything is too large.
    """

    client_id: str
    client_secret_env: str | None = None
    client_secret_file: str | None = None
    client_secret_command: tuple[str, ...] | None = None
    scope: str | None = None
    account: str | None = None


class Cluster(_Model):
    """One system on the hub's list.

    Attributes:
        title: what users read; the key in `systems` where there is none.
        site, url, token_url, system, ca_file, proxy, polling_rate: as in hpcbridge's site configuration. `site` names
            a section of `sites.toml`.
        credential: whose token submits. "user": the one of their login, out of auth_state. "site": the credential of
            `site` (or of FIRECREST_CLIENT_ID and so on), the same account for all users of the hub.
        service: credential that watches all jobs with one listing; without it each user's own token does.
        partitions, accounts, reservations: what the form offers. None: what the system says. []: no such field.
        time, max_time: default and longest time limit (minutes, or Slurm's text).
        max_nodes, max_cpus, max_memory, max_gpus: upper bounds for what the form may ask for (memory in GiB); None
            leaves the field out.
        gpu_directive: how GPUs are asked for, with `{gpus}`.
        directives: further sbatch options for every server.
        workdir: where the job starts, with `{username}` (of the system); None: the user's own directory.
        prologue: shell lines before the server starts (`module load …`).
        command: the server's command on the node, in place of the hub's `Spawner.cmd`. python: interpreter there for
            the node's side.
        node_host: how the node names itself: auto, hostname, fqdn or an address.
        ports: range of ports on the nodes (`first-last`), where the site's firewall opens one.
        allowed_hosts: patterns (`nid*.cluster.example`) or networks (`10.0.0.0/8`) that servers may claim to be at;
            empty: any.
    """

    title: str = ""
    site: str | None = None
    url: str | None = None
    token_url: str | None = None
    system: str | None = None
    ca_file: str | None = None
    proxy: str | None = Field(default=None, repr=False)
    polling_rate: float | None = None
    credential: Literal["user", "site"] = "user"
    service: Service | None = None
    partitions: tuple[str, ...] | None = None
    accounts: tuple[str, ...] | None = None
    reservations: tuple[str, ...] | None = None
    time: Minutes = 60
    max_time: Minutes = 1440
    max_nodes: int | None = None
    max_cpus: int | None = None
    max_memory: int | None = None
    max_gpus: int | None = None
    gpu_directive: str = "--gpus={gpus}"
    directives: tuple[str, ...] = ()
    workdir: str | None = None
    prologue: str = ""
    command: tuple[str, ...] | None = None
    python: str = "python3"
    node_host: str = "auto"
    ports: str = ""
    allowed_hosts: tuple[str, ...] = ()

    @field_validator("ports")
    @classmethod
    def _range(cls, value: str) -> str:
        if value and not re.fullmatch(r"\d{4,5}(-\d{4,5})?", value):
            raise ValueError("must be first-last, between 1024 and 65535")
        return value

    @property
    def machine(self) -> tuple[str | None, ...]:
        """What several entries for one machine (with other limits or directives) have in common."""
        return self.site, self.url, self.system

    def resolved_site(self) -> Site:
        """The deployment. Raises ConfigurationError."""
        given = {"url": self.url, "token_url": self.token_url, "ca_file": self.ca_file, "proxy": self.proxy}
        return resolve_site(self.site, system=self.system, polling_rate=self.polling_rate, adapter=ADAPTER, **given)

    def as_site(self) -> Hpc:
        """The deployment with the site's own credential."""
        site = self.resolved_site()
        return connect(site, credential=credential_for(site), adapter=ADAPTER)

    def as_service(self) -> Hpc | None:
        """The deployment as the service that watches; None where none is configured."""
        if self.service is None:
            return None
        own = self.service.model_dump(exclude={"account"}, exclude_none=True)
        site = resolve_site(
            self.site,
            url=self.url,
            token_url=self.token_url,
            system=self.system,
            ca_file=self.ca_file,
            proxy=self.proxy,
            polling_rate=self.polling_rate,
            adapter=ADAPTER,
            grant="client_credentials",
            **own,
        )
        return connect(site, credential=credential_for(site), adapter=ADAPTER)

    def as_user(self, credential: Credential) -> Hpc:
        """The deployment as one user."""
        return connect(self.resolved_site(), credential=credential, adapter=ADAPTER)

    def check_host(self, host: object, port: object) -> tuple[str, int]:
        """What a server says of its place, checked: it is a user's file, and the hub's proxy will go there.

        Raises ConfigurationError.
        """
        fine = isinstance(host, str) and _HOST.fullmatch(host) and isinstance(port, int) and 1024 <= port <= 65535
        if not fine or not (not self.allowed_hosts or any(_matches(str(host), one) for one in self.allowed_hosts)):
            raise ConfigurationError(
                f"the server says that it listens on {host!r}:{port!r}, which is not allowed here",
                hint="Compare allowed_hosts and node_host of the system in the hub's configuration",
            )
        return str(host), int(str(port))


def _matches(host: str, pattern: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(pattern, strict=False)
    except ValueError:
        return fnmatch.fnmatchcase(host.lower(), pattern.lower())


def parse_clusters(systems: Mapping[str, Any]) -> dict[str, Cluster]:
    """The models of `c.FirecRESTSpawner.systems`; without any, the one that the environment describes.

    Raises ConfigurationError naming the system and the field.
    """
    found: dict[str, Cluster] = {}
    for key, fields in (systems or {"default": {}}).items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", key, re.ASCII):
            raise ConfigurationError(
                f"FirecRESTSpawner.systems: {key!r} is no key", hint="Use letters, digits, - and _, at most 32"
            )
        try:
            found[key] = Cluster.model_validate({"title": key, **dict(fields)})
        except ValidationError as error:
            raise ConfigurationError(f"FirecRESTSpawner.systems[{key!r}]: {explain(error)}") from None
    return found


def explain(error: ValidationError) -> str:
    """Pydantic's complaints in one line, without the values: they may be secrets."""
    parts = []
    for item in error.errors(include_input=False, include_url=False, include_context=False):
        where = ".".join(str(part) for part in item["loc"])
        text = str(item["msg"]).removeprefix("Value error, ")
        parts.append(f"{where}: {text}" if where else text)
    return "; ".join(parts)
