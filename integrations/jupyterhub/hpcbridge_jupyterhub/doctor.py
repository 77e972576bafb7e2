"""The checks of `hpcbridge jupyterhub doctor`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from hpcbridge.errors import ConfigurationError, HpcBridgeError
from hpcbridge_jupyterhub.clusters import Cluster, parse_clusters

Level = Literal["fine", "note", "wrong"]
MARKS: dict[str, str] = {"fine": "ok  ", "note": "note", "wrong": "FAIL"}
_LOOPBACK = ("127.0.0.1", "localhost", "::1", "")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    level: Level
    text: str


def load(path: Path) -> Config:
    """The hub's configuration. Raises ConfigurationError when the file is missing or fails."""
    if not path.is_file():
        raise ConfigurationError("there is no such file", path=str(path), hint="Name it with --config")
    try:
        return PyFileConfigLoader(path.name, path=str(path.parent.resolve())).load_config()
    except KeyError as error:
        raise ConfigurationError(
            f"the configuration asks for {error}, which is not set",
            path=str(path),
            hint="Run this with the hub's environment (systemd-run, `docker exec` …)",
        ) from None
    except Exception as error:
        raise ConfigurationError(
            f"the configuration fails with {type(error).__name__}: {error}", path=str(path)
        ) from None


async def checkup(config: Config) -> list[Finding]:
    """All findings, in the order of the configuration."""
    findings = _hub(config)
    try:
        clusters = parse_clusters(config.FirecRESTSpawner.get("systems") or {})
    except ConfigurationError as error:
        return [*findings, Finding("wrong", str(error))]
    if any(cluster.credential == "user" for cluster in clusters.values()):
        findings += _tokens(config)
    for key, cluster in clusters.items():
        findings += await _system(key, cluster)
    return findings


def _hub(config: Config) -> list[Finding]:
    findings = []
    spawner = config.JupyterHub.get("spawner_class", "")
    ours = "firecrest" in str(spawner).lower()
    level: Level = "fine" if ours else "wrong"
    findings.append(Finding(level, f"JupyterHub.spawner_class is {spawner!r}" + ("" if ours else ', not "firecrest"')))
    url = config.JupyterHub.get("hub_connect_url") or config.JupyterHub.get("hub_bind_url") or ""
    if urlsplit(str(url)).hostname in (*_LOOPBACK, None):
        text = f"the nodes would look for the hub at {url or 'loopback'}: set JupyterHub.hub_connect_url to an address"
        findings.append(Finding("note", f"{text} that they reach (a sandbox on this machine is fine as it is)"))
    else:
        findings.append(Finding("fine", f"the nodes find the hub's API at {url}"))
    if config.ConfigurableHTTPProxy.get("should_start", True):
        text = "the hub starts its own proxy: while the hub restarts, nobody reaches a server"
        findings.append(Finding("note", f"{text} (ConfigurableHTTPProxy.should_start = False keeps it apart)"))
    if config.JupyterHub.get("cleanup_servers", True):
        text = "JupyterHub.cleanup_servers is on: a regular stop of the hub ends all servers"
        findings.append(Finding("note", text))
    return findings


def _tokens(config: Config) -> list[Finding]:
    findings = []
    enabled = any(section.get("enable_auth_state") for section in config.values() if isinstance(section, Config))
    if not enabled:
        text = "enable_auth_state is off: the hub keeps no token with which users' jobs could be submitted"
        findings.append(Finding("wrong", text))
    keys = os.environ.get("JUPYTERHUB_CRYPT_KEY") or config.CryptKeeper.get("keys")
    if not keys:
        findings.append(Finding("wrong", "JUPYTERHUB_CRYPT_KEY is not set: tokens cannot be kept"))
    if enabled and keys:
        findings.append(Finding("fine", "the users' own tokens are kept, encrypted, and submit their jobs"))
    return findings


async def _system(key: str, cluster: Cluster) -> list[Finding]:
    where = f"{key} ({cluster.title})" if cluster.title != key else key
    try:
        site = cluster.resolved_site()
        service = cluster.as_service()
        hpc = service or (cluster.as_site() if cluster.credential == "site" else None)
    except ConfigurationError as error:
        return [Finding("wrong", f"{where}: {error}")]
    if hpc is None:
        return [
            Finding("fine", f"{where}: at {site.url}"),
            Finding("note", f"{where}: no service credential, so one listing per user who waits; no check without one"),
        ]
    try:
        async with hpc:
            system = hpc.system(cluster.system)
            name = await system.resolve()
            info = await system.info(fresh=True)
            findings = [Finding("fine", f"{where}: {name} at {site.url} answers")]
            if not info.healthy:
                sick = ", ".join(one.service for one in info.services if not one.healthy)
                findings.append(Finding("note", f"{where}: unhealthy now: {sick}"))
            findings.append(await _watching(where, cluster, system) if service else _unwatched(where))
            return findings
    except HpcBridgeError as error:
        return [Finding("wrong", f"{where}: {error}")]


async def _watching(where: str, cluster: Cluster, system: Any) -> Finding:
    account = cluster.service.account if cluster.service else None
    rows = await system.client.jobs(system.name, time_window="1h", all_users=True, account=account)
    own = await system.user()
    users = {row.user for row in rows if row.user}
    if users - {own}:
        text = f"one listing watches everybody: {len(rows)} jobs of {len(users)} users are seen"
        return Finding("fine", f"{where}: {text}")
    text = "the service sees no other user's job now, so it cannot be told whether the site lets it"
    return Finding("note", f"{where}: {text}; where it does not, there is one listing per user who waits")


def _unwatched(where: str) -> Finding:
    return Finding("note", f"{where}: no service credential, so one listing per user who waits for a server")
