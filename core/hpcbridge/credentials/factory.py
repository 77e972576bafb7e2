"""From a site's settings to its credential."""

from __future__ import annotations

from hpcbridge.credentials.base import Credential
from hpcbridge.credentials.flows import ClientCredentials, TokenCommand, TokenFile
from hpcbridge.credentials.issuer import Issuer
from hpcbridge.credentials.logins import AuthorizationCodePKCE, DeviceCode
from hpcbridge.credentials.sources import SecretSource
from hpcbridge.credentials.store import FileStore
from hpcbridge.errors import ConfigurationError
from hpcbridge.sites import Site


def credential_for(site: Site) -> Credential:
    """The credential that the settings describe; sends nothing.

    The grant, where the settings do not name it: `token_command` or `token_file` if given, client credentials if
    there is a secret, else a login (device code) from `hpcbridge login`.

    Raises:
        ConfigurationError: names the missing setting.
    """
    settings, grant = site.credentials, grant_of(site)
    if grant == "token_command":
        if not settings.token_command:
            raise ConfigurationError("token_command is missing", site=site.name)
        return TokenCommand(settings.token_command, site=site.name)
    if grant == "token_file":
        if not settings.token_file:
            raise ConfigurationError("token_file is missing", site=site.name)
        return TokenFile(settings.token_file, site=site.name)
    if grant == "client_credentials":
        issuer = issuer_of(site)
        if secret_of(site) is None:
            hint = "Set FIRECREST_CLIENT_SECRET, or client_secret_file, client_secret_env or client_secret_command"
            raise ConfigurationError("no client secret", site=site.name, hint=hint)
        return ClientCredentials(issuer)
    return login_for(site, grant)


def login_for(site: Site, grant: str = "device") -> DeviceCode | AuthorizationCodePKCE:
    """The credential of a person's login, kept in the user's state directory; `.login(...)` makes or renews it."""
    kind = AuthorizationCodePKCE if grant == "browser" else DeviceCode
    issuer = issuer_of(site)
    return kind(issuer, FileStore.for_site(site.url, issuer.client_id))


def grant_of(site: Site) -> str:
    """One of `sites.GRANTS`."""
    settings = site.credentials
    if settings.grant is not None:
        return settings.grant
    if settings.token_command:
        return "token_command"
    if settings.token_file:
        return "token_file"
    return "client_credentials" if secret_of(site) is not None else "device"


def secret_of(site: Site) -> SecretSource | None:
    """Where the client's secret comes from; a value given as argument or by the environment wins over references."""
    settings = site.credentials
    if settings.client_secret is not None:
        return SecretSource("client_secret", value=settings.client_secret, site=site.name)
    if not (settings.client_secret_file or settings.client_secret_env or settings.client_secret_command):
        return None
    return SecretSource(
        "client_secret",
        file=settings.client_secret_file,
        env=settings.client_secret_env,
        command=settings.client_secret_command,
        site=site.name,
    )


def issuer_of(site: Site) -> Issuer:
    """The site's issuer, as its client; over the site's TLS and proxy."""
    from hpcbridge.http.tls import client_options

    if not site.client_id:
        raise ConfigurationError("no client id", site=site.name, hint="Set FIRECREST_CLIENT_ID or client_id")
    settings = site.credentials
    return Issuer(
        site.client_id,
        token_url=site.token_url,
        issuer=settings.issuer,
        secret=secret_of(site),
        client_auth=settings.client_auth,
        scope=settings.scope,
        audience=settings.audience,
        options=lambda url: client_options(site, url),
        site=site.name,
    )
