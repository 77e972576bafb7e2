"""Opens the site of a rule or of an attempt, with the connections of this one call."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hpcbridge.hpc import connect
from hpcbridge.sites import CredentialSettings, Site, config_file, resolve_site
from hpcbridge_gitlab.records import write_json
from hpcbridge_gitlab.tokens import KeptToken

if TYPE_CHECKING:
    from hpcbridge import System
    from hpcbridge_gitlab.settings import Settings


@asynccontextmanager
async def opened(settings: Settings, site: str, system: str) -> AsyncIterator[System]:
    """The system `system` (empty: the site's own) of the site `site` (empty: the environment, or the default)."""
    found = _site(settings, site)
    async with connect(found, credential=KeptToken(found, settings.state), adapter="gitlab") as hpc:
        yield hpc.system(system or None)


def _site(settings: Settings, name: str) -> Site:
    """The site's settings, as they were read from the file that has not changed since.

    To check the file takes longer than all the rest of a stage's start. What is kept refers to secrets, it holds none.
    """
    if not name:
        return resolve_site(None, adapter="gitlab")
    cache = settings.state / "sites.json"
    try:
        about = config_file().stat()
        stamp = [str(config_file()), about.st_mtime_ns, about.st_size, name]
    except OSError:
        return resolve_site(name, adapter="gitlab")  # it says what is missing
    try:
        kept = json.loads(cache.read_bytes())
        if kept["stamp"] == stamp:
            return _from_json(kept["site"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    site = resolve_site(name, adapter="gitlab")
    if site.credentials.client_secret is None and "@" not in (site.proxy or ""):
        write_json(cache, {"stamp": stamp, "site": _to_json(site)})
    return site


def _to_json(site: Site) -> dict[str, Any]:
    fields = {name: getattr(site, name) for name in Site.__slots__ if name not in ("accounts", "credentials")}
    return {**fields, "accounts": dict(site.accounts), "credentials": asdict(site.credentials)}


def _from_json(data: dict[str, Any]) -> Site:
    given = dict(data)
    credentials: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.pop("credentials").items()
    }
    accounts = MappingProxyType(given.pop("accounts"))
    return Site(**given, accounts=accounts, credentials=CredentialSettings(**credentials))
