"""One sync in a process that can be killed.

    python -m support.sync_child up|down LOCAL REMOTE

The deployment comes from the environment.
"""

from __future__ import annotations

import asyncio
import sys

import hpcbridge
from hpcbridge.staging.trees.sync_down import sync_down
from hpcbridge.staging.trees.sync_up import sync_up


async def main(direction: str, local: str, remote: str) -> None:
    async with hpcbridge.connect() as hpc:
        system = hpc.system()
        if direction == "up":
            await sync_up(system, local, remote, delete=True)
        else:
            await sync_down(system, remote, local, delete=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
