"""Where a deployment is and who we are there: `Site` and `load_site`.

One order: arguments, then the environment (`FIRECREST_URL`, `AUTH_TOKEN_URL`, `FIRECREST_CLIENT_ID`,
`FIRECREST_CLIENT_SECRET`, `FIRECREST_SYSTEM`: pyfirecrest's names), then a TOML file with several sites
(`$HPCBRIDGE_CONFIG`, else `hpcbridge/sites.toml` in the XDG configuration directory). The environment describes one
deployment: where its FIRECREST_URL is another one's than the named site's, none of its values apply, so that no
secret ever goes to a deployment it was not made for.

Secrets stand in the file by reference only. Limits, file systems and scheduler kind are not configured: they come
from `/status/systems`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hpcbridge.credentials.secret import Secret
from hpcbridge.errors import ConfigurationError

if TYPE_CHECKING:
    from hpcbridge.credentials.base import Credential

ENVIRONMENT = {
    "url": "FIRECREST_URL",
    "token_url": "AUTH_TOKEN_URL",
    "client_id": "FIRECREST_CLIENT_ID",
    "client_secret": "FIRECREST_CLIENT_SECRET",
    "system": "FIRECREST_SYSTEM",
}
"""Setting -> environment variable."""

GRANTS = ("client_credentials", "device", "browser", "token_command", "token_file")
"""Ways to a token that a configuration can name."""

DEFAULT_POLLING_RATE = 5.0
"""Polling requests per second and process."""

DEFAULT_MAX_IN_FLIGHT = 32
"""Requests in flight at most; the limiter starts lower and finds what the site bears."""


@dataclass(frozen=True, slots=True)
class CredentialSettings:
    """How to come to a token. Secrets are references (file, environment variable, command) or wrapped.

    `grant` is one of `GRANTS`, or None to choose by what is given. `issuer` is the OpenID issuer, for its discovery
    document; without it the issuer is derived from the token URL. Commands are argument lists; their standard output
    is the value.
    """

    grant: str | None = None
    client_secret: Secret | None = None
    client_secret_file: str | None = None
    client_secret_env: str | None = None
    client_secret_command: tuple[str, ...] | None = None
    token_command: tuple[str, ...] | None = None
    token_file: str | None = None
    scope: str | None = None
    audience: str | None = None
    client_auth: str | None = None
    issuer: str | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """A FirecREST deployment. `url` is its identity (no trailing slash, may have a path prefix); `name` is a label.

    `accounts` maps a system to the account jobs are charged to by default. `ca_file`, `client_cert` and `client_key`
    are PEM files; `polling_rate` is in requests per second and process.
    """

    url: str
    name: str = ""
    token_url: str | None = None
    client_id: str | None = None
    system: str | None = None
    accounts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    ca_file: str | None = None
    proxy: str | None = field(default=None, repr=False)  # may carry a password
    client_cert: str | None = None
    client_key: str | None = None
    polling_rate: float = DEFAULT_POLLING_RATE
    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT
    adapter: str = "core"
    credentials: CredentialSettings = field(default_factory=CredentialSettings, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _checked_url(self.url, "url"))
        if self.token_url is not None:
            object.__setattr__(self, "token_url", _checked_url(self.token_url, "token_url"))
        if not self.name:
            object.__setattr__(self, "name", urlsplit(self.url).netloc)
        if self.polling_rate <= 0 or self.max_in_flight < 1:
            raise ConfigurationError("polling_rate and max_in_flight must be positive", site=self.name)

    def account_for(self, system: str) -> str | None:
        """The account that jobs on `system` are charged to unless they say otherwise."""
        return self.accounts.get(system)


_SITE_KEYS = frozenset(item.name for item in fields(Site)) - {"credentials", "name"}
_CREDENTIAL_KEYS = frozenset(item.name for item in fields(CredentialSettings))


def load_site(name: str | None = None, **overrides: Any) -> tuple[Site, Credential]:
    """Resolve a site and its credential; reads files and environment, sends nothing.

    Args:
        name: a site of the TOML file. None: `$HPCBRIDGE_SITE`, else the site the environment describes, else the
            file's `default`, else its only site.
        **overrides: any setting of `Site` or `CredentialSettings`, by name; None counts as not given. `client_secret`
            may be a plain string.

    Raises:
        ConfigurationError: names the file and the key, or the variable.
    """
    overrides = hide_secrets(overrides)
    site = resolve_site(name, **overrides)
    from hpcbridge.credentials.factory import credential_for

    return site, credential_for(site)


def resolve_site(name: str | None = None, **overrides: Any) -> Site:
    """Like `load_site`, without making the credential (for `hpcbridge login`, which makes one)."""
    overrides = hide_secrets(overrides)
    given = {key: value for key, value in overrides.items() if value is not None}
    if unknown := sorted(given.keys() - _SITE_KEYS - _CREDENTIAL_KEYS):
        raise ConfigurationError(f"unknown setting {unknown[0]!r}", hint=_known_settings())
    named = name or os.environ.get("HPCBRIDGE_SITE") or None
    environment = _from_environment()
    url = given.get("url") or (None if named else environment.get("url"))
    label, table = _from_file(named, url)
    if _describes(environment, given, table):
        table = {**table, **environment}
    return _build(label, {**table, **given})


def hide_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` with a plain client secret wrapped: keyword arguments show in tracebacks with local variables."""
    secret = settings.get("client_secret")
    return {**settings, "client_secret": Secret(secret)} if isinstance(secret, str) else dict(settings)


def config_file() -> Path:
    """The configuration file's path, whether it exists or not."""
    if path := os.environ.get("HPCBRIDGE_CONFIG"):
        return Path(path).expanduser()
    return config_directory() / "sites.toml"


def config_directory() -> Path:
    """Where the configuration file is unless HPCBRIDGE_CONFIG says otherwise; secrets' files are often beside it."""
    import platformdirs

    return Path(platformdirs.user_config_path("hpcbridge"))


def _from_environment() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, variable in ENVIRONMENT.items():
        if os.environ.get(variable):
            found[key] = Secret(os.environ[variable]) if key == "client_secret" else os.environ[variable]
    return found


def _describes(environment: Mapping[str, Any], given: Mapping[str, Any], table: Mapping[str, Any]) -> bool:
    """Whether the environment is about the same deployment as arguments and file."""
    theirs, ours = environment.get("url"), given.get("url") or table.get("url")
    return theirs is None or ours is None or _normal(theirs) == _normal(ours)


def _from_file(named: str | None, url: str | None) -> tuple[str, dict[str, Any]]:
    """Label and settings of the file's site that is meant; ("", {}) where none is."""
    path = config_file()
    if not path.exists():
        if os.environ.get("HPCBRIDGE_CONFIG"):
            raise ConfigurationError("the file that HPCBRIDGE_CONFIG names does not exist", path=str(path))
        if named:
            hint = f"Describe it there as [sites.{named}], or use the environment, without --site"
            raise ConfigurationError(
                f"no site {named!r}: there is no configuration file", path=str(path), site=named, hint=hint
            )
        return "", {}
    from hpcbridge._site_file import read_site_file

    content = read_site_file(path)
    if named:
        if named not in content.sites:
            known = ", ".join(sorted(content.sites)) or "none"
            raise ConfigurationError(f"no site {named!r}", path=str(path), hint=f"Sites in the file: {known}")
        return named, content.sites[named]
    if url is not None:
        same = (item for item in content.sites.items() if _normal(item[1]["url"]) == _normal(url))
        return next(same, ("", {}))
    label = content.default or (next(iter(content.sites)) if len(content.sites) == 1 else None)
    return (label, content.sites[label]) if label else ("", {})


def _build(label: str, settings: Mapping[str, Any]) -> Site:
    if not settings.get("url"):
        raise ConfigurationError(
            "no FirecREST URL", hint=f"Set FIRECREST_URL, name a site, or describe one in {config_file()}"
        )
    try:
        credentials = {key: settings[key] for key in _CREDENTIAL_KEYS & settings.keys()}
        for key in ("client_secret_command", "token_command"):
            if key in credentials:
                credentials[key] = tuple(credentials[key])
        if credentials.get("grant") not in (None, *GRANTS):
            raise ConfigurationError(f"unknown grant {credentials['grant']!r}", hint=f"One of {', '.join(GRANTS)}")
        site = {key: settings[key] for key in _SITE_KEYS & settings.keys()}
        site["accounts"] = MappingProxyType(dict(site.get("accounts") or {}))
        return Site(name=label, credentials=CredentialSettings(**credentials), **site)
    except ConfigurationError as error:
        error.site = error.site or label or None
        raise


def _normal(url: str) -> str:
    return url.rstrip("/").lower()


def _checked_url(url: str, key: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        shown = "" if "@" in url else f": {url!r}"  # before an @ there may be a password
        hint = f"Set {ENVIRONMENT[key]} to something like https://host/prefix"
        raise ConfigurationError(f"{key} is not an http(s) URL{shown}", hint=hint)
    if parts.username or parts.password:
        raise ConfigurationError(
            f"{key} must not contain a user name or a password", hint="Use the client id and secret"
        )
    if parts.query or parts.fragment:
        raise ConfigurationError(f"{key} must not have a query or a fragment")
    return url.rstrip("/")


def _known_settings() -> str:
    return "Known settings: " + ", ".join(sorted(_SITE_KEYS | _CREDENTIAL_KEYS))
