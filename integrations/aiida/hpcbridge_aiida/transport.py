"""The transport plugin `hpcbridge`."""

from __future__ import annotations

from aiida.transports import AsyncTransport


class HpcbridgeTransport(AsyncTransport):
    """Files and commands of a cluster behind a FirecREST API."""
