"""From an Airflow connection of type `firecrest` to an open deployment, in workers and in triggers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from hpcbridge import blocking, connect
from hpcbridge.errors import ConfigurationError, HpcBridgeError
from hpcbridge_airflow.provider import CONNECTION_TYPE

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from hpcbridge import Hpc, Site
    from hpcbridge.credentials import Credential

ADAPTER = "airflow"
"""The adapter's name in the User-Agent."""
DEFAULT_CONNECTION = "firecrest_default"


class FirecRESTHook(BaseHook):
    """Opens the deployment that a connection describes, as that connection's client.

    Connection fields: `host` the FirecREST URL (a path prefix is kept), `login` and `password` the client's id and
    secret; extra: `token_url`, `system`, `account`, `ca_file`, `proxy`, `polling_rate`.

    In a worker: `with FirecRESTHook().get_conn() as hpc`. In a trigger or another coroutine:
    `async with await FirecRESTHook().aget_conn() as hpc`. All triggers of one triggerer that use one connection share
    its HTTP connections, its token and one watcher per system.
    """

    conn_name_attr = "firecrest_conn_id"
    default_conn_name = DEFAULT_CONNECTION
    conn_type = CONNECTION_TYPE
    hook_name = "FirecREST"

    def __init__(self, firecrest_conn_id: str = DEFAULT_CONNECTION, **kwargs: Any) -> None:
        """Nothing is read before the first call."""
        super().__init__(**kwargs)
        self.firecrest_conn_id = firecrest_conn_id

    def get_conn(self) -> blocking.Hpc:
        """The deployment for use without `await`. Raises ConfigurationError for an incomplete connection."""
        site, credential = site_of(self.get_connection(self.firecrest_conn_id))
        return blocking.connect(site, credential=credential, adapter=ADAPTER)

    def open(self) -> Hpc:
        """The deployment for use with `await`, its connection read without it: for a worker's main thread."""
        site, credential = site_of(self.get_connection(self.firecrest_conn_id))
        return connect(site, credential=credential, adapter=ADAPTER)

    async def aget_conn(self) -> Hpc:
        """The deployment for use with `await`. Raises ConfigurationError for an incomplete connection."""
        site, credential = site_of(await self.aget_connection(self.firecrest_conn_id))
        return connect(site, credential=credential, adapter=ADAPTER)

    def test_connection(self) -> tuple[bool, str]:
        """Get a token and ask for the systems: (whether it worked, what to show the user). Never raises."""
        try:
            hpc = self.open()
            # The page that asks for this may be served from a running event loop, where the blocking twin refuses.
            systems = _in_own_loop(hpc)
        except HpcBridgeError as error:
            return False, str(error)
        except Exception as error:  # whatever a secrets backend or an identity provider comes up with
            return False, f"{type(error).__name__}: {error}"
        return True, f"Connected to {hpc.site.url}. Systems: {', '.join(systems) or 'none'}"


def site_of(connection: Connection) -> tuple[Site, Credential]:
    """The deployment and the credential that a connection describes. Raises ConfigurationError."""
    from hpcbridge.credentials import Secret
    from hpcbridge.credentials.factory import credential_for
    from hpcbridge.sites import DEFAULT_POLLING_RATE, CredentialSettings, Site

    extra: Mapping[str, Any] = connection.extra_dejson
    system, account = extra.get("system") or None, extra.get("account") or None
    missing = [
        label
        for label, value in (
            ("FirecREST URL (host)", connection.host),
            ("client id (login)", connection.login),
            ("client secret (password)", connection.password),
            ("token_url (extra)", extra.get("token_url")),
        )
        if not value
    ]
    if missing:
        raise ConfigurationError(
            f"the connection {connection.conn_id} has no {' and no '.join(missing)}",
            hint="Complete it under Admin > Connections",
        )
    site = Site(
        url=_url_of(connection),
        token_url=extra["token_url"],
        client_id=connection.login,
        system=system,
        accounts={system: account} if system and account else {},
        ca_file=extra.get("ca_file") or None,
        proxy=extra.get("proxy") or None,
        polling_rate=float(extra.get("polling_rate") or DEFAULT_POLLING_RATE),
        adapter=ADAPTER,
        credentials=CredentialSettings(grant="client_credentials", client_secret=Secret(connection.password or "")),
    )
    return site, credential_for(site)


def _url_of(connection: Connection) -> str:
    """`host` as it stands when it is a URL; else put together from the parts that a `firecrest://` URI has."""
    host = str(connection.host)
    if "://" in host:
        return host
    port = f":{connection.port}" if connection.port else ""
    scheme = connection.schema if connection.schema in ("http", "https") else "https"
    return f"{scheme}://{host}{port}"


def _in_own_loop(hpc: Hpc) -> list[str]:
    from threading import Thread

    outcome: list[list[str] | BaseException] = []

    async def names() -> list[str]:
        async with hpc:
            return [system.name for system in await hpc.systems(fresh=True)]

    def run() -> None:
        try:
            outcome.append(asyncio.run(names()))
        except BaseException as error:
            outcome.append(error)

    thread = Thread(target=run, name="firecrest-test-connection")
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]
