"""Ranged reads of a presigned URL, each in a thread of its own, straight into a file.

An event loop would spend more processor time on 64 KiB pieces of a body than the network needs to deliver them: on two
cores, 200 MB cost 0.3-0.5 s of it with httpx and 0.1 s here, and the hashing runs beside it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError

from hpcbridge.errors import ConfigurationError, TransferError, Unavailable
from hpcbridge.http.redaction import install as install_redaction
from hpcbridge.http.tls import ssl_context
from hpcbridge.staging.context import ended
from hpcbridge.staging.object_store import PATIENCE, Patience, check_answer, content_range, persist

if TYPE_CHECKING:
    from hpcbridge.credentials.secret import Secret
    from hpcbridge.sites import Site

T = TypeVar("T")
Write = Callable[[int, bytes], None]
"""Takes (offset, bytes); called in a thread."""

BLOCK = 512 << 10
"""Bytes taken from a connection at a time; each reader holds one block."""
_TIMEOUT = urllib3.Timeout(connect=10.0, read=60.0)


class RangeReader:
    """Reads ranges of one object, `readers` at a time; `close()` it when every read has ended."""

    def __init__(self, site: Site, url: Secret, *, readers: int, patience: float = PATIENCE) -> None:
        """`patience`: seconds without a byte after which a range is given up."""
        install_redaction()
        self._url = url
        self._patience = patience
        self._pool = _pool(site, url.reveal(), readers)
        self._threads = ThreadPoolExecutor(readers, thread_name_prefix="hpcbridge-range")
        self._stopped = threading.Event()
        self._live: set[urllib3.BaseHTTPResponse] = set()

    def close(self) -> None:
        """Close the connections."""
        self._threads.shutdown(wait=False)
        self._pool.clear()

    async def read(self, offset: int, length: int, write: Write) -> None:
        """Give every byte of a range to `write`, once and in order; goes on where a connection broke.

        When it is cancelled, it returns only after the thread has written its last byte. Raises TransferError,
        Unavailable when the store stays away.
        """
        position, end, patience = offset, offset + length, Patience(self._patience)

        def take(data: bytes) -> None:
            nonlocal position
            if position + len(data) > end:
                raise TransferError("the object store sent more than it was asked for")
            write(position, data)
            position += len(data)
            patience.renew()

        async def attempt() -> None:
            await self._in_thread(lambda: self._read(position, end, take))

        await persist(attempt, patience)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._threads, function)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # The file that it writes to must not be closed under it.
            self._stop()
            await ended(future)
            raise

    def _stop(self) -> None:
        self._stopped.set()
        for response in list(self._live):
            response.shutdown()

    def _read(self, offset: int, end: int, take: Callable[[bytes], None]) -> None:
        try:
            with self._pool.request(
                "GET",
                self._url.reveal(),
                headers={"Range": f"bytes={offset}-{end - 1}", "Accept-Encoding": "identity"},
                preload_content=False,
                decode_content=False,
                redirect=False,
                retries=False,
                timeout=_TIMEOUT,
            ) as response:
                self._live.add(response)
                try:
                    self._copy(response, offset, end - offset, take)
                finally:
                    self._live.discard(response)
                response.release_conn()
        except (HTTPError, OSError) as error:
            # Not chained, and without its text: both can hold the URL.
            raise Unavailable(f"object store: {type(error).__name__}") from None

    def _copy(
        self, response: urllib3.BaseHTTPResponse, offset: int, wanted: int, take: Callable[[bytes], None]
    ) -> None:
        if response.status != 206:
            body = response.read(4096).decode(errors="replace")
            check_answer(response.status, body, response.reason or "", "a range was not delivered")
            raise TransferError("the object store does not serve ranges")
        if content_range(response.headers)[0] != offset:
            raise Unavailable("the object store sent another range than it was asked for")
        while data := response.read(BLOCK):
            if self._stopped.is_set():
                raise Unavailable("the transfer was ended")
            take(data)
            wanted -= len(data)
        if wanted > 0:
            raise Unavailable("the object store ended a range early")


def _pool(site: Site, url: str, connections: int) -> urllib3.PoolManager:
    """Connections with the site's trust and proxy, or the proxy that the environment names."""
    parts = urlsplit(url)
    options: dict[str, Any] = {"maxsize": connections, "block": False}
    if parts.scheme == "https":
        options["ssl_context"] = ssl_context(site)
    proxy = site.proxy
    if proxy is None and not proxy_bypass(parts.hostname or ""):
        proxies = getproxies()
        proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy is None:
        return urllib3.PoolManager(**options)
    if proxy.startswith("socks"):
        from urllib3.contrib.socks import SOCKSProxyManager

        return SOCKSProxyManager(proxy, **options)
    try:
        headers = urllib3.make_headers(proxy_basic_auth=_userinfo(proxy)) if _userinfo(proxy) else None
        return urllib3.ProxyManager(proxy, proxy_headers=headers, **options)
    except LocationParseError:
        raise ConfigurationError("the proxy is not a URL", site=site.name) from None


def _userinfo(proxy: str) -> str | None:
    parts = urlsplit(proxy)
    return f"{parts.username}:{parts.password or ''}" if parts.username else None
