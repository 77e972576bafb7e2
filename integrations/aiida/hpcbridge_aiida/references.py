"""Who we are and where: the parameters that AiiDA stores, in which the secret stands by reference only.

AiiDA keeps them in its database and exports them, so a secret itself is refused.
"""

from __future__ import annotations

import shlex
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcbridge.errors import ConfigurationError

if TYPE_CHECKING:
    from hpcbridge.hpc import Hpc

KINDS = ("site", "env", "file", "command", "keyring", "token-file", "token-command", "login")
ALONE = frozenset({"env", "login"})
"""References that may stand without anything after a colon."""

_HINT = (
    "It says where the secret is, not what it is: site:NAME, env, env:NAME, file:/path, command:PROGRAM, "
    "keyring:SERVICE/USER, token-file:/path, token-command:PROGRAM or login"
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A system behind a deployment, as one identity. Two transports with equal endpoints share everything."""

    url: str
    credential: str
    client_id: str = ""
    token_url: str = ""
    system: str = ""
    account: str = ""
    hostname: str = ""


def parse(reference: str) -> tuple[str, str]:
    """Kind and value of a credential reference.

    Raises ConfigurationError that does not repeat the text: it may be the secret itself.
    """
    kind, colon, value = str(reference).strip().partition(":")
    kind, value = kind.strip(), value.strip()
    if kind not in KINDS or (not value and (colon or kind not in ALONE)):
        raise ConfigurationError("the credential is not a reference that hpcbridge knows", hint=_HINT)
    if kind == "login" and value:
        raise ConfigurationError("the reference login takes no value", hint=_HINT)
    if kind in ("file", "token-file") and not Path(value).expanduser().is_absolute():
        raise ConfigurationError(
            "the credential's file must be named by its absolute path", hint="AiiDA's daemon works in another directory"
        )
    if kind == "keyring" and not all(value.partition("/")):
        raise ConfigurationError("a keyring reference reads keyring:SERVICE/USER", hint=_HINT)
    return kind, value


def connect(endpoint: Endpoint) -> Hpc:
    """The deployment as that identity; reads files, sends nothing. Raises ConfigurationError."""
    import hpcbridge

    kind, value = parse(endpoint.credential)
    given = {"client_id": endpoint.client_id, "token_url": endpoint.token_url, "url": endpoint.url}
    settings: dict[str, Any] = {name: text for name, text in given.items() if text}
    if kind == "site":
        _same_site(endpoint, value)
        return hpcbridge.connect(value, adapter="aiida", **settings)
    return hpcbridge.connect(adapter="aiida", **(_settings(kind, value) | settings))


def _settings(kind: str, value: str) -> dict[str, Any]:
    if kind == "login":
        return {"grant": "device"}
    if kind == "token-file":
        return {"grant": "token_file", "token_file": value}
    if kind == "token-command":
        return {"grant": "token_command", "token_command": shlex.split(value)}
    secret: dict[str, Any] = {"grant": "client_credentials"}
    if kind == "env" and value:
        secret["client_secret_env"] = value
    elif kind == "command":
        secret["client_secret_command"] = shlex.split(value)
    elif kind == "keyring":
        service, _, user = value.partition("/")
        secret["client_secret_command"] = ["keyring", "get", service, user]
    elif kind == "file":
        secret |= _from_file(Path(value).expanduser())
    return secret


def _from_file(path: Path) -> dict[str, Any]:
    """A file with the secret alone is read again at each use; one in TOML names client and token endpoint as well."""
    try:
        mode, text = path.stat().st_mode, path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise ConfigurationError(f"the credential's file cannot be read: {reason}", path=str(path)) from None
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigurationError(
            "the credential's file can be read by others", path=str(path), hint=f"chmod 600 {shlex.quote(str(path))}"
        )
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        table = {}
    if "client_secret" not in table:
        return {"client_secret_file": str(path)}
    from hpcbridge.sites import hide_secrets

    names = ("client_id", "client_secret", "token_url")
    if unknown := sorted(table.keys() - set(names)):
        raise ConfigurationError(f"unknown key {unknown[0]!r}", path=str(path), hint=f"Known: {', '.join(names)}")
    return hide_secrets({name: table[name] for name in names if name in table})


def _same_site(endpoint: Endpoint, name: str) -> None:
    """A secret goes to the deployment it was made for, and to no other."""
    from hpcbridge.sites import resolve_site

    configured = resolve_site(name).url
    if endpoint.url and endpoint.url.rstrip("/").lower() != configured.lower():
        raise ConfigurationError(
            f"the computer's URL is not that of the site {name!r}, which is {configured}",
            site=name,
            hint="Configure the computer with that URL, or name another credential",
        )
