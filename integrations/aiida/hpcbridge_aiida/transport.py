"""The transport plugin `hpcbridge`: files of a cluster behind a FirecREST API.

The class is AiiDA's side of it: parameters, opening and closing. What it does is in `looking`, `uploads`, `downloads`
and `onsite`; what outlives a transport is in `sessions`. Nothing is read or sent before it is opened.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click
from aiida.common.exceptions import InvalidOperation
from aiida.transports.transport import TransportPath

from hpcbridge.errors import ConfigurationError
from hpcbridge_aiida import references
from hpcbridge_aiida.downloads import Downloads
from hpcbridge_aiida.failures import remote
from hpcbridge_aiida.onsite import NO_SHELL, OnSite
from hpcbridge_aiida.references import Endpoint
from hpcbridge_aiida.sessions import Session, open_session

if TYPE_CHECKING:
    from hpcbridge_aiida.parcels import Parcel


def _check_url(ctx: Any, param: Any, value: str) -> str:  # noqa: ARG001 (click's signature)
    if not str(value).startswith(("http://", "https://")):
        raise click.BadParameter("the URL of the FirecREST API begins with https://")
    return str(value).rstrip("/")


def _check_reference(ctx: Any, param: Any, value: str) -> str:  # noqa: ARG001 (click's signature)
    try:
        references.parse(value)
    except ConfigurationError as error:
        raise click.BadParameter(str(error)) from None
    return value


def _optional(prompt: str, help_: str) -> dict[str, Any]:
    return {"type": str, "default": "", "prompt": prompt, "help": help_, "non_interactive_default": True}


class HpcbridgeTransport(OnSite, Downloads):
    """Files of a cluster behind a FirecREST API, without SSH."""

    _common_auth_options: list[Any] = []  # noqa: RUF012 (AiiDA's own declaration)
    _valid_auth_options = [  # noqa: RUF012
        (
            "url",
            {
                "type": str,
                "prompt": "URL of the FirecREST API",
                "help": "URL of the FirecREST API, such as https://api.example.org/firecrest/v2.",
                "callback": _check_url,
            },
        ),
        (
            "credential",
            {
                "type": str,
                "prompt": "Where the credential is (site:NAME, env, file:/path, command:PROGRAM, login …)",
                "help": "A reference to the credential, never the secret: site:NAME of hpcbridge's configuration, env, "
                "env:NAME, file:/path (mode 0600), command:PROGRAM, keyring:SERVICE/USER, token-file:/path, "
                "token-command:PROGRAM, or login (of `hpcbridge login`).",
                "callback": _check_reference,
            },
        ),
        ("client_id", _optional("Client id", "Client id, where the credential's own place does not name it.")),
        ("token_url", _optional("Token URL", "Token endpoint, where the credential's own place does not name it.")),
        ("system", _optional("System", "Name of the system; default: the computer's hostname.")),
        (
            "account",
            _optional("Account for file operations", "Charged for the jobs that copy and archive files for AiiDA."),
        ),
        (
            "coalesce",
            {
                "default": True,
                "switch": True,
                "prompt": "Collect uploads and send them together",
                "help": "Whether uploads of a calculation are collected and sent as one archive.",
                "non_interactive_default": True,
            },
        ),
    ]

    DEFAULT_MINIMUM_JOB_POLL_INTERVAL = 0.5
    """Seconds; an answer comes from what hpcbridge's watcher knows, which asks the server at its own pace."""
    _DEFAULT_SAFE_OPEN_INTERVAL = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Check the parameters. Raises ConfigurationError for a credential that is no reference."""
        super().__init__(*args, **{"safe_interval": 0.0, **kwargs})  # type: ignore[no-untyped-call]
        references.parse(kwargs.get("credential", ""))
        names = ("url", "credential", "client_id", "token_url", "system", "account")
        self.endpoint = Endpoint(
            **{name: str(kwargs.get(name) or "") for name in names}, hostname=str(self.hostname or "")
        )
        self.coalesce = bool(kwargs.get("coalesce", True))
        self._session: Session | None = None
        self._touched: set[Parcel] = set()
        self._wanted: set[str] = set()
        self._matched: dict[str, int] = {}
        self._missing: dict[str, list[float]] = {}
        self._fetched: dict[str, bytes] = {}

    def __str__(self) -> str:
        return f"{'OPEN' if self._is_open else 'CLOSED'} [HpcbridgeTransport {self.hostname}]"

    async def shared(self) -> Session:
        """What this transport shares with all others of its event loop; made where there is none yet."""
        if self._session is None or self._session.loop.is_closed():
            self._session = await open_session(self.endpoint)
        return self._session

    @remote
    async def open_async(self) -> HpcbridgeTransport:
        """Open the transport; the first one of an event loop asks the server what the system is."""
        if self._is_open:
            raise InvalidOperation("Cannot open the transport twice")
        await self.shared()
        self._is_open = True
        return self

    @remote
    async def close_async(self) -> None:
        """Send what was collected, and close. What could not be sent is kept, and sent before the job's submit."""
        if not self._is_open:
            raise InvalidOperation("Cannot close the transport: it is already closed")
        self._is_open = False
        await self.finish()

    def gotocomputer_command(self, remotedir: TransportPath | None = None) -> str:
        """A command that says that there is no shell to go to, and what there is instead."""
        where = f" {shlex.quote(str(remotedir))}" if remotedir is not None else ""
        message = (
            f"{self.hostname} is reached over FirecREST, which has no interactive shell. "
            f"List files with `hpcbridge ls{where}` or `verdi calcjob remotels`, read one with `hpcbridge get` or "
            "`verdi calcjob remotecat`, and follow a job with `hpcbridge logs`."
        )
        return f"printf '%s\\n' {shlex.quote(message)}"

    def exec_command_wait_bytes(self, *args: Any, **kwargs: Any) -> Any:
        """Refused; see `exec_command_wait_async`."""
        raise NotImplementedError(NO_SHELL.format(command=str(args[0]) if args else ""))

    def _exec_command_internal(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(NO_SHELL.format(command=str(args[0]) if args else ""))
