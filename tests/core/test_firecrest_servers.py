"""The same client on other servers: real Slurm, an older version under a path prefix, the REST and hybrid modes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from hpcbridge import errors
from hpcbridge.credentials.factory import credential_for
from hpcbridge.firecrest import FirecrestClient
from hpcbridge.http import HttpSession
from hpcbridge.sites import resolve_site
from support.sandbox import SandboxProcess, start_sandbox

HOME = "/home/alice"
SCRIPT = "#!/bin/bash\n#SBATCH --time=5\necho out\n"


@asynccontextmanager
async def client_of(sandbox: SandboxProcess) -> AsyncIterator[FirecrestClient]:
    env = sandbox.client_env()
    site = resolve_site(
        url=env["FIRECREST_URL"],
        token_url=env["AUTH_TOKEN_URL"],
        client_id="alice",
        client_secret=env["FIRECREST_CLIENT_SECRET"],
        polling_rate=50.0,
    )
    session = HttpSession(site, credential_for(site))
    yield FirecrestClient(session)
    await session.aclose()


async def ended(client: FirecrestClient, system: str, job_id: str) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        state = (await client.job(system, job_id))[0].state
        if state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"):
            return state
        await asyncio.sleep(0.2)
    raise AssertionError("the job does not end")


async def test_jobs_on_both_schedulers(any_sandbox: SandboxProcess) -> None:
    async with client_of(any_sandbox) as client:
        system = any_sandbox.system
        place = f"{HOME}/servers-{time.monotonic_ns()}"
        await client.mkdir(system, place)
        body = {"name": "both", "script": SCRIPT, "workingDirectory": place}
        job_id = await client.submit(system, body)
        assert await ended(client, system, job_id) == "COMPLETED"
        assert await client.download(system, f"{place}/slurm-{job_id}.out") == b"out\n"
        with pytest.raises(errors.SubmitRejected, match="invalid partition"):
            await client.submit(system, {**body, "partition": "nosuch"})
        with pytest.raises(errors.SubmitRejected, match="unrecognized option"):
            await client.submit(system, {**body, "script": "#!/bin/bash\n#SBATCH --nonsense=1\ntrue\n"})
        with pytest.raises(errors.JobNotFound):
            await client.cancel(system, "999999")
        with pytest.raises(errors.JobNotFound):
            await client.job(system, "999999")
        sleeper = await client.submit(system, {**body, "script": "#!/bin/bash\nsleep 60\n"})
        await client.cancel(system, sleeper)
        assert (await ended(client, system, sleeper)).startswith("CANCELLED")
        assert (await client.userinfo(system)).name == "alice"
        assert (await client.nodes(system))[0]["name"]
        await client.rm(system, place)


async def test_an_older_server_under_a_prefix() -> None:
    with start_sandbox("--server-version", "2.5.6", "--root-path", "/hpc/firecrest/v2") as sandbox:
        assert sandbox.url.endswith("/hpc/firecrest/v2")
        async with client_of(sandbox) as client:
            system = sandbox.system
            job_id = await client.submit(system, {"name": "old", "script": SCRIPT, "workingDirectory": HOME})
            assert client.server_version == "2.5.6"
            assert not client.has_time_window
            assert not client.has_name_filter
            await ended(client, system, job_id)
            await client.submit(system, {"name": "other", "script": SCRIPT, "workingDirectory": HOME})
            for _ in range(50):
                found = await client.jobs(system, names=["old"], time_window="1h")
                if found:
                    break
                await asyncio.sleep(0.2)
            assert {row.job_id for row in found} == {job_id}  # this server ignores the name filter
            assert await client.partitions(system)  # pyfirecrest under the prefix, too
