"""How late a job's end is noticed: hpcbridge's watcher beside pyfirecrest's `wait_for_job`, on the same jobs.

    python benchmarks/watch_lateness.py [SECONDS ...] [--json]

Starts a sandbox with the local queue, runs one simulated job per duration (default 5, 20, 60 and 130 s), and lets both
clients wait for each at the same time. Late is the time between the job's end and the moment the client returns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import firecrest.v2 as pyfirecrest
from firecrest import ClientCredentialsAuth

import hpcbridge
from support.sandbox import SandboxProcess, start_sandbox

DURATIONS = (5.0, 20.0, 60.0, 130.0)


async def _ours(sandbox: SandboxProcess, jobs: dict[str, float]) -> dict[str, float]:
    """Lateness in seconds by job id."""
    env = sandbox.client_env()
    async with hpcbridge.connect(
        url=sandbox.url,
        token_url=env["AUTH_TOKEN_URL"],
        client_id="alice",
        client_secret=env["FIRECREST_CLIENT_SECRET"],
        system=env["FIRECREST_SYSTEM"],
    ) as hpc:
        system = hpc.system()

        async def wait(job_id: str, end: float) -> float:
            await system.job(job_id).wait()
            return time.time() - end

        late = await asyncio.gather(*(wait(job_id, end) for job_id, end in jobs.items()))
        return dict(zip(jobs, late, strict=True))


async def _pyfirecrest(sandbox: SandboxProcess, jobs: dict[str, float]) -> dict[str, float]:
    """The same with pyfirecrest's asynchronous client, one `wait_for_job` per job."""
    secret = sandbox.client_env()["FIRECREST_CLIENT_SECRET"]
    client = pyfirecrest.AsyncFirecrest(
        firecrest_url=sandbox.url, authorization=ClientCredentialsAuth("alice", secret, sandbox.token_url)
    )

    async def wait(job_id: str, end: float) -> float:
        await client.wait_for_job(system_name=sandbox.system, job_id=job_id)
        return time.time() - end

    late = await asyncio.gather(*(wait(job_id, end) for job_id, end in jobs.items()))
    return dict(zip(jobs, late, strict=True))


async def measure(sandbox: SandboxProcess, durations: tuple[float, ...]) -> list[dict[str, Any]]:
    """One row per duration: seconds late for each client."""
    jobs: dict[str, float] = {}
    for duration in durations:
        (job_id,) = sandbox.post("/jobs", {"user": "alice", "count": 1, "duration": duration})["job_ids"]
        jobs[job_id] = time.time() + duration
    ours, theirs = await asyncio.gather(_ours(sandbox, jobs), _pyfirecrest(sandbox, jobs))
    return [
        {"duration": duration, "hpcbridge": round(ours[job_id], 1), "pyfirecrest": round(theirs[job_id], 1)}
        for duration, job_id in zip(durations, jobs, strict=True)
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("durations", nargs="*", type=float, default=list(DURATIONS))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with start_sandbox("--accounting-lag", "1") as sandbox:
        rows = asyncio.run(measure(sandbox, tuple(arguments.durations)))
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{'job runs for':>14} {'hpcbridge late by':>19} {'pyfirecrest late by':>21}")
    for row in rows:
        print(f"{row['duration']:>12.0f} s {row['hpcbridge']:>17.1f} s {row['pyfirecrest']:>19.1f} s")


if __name__ == "__main__":
    main()
