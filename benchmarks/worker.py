"""One transfer in a process of its own, so that its memory is its own: prints one JSON object.

    python -m benchmarks.worker hpcbridge|pyfirecrest up|down LOCAL REMOTE [ROUTE]

The deployment comes from the environment. Times are seconds since 1970, `rss` is the process's peak in bytes.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


async def hpcbridge_transfer(direction: str, local: str, remote: str, route: str | None) -> dict[str, Any]:
    """By hpcbridge, with its defaults; notes when each phase begins."""
    import hpcbridge

    phases: dict[str, float] = {}

    def note(progress: Any) -> None:
        phases.setdefault(progress.phase, time.time())

    async with hpcbridge.connect() as hpc:
        system = hpc.system()
        if direction == "up":
            result = await system.put(local, remote, route=route, progress=note)
        else:
            result = await system.get(remote, local, route=route, progress=note)
        requests = hpc.client.session.requests
    return {"phases": phases, "route": result.route, "sha256": result.sha256, "requests": requests}


async def pyfirecrest_transfer(direction: str, local: str, remote: str) -> dict[str, Any]:
    """By pyfirecrest's asynchronous v2 client, as its documentation has it."""
    import firecrest
    from firecrest.v2 import AsyncFirecrest

    secret, issuer = os.environ["FIRECREST_CLIENT_SECRET"], os.environ["AUTH_TOKEN_URL"]
    credential = firecrest.ClientCredentialsAuth(os.environ["FIRECREST_CLIENT_ID"], secret, issuer)
    client = AsyncFirecrest(firecrest_url=os.environ["FIRECREST_URL"], authorization=credential)
    system = os.environ["FIRECREST_SYSTEM"]
    try:
        if direction == "up":
            directory, _, name = remote.rpartition("/")
            await client.upload(system, local, directory, name, blocking=True)
        else:
            await client.download(system, remote, local, blocking=True)
    finally:
        await client.close_session()
    return {}


def peak_memory() -> int:
    """This process's own peak in bytes; on Linux not `ru_maxrss`, which a child inherits from its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.open() if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(arguments: list[str]) -> None:
    """Time from the first import on: one client loads its parts at once, the other as they are used."""
    client, direction, local, remote, *route = arguments
    begun = time.time()
    if client == "hpcbridge":
        facts = asyncio.run(hpcbridge_transfer(direction, local, remote, route[0] if route else None))
    else:
        facts = asyncio.run(pyfirecrest_transfer(direction, local, remote))
    ended = time.time()
    peak = peak_memory()
    size = Path(local).stat().st_size
    print(json.dumps({"begun": begun, "ended": ended, "seconds": ended - begun, "rss": peak, "bytes": size, **facts}))


if __name__ == "__main__":
    main(sys.argv[1:])
