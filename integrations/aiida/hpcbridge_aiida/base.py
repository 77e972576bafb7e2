"""What the parts of the transport have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from aiida.transports import AsyncTransport
from aiida.transports.transport import TransportInternalError
from plumpy import run_until_complete
from plumpy.events import get_or_create_event_loop

from hpcbridge_aiida.owned import Kind

if TYPE_CHECKING:
    from hpcbridge.firecrest import FirecrestClient
    from hpcbridge_aiida.parcels import Parcel
    from hpcbridge_aiida.sessions import Session

T = TypeVar("T")


class Part(AsyncTransport):
    """A part of the transport: it has a session while the transport is open."""

    _session: Session | None
    _is_open: bool
    _touched: set[Parcel]
    _wanted: set[str]
    _matched: dict[str, int]
    _missing: dict[str, list[float]]
    coalesce: bool

    @property
    def session(self) -> Session:
        """The session. Raises TransportInternalError while the transport is closed."""
        if not self._is_open or self._session is None:
            raise TransportInternalError("The transport was used without opening the channel first")
        return self._session

    @property
    def client(self) -> FirecrestClient:
        """The REST client."""
        return self.session.client

    @property
    def system(self) -> str:
        """The system's name, as the client takes it."""
        return self.session.system

    def run_command_blocking(self, func: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """Run a coroutine function in AiiDA's event loop, from synchronous code, inside that loop or outside.

        It is the loop that a runner of AiiDA's has; but no runner is made for it, because that one would want a broker
        where `verdi computer test` or the browsing of a folder needs none.
        """
        result: T = run_until_complete(get_or_create_event_loop(), func(*args, **kwargs))
        return result

    def owned(self, path: str) -> tuple[Parcel | None, Kind]:
        """The directory of our own making that `path` is in, and what `path` is there."""
        parcel = self.session.parcel_of(path)
        return parcel, Kind.UNKNOWN if parcel is None else parcel.tree.kind(path)
