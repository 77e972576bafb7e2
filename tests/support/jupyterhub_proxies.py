"""A proxy that can be told to fail, in a thread of its own: before the issuer, and before FirecREST."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from support.proxy import Proxy, start_proxy


@contextlib.contextmanager
def proxy_before(upstream: str, path: str, method: str = "POST") -> Iterator[Proxy]:
    """Everything passes; `rates` says what happens to `method` requests for `path` instead."""
    ready: list[Proxy] = []
    up, loop = threading.Event(), asyncio.new_event_loop()
    done = asyncio.Event()

    async def run() -> None:
        async with start_proxy(upstream, {}, method=method, path=path) as proxy:
            ready.append(proxy)
            up.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), name="proxy")
    thread.start()
    up.wait(10)
    try:
        yield ready[0]
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(10)
        loop.close()
