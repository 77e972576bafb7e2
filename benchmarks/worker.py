"""One transfer in a process of its own, so that its memory and processor time are its own: prints one JSON object.

    python -m benchmarks.worker CLIENT WORK LOCAL REMOTE [--route ROUTE] [--times N] [--unchecked] [--like DIR]

CLIENT is `hpcbridge` or `pyfirecrest`. WORK is `up` or `down` (one file), `tree-up` or `tree-down` (a directory), or
`sync` (of hpcbridge: what has changed). The deployment comes from the environment. Times are seconds since 1970, `rss`
is the process's peak in bytes, `cpu` its seconds in user and system mode. With `--times` the transfer is repeated, and
`warm` is the median without the first.
pyfirecrest moves a directory file by file, `--workers` at a time; `--like` is one with the names to fetch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any


def peak_memory() -> int:
    """This process's own peak in bytes; on Linux not `ru_maxrss`, which a child inherits from its parent."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.open() if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def processor_time() -> float:
    """Seconds that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def repeated(transfer: Callable[[], Awaitable[None]], times: int) -> dict[str, float]:
    """Run it `times` times; the first one loads what it needs."""
    took = []
    for _ in range(times):
        begun = time.monotonic()
        await transfer()
        took.append(time.monotonic() - begun)
    return {"warm": median(took[1:])} if times > 1 else {}


async def by_hpcbridge(arguments: argparse.Namespace) -> dict[str, Any]:
    """With its defaults; notes when each phase begins."""
    import hpcbridge

    local, remote, route, facts = arguments.local, arguments.remote, arguments.route, dict[str, Any]()
    verify = None if arguments.unchecked else "auto"
    phases: dict[str, float] = {}

    def note(progress: Any) -> None:
        phases.setdefault(progress.phase, time.time())

    async with hpcbridge.connect() as hpc:
        system = hpc.system()

        async def transfer() -> None:
            if arguments.work == "up":
                result = await system.put(local, remote, route=route, verify=verify, progress=note)
            elif arguments.work == "down":
                result = await system.get(remote, local, route=route, verify=verify, progress=note)
            else:
                result = await tree(system, arguments)
            facts.update(route=result.route, sha256=getattr(result, "sha256", None), bytes=result.bytes)

        warm = await repeated(transfer, arguments.times)
        polling = hpc.client.session.counters.polling
    return {"phases": phases, "polling": polling, **facts, **warm}


def contents(root: Path) -> tuple[list[Path], list[Path]]:
    """Everything below `root`, and which of it are directories, as relative paths."""
    paths = sorted(root.rglob("*"))
    return [path.relative_to(root) for path in paths], [path.relative_to(root) for path in paths if path.is_dir()]


async def tree(system: Any, arguments: argparse.Namespace) -> Any:
    """A directory, whole or by what has changed."""
    from hpcbridge.staging.trees.download import get_tree
    from hpcbridge.staging.trees.sync_up import sync_up
    from hpcbridge.staging.trees.upload import put_tree

    if arguments.work == "tree-down":
        return await get_tree(system, arguments.remote, Path(arguments.local))
    copy = put_tree if arguments.work == "tree-up" else sync_up
    return await copy(system, Path(arguments.local), arguments.remote)


async def by_pyfirecrest(arguments: argparse.Namespace) -> dict[str, Any]:
    """By pyfirecrest's asynchronous v2 client, as its documentation has it; its own defaults."""
    import firecrest
    from firecrest.v2 import AsyncFirecrest

    secret, issuer = os.environ["FIRECREST_CLIENT_SECRET"], os.environ["AUTH_TOKEN_URL"]
    credential = firecrest.ClientCredentialsAuth(os.environ["FIRECREST_CLIENT_ID"], secret, issuer)
    client = AsyncFirecrest(firecrest_url=os.environ["FIRECREST_URL"], authorization=credential)
    system, local, remote = os.environ["FIRECREST_SYSTEM"], arguments.local, arguments.remote
    method = {"transfer_method": arguments.route} if arguments.route else {}

    async def up(source: str, target: str) -> None:
        directory, _, name = target.rpartition("/")
        await client.upload(system, source, directory, name, blocking=True, **method)

    async def transfer() -> None:
        if arguments.work == "up":
            await up(local, remote)
        elif arguments.work == "down":
            await client.download(system, remote, local, blocking=True, **method)
        else:
            await loop()

    facts: dict[str, float] = {}

    async def loop() -> None:
        """A tree as a loop over its files, `workers` at a time; directories first."""
        begun = time.monotonic()
        free = asyncio.Semaphore(arguments.workers)

        async def one(source: str, target: str) -> None:
            async with free:
                if arguments.work == "tree-up":
                    await up(source, target)
                else:
                    await client.download(system, target, source, blocking=True)

        root, (names, folders) = Path(local), contents(Path(arguments.like or local))
        for folder in [Path(), *folders]:
            if arguments.work == "tree-up":
                await client.mkdir(system, f"{remote}/{folder}", create_parents=True)
            else:
                (root / folder).mkdir(exist_ok=True)
        pairs = [(str(root / name), f"{remote}/{name}") for name in names if name not in folders]
        if arguments.workers == 1:
            for source, target in pairs:
                await one(source, target)
        else:
            await asyncio.gather(*(one(source, target) for source, target in pairs))
        facts["loop"] = time.monotonic() - begun

    try:
        return await repeated(transfer, arguments.times) | facts
    finally:
        await client.close_session()


def main() -> None:
    """Time from the first import on: one client loads its parts at once, the other as they are used."""
    parser = argparse.ArgumentParser()
    parser.add_argument("client", choices=["hpcbridge", "pyfirecrest"])
    parser.add_argument("work", choices=["up", "down", "tree-up", "tree-down", "sync"])
    parser.add_argument("local")
    parser.add_argument("remote")
    parser.add_argument("--route")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--like")
    parser.add_argument("--unchecked", action="store_true", help="compare nothing afterwards")
    arguments = parser.parse_args()
    begun, used = time.time(), processor_time()
    facts = asyncio.run((by_hpcbridge if arguments.client == "hpcbridge" else by_pyfirecrest)(arguments))
    ended = time.time()
    own = {"begun": begun, "ended": ended, "seconds": ended - begun, "cpu": processor_time() - used}
    print(json.dumps({**own, "rss": peak_memory(), **facts}))


if __name__ == "__main__":
    main()
