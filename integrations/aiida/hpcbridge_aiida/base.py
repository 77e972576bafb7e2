"""What the parts of the transport have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiida.transports import AsyncTransport
from aiida.transports.transport import TransportInternalError

from hpcbridge_aiida.owned import Kind

if TYPE_CHECKING:
    from hpcbridge.firecrest import FirecrestClient
    from hpcbridge_aiida.parcels import Parcel
    from hpcbridge_aiida.sessions import Session


class Part(AsyncTransport):
    """A part of the transport: it has a session while the transport is open."""

    _session: Session | None
    _is_open: bool
    _touched: set[Parcel]
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

    def owned(self, path: str) -> tuple[Parcel | None, Kind]:
        """The directory of our own making that `path` is in, and what `path` is there."""
        parcel = self.session.parcel_of(path)
        return parcel, Kind.UNKNOWN if parcel is None else parcel.tree.kind(path)
