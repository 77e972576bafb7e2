"""A proxy before the issuer that can be told to fail, beside the tests' own thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from support.proxy import Proxy, start_proxy


@contextlib.contextmanager
def issuer_proxy(upstream: str) -> Iterator[Proxy]:
    """Every `POST /auth/token` passes; `rates` says how often it does not. Runs in a thread with a loop of its own."""
    ready: list[Proxy] = []
    up, loop = threading.Event(), asyncio.new_event_loop()
    done = asyncio.Event()

    async def run() -> None:
        async with start_proxy(upstream, {}, method="POST", path="/auth/token") as proxy:
            ready.append(proxy)
            up.set()
            await done.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), name="issuer-proxy")
    thread.start()
    up.wait(10)
    try:
        yield ready[0]
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(10)
        loop.close()
