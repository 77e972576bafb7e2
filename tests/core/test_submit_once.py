"""Submit once: one scheduler id and one execution, whatever happens to the answers.

On the local queue and on real Slurm.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections import Counter
from contextlib import asynccontextmanager

import pytest

import hpcbridge
from hpcbridge.errors import AmbiguousOutcome, AuthenticationError, KeyConflict, SubmitRejected, Unavailable
from hpcbridge.jobs.finder import lock_owner
from hpcbridge.jobs.guard import Places
from hpcbridge.jobs.intents import FileIntentStore
from hpcbridge.jobs.names import job_name
from hpcbridge.jobs.spec import JobSpec
from hpcbridge.jobs.submit import SubmitPolicy, submit_once
from support.proxy import start_proxy
from support.sandbox import SandboxProcess, start_sandbox
from support.scale import PROVE

N = 200 if PROVE else 16
SHORT = SubmitPolicy(lag=3.0, ssh=1.0, spacing=0.3, patience=60.0, longest_pause=1.0)
POLICY = SubmitPolicy() if PROVE else SHORT

RATES = {"lost": 0.15, "408": 0.15, "424": 0.15, "500": 0.15, "503": 0.15, "undelivered": 0.05}


@asynccontextmanager
async def system_of(sandbox: SandboxProcess, url: str | None = None, user: str = "alice"):
    env = sandbox.client_env(user)
    async with hpcbridge.connect(
        url=url or sandbox.url,
        token_url=env["AUTH_TOKEN_URL"],
        client_id=user,
        client_secret=env["FIRECREST_CLIENT_SECRET"],
        system=env["FIRECREST_SYSTEM"],
    ) as hpc:
        yield hpc.system()


@pytest.fixture
def workdir(any_sandbox):
    """A fresh directory on the cluster."""
    path = f"/home/alice/once-{uuid.uuid4().hex[:8]}"
    with any_sandbox.client() as client:
        made = client.post(f"/filesystem/{any_sandbox.system}/ops/mkdir", json={"path": f"{path}/ran", "parent": True})
        assert made.status_code == 201
    return path


def counting(workdir: str, what: str) -> str:
    """A script that leaves one line per execution."""
    return f'#!/bin/bash\n#SBATCH --time=5\necho "$SLURM_JOB_ID" >> {workdir}/ran/{what}\n'


def jobs_named(sandbox: SandboxProcess, names: set[str]) -> dict[str, set[str]]:
    """The scheduler's own account, without the proxy: ids by job name, settled past the accounting lag."""
    with sandbox.client() as client:
        rows = client.get(f"/compute/{sandbox.system}/jobs").json()["jobs"] or []
    found: dict[str, set[str]] = {name: set() for name in names}
    for row in rows:
        if row["name"] in found:
            found[row["name"]].add(row["jobId"])
    return found


async def executions(sandbox: SandboxProcess, workdir: str, count: int) -> Counter[str]:
    """Lines per file, once everything has run."""
    for _ in range(600):
        ran = {path.name: path.read_text().split() for path in sandbox.host_path(f"{workdir}/ran").iterdir()}
        if len(ran) >= count:
            break
        await asyncio.sleep(0.5)
    await asyncio.sleep(3 if PROVE else 1.5)  # a second execution would come now
    return Counter({p.name: len(p.read_text().split()) for p in sandbox.host_path(f"{workdir}/ran").iterdir()})


async def test_lost_and_replaced_answers_make_one_id_and_one_execution_each(any_sandbox, workdir, tmp_path):
    async with start_proxy(any_sandbox.url, RATES) as proxy, system_of(any_sandbox, proxy.url) as system:
        client, store = system.client, FileIntentStore(tmp_path)
        specs = [JobSpec(script=counting(workdir, f"k{n}"), workdir=workdir, name="count") for n in range(N)]
        done = await asyncio.gather(
            *(
                submit_once(client, system.name, spec, f"key-{n}", store=store, policy=POLICY, user="alice")
                for n, spec in enumerate(specs)
            )
        )
        assert sum(proxy.fates.values()) >= N
        assert proxy.fates["passed"] < sum(proxy.fates.values())
        assert len({each.job_id for each in done}) == N
        ran = await executions(any_sandbox, workdir, N)
        assert ran == Counter({f"k{n}": 1 for n in range(N)})
        ids = await _settled(any_sandbox, {each.name for each in done}, 1)
        assert {each.name: {each.job_id} for each in done} == ids
        print(f"{N} submits, fates {dict(proxy.fates)}, adopted {sum(each.adopted for each in done)}")


CLIENT = """
import asyncio, sys
import hpcbridge
from pathlib import Path
from hpcbridge.jobs.intents import FileIntentStore
from hpcbridge.jobs.names import job_name
from hpcbridge.jobs.spec import JobSpec
from hpcbridge.jobs.submit import SubmitPolicy, submit_once

async def main(workdir, key, store, script):
    async with hpcbridge.connect() as hpc:
        system = hpc.system()
        spec = JobSpec(script=script, workdir=workdir, name="killed")
        policy, intents = SubmitPolicy(lag=3.0, ssh=1.0, spacing=0.3), FileIntentStore(Path(store))
        done = await submit_once(system.client, system.name, spec, key, store=intents, policy=policy, user="alice")
        print(done.job_id, done.adopted, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_client_killed_between_post_and_answer_finds_its_job_again(any_sandbox, workdir, tmp_path):
    rounds = 20 if PROVE else 1
    for number in range(rounds):
        key, script = f"killed-{number}", counting(workdir, f"killed-{number}")
        command = [sys.executable, "-c", CLIENT, workdir, key, str(tmp_path), script]
        async with start_proxy(any_sandbox.url, {"hold": 1.0}) as proxy:
            env = os.environ | any_sandbox.client_env() | {"FIRECREST_URL": proxy.url}
            first = await asyncio.create_subprocess_exec(*command, env=env)
            await asyncio.wait_for(proxy.arrived.wait(), 60)
            first.kill()
            await first.wait()
            # The proxy's address is part of the site, so the second run must use it too; nothing is held any more.
            proxy.rates = {}
            second = await asyncio.create_subprocess_exec(*command, env=env, stdout=subprocess.PIPE)
            out, _ = await asyncio.wait_for(second.communicate(), 120)
            assert second.returncode == 0
            job_id, adopted = out.split()
            assert adopted == b"True"
            assert proxy.fates["passed"] == 0
            third = await asyncio.create_subprocess_exec(*command, env=env, stdout=subprocess.PIPE)
            assert (await third.communicate())[0].split() == [job_id, b"True"]
    ran = await executions(any_sandbox, workdir, rounds)
    assert ran == Counter({f"killed-{number}": 1 for number in range(rounds)})


async def test_a_job_that_appears_after_all_patience_still_runs_once(any_sandbox, workdir, tmp_path):
    """The server delivers the first POST later than anyone may expect.

    Two ids, one execution, and the client follows the owner.
    """
    spec = JobSpec(script=counting(workdir, "late"), workdir=workdir, name="late")
    hasty = SubmitPolicy(lag=0.2, ssh=0.2, spacing=0.2)
    async with (
        start_proxy(any_sandbox.url, {"late": 1.0}, late_by=6.0) as proxy,
        system_of(any_sandbox, proxy.url) as system,
    ):
        task = asyncio.create_task(
            submit_once(
                system.client, system.name, spec, "late", store=FileIntentStore(tmp_path), policy=hasty, user="alice"
            )
        )
        while not proxy.fates:
            await asyncio.sleep(0.05)
        proxy.rates = {}
        done = await task
        info = await system.watcher.wait(done.job_id, name=done.name)
        owner = await lock_owner(system.client, system.name, Places(workdir, done.name).lock)
        assert (info.ok, info.job_id) == (True, owner)
        while proxy.delivered < 2:
            await asyncio.sleep(0.2)
        (both,) = (await _settled(any_sandbox, {done.name}, 2)).values()
        (loser,) = both - {owner}
        followed = await system.watcher.wait(loser, name=done.name)
        assert (followed.job_id, followed.ok) == (owner, True)
    assert await executions(any_sandbox, workdir, 1) == Counter({"late": 1})


async def _settled(sandbox, names, count):
    for _ in range(100):
        found = jobs_named(sandbox, names)
        if all(len(ids) >= count for ids in found.values()):
            await asyncio.sleep(6 if PROVE else 1)  # a job too many would show by now
            again = jobs_named(sandbox, names)
            return {name: ids | again[name] for name, ids in found.items()}
        await asyncio.sleep(0.3)
    return pytest.fail(f"{found}")


async def test_a_loser_is_followed_even_while_accounting_shows_a_placeholder(sandbox, tmp_path):
    workdir = f"/home/alice/once-{uuid.uuid4().hex[:8]}"
    sandbox.post("/scheduler-faults", {"allocation_rows": True, "accounting_lag": 5})
    (owner,) = sandbox.post("/jobs", {"user": "alice", "count": 1, "duration": 0.1})["job_ids"]
    async with system_of(sandbox) as system:
        spec, site = JobSpec(script=counting(workdir, "x"), workdir=workdir), system.client.session.site.url
        name = job_name("job", site=site, system=system.name, user="alice", workdir=workdir, key="k")
        await system.mkdir(f"{workdir}/.hpcbridge")
        sandbox.host_path(Places(workdir, name).lock).symlink_to(owner)
        done = await submit_once(system.client, system.name, spec, "k", store=FileIntentStore(tmp_path), user="alice")
        assert done.name == name
        info = await system.watcher.wait(done.job_id, name=done.name)
        assert (info.job_id, info.ok) == (owner, True)


async def test_two_processes_with_the_same_key_make_one_job(any_sandbox, workdir, tmp_path):
    command = [sys.executable, "-c", CLIENT, workdir, "both", str(tmp_path), counting(workdir, "both")]
    env = os.environ | any_sandbox.client_env()
    runs = [await asyncio.create_subprocess_exec(*command, env=env, stdout=subprocess.PIPE) for _ in range(3)]
    ids = {(await run.communicate())[0].split()[0] for run in runs}
    assert len(ids) == 1
    assert await executions(any_sandbox, workdir, 1) == Counter({"both": 1})


async def test_a_fresh_submit_costs_no_look_up(sandbox, tmp_path):
    async with system_of(sandbox) as system:
        spec = JobSpec(script="#!/bin/sh\ntrue\n", workdir="/home/alice")
        await system.client.system(system.name)
        before = system.client.session.requests
        key = uuid.uuid4().hex
        await submit_once(system.client, system.name, spec, key, store=FileIntentStore(tmp_path), user="alice")
        assert system.client.session.requests == before + 1
        again = await submit_once(system.client, system.name, spec, key, store=FileIntentStore(tmp_path), user="alice")
        assert again.adopted
        assert system.client.session.requests == before + 1


async def test_the_same_key_with_another_script_or_label_is_a_conflict(sandbox, tmp_path):
    async with system_of(sandbox) as system:
        spec, key, store = (
            JobSpec(script="#!/bin/sh\ntrue\n", workdir="/home/alice"),
            uuid.uuid4().hex,
            FileIntentStore(tmp_path),
        )
        await submit_once(system.client, system.name, spec, key, store=store, user="alice")
        for other in (spec.replace(script="#!/bin/sh\nfalse\n"), spec.replace(name="other")):
            with pytest.raises(KeyConflict):
                await submit_once(system.client, system.name, other, key, store=store, user="alice")


async def test_after_a_definite_no_the_corrected_script_may_use_the_key(any_sandbox, workdir, tmp_path):
    async with system_of(any_sandbox) as system:
        spec, store = JobSpec(script="#!/bin/sh\ntrue\n", workdir=workdir), FileIntentStore(tmp_path)
        with pytest.raises(SubmitRejected, match="partition"):
            await submit_once(
                system.client, system.name, spec.replace(partition="nosuch"), "k", store=store, user="alice"
            )
        done = await submit_once(system.client, system.name, spec, "k", store=store, user="alice")
        assert not done.adopted


async def test_an_answer_that_is_always_ambiguous_ends_and_has_made_no_job(sandbox, tmp_path):
    sandbox.post("/faults", [{"method": "POST", "path": "/compute/*/jobs", "kind": "status", "status": 500}])
    async with system_of(sandbox) as system:
        spec = JobSpec(script="#!/bin/sh\ntrue\n", workdir="/home/alice")
        policy = SubmitPolicy(lag=0.5, ssh=0.1, spacing=0.1, posts=2)
        with pytest.raises(AmbiguousOutcome) as caught:
            await submit_once(
                system.client, system.name, spec, "k", store=FileIntentStore(tmp_path), policy=policy, user="alice"
            )
        assert "no job was made" in str(caught.value)
        assert sandbox.get("/requests")["counts"]["POST /compute/{}/jobs"] == 2
        sandbox.reset()
        done = await submit_once(system.client, system.name, spec, "k", store=FileIntentStore(tmp_path), user="alice")
        assert not done.adopted


async def test_a_failed_look_up_counts_for_nothing(sandbox, tmp_path):
    """The POST is lost before delivery, listings fail for a while: the POST comes again only after two that succeed."""
    sandbox.post("/faults", [{"method": "GET", "path": "/compute/*/jobs", "kind": "status", "status": 500, "count": 6}])
    async with start_proxy(sandbox.url, {"undelivered": 1.0}) as proxy, system_of(sandbox, proxy.url) as system:
        spec = JobSpec(script="#!/bin/sh\ntrue\n", workdir="/home/alice")
        policy = SubmitPolicy(lag=0.5, ssh=0.1, spacing=0.1, longest_pause=0.3)
        task = asyncio.create_task(
            submit_once(
                system.client,
                system.name,
                spec,
                uuid.uuid4().hex,
                store=FileIntentStore(tmp_path),
                policy=policy,
                user="alice",
            )
        )
        while not proxy.fates:
            await asyncio.sleep(0.02)
        proxy.rates = {}
        await task
        assert sandbox.get("/requests")["counts"]["GET /compute/{}/jobs"] >= 8


async def test_too_many_requests_waits_and_looks_first(sandbox, tmp_path):
    rule = {"method": "POST", "path": "/compute/*/jobs", "kind": "status_after", "status": 429, "count": 1}
    sandbox.post("/faults", [rule | {"headers": {"Retry-After": "1"}}])
    async with system_of(sandbox) as system:
        spec = JobSpec(script="#!/bin/sh\nsleep 3\n", workdir="/home/alice")
        done = await submit_once(
            system.client,
            system.name,
            spec,
            uuid.uuid4().hex,
            store=FileIntentStore(tmp_path),
            policy=POLICY,
            user="alice",
        )
        assert done.adopted
        assert sandbox.get("/requests")["counts"]["POST /compute/{}/jobs"] == 1


async def test_an_unreachable_site_is_waited_for_and_then_said_so(sandbox, tmp_path):
    async with system_of(sandbox) as system:
        await system.client.system(system.name)
        spec = JobSpec(script="#!/bin/sh\ntrue\n", workdir="/home/alice")
        sandbox.post("/outage", {"kind": "refused", "seconds": 3})
        done = await submit_once(
            system.client,
            system.name,
            spec,
            uuid.uuid4().hex,
            store=FileIntentStore(tmp_path),
            policy=POLICY,
            user="alice",
        )
        assert not done.adopted
        sandbox.post("/outage", {"kind": "refused", "seconds": 4})
        short = SubmitPolicy(patience=1.0)
        with pytest.raises(Unavailable):
            await submit_once(
                system.client, system.name, spec, "gone", store=FileIntentStore(tmp_path), policy=short, user="alice"
            )
        await asyncio.sleep(4)


async def test_an_error_while_in_doubt_does_not_free_the_key(sandbox, tmp_path):
    """The answer is lost and then the look-up is refused: the next run must still look first."""
    lost = {"method": "POST", "path": "/compute/*/jobs", "kind": "status_after", "status": 500, "count": 1}
    refused = {"method": "GET", "path": "/compute/*/jobs", "kind": "status", "status": 401}
    sandbox.post("/faults", [lost, refused])
    spec, key, store = (
        JobSpec(script="#!/bin/sh\nsleep 5\n", workdir="/home/alice"),
        uuid.uuid4().hex,
        FileIntentStore(tmp_path),
    )
    async with system_of(sandbox) as system:
        with pytest.raises(AuthenticationError):
            await submit_once(system.client, system.name, spec, key, store=store, policy=POLICY, user="alice")
        sandbox.reset()
        done = await submit_once(system.client, system.name, spec, key, store=store, policy=POLICY, user="alice")
        assert done.adopted


@pytest.mark.parametrize("mode", ["hybrid", "rest"])
async def test_the_other_scheduler_modes(mode, tmp_path):
    with start_sandbox("--scheduler-mode", mode, "--accounting-lag", "1") as sandbox:
        async with system_of(sandbox) as system:
            for number, line in enumerate(("#!/bin/bash", "#!/usr/bin/env python3")):
                text = f"{line}\n#SBATCH --output=out{number}\nprint('hello')\n" if number else f"{line}\necho hello\n"
                spec = JobSpec(script=text, workdir="/home/alice", output=f"out{number}", env={"A": "1"})
                done = await submit_once(system.client, system.name, spec, str(number), store=FileIntentStore(tmp_path))
                assert (await system.watcher.wait(done.job_id, name=done.name)).ok
                assert await system.read_bytes(f"/home/alice/out{number}") == b"hello\n"


async def test_environment_values_arrive_intact_and_in_no_request(any_sandbox, workdir, tmp_path):
    odd = "q'uo\"te,com ma\nnew line|pipe $HOME `id` \\ é \udcff end"
    async with system_of(any_sandbox) as system:
        modes = 'stat -c "%a %U" .hpcbridge/*.private .hpcbridge/*.private/env > modes'
        script = f'#!/bin/bash\nprintf "%s" "$ODD" > odd\n{modes}\n'
        spec = JobSpec(script=script, workdir=workdir, env={"ODD": odd})
        done = await submit_once(system.client, system.name, spec, "env", store=FileIntentStore(tmp_path))
        info = await system.watcher.wait(done.job_id, name=done.name)
        assert info.ok
        assert await system.read_bytes(f"{workdir}/odd") == odd.encode("utf-8", "surrogateescape")
        assert await system.read_bytes(f"{workdir}/modes") == b"700 alice\n600 alice\n"
        assert done.env_path is not None
        with any_sandbox.client() as client:
            told = client.get(f"/compute/{any_sandbox.system}/jobs/{done.job_id}/metadata")
        assert "new line|pipe" not in told.text  # the batch script is readable to others


async def test_a_script_path_keeps_its_directives(any_sandbox, workdir, tmp_path):
    script = b"#!/bin/bash\n#SBATCH --array=0-1\n#SBATCH --output=own-%a.txt\necho task $SLURM_ARRAY_TASK_ID\n"
    async with system_of(any_sandbox) as system:
        await system.client.upload(system.name, workdir, "own.sh", script)
        spec = JobSpec(script_path=f"{workdir}/own.sh", workdir=workdir)
        done = await submit_once(
            system.client, system.name, spec, "path", store=FileIntentStore(tmp_path), user="alice"
        )
        assert done.array == "0-1"
        info = await system.watcher.wait(done.job_id, name=done.name, array=done.array)
        assert (info.ok, len(info.tasks)) == (True, 2)
        assert await system.read_bytes(f"{workdir}/own-1.txt") == b"task 1\n"


async def test_a_python_script_is_a_job_too(any_sandbox, workdir, tmp_path):
    async with system_of(any_sandbox) as system:
        spec = JobSpec(script="#!/usr/bin/env python3\nopen('out', 'w').write('from python')\n", workdir=workdir)
        done = await submit_once(system.client, system.name, spec, "py", store=FileIntentStore(tmp_path), user="alice")
        assert (await system.watcher.wait(done.job_id, name=done.name)).ok
        assert await system.read_bytes(f"{workdir}/out") == b"from python"
