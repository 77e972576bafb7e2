"""The connection to a streamer: when it listens, where, and how it says that something went wrong.

A job of the server's makes itself a Python environment, then listens on the first free port of a range, for one
connection that knows its secret, over WebSocket without TLS. Nothing announces that it listens: "Server is listening"
stays in a buffer until it ends (firecrest-streamer 0.0.20 and 0.0.21), so the addresses are tried again and again,
which costs the site nothing. Other users' streamers in the same range answer with 403.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hpcbridge.errors import ConfigurationError, HpcBridgeError, PathNotFound, PermissionDenied, TooLarge, TransferError
from hpcbridge.staging import server_jobs
from hpcbridge.staging.context import Transfer, given_up

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection
    from websockets.exceptions import ConnectionClosed

    from hpcbridge.firecrest import Stream
    from hpcbridge.jobs.state import JobInfo

CHUNK = 5 << 20
"""Bytes in one message. The streamer counts each as so many against its limit, and takes messages up to 1.25 times."""
LONGEST_MESSAGE = 16 << 20
QUEUE = 2
"""Messages that are received ahead of being written."""
OPENING = 3.0
"""Seconds for one address to answer."""
FIRST_PROBE = 0.1
LONGEST_PROBE = 5.0
PROBE_SHARE = 0.05
"""Seconds between two looks: a share of the time waited since the job was last seen to change, within these bounds."""
DEAF_RETRY = 30.0
"""Seconds after which an address that did not answer at all is tried again."""
LOG_LOOK = 15.0
"""Seconds between two looks at the log of a job that runs and does not listen."""
STARTED_LIMIT = 60.0
"""Seconds for which nothing may listen after the log has said that the streamer starts."""
INSTALL_LIMIT = 900.0
"""Seconds that the job may take until then."""
STARTING = "Starting firecrest streamer"
STALL = 300.0
"""Seconds in which one message must pass."""
ENDING = 300.0
"""Seconds for the streamer to write what it has received, once everything is sent."""

# Not in the tree of loggers: at level DEBUG, the library logs the header that holds the secret.
_silent = logging.Logger("hpcbridge.streamer", logging.CRITICAL + 1)


class Lost(Exception):
    """The connection broke; another attempt may fare better. Does not leave the staging package."""


class Damaged(Lost):
    """What arrived is not what was sent."""


class Link:
    """One open connection to a streamer."""

    def __init__(self, t: Transfer, socket: ClientConnection) -> None:
        self._t = t
        self._socket = socket

    async def send(self, message: bytes | str) -> None:
        """Send one message. Raises Lost, or what the streamer complains of."""
        from websockets.exceptions import ConnectionClosed

        try:
            async with asyncio.timeout(STALL):
                await self._socket.send(message)
        except ConnectionClosed as closed:
            raise self._complaint(closed) from None
        except TimeoutError:
            raise Lost(f"nothing was taken for {STALL:.0f} s") from None

    async def receive(self) -> bytes | str | None:
        """The next message; None at an orderly end. Raises Lost, or what the streamer complains of."""
        from websockets.exceptions import ConnectionClosed, ConnectionClosedOK

        try:
            async with asyncio.timeout(STALL):
                return await self._socket.recv()
        except ConnectionClosedOK:
            return None
        except ConnectionClosed as closed:
            raise self._complaint(closed) from None
        except TimeoutError:
            raise Lost(f"nothing came for {STALL:.0f} s") from None

    async def ended(self) -> None:
        """Wait until the streamer has ended the connection well: what was sent is then written."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ENDING):
                while await self.receive() is not None:
                    pass
                return
        raise Lost("the streamer did not end")

    async def close(self) -> None:
        """Say good-bye."""
        await self._socket.close()

    def abort(self) -> None:
        """Let go at once; the streamer takes it as a failure."""
        self._socket.transport.abort()

    def _complaint(self, closed: ConnectionClosed) -> Exception:
        """Its reason, where it gives one, is `{"type": "error", "error": <name of a Python exception>}`."""
        if closed.rcvd is None or closed.rcvd.code in (1000, 1001, 1006):
            return Lost("the connection was lost")
        if closed.rcvd.code == 1009:
            return self._t.error(f"the streamer refuses it: {closed.rcvd.reason}", kind=TooLarge)
        try:
            name = str(json.loads(closed.rcvd.reason)["error"])
        except (ValueError, KeyError, TypeError):
            return Lost(f"the streamer closed the connection with code {closed.rcvd.code}")
        if closed.rcvd.code == 3003:
            # One word for two faults: down, the file is gone; up, it has appeared. Asking again tells them apart.
            return Lost("the file on the system came or went meanwhile")
        kind = {"FileNotFoundError": PathNotFound, "PermissionError": PermissionDenied}.get(name, TransferError)
        return self._t.error(f"the streamer on the system failed: {name}", kind=kind)


async def connect(t: Transfer, stream: Stream) -> Link:
    """Wait until the job listens, and connect.

    Raises TransferError when it ends without, or cannot be reached; ConfigurationError without the package websockets.
    """
    require_library()
    waiting = _Waiting(t, stream)
    watching = asyncio.ensure_future(t.system.watcher.wait(stream.job_id, on_change=waiting.changed))
    try:
        while True:
            if (socket := await waiting.sweep()) is not None:
                return Link(t, socket)
            if watching.done():
                raise await waiting.explain(watching.result())
            await waiting.check()
            await asyncio.wait({watching}, timeout=waiting.pause)
    finally:
        await given_up(watching)


def require_library() -> None:
    """Raise ConfigurationError when the package that speaks WebSocket is missing."""
    try:
        import websockets.asyncio.client  # noqa: F401
    except ImportError:
        hint = "pip install 'hpcbridge[streamer]'"
        raise ConfigurationError("the streamer needs the package websockets, version 15 or newer", hint=hint) from None


class _Waiting:
    """The time from the job's submission until it listens."""

    def __init__(self, t: Transfer, stream: Stream) -> None:
        self._t = t
        self._stream = stream
        self._since = time.monotonic()
        """When its state last changed."""
        self._running: float | None = None
        self._started: float | None = None
        self._looked = self._since
        self._deaf: dict[str, float] = {}
        """Addresses that did not answer at all, and when."""
        self._refusal = "nothing listens there"

    def changed(self, info: JobInfo) -> None:
        server_jobs.show(self._t, info)
        if not info.state.is_queued and self._running is None:
            self._running = self._since = self._looked = time.monotonic()

    @property
    def pause(self) -> float:
        return min(max(FIRST_PROBE, (time.monotonic() - self._since) * PROBE_SHARE), LONGEST_PROBE)

    async def sweep(self) -> ClientConnection | None:
        """Try every address once, one after the other: a second connection to the same streamer would end both."""
        first, last = self._stream.ports
        for ip in self._stream.ips:
            for port in range(first, last + 1):
                address = f"ws://[{ip}]:{port}" if ":" in ip else f"ws://{ip}:{port}"
                if time.monotonic() - self._deaf.get(address, -DEAF_RETRY) < DEAF_RETRY:
                    continue
                if (socket := await self._try(address)) is not None:
                    return socket
        return None

    async def _try(self, address: str) -> ClientConnection | None:
        from websockets.asyncio.client import connect as open_socket
        from websockets.exceptions import InvalidHandshake

        try:
            return await open_socket(
                address,
                additional_headers={"Authorization": f"Bearer {self._stream.secret.reveal()}"},
                compression=None,
                max_size=LONGEST_MESSAGE,
                max_queue=QUEUE,
                open_timeout=OPENING,
                # Its own pings wait behind whole messages: an answer may take as long as they do.
                ping_interval=60,
                ping_timeout=None,
                proxy=self._t.client.session.site.proxy or True,
                logger=_silent,
            )
        except TimeoutError:
            self._deaf[address] = time.monotonic()
            self._refusal = "it does not answer"
        except (OSError, EOFError, InvalidHandshake) as error:
            self._refusal = str(error) or type(error).__name__
        except ImportError as error:
            raise ConfigurationError(f"the proxy cannot be used: {error}", site=self._t.site) from None
        return None

    async def check(self) -> None:
        """Raise when a job that runs should have listened long ago."""
        now = time.monotonic()
        if self._running is None or now - self._looked < min(LOG_LOOK, STARTED_LIMIT):
            return
        self._looked = now
        if self._started is None and STARTING in await server_jobs.read_log(self._t, self._stream.job.output_log):
            self._started = now
        if self._started is not None and now - self._started >= STARTED_LIMIT:
            raise self._error("runs, and cannot be reached from here", f"{self._where()}: {self._refusal}")
        if now - self._running > INSTALL_LIMIT:
            raise self._error("has not started its streamer", await words(self._t, self._stream))

    async def explain(self, info: JobInfo) -> HpcBridgeError:
        """The error for a job that has ended before anybody could connect."""
        ended = f"ended as {info.raw_state or info.state}, exit code {info.exit_code}, before it could be reached"
        return self._error(ended, await words(self._t, self._stream) or f"{self._where()}: {self._refusal}")

    def _where(self) -> str:
        return f"{', '.join(self._stream.ips)}, ports {self._stream.ports[0]}-{self._stream.ports[1]}"

    def _error(self, what: str, why: str) -> HpcBridgeError:
        hint = "A firewall may be in the way; route='chunked' needs no connection to the cluster"
        return self._t.error(f"the streamer's job {what} ({why})", job_id=self._stream.job_id, hint=hint)


async def words(t: Transfer, stream: Stream) -> str:
    """What the job has to say for itself, without what is secret; "" when it says nothing."""
    said: Any = ""
    for path in (stream.job.error_log, stream.job.output_log):
        with suppress(HpcBridgeError):
            text = (await server_jobs.read_log(t, path)).replace(stream.secret.reveal(), "**********")
            said = said or "; ".join(line.strip() for line in text.splitlines() if line.strip() and not _is_noise(line))
    return str(said)[-400:]


def _is_noise(line: str) -> bool:
    """The coordinates, which hold the secret in another writing, and progress bars."""
    return "coordinates" in line or "█" in line or " |-" in line
