"""Reads and checks the TOML file of sites. Apart from `sites`: who uses the environment does not import pydantic."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hpcbridge.errors import ConfigurationError

Text = Annotated[str, Field(min_length=1)]
Command = Annotated[list[Text], Field(min_length=1)]


class _SiteTable(BaseModel):
    """One `[sites.NAME]` table; the meaning of each key is in docs/configuration.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    url: Text
    token_url: Text | None = None
    client_id: Text | None = None
    system: Text | None = None
    accounts: dict[Text, Text] = {}
    ca_file: Text | None = None
    proxy: Text | None = None
    client_cert: Text | None = None
    client_key: Text | None = None
    polling_rate: Annotated[float, Field(gt=0, le=100, strict=False)] | None = None
    max_in_flight: Annotated[int, Field(ge=1, le=256)] | None = None
    grant: Literal["client_credentials", "device", "browser", "token_command", "token_file"] | None = None
    client_secret_file: Text | None = None
    client_secret_env: Text | None = None
    client_secret_command: Command | None = None
    token_command: Command | None = None
    token_file: Text | None = None
    scope: Text | None = None
    audience: Text | None = None
    client_auth: Literal["client_secret_post", "client_secret_basic"] | None = None
    issuer: Text | None = None


class _SiteFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    default: Text | None = None
    sites: dict[Text, _SiteTable] = {}


class SiteFile(NamedTuple):
    """The file's content, checked: `default` is one of `sites` or None; settings that were not given are absent."""

    default: str | None
    sites: dict[str, dict[str, Any]]


_FILE_KEYS = ("ca_file", "client_cert", "client_key", "client_secret_file", "token_file")


def read_site_file(path: Path) -> SiteFile:
    """Parse `path`.

    Raises:
        ConfigurationError: unreadable, not TOML, an unknown key, a wrong value; the message names file and key, never
            the value.
    """
    try:
        with path.open("rb") as file:
            content = _SiteFile.model_validate(tomllib.load(file))
    except ValidationError as error:
        failure = _explain(error, path)
    except tomllib.TOMLDecodeError as error:
        failure = ConfigurationError(f"not TOML: {error}", path=str(path))
    except OSError as error:
        failure = ConfigurationError(f"cannot be read: {error.strerror}", path=str(path))
    else:
        if content.default is not None and content.default not in content.sites:
            raise ConfigurationError(f"default names a site that is not there: {content.default!r}", path=str(path))
        return SiteFile(content.default, {name: _settings(table, path) for name, table in content.sites.items()})
    raise failure  # outside of the handlers: the original error holds the values, which may be secrets


def _settings(table: _SiteTable, path: Path) -> dict[str, Any]:
    settings = table.model_dump(exclude_none=True)
    for key in _FILE_KEYS:
        if key in settings:  # relative to the file that says it, not to where the program was started
            settings[key] = str(path.parent / Path(settings[key]).expanduser())
    return settings


def _explain(error: ValidationError, path: Path) -> ConfigurationError:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    last = str(first["loc"][-1]) if first["loc"] else ""
    if last in ("client_secret", "token", "password"):
        hint = "Secrets stand in the file by reference: client_secret_file, client_secret_env or client_secret_command"
        return ConfigurationError(f"{key}: a secret in plain text", path=str(path), hint=hint)
    if first["type"] == "extra_forbidden":
        known = _SiteTable.model_fields if str(first["loc"][0]) == "sites" else _SiteFile.model_fields
        return ConfigurationError(f"{key}: unknown key", path=str(path), hint=f"Known keys: {', '.join(sorted(known))}")
    return ConfigurationError(f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}", path=str(path))
