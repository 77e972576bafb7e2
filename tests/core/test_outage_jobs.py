"""Outages during submit and wait: everything completes, nothing is lost or doubled; an outage is not an answer."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

import pytest

import hpcbridge
from hpcbridge.jobs.intents import FileIntentStore
from hpcbridge.jobs.spec import JobSpec
from hpcbridge.jobs.submit import SubmitPolicy, submit_once
from hpcbridge.jobs.watch import JobWatcher, WatchPolicy
from support.scale import PROVE

SECONDS = 60 if PROVE else 5
SUBMIT = SubmitPolicy() if PROVE else SubmitPolicy(lag=3.0, ssh=1.0, spacing=0.5, longest_pause=2.0, timeout=6.0)
WATCH = WatchPolicy() if PROVE else WatchPolicy(first_tick=0.5, max_tick=2.0, lag=5.0)


KINDS = ("refused", "503", "hang")
SLURM = pytest.mark.slurm
# The scheduler behind it makes no difference to an outage of the server: the short form takes real Slurm through one.
CASES = [*(("sandbox", kind) for kind in KINDS)] + [
    pytest.param("slurm_sandbox", kind, marks=SLURM) for kind in (KINDS if PROVE else ("503",))
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("scheduler", "kind"), CASES)
async def test_an_outage_during_submit_and_wait_loses_and_doubles_nothing(request, tmp_path, scheduler, kind):
    any_sandbox = request.getfixturevalue(scheduler)
    workdir = f"/home/alice/outage-{uuid.uuid4().hex[:8]}"
    env = any_sandbox.client_env()
    async with hpcbridge.connect(
        url=any_sandbox.url,
        token_url=env["AUTH_TOKEN_URL"],
        client_id="alice",
        client_secret=env["FIRECREST_CLIENT_SECRET"],
        system=env["FIRECREST_SYSTEM"],
    ) as hpc:
        system, store = hpc.system(), FileIntentStore(tmp_path)
        if not PROVE:
            session = system.client.session
            session.policy = replace(session.policy, read=6.0)
        await system.mkdir(f"{workdir}/ran")
        watcher = JobWatcher(system.client, system.name, policy=WATCH)

        async def run(key: str, seconds: float, code: int):
            script = f"#!/bin/bash\necho $SLURM_JOB_ID >> ran/{key}\nsleep {seconds}\nexit {code}\n"
            spec = JobSpec(script=script, workdir=workdir, output="/dev/null", time=10)
            done = await submit_once(system.client, system.name, spec, key, store=store, policy=SUBMIT, user="alice")
            return await watcher.wait(done.job_id, name=done.name, submitted_at=None)

        # Some jobs end during the outage, some are submitted into it, some begin and end after it.
        before = [asyncio.create_task(run(f"before{n}", SECONDS / 4 * n, n)) for n in range(4)]
        await asyncio.sleep(3)
        any_sandbox.post("/outage", {"kind": kind, "seconds": SECONDS})
        during = [asyncio.create_task(run(f"during{n}", 1, n)) for n in range(4)]
        await asyncio.sleep(SECONDS)
        after = [asyncio.create_task(run(f"after{n}", 1, n)) for n in range(2)]
        infos = await asyncio.gather(*before, *during, *after)
        assert [info.exit_code for info in infos] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
        assert len({info.job_id for info in infos}) == 10
        ran = {path.name: path.read_text().split() for path in any_sandbox.host_path(f"{workdir}/ran").iterdir()}
        assert sorted(ran.values()) == sorted([info.job_id] for info in infos)
        assert len(ran) == 10
