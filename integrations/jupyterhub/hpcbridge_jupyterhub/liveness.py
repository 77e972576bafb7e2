"""Whether a server answers: the one source that tells the truth when scheduler, issuer and network do not."""

from __future__ import annotations

import asyncio
import weakref

import httpx
from jupyterhub.utils import make_ssl_context

PATIENCE = 5.0
"""Seconds for an answer."""
AT_ONCE = 50
"""Servers that are asked at the same time: a hub that has just started asks all of its servers, each three times."""

_HEADER = "x-jupyterhub-version"
"""Every single-user server sends it: another program on the same port does not."""

Keys = tuple[str | None, ...]

_clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Keys, httpx.AsyncClient]] = (
    weakref.WeakKeyDictionary()
)
_turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = weakref.WeakKeyDictionary()


async def answers(url: str, keys: Keys = ()) -> bool:
    """Whether a single-user server answers at `url`; `keys` are key, certificate and CA of internal_ssl."""
    try:
        # Waiting for its turn says nothing of a server: no limit but the poll's own.
        async with _turns.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(AT_ONCE)):
            answer = await _client(keys).get(url)
    except (httpx.HTTPError, OSError):
        return False
    return _HEADER in answer.headers and answer.status_code < 500


def _client(keys: Keys) -> httpx.AsyncClient:
    clients = _clients.setdefault(asyncio.get_running_loop(), {})
    if keys not in clients:
        key, cert, ca = keys if len(keys) == 3 else (None, None, None)
        context = make_ssl_context(key, cert, cafile=ca) if key else False
        # Nothing is kept open: the node's firewall may forget a connection, and 1,000 idle ones help nobody.
        limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=0)
        clients[keys] = httpx.AsyncClient(verify=context, timeout=PATIENCE, limits=limits, trust_env=False)
    return clients[keys]
