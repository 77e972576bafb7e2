"""One transfer in a process that can be killed: prints each report of its progress as a line of JSON.

    python -m support.transfer_child up|down LOCAL REMOTE ROUTE VERIFY

The deployment comes from the environment.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys

import hpcbridge
from hpcbridge.staging import Progress


def tell(progress: Progress) -> None:
    print(json.dumps(dataclasses.asdict(progress)), flush=True)


async def main(direction: str, local: str, remote: str, route: str, verify: str) -> None:
    async with hpcbridge.connect() as hpc:
        system = hpc.system()
        if direction == "up":
            result = await system.put(local, remote, route=route, verify=verify, progress=tell)
        else:
            result = await system.get(remote, local, route=route, verify=verify, progress=tell)
    print(json.dumps({"route": result.route, "sha256": result.sha256}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
