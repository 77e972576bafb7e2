"""One watcher for any number of jobs: two requests per tick, no end told early, arrays whole, outages survived."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

import hpcbridge
from hpcbridge.errors import AuthenticationError, JobVanished
from hpcbridge.http.session import at_site
from hpcbridge.jobs.spec import JobSpec
from hpcbridge.jobs.state import JobState
from hpcbridge.jobs.watch import JobWatcher, WatchPolicy
from support.sandbox import SandboxProcess, start_sandbox
from support.scale import PROVE

LAG = 20.0 if PROVE else 3.0
QUICK = WatchPolicy(first_tick=0.3, max_tick=2.0, lag=LAG + 5, grace=1.0, refused_for=1.0)


@asynccontextmanager
async def system_of(sandbox: SandboxProcess, user: str = "alice", **overrides: str):
    env = sandbox.client_env(user)
    settings = {
        "url": sandbox.url,
        "token_url": env["AUTH_TOKEN_URL"],
        "client_id": user,
        "client_secret": env["FIRECREST_CLIENT_SECRET"],
        "system": env["FIRECREST_SYSTEM"],
    }
    async with hpcbridge.connect(**(settings | overrides)) as hpc:
        yield hpc.system()


def simulated(sandbox: SandboxProcess, count: int, **options) -> list[str]:
    return sandbox.post(
        "/jobs", {"user": "alice", "count": count, "name": f"sim-{uuid.uuid4().hex[:6]}-{{i}}"} | options
    )["job_ids"]


def requests_for_jobs(sandbox: SandboxProcess) -> int:
    counts = sandbox.get("/requests")["counts"]
    return sum(number for what, number in counts.items() if what.startswith("GET /compute/"))


async def test_many_jobs_cost_two_requests_a_tick_and_none_is_told_early(sandbox):
    """1,000 jobs, 20 s of accounting lag, 5 % of the jobs missing from each listing."""
    count = 1000 if PROVE else 200
    sandbox.post("/scheduler-faults", {"accounting_lag": LAG, "missing_fraction": 0.05})
    begun = time.time()
    groups = {
        duration: simulated(sandbox, count // 5, duration=duration, queued=1.0)
        for duration in ((5, 20, 40, 60, 90) if PROVE else (1, 3, 5, 7, 9))
    }
    async with system_of(sandbox) as system:
        watcher = JobWatcher(system.client, system.name, policy=QUICK)
        await system.client.systems()
        sandbox.delete("/requests")

        async def watch(job_id, duration):
            info = await watcher.wait(job_id, submitted_at=datetime.now(UTC))
            assert time.time() >= begun + 1.0 + duration, f"{job_id} was told {info.state} before its end"
            return info

        waits = [watch(job_id, duration) for duration, ids in groups.items() for job_id in ids]
        infos = await asyncio.gather(*waits)
        assert {info.state for info in infos} == {JobState.COMPLETED}
        assert all(info.exit_code == 0 and info.signal == 0 and info.reason for info in infos)
        assert requests_for_jobs(sandbox) <= 2 * watcher.counters.ticks
        assert watcher.counters.listings == watcher.counters.ticks
        late = time.time() - begun - 1.0 - max(groups)
        assert late <= LAG + 4 * QUICK.max_tick
        print(f"{count} jobs, {watcher.counters}, the last {late:.1f} s after its end (lag {LAG} s)")


STATES = [
    ("COMPLETED", 0, 0),
    ("FAILED", 7, 0),
    ("FAILED", 0, 11),
    ("TIMEOUT", 0, 0),
    ("OUT_OF_MEMORY", 0, 9),
    ("CANCELLED", 0, 0),
    ("NODE_FAIL", 0, 0),
    ("PREEMPTED", 0, 0),
    ("BOOT_FAIL", 0, 0),
    ("DEADLINE", 0, 0),
]


async def test_every_terminal_state_carries_exit_code_signal_and_reason(sandbox):
    async with system_of(sandbox) as system:
        watcher = JobWatcher(system.client, system.name, policy=QUICK)
        ids = [
            simulated(sandbox, 1, duration=0.5, state=state, exit_code=code, signal=signal)[0]
            for state, code, signal in STATES
        ]
        infos = await asyncio.gather(*(watcher.wait(job_id) for job_id in ids))
        assert [(str(info.state), info.exit_code, info.signal) for info in infos] == STATES
        assert all(info.reason for info in infos)
        assert all(info.failure() is not None for info in infos[1:])


async def test_arrays_are_complete_only_when_every_task_is(any_sandbox):
    script = (
        "#!/bin/bash\n#SBATCH --array=0-3\nsleep $((SLURM_ARRAY_TASK_ID * 2))\nexit $((SLURM_ARRAY_TASK_ID == 1))\n"
    )
    async with system_of(any_sandbox) as system:
        job = await system.submit(JobSpec(script=script, workdir="/home/alice", output="/dev/null"))
        watcher, seen = JobWatcher(system.client, system.name, policy=QUICK), []
        info = await watcher.wait(job.id, name=job.name, on_change=seen.append)
        assert len(info.tasks) == 4
        assert all(task.is_terminal for task in info.tasks)
        assert [task.exit_code for task in info.tasks] == [0, 1, 0, 0]
        assert (info.state, info.exit_code) == (JobState.FAILED, 1)
        assert not any(each.is_terminal for each in seen[:-1])


async def test_one_task_of_an_array_can_be_waited_for(any_sandbox):
    script = (
        "#!/bin/bash\n#SBATCH --array=0-1\nsleep $((SLURM_ARRAY_TASK_ID * 20))\nexit $((SLURM_ARRAY_TASK_ID + 3))\n"
    )
    async with system_of(any_sandbox) as system:
        job = await system.submit(JobSpec(script=script, workdir="/home/alice", output="/dev/null"))
        watcher, seen = JobWatcher(system.client, system.name, policy=QUICK), []
        task = await watcher.wait(f"{job.id}_0", on_change=seen.append)
        assert (task.job_id, task.state, task.exit_code) == (f"{job.id}_0", JobState.FAILED, 3)
        assert seen[-1] == task
        assert not (await watcher.info(f"{job.id}_1")).is_terminal
        await system.client.cancel(system.name, job.id)
        assert (await watcher.wait(job.id)).is_terminal


async def test_a_real_jobs_states_are_told_in_order(any_sandbox):
    async with system_of(any_sandbox) as system:
        spec = JobSpec(script="#!/bin/bash\nsleep 3\nexit 5\n", workdir="/home/alice", output="/dev/null")
        job = await system.submit(spec)
        watcher, seen = JobWatcher(system.client, system.name, policy=QUICK), []
        info = await watcher.wait(job.id, name=job.name, on_change=lambda each: seen.append(each.state))
        assert (info.state, info.exit_code, info.signal) == (JobState.FAILED, 5, 0)
        assert info.started is not None
        assert info.ended is not None
        assert (info.ended - info.started).total_seconds() >= 2
        assert seen[-1] is JobState.FAILED
        assert (await watcher.info(job.id)).state is JobState.FAILED


async def test_death_by_signal_and_cancel(any_sandbox):
    async with system_of(any_sandbox) as system:
        watcher = JobWatcher(system.client, system.name, policy=QUICK)
        killed = await system.submit(
            JobSpec(script="#!/bin/bash\nkill -SEGV $$\n", workdir="/home/alice", output="/dev/null")
        )
        sleeper = await system.submit(
            JobSpec(script="#!/bin/bash\nsleep 300\n", workdir="/home/alice", output="/dev/null")
        )
        info = await watcher.wait(killed.id)
        assert (info.state, info.signal) == (JobState.FAILED, 11)
        await system.client.cancel(system.name, sleeper.id)
        assert (await watcher.wait(sleeper.id)).state is JobState.CANCELLED


async def test_many_waiters_share_the_watcher_and_a_late_one_hears_what_is_known(sandbox):
    async with system_of(sandbox) as system:
        watcher = JobWatcher(system.client, system.name, policy=QUICK)
        (job_id,) = simulated(sandbox, 1, duration=4)
        first = asyncio.create_task(watcher.wait(job_id))
        await asyncio.sleep(2)
        seen = []
        second = asyncio.create_task(watcher.wait(job_id, on_change=lambda info: seen.append(info.state)))
        await asyncio.sleep(0)
        assert seen == [JobState.RUNNING]
        assert await first == await second


async def test_a_waiter_that_leaves_or_whose_callback_fails_disturbs_nobody(sandbox):
    async with system_of(sandbox) as system:
        watcher = JobWatcher(system.client, system.name, policy=QUICK)
        (job_id,) = simulated(sandbox, 1, duration=3)

        def broken(info):
            raise ValueError(info.job_id)

        waits = [asyncio.create_task(watcher.wait(job_id, on_change=each)) for each in (broken, None, None)]
        await asyncio.sleep(1)
        waits[1].cancel()
        assert (await waits[2]).ok
        with pytest.raises(ValueError, match=job_id):
            await waits[0]
        assert watcher.watched == 0


async def test_a_job_that_nobody_knows_is_said_to_have_vanished_past_the_lag(sandbox):
    async with system_of(sandbox) as system:
        policy = WatchPolicy(first_tick=0.2, max_tick=0.5, lag=3.0)
        watcher = JobWatcher(system.client, system.name, policy=policy)
        begun = time.monotonic()
        with pytest.raises(JobVanished):
            await watcher.wait("99999999")
        assert time.monotonic() - begun > 3.0


async def test_listings_that_fail_are_replaced_by_reads_by_id(sandbox):
    async with system_of(sandbox) as system:
        watcher = JobWatcher(system.client, system.name, policy=QUICK)
        ids = simulated(sandbox, 5, duration=3)
        sandbox.post("/scheduler-faults", {"listing_error": True})
        infos = await asyncio.gather(*(watcher.wait(job_id) for job_id in ids))
        assert all(info.ok for info in infos)
        assert watcher.counters.failed_listings == watcher.counters.listings


async def test_placeholders_only_do_not_keep_anyone_waiting(sandbox):
    sandbox.post("/scheduler-faults", {"allocation_rows": True, "accounting_lag": 60})
    async with system_of(sandbox) as system:
        watcher = JobWatcher(system.client, system.name, policy=QUICK)
        (job_id,) = simulated(sandbox, 1, duration=1, state="FAILED", exit_code=3, name="mine")
        async with asyncio.timeout(20):
            info = await watcher.wait(job_id, name="mine", submitted_at=datetime.now(UTC))
        assert (info.state, info.exit_code, info.name) == (JobState.FAILED, 3, "mine")


async def test_a_server_that_refuses_us_is_said_so(sandbox):
    sandbox.post("/faults", [{"method": "GET", "path": "/compute/*", "kind": "status", "status": 401}])
    async with system_of(sandbox) as system:
        watcher = JobWatcher(system.client, system.name, policy=QUICK)
        with pytest.raises(AuthenticationError):
            await watcher.wait("1")


async def test_old_servers_without_a_time_window(sandbox):
    """2.5.6 refuses nothing and knows neither `time_window` nor `name`: see the contract tests of the sandbox."""
    async with system_of(sandbox) as system:
        system.client.session.server_version = "2.5.6"
        watcher = JobWatcher(system.client, system.name, policy=QUICK)
        (job_id,) = simulated(sandbox, 1, duration=1)
        assert (await watcher.wait(job_id)).ok


async def test_one_credential_watches_for_another_user(sandbox):
    (job_id,) = simulated(sandbox, 1, duration=2)
    async with system_of(sandbox, "bob") as system:
        watcher = JobWatcher(system.client, system.name, policy=QUICK, all_users=True)
        assert (await watcher.wait(job_id)).ok


async def test_a_few_jobs_are_watched_among_more_than_can_be_listed():
    """A listing of everybody's jobs would be past the server's limit; one narrowed to the watched names is not."""
    with start_sandbox("--accounting-lag", "0", "--user", "alice", "--user", "bob") as crowded:
        simulated(crowded, 17_000, user="bob", duration=600)
        names = [f"watched-{number}" for number in range(3)]
        async with system_of(crowded, "bob") as system:
            watcher = JobWatcher(system.client, system.name, policy=QUICK, all_users=True)
            waits = []
            for name in names:
                (job_id,) = simulated(crowded, 1, duration=2, name=name)
                waits.append(watcher.wait(job_id, name=name))
            infos = await asyncio.gather(*waits)
            assert sorted(info.name for info in infos) == names
            assert (watcher.counters.failed_listings, watcher.counters.reads) == (0, 0)


async def test_a_listing_that_waits_for_its_turn_does_not_space_out_the_ticks(sandbox):
    """Behind submits of ours it comes late; only the time that the site took counts."""
    async with system_of(sandbox) as system:
        watcher = JobWatcher(system.client, system.name, policy=WatchPolicy(first_tick=0.1, max_tick=0.5))
        (job,) = simulated(sandbox, 1, duration=600)
        await system.client.systems()
        limiter = system.client.session.limiter
        async with contextlib.AsyncExitStack() as busy:
            for _ in range(limiter.limit):
                await busy.enter_async_context(limiter.slot())
            wait = asyncio.create_task(watcher.wait(job))
            while not watcher.counters.listings:
                await asyncio.sleep(0.05)
            await asyncio.sleep(4)
        async with asyncio.timeout(30):  # ten times as long as the first one took in all would be 40
            while watcher.counters.listings < 2:
                await asyncio.sleep(0.05)
        wait.cancel()


async def test_a_busy_event_loop_does_not_space_out_the_ticks(sandbox):
    """It takes a turn of the loop for every step of a request; only the time that the site took counts."""
    async with system_of(sandbox) as system:
        await system.client.systems()
        await system.client.jobs(system.name)
        turns = 0

        async def others():
            nonlocal turns
            while True:
                turns += 1
                time.sleep(0.1)
                await asyncio.sleep(0)

        busy = asyncio.create_task(others())
        began = time.monotonic()
        await system.client.jobs(system.name)
        took = time.monotonic() - began
        busy.cancel()
        assert turns >= 4
        assert 0 < at_site.get() < took / 2


async def test_closing_the_watcher_lets_the_waiters_go(sandbox):
    async with system_of(sandbox) as system:
        watcher = JobWatcher(system.client, system.name, policy=QUICK)
        (job_id,) = simulated(sandbox, 1, duration=60)
        wait = asyncio.create_task(watcher.wait(job_id))
        await asyncio.sleep(0.5)
        await watcher.aclose()
        with pytest.raises(asyncio.CancelledError):
            await wait


COST = """
import asyncio, json, sys, time
import hpcbridge
from hpcbridge.jobs.watch import JobWatcher

async def main(seconds, ids):
    async with hpcbridge.connect() as hpc:
        system = hpc.system()
        watcher = JobWatcher(system.client, system.name)
        began, cpu = time.monotonic(), time.process_time()
        tasks = [asyncio.create_task(watcher.wait(job_id)) for job_id in ids]
        await asyncio.sleep(seconds)
        wall, cpu = time.monotonic() - began, time.process_time() - cpu
        assert not any(task.done() for task in tasks)
        # Not ru_maxrss: a child inherits its parent's.
        peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
        print(json.dumps({"core": cpu / wall, "MB": peak, "listings": watcher.counters.listings}))
        await watcher.aclose()
        await asyncio.gather(*tasks, return_exceptions=True)

asyncio.run(main(float(sys.argv[1]), json.load(sys.stdin)))
"""


def test_ten_thousand_watched_jobs_cost_little():
    """Under a quarter of a core and 300 MB, the start included. A sandbox of its own: nobody else should list them."""
    with start_sandbox() as sandbox:
        ran = subprocess.run(
            [sys.executable, "-c", COST, "120" if PROVE else "20"],
            input=json.dumps(simulated(sandbox, 10_000, duration=3600)),
            env=os.environ | sandbox.client_env(),
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert ran.returncode == 0, ran.stderr
    cost = json.loads(ran.stdout)
    print(cost)
    assert cost["listings"] >= 1
    assert cost["core"] < 0.25
    assert cost["MB"] < 300
