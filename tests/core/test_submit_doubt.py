"""A submit in doubt: cancelled, old, or with listings that do not work. The key still stands for one job."""

from __future__ import annotations

import asyncio
import json
import uuid
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

import hpcbridge
from hpcbridge.errors import AmbiguousOutcome
from hpcbridge.jobs.guard import Places
from hpcbridge.jobs.intents import FileIntentStore
from hpcbridge.jobs.names import job_name
from hpcbridge.jobs.spec import JobSpec
from hpcbridge.jobs.submit import SubmitPolicy, submit_once
from support.proxy import start_proxy
from support.sandbox import SandboxProcess, start_sandbox

POLICY = SubmitPolicy(lag=1.0, ssh=0.5, spacing=0.3, patience=30.0, longest_pause=1.0)


@asynccontextmanager
async def system_of(sandbox: SandboxProcess, url: str | None = None):
    env = sandbox.client_env()
    async with hpcbridge.connect(
        url=url or sandbox.url,
        token_url=env["AUTH_TOKEN_URL"],
        client_id="alice",
        client_secret=env["FIRECREST_CLIENT_SECRET"],
        system=env["FIRECREST_SYSTEM"],
    ) as hpc:
        yield hpc.system()


async def workdir_of(system) -> str:
    path = f"/home/alice/doubt-{uuid.uuid4().hex[:8]}"
    await system.mkdir(path)
    return path


ARRAY = "#!/bin/bash\n#SBATCH --array=0-2\n#SBATCH --output=/dev/null\necho $SLURM_ARRAY_TASK_ID >> ran\nsleep {}\n"


@pytest.mark.parametrize("by_path", [False, True])
async def test_a_cancelled_submit_of_an_array_is_found_again_whole(any_sandbox, tmp_path, by_path):
    """The array runs when it is looked for: its tasks are not mistaken for it, nor for losers, and all of them run."""
    script, store = ARRAY.format(8), FileIntentStore(tmp_path)
    async with start_proxy(any_sandbox.url, {"hold": 1.0}) as proxy, system_of(any_sandbox, proxy.url) as system:
        workdir = await workdir_of(system)
        await system.client.upload(system.name, workdir, "own.sh", script.encode())
        source = {"script_path": f"{workdir}/own.sh"} if by_path else {"script": script}
        spec = JobSpec(workdir=workdir, **source)
        call = {"store": store, "policy": POLICY, "user": "alice"}
        task = asyncio.create_task(submit_once(system.client, system.name, spec, "k", **call))
        await asyncio.wait_for(proxy.arrived.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(100):
            with any_sandbox.client() as client:
                rows = client.get(f"/compute/{any_sandbox.system}/jobs").json()["jobs"] or []
            if sum(row["status"]["state"] == "RUNNING" and workdir == row["workingDirectory"] for row in rows) >= 3:
                break
            await asyncio.sleep(0.2)
        proxy.rates = {}
        done = await submit_once(system.client, system.name, spec, "k", **call)
        assert (done.adopted, proxy.fates["passed"]) == (True, 0)
        assert by_path or done.array == "0-2"
        info = await system.watcher.wait(done.job_id, name=done.name, array=done.array)
        assert [task.job_id for task in info.tasks] == [f"{done.job_id}_{n}" for n in range(3)]
        assert info.ok
        assert sorted((await system.read_bytes(f"{workdir}/ran")).split()) == [b"0", b"1", b"2"]


async def test_a_started_job_is_found_by_its_lock_where_listings_do_not_work(sandbox, tmp_path):
    """A `|` in another job's name makes every listing of the user 500; a listing over 5 MiB does, too."""
    spec = JobSpec(script="#!/bin/sh\necho ran >> ran\n", workdir="/home/alice", output="/dev/null")
    sandbox.post("/scheduler-faults", {"listing_error": True})
    async with start_proxy(sandbox.url, {"lost": 1.0}) as proxy, system_of(sandbox, proxy.url) as system:
        spec = spec.replace(workdir=await workdir_of(system))
        async with asyncio.timeout(20):
            done = await submit_once(
                system.client, system.name, spec, "k", store=FileIntentStore(tmp_path), policy=POLICY, user="alice"
            )
        assert (done.adopted, sum(proxy.fates.values())) == (True, 1)
        assert (await system.watcher.wait(done.job_id, name=done.name)).ok
        assert await system.read_bytes(f"{spec.workdir}/ran") == b"ran\n"


async def test_listings_that_are_too_large_tell_nothing_and_the_lock_does(tmp_path):
    """Servers without the name filter answer 500 past 5 MiB."""
    with start_sandbox("--server-version", "2.5.6", "--accounting-lag", "1") as sandbox:
        sandbox.post("/jobs", {"user": "alice", "count": 17_000, "duration": 3600, "name": "sim-{i}"})
        async with start_proxy(sandbox.url, {"lost": 1.0}) as proxy, system_of(sandbox, proxy.url) as system:
            store, workdir = FileIntentStore(tmp_path), await workdir_of(system)
            spec = JobSpec(script="#!/bin/sh\ntrue\n", workdir=workdir, directives=["--begin=now+12"])
            short = SubmitPolicy(lag=1.0, ssh=0.5, spacing=0.3, patience=2.0)
            call = {"store": store, "user": "alice"}
            with pytest.raises(AmbiguousOutcome, match="cannot be looked up"):
                await submit_once(system.client, system.name, spec, "k", policy=short, **call)
            done = await submit_once(system.client, system.name, spec, "k", policy=POLICY, **call)
            assert (done.adopted, sum(proxy.fates.values())) == (True, 1)


def meant_long_ago(store: FileIntentStore, name: str, spec: JobSpec, days: float) -> None:
    """The record that a client leaves behind when it is killed before the answer."""
    since = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    record = {"format": 1, "key": name, "spec": spec.fingerprint(), "since": since, "job_id": None}
    (store.directory / f"{name.rpartition('.')[2]}.json").write_text(json.dumps(record))


async def test_an_intent_older_than_the_servers_memory_needs_the_lock_folder_as_evidence(sandbox, tmp_path):
    """Servers look back 7 days at most: then only the folder of locks can show that the job has never run."""
    store = FileIntentStore(tmp_path)
    async with system_of(sandbox) as system:
        spec = JobSpec(script="#!/bin/sh\ntrue\n", workdir=await workdir_of(system), output="/dev/null")
        names = {"site": sandbox.url, "system": system.name, "user": "alice", "workdir": spec.workdir}
        name = job_name(spec.name, **names, key="k")
        call = {"store": store, "policy": POLICY, "user": "alice"}
        meant_long_ago(store, name, spec, days=10)
        for _ in range(2):  # nothing is forgotten by the refusal
            with pytest.raises(AmbiguousOutcome, match="10 days ago"):
                await submit_once(system.client, system.name, spec, "k", **call)
        await system.mkdir(Places(spec.workdir, name).folder)
        assert not (await submit_once(system.client, system.name, spec, "k", **call)).adopted


async def test_the_locks_owner_is_the_job_even_where_the_listing_leaves_it_out(sandbox, tmp_path):
    """Two jobs of the name wait, and a third, which has ended, holds the lock: listings flicker."""
    (owner,) = sandbox.post("/jobs", {"user": "alice", "count": 1, "duration": 0.1})["job_ids"]
    store = FileIntentStore(tmp_path)
    async with system_of(sandbox) as system:
        spec = JobSpec(script="#!/bin/sh\ntrue\n", workdir=await workdir_of(system))
        names = {"site": sandbox.url, "system": system.name, "user": "alice", "workdir": spec.workdir}
        name = job_name(spec.name, **names, key="k")
        await system.mkdir(Places(spec.workdir, name).folder)
        sandbox.host_path(Places(spec.workdir, name).lock).symlink_to(owner)
        waiting = "#!/bin/sh\n#SBATCH --begin=now+300\ntrue\n"
        body = {"name": name, "workingDirectory": spec.workdir, "script": waiting}
        losers = [await system.client.submit(system.name, body) for _ in range(2)]
        # One alone would be adopted, and followed to the owner when it loses.
        while not set(losers) <= {row.job_id for row in await system.client.jobs(system.name, names=[name])}:
            await asyncio.sleep(0.2)
        meant_long_ago(store, name, spec, days=0)
        done = await submit_once(system.client, system.name, spec, "k", store=store, policy=POLICY, user="alice")
        for loser in losers:
            await system.client.cancel(system.name, loser)
        assert (done.job_id, done.adopted) == (owner, True)
