"""The facade: what is shared, what goes with the loop, and jobs and files end to end."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import hpcbridge
from hpcbridge import JobSpec, _registry, errors
from support.cli import clean_environment
from support.sandbox import SandboxProcess

QUICK = "#!/bin/bash\necho out; echo err >&2; exit {code}\n"


def options(sandbox: SandboxProcess, user: str = "alice") -> dict[str, str]:
    env = sandbox.client_env(user)
    return {
        "url": env["FIRECREST_URL"],
        "token_url": env["AUTH_TOKEN_URL"],
        "client_id": env["FIRECREST_CLIENT_ID"],
        "client_secret": env["FIRECREST_CLIENT_SECRET"],
        "system": env["FIRECREST_SYSTEM"],
    }


@pytest.fixture
async def hpc(sandbox: SandboxProcess) -> AsyncIterator[hpcbridge.Hpc]:
    async with hpcbridge.connect(**options(sandbox)) as hpc:
        yield hpc


# -- what is shared ------------------------------------------------------------------------------------------------


async def test_one_loop_shares_client_and_watcher_per_identity(sandbox: SandboxProcess) -> None:
    one, two = hpcbridge.connect(**options(sandbox)), hpcbridge.connect(**options(sandbox))
    bob = hpcbridge.connect(**options(sandbox, "bob"))
    assert one.client is two.client
    assert one.client is not bob.client
    assert one.system().watcher is two.system().watcher
    assert one.system().watcher is not one.system("other").watcher


def test_every_loop_has_its_own_and_takes_it_along(sandbox: SandboxProcess) -> None:
    hpc = hpcbridge.connect(**options(sandbox))

    async def use() -> int:
        async with hpc:
            await hpc.systems()
        return id(hpc.client)

    before = len(_registry._entries)
    with asyncio.Runner() as first:
        assert first.run(use()) == first.run(use())
        with_one = len(_registry._entries)
    assert (before, with_one, len(_registry._entries)) == (before, before + 1, before)
    asyncio.run(use())


async def test_an_idle_entry_goes_by_itself(sandbox: SandboxProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_registry, "LINGER", 0.2)
    async with hpcbridge.connect(**options(sandbox)) as hpc:
        client = hpc.client
        await hpc.systems()
        await asyncio.sleep(0.4)
        assert hpc.client is client, "it is held"
    await asyncio.sleep(0.4)
    assert hpc.client is not client


async def test_a_name_that_is_known_from_before_is_not_asked_for(sandbox: SandboxProcess) -> None:
    async with hpcbridge.connect(**options(sandbox)) as hpc:
        assert await hpc.system().user(known="ally") == "ally"
        assert await hpc.system().user() == "ally"
        assert not [name for name in sandbox.get("/requests")["counts"] if "userinfo" in name]
    async with hpcbridge.connect(**options(sandbox, "bob")) as hpc:
        assert await hpc.system().user() == "bob"
        assert await hpc.system().user(known="bobby") == "bob", "what the server says counts"


async def test_many_who_ask_for_the_name_at_once_ask_once(sandbox: SandboxProcess) -> None:
    sandbox.delete("/requests")
    async with hpcbridge.connect(**options(sandbox)) as hpc:
        system = hpc.system()
        names = await asyncio.gather(*(system.user() for _ in range(20)), system.home())
    assert names == ["alice"] * 20 + ["/home/alice"]
    assert sandbox.get("/requests")["counts"]["GET /status/{}/userinfo"] == 1


async def test_open_holds_until_as_many_acloses(sandbox: SandboxProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_registry, "LINGER", 0.1)
    hpc = await hpcbridge.connect(**options(sandbox)).open()
    async with hpc:
        client = hpc.client
        await hpc.systems()
    await asyncio.sleep(0.3)
    assert hpc.client is client, "it is held"
    await hpc.aclose()
    await hpc.aclose()  # once too often: nothing to do
    await asyncio.sleep(0.3)
    assert hpc.client is not client


@pytest.mark.parametrize(
    "body",
    [
        "asyncio.run(held())",
        "asyncio.run(opened())",
        "asyncio.run(loose())",
        "with asyncio.Runner() as runner: runner.run(held()); runner.run(loose())",
        "loop = asyncio.new_event_loop(); loop.run_until_complete(held()); loop.close()",
        "asyncio.run(interrupted())",
        "anyio.run(held)",
        "blocking_one()",
        "blocking_two()",
    ],
)
def test_nothing_is_left_unclosed(sandbox: SandboxProcess, tmp_path: Path, body: str) -> None:
    code = textwrap.dedent(
        """
        import asyncio, gc, anyio, hpcbridge
        from hpcbridge import blocking, JobSpec

        async def held():
            async with hpcbridge.connect() as hpc:
                await asyncio.gather(*(hpc.system().info(fresh=True) for _ in range(8)))

        async def opened():
            await (await hpcbridge.connect().open()).systems()

        async def loose():
            await hpcbridge.connect().systems()

        async def interrupted():
            hpc = hpcbridge.connect()
            job = await hpc.system().submit(JobSpec(script="#!/bin/bash\\nsleep 30\\n"))
            waiting = asyncio.create_task(job.wait())
            await asyncio.sleep(1.5)
            await job.cancel()

        def blocking_one():
            with blocking.connect() as hpc:
                hpc.systems()

        def blocking_two():
            print(blocking.connect().system().home())
        """
    )
    done = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-c", f"{code}\n{body}\ngc.collect()"],
        env=clean_environment(sandbox.client_env("alice"), home=tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0


async def test_a_forked_child_makes_its_own(sandbox: SandboxProcess, hpc: hpcbridge.Hpc) -> None:
    await hpc.systems()
    ours = hpc.client
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            asyncio._set_running_loop(None)
            names = asyncio.run(hpc.systems())
            os.write(write, names[0].name.encode())
        finally:
            os._exit(0)
    os.close(write)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert status == 0
    assert os.read(read, 100).decode() == sandbox.system
    os.close(read)
    assert hpc.client is ours
    assert await hpc.systems(fresh=True)


async def test_closed_loops_are_not_kept_alive(sandbox: SandboxProcess) -> None:
    hpc = hpcbridge.connect(**options(sandbox))
    for _ in range(5):
        await asyncio.to_thread(lambda: asyncio.run(hpc.systems()))
    gc.collect()
    assert all(not entry.loop.is_closed() for entry in _registry._entries.values())


# -- which system ----------------------------------------------------------------------------------------------------


async def test_without_a_name_the_only_system_is_meant(sandbox: SandboxProcess) -> None:
    hpc = hpcbridge.connect(**options(sandbox) | {"system": ""})
    system = hpc.system()
    with pytest.raises(errors.ConfigurationError, match="FIRECREST_SYSTEM"):
        _ = system.name
    assert await system.resolve() == sandbox.system
    assert system.name == sandbox.system


async def test_an_unknown_system_is_told_with_those_there_are(sandbox: SandboxProcess, hpc: hpcbridge.Hpc) -> None:
    with pytest.raises(errors.SystemNotFound, match=sandbox.system):
        await hpc.system("nowhere").info()


# -- jobs ------------------------------------------------------------------------------------------------------------


async def test_a_job_from_submit_to_its_last_byte(hpc: hpcbridge.Hpc) -> None:
    system = hpc.system()
    seen: list[str] = []
    job = await system.submit(JobSpec(script=QUICK.format(code=0), name="whole"))
    assert job.spec is not None
    assert job.spec.workdir == await system.home() == "/home/alice"
    info = await job.wait(on_change=lambda info: seen.append(str(info.state)))
    assert info.ok
    assert seen[-1] == "COMPLETED"
    assert b"".join([chunk async for chunk in job.logs()]) == b"out\nerr\n"
    again = system.job(job.id)
    assert (await again.info()).job_id == job.id
    assert b"".join([chunk async for chunk in again.logs(follow=True)]) == b"out\nerr\n"
    assert await job.post_mortem() is None


async def test_check_raises_what_went_wrong_with_the_last_lines(hpc: hpcbridge.Hpc) -> None:
    job = await hpc.system().submit(JobSpec(script=QUICK.format(code=7)))
    with pytest.raises(errors.JobFailed, match="exit code 7") as caught:
        await job.wait(check=True)
    assert caught.value.info.exit_code == 7
    assert "err" in (caught.value.tail or "")


async def test_a_job_is_found_by_its_key_from_anywhere(
    sandbox: SandboxProcess, hpc: hpcbridge.Hpc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, key = hpc.system(), tmp_path.name + str(os.getpid())
    assert await system.find(key) is None
    waits = await system.submit(JobSpec(script="#!/bin/bash\n#SBATCH --hold\ntrue\n", name="held"), key=key)
    runs = await system.submit(JobSpec(script="#!/bin/bash\nsleep 30\n", workdir="/home/alice"), key=key + "b")
    assert getattr(await system.find(key, name="held"), "id", None) == waits.id
    monkeypatch.setenv("HPCBRIDGE_STATE_DIR", str(tmp_path))  # as on another machine
    for other, name, job in ((key, "held", waits), (key + "b", "job", runs)):
        async with asyncio.timeout(30):  # listings flicker
            while (found := await system.find(other, name=name)) is None:
                await asyncio.sleep(0.5)
        assert (found.id, found.name) == (job.id, job.name)
        await job.cancel()


async def test_cancel_is_confirmed_and_idempotent(hpc: hpcbridge.Hpc) -> None:
    job = await hpc.system().submit(JobSpec(script="#!/bin/bash\nsleep 60\n"))
    assert (await job.cancel()).state is hpcbridge.JobState.CANCELLED
    assert (await job.cancel()).state is hpcbridge.JobState.CANCELLED
    with pytest.raises(errors.JobNotFound):
        await hpc.system().job("99999999").cancel()
    with pytest.raises(errors.JobCancelled):
        await job.wait(check=True)


async def test_logs_of_a_whole_array_cannot_be_followed(hpc: hpcbridge.Hpc) -> None:
    job = await hpc.system().submit(JobSpec(script=QUICK.format(code=0), array="0-1"))
    await job.wait(check=True)
    with pytest.raises(errors.InvalidRequest, match=f"{job.id}_0"):
        _ = [chunk async for chunk in job.logs(follow=True)]


# -- files -----------------------------------------------------------------------------------------------------------


async def test_files_end_to_end(hpc: hpcbridge.Hpc, tmp_path: Path) -> None:
    system = hpc.system()
    folder = f"{await system.home()}/{tmp_path.name}"
    await system.mkdir(folder)
    await system.mkdir(folder)
    (tmp_path / "a.dat").write_bytes(b"12345")
    reports: list[str] = []
    done = await system.put(tmp_path / "a.dat", f"{folder}/a.dat", progress=lambda report: reports.append(report.phase))
    assert done.bytes == 5
    assert "done" in reports
    assert await system.read_bytes(f"{folder}/a.dat") == b"12345"
    assert (await system.stat(f"{folder}/a.dat")).size == 5
    assert [entry.name for entry in await system.ls(folder)] == ["a.dat"]
    assert await system.checksum(f"{folder}/a.dat") == hashlib.sha256(b"12345").hexdigest()
    await system.get(f"{folder}/a.dat", tmp_path / "b.dat", verify="sha256")
    assert (tmp_path / "b.dat").read_bytes() == b"12345"
    await system.rm(folder)
    with pytest.raises(errors.PathNotFound):
        await system.stat(folder)
