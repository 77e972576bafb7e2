"""A small real HTTP/1.1 server whose every answer a test decides, down to the connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Request:
    """What arrived; `connection` numbers the connections from 1."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int


@dataclass
class Answer:
    """What to answer; `close` closes the connection afterwards without announcing it; `delay` in seconds."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    close: bool = False
    delay: float = 0.0


DROP = None
"""Close the connection without an answer."""

Handler = Callable[[Request], Awaitable[Answer | None]]


class Httpd:
    """The running server. `requests` holds all that arrived, `connections` counts, `peak` is the most in flight."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.requests: list[Request] = []
        self.connections = 0
        self.in_flight = 0
        self.peak = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        number = self.connections
        try:
            while (request := await _read(reader, number)) is not None:
                self.requests.append(request)
                self.in_flight += 1
                self.peak = max(self.peak, self.in_flight)
                try:
                    answer = await self.handler(request)
                    if answer is None:
                        return
                    await asyncio.sleep(answer.delay)
                finally:
                    self.in_flight -= 1
                body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                headers = {"content-type": "application/json", "content-length": str(len(body)), **answer.headers}
                lines = [f"HTTP/1.1 {answer.status} X", *(f"{name}: {value}" for name, value in headers.items())]
                writer.write("\r\n".join([*lines, "", ""]).encode() + body)
                await writer.drain()
                if answer.close:
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader, number: int) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *rest = head.rstrip("\r\n").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, body, number)


@asynccontextmanager
async def httpd(handler: Handler, *, port: int = 0) -> AsyncIterator[Httpd]:
    """Serve on a free loopback port for the length of the context."""
    running = Httpd(handler)
    server = await asyncio.start_server(running.serve, "127.0.0.1", port)
    running.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield running
    finally:
        server.close()
