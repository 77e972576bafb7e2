"""A real HTTP proxy before a FirecREST server that delivers requests and then loses or replaces the answers."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

MODES = ("lost", "408", "424", "500", "503", "undelivered", "late", "hold", "stuck")
"""What can happen to a request.

lost: delivered, the connection is cut instead of an answer. A number: delivered, and that status is answered.
stuck: held before the server hears of it, and cut at `release`.
undelivered: the connection is cut before the server hears of it. late: the connection is cut at once, and the request
delivered `late_by` seconds after. hold: delivered, and the answer waits for `release`.
"""


@dataclass
class Proxy:
    """Passes everything through but the requests that match, whose fate is drawn by `rates`.

    Attributes:
        url: where clients connect; the path prefix of the upstream is kept.
        rates: probability by mode (see MODES); what is left of 1 passes.
        method, path: which requests are meant (`path` is a glob over the path below the prefix).
        fates: how often each mode was drawn ("passed" for none).
        delivered: matching requests that the server has answered.
    """

    upstream: str
    rates: Mapping[str, float] = field(default_factory=dict)
    method: str = "POST"
    path: str = "/compute/*/jobs"
    late_by: float = 1.0
    seed: int = 1
    url: str = ""
    fates: Counter[str] = field(default_factory=Counter)
    delivered: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        parts = urlsplit(self.upstream)
        self._host, self._port, self._prefix = parts.hostname or "", parts.port or 80, parts.path.rstrip("/")
        self._random = random.Random(self.seed)
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request: clients are told to close it."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            request = await _message(reader)
            fate = self._draw(request)
            await self._answer(request, fate, writer)
        writer.close()

    def _draw(self, request: bytes) -> str:
        method, target = request.split(b" ", 2)[:2]
        path = target.decode().partition("?")[0].removeprefix(self._prefix)
        if self.method not in ("*", method.decode()) or not fnmatch.fnmatch(path, self.path):
            return ""
        draw, fate = self._random.random(), "passed"
        for mode, rate in self.rates.items():
            if draw < rate:
                fate = mode
                break
            draw -= rate
        self.fates[fate] += 1
        return fate

    async def _answer(self, request: bytes, fate: str, writer: asyncio.StreamWriter) -> None:
        if fate == "undelivered":
            return
        if fate == "stuck":
            self.arrived.set()
            await self.release.wait()
            return
        if fate == "late":
            task = asyncio.create_task(self._deliver_late(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        answer = await self._deliver(request)
        if fate:
            self.delivered += 1
            self.arrived.set()
        if fate == "hold":
            await self.release.wait()
        if fate == "lost":
            return
        writer.write(_failure(fate) if fate.isdigit() else answer)
        await writer.drain()

    async def _deliver_late(self, request: bytes) -> None:
        await asyncio.sleep(self.late_by)
        await self._deliver(request)
        self.delivered += 1

    async def _deliver(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        head, _, body = request.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        writer.write(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body)
        await writer.drain()
        answer = await reader.read()
        writer.close()
        return answer


async def _message(reader: asyncio.StreamReader) -> bytes:
    """One request: head and body, as it came."""
    head = await reader.readuntil(b"\r\n\r\n")
    headers = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    if headers.get(b"transfer-encoding", b"").strip() != b"chunked":
        return head + await reader.readexactly(int(headers.get(b"content-length", b"0")))
    body = b""
    while True:
        size = await reader.readline()
        chunk = await reader.readexactly(int(size, 16) + 2)
        body += size + chunk
        if size.strip() == b"0":
            return head + body


def _failure(status: str) -> bytes:
    body = (
        b'{"errorType":"error","message":"The answer was replaced on its way.","data":null,"causedBy":null,"user":null}'
    )
    head = f"HTTP/1.1 {status} Replaced\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


@contextlib.asynccontextmanager
async def start_proxy(
    upstream: str, rates: Mapping[str, float] | None = None, **options: object
) -> AsyncIterator[Proxy]:
    """Run a proxy before the FirecREST at `upstream` for the length of the context, in this event loop."""
    proxy = Proxy(upstream, rates or {}, **options)  # type: ignore[arg-type]
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=64 * 1024 * 1024)
    host, port = server.sockets[0].getsockname()[:2]
    proxy.url = f"http://{host}:{port}{proxy._prefix}"
    try:
        yield proxy
    finally:
        proxy.release.set()
        server.close()
        for task in list(proxy._tasks):
            task.cancel()
