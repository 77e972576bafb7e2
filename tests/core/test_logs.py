"""Logs: every byte once, whatever the file does; and why a job failed."""

from __future__ import annotations

import asyncio
import os
import random
import uuid
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

import hpcbridge
from hpcbridge.errors import JobFailed, LostRace, OutOfMemory
from hpcbridge.jobs import logs
from hpcbridge.jobs.guard import Places
from hpcbridge.jobs.logs import FollowPolicy, follow, post_mortem
from hpcbridge.jobs.spec import JobSpec
from hpcbridge.jobs.state import JobInfo, JobState
from support.sandbox import SandboxProcess
from support.scale import PROVE

QUICK = FollowPolicy(first=0.05, longest=0.3, settle=0.6, quiet=0.6)


@asynccontextmanager
async def system_of(sandbox: SandboxProcess, user: str = "alice"):
    env = sandbox.client_env(user)
    async with hpcbridge.connect(
        url=sandbox.url,
        token_url=env["AUTH_TOKEN_URL"],
        client_id=user,
        client_secret=env["FIRECREST_CLIENT_SECRET"],
        system=env["FIRECREST_SYSTEM"],
        polling_rate=50.0,
    ) as hpc:
        yield hpc.system()


class Written:
    """A file on the cluster that the test writes as a job would."""

    def __init__(self, sandbox: SandboxProcess) -> None:
        self.path = f"/home/alice/log-{uuid.uuid4().hex[:8]}.out"
        self.here = sandbox.host_path(self.path)
        self.all = b""

    def append(self, data: bytes) -> None:
        with self.here.open("ab") as file:
            file.write(data)
        self.here.chmod(0o644)
        self.all += data


@pytest.fixture
def written(sandbox):
    file = Written(sandbox)
    yield file
    file.here.unlink(missing_ok=True)


@pytest.fixture
def by_tail(monkeypatch):
    """Files are read by `tail` whatever their size."""
    monkeypatch.setattr(logs, "SMALL", 0)


async def followed(sandbox, written, write, *, offset=0):
    """What `follow` gives while `write` writes; the end comes when it returns.

    `write` is given a function that waits until everything written so far has been read.
    """
    got, ended = [], asyncio.Event()

    async def caught_up():
        async with asyncio.timeout(30):
            while sum(map(len, got)) < len(written.all) - offset:
                await asyncio.sleep(0.05)

    async with system_of(sandbox) as system:

        async def read():
            async for chunk in follow(
                system.client, system.name, written.path, until=ended, offset=offset, policy=QUICK
            ):
                got.append(chunk)

        reader = asyncio.create_task(read())
        await write(caught_up)
        ended.set()
        await asyncio.wait_for(reader, 60)
    return b"".join(got)


KINDS = {
    "text": lambda number: f"line {number}\n".encode(),
    "utf-8": lambda number: f"Zürich {number} … 漢字 🧪\n".encode(),
    "latin-1": lambda number: f"Zürich {number}\n".encode("latin-1"),
    "binary": lambda number: random.Random(number).randbytes(997),
    "replacement characters": lambda number: f"� {number}\n".encode(),
    "nul": lambda number: b"a\0b\r\n",
}


@pytest.mark.parametrize("how", ["by download", "by tail"])
async def test_every_byte_comes_once_as_it_is_written(sandbox, request, how):
    if how == "by tail":
        request.getfixturevalue("by_tail")
    files = {kind: Written(sandbox) for kind in KINDS}

    async def write(kind):
        for number in range(25):
            line = KINDS[kind](number)
            cut = number % max(1, len(line))  # writes end anywhere, inside characters too
            files[kind].append(line[:cut])
            await asyncio.sleep(0.06)
            files[kind].append(line[cut:])
            await asyncio.sleep(0.04)

    got = await asyncio.gather(*(followed(sandbox, files[kind], lambda _, kind=kind: write(kind)) for kind in KINDS))
    assert dict(zip(KINDS, got, strict=True)) == {kind: file.all for kind, file in files.items()}


async def test_a_file_that_comes_late_is_read_from_its_first_byte(sandbox, written):
    async def write(caught_up):
        await asyncio.sleep(0.5)
        written.append(b"late\n")

    assert await followed(sandbox, written, write) == b"late\n"


async def test_what_is_written_just_before_or_after_the_end_is_read(sandbox, written):
    async def write(caught_up):
        written.append(b"first\n")
        await caught_up()
        written.append(b"last words")
        asyncio.get_running_loop().call_later(0.2, written.append, b", and an echo of the file system")

    assert await followed(sandbox, written, write) == written.all


async def test_a_file_that_never_comes_is_empty(sandbox, written):
    assert await followed(sandbox, written, lambda _: asyncio.sleep(0.3)) == b""


@pytest.mark.usefixtures("by_tail")
async def test_an_unfinished_character_at_the_end_is_not_kept_back(sandbox, written):
    async def write(caught_up):
        written.append("Zü".encode()[:-1])
        await asyncio.sleep(0.3)

    assert await followed(sandbox, written, write) == b"Z\xc3"


@pytest.mark.parametrize("how", ["by download", "by tail"])
async def test_a_truncated_file_is_read_from_its_start(sandbox, written, request, how):
    """As when a job is requeued; also when it has already grown beyond where we were."""
    if how == "by tail":
        request.getfixturevalue("by_tail")

    async def write(caught_up):
        written.append(b"first run, first line\n")
        await caught_up()
        written.here.write_bytes(b"")
        written.append(b"short\n")
        await caught_up()
        written.here.write_bytes(b"")
        written.append(b"third run writes more than was there before\n")
        await caught_up()

    assert await followed(sandbox, written, write) == written.all


async def test_a_replaced_file_is_read_from_its_start(sandbox, written):
    async def write(caught_up):
        written.append(b"old\n")
        await caught_up()
        new = written.here.with_suffix(".new")
        new.write_bytes(b"new file\n")
        new.chmod(0o644)
        new.replace(written.here)

    assert await followed(sandbox, written, write) == b"old\nnew file\n"


async def test_an_offset_leaves_out_what_was_read_before(sandbox, written):
    written.append(b"0123456789")

    async def write(caught_up):
        await asyncio.sleep(0.3)
        written.append(b"abc")

    assert await followed(sandbox, written, write, offset=4) == b"456789abc"


async def test_without_an_end_only_what_is_there_is_read(sandbox, written):
    written.append(b"x" * 1000)
    async with system_of(sandbox) as system:
        assert b"".join([c async for c in follow(system.client, system.name, written.path)]) == written.all
        assert [c async for c in follow(system.client, system.name, "/home/alice/nosuch")] == []


@pytest.mark.parametrize("text", ["x" * 79 + "\n", "Zürich … 漢字 🧪 and more of it\n"], ids=["ascii", "utf-8"])
@pytest.mark.parametrize("offset", [0, 1_234_567])
async def test_a_long_backlog_is_read_exactly(sandbox, written, text, offset):
    """More than one `tail` can answer, in a file too large to download."""
    size = 30_000_000 if PROVE else 7_000_000
    line = text.encode()
    written.append(b"".join(line for _ in range(size // len(line))))
    while (written.all[offset] & 0xC0) == 0x80:
        offset += 1

    async def write(caught_up):
        await asyncio.sleep(1.0)
        written.append(b"and the end\n")

    assert await followed(sandbox, written, write, offset=offset) == written.all[offset:]


async def test_a_file_that_grows_by_megabytes_between_two_requests_is_read_exactly(sandbox, written):
    """What `tail` is asked for was little, and is more than it can answer by then."""
    written.append(b"a line of text\n" * 20_000)
    slow = {"method": "GET", "path": "/filesystem/*/ops/tail", "kind": "latency", "seconds": 4, "count": 1}
    sandbox.post("/faults", [slow])
    sandbox.delete("/requests")

    async def write(caught_up):
        while "GET /filesystem/{}/ops/stat" not in sandbox.get("/requests")["counts"]:
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.0)
        written.append(b"more of the text\n" * 450_000)

    assert await followed(sandbox, written, write) == written.all


async def test_undecodable_bytes_in_a_file_too_large_to_download_are_counted_and_replaced(sandbox, written):
    written.append(b"x" * 4_500_000)

    async def write(caught_up):
        await caught_up()
        written.append(b"\xff\xfe after\n")
        await caught_up()
        written.append(b"clean again\n")

    got = await followed(sandbox, written, write)
    assert got == b"x" * 4_500_000 + "�� after\nclean again\n".encode()


async def test_exactly_keeps_those_back_until_the_end_and_replaces_nothing(sandbox):
    body = "head -c 4500000 /dev/zero | tr '\\0' x; printf '\\377\\376 after\\n'; printf 'clean again\\n'"
    expected = b"x" * 4_500_000 + b"\xff\xfe after\nclean again\n"
    async with system_of(sandbox) as system:
        job = await system.submit(JobSpec(script=f"#!/bin/bash\n{body}\n"))
        assert b"".join([chunk async for chunk in job.logs(follow=True, exact=True)]) == expected
        assert b"".join([chunk async for chunk in job.logs(exact=True, offset=4_499_999)]) == expected[4_499_999:]


async def test_an_outage_loses_and_doubles_nothing(sandbox, written):
    async def write(caught_up):
        for kind in ("refused", "503", "hang"):
            written.append(f"before {kind}\n".encode())
            await asyncio.sleep(0.5)
            sandbox.post("/outage", {"kind": kind, "seconds": 2})
            written.append(f"during {kind}\n".encode())
            await asyncio.sleep(2.5)
        written.append(b"after\n")

    assert await followed(sandbox, written, write) == written.all


async def test_a_real_jobs_output_is_followed_to_its_last_byte(any_sandbox):
    script = "#!/bin/bash\nfor i in 1 2 3 4 5; do echo line $i; sleep 0.4; done; printf end\n"
    name = f"follow-{uuid.uuid4().hex[:8]}.txt"
    async with system_of(any_sandbox) as system:
        job = await system.submit(JobSpec(script=script, workdir="/home/alice", output=name))
        ended = asyncio.ensure_future(job.wait())
        chunks = [
            chunk
            async for chunk in follow(system.client, system.name, f"/home/alice/{name}", until=ended, policy=QUICK)
        ]
    assert b"".join(chunks) == b"line 1\nline 2\nline 3\nline 4\nline 5\nend"
    assert len(chunks) > 1


async def test_the_post_mortem_tells_state_reason_and_last_lines(any_sandbox):
    script = "#!/bin/bash\nseq 100\necho 'cannot open: input.nml' >&2\nexit 4\n"
    files = {"output": f"pm-{uuid.uuid4().hex[:8]}.out", "error": f"pm-{uuid.uuid4().hex[:8]}.err"}
    async with system_of(any_sandbox) as system:
        job = await system.submit(JobSpec(script=script, workdir="/home/alice", **files))
        info = await job.wait()
        failure = await post_mortem(system.client, system.name, info)
        assert isinstance(failure, JobFailed)
        told = str(failure)
        assert "exit code 4" in told
        assert "NonZeroExitCode" in told
        assert "cannot open: input.nml" in told
        assert failure.info == info
        other = await post_mortem(system.client, system.name, info, output=f"/home/alice/{files['output']}", lines=2)
        assert other.tail.endswith("99\n100\n")


async def test_the_post_mortem_of_a_job_that_wrote_nothing_tells_its_state(sandbox):
    (job_id,) = sandbox.post(
        "/jobs", {"user": "alice", "count": 1, "duration": 0.1, "state": "OUT_OF_MEMORY", "signal": 9}
    )["job_ids"]
    async with system_of(sandbox) as system:
        info = await system.job(job_id).wait()
        failure = await post_mortem(system.client, system.name, info)
        assert isinstance(failure, OutOfMemory)
        assert "OutOfMemory" in str(failure)
        good = JobInfo(job_id, "a", JobState.COMPLETED, exit_code=0, signal=0)
        assert await post_mortem(system.client, system.name, good) is None


async def test_a_job_that_lost_its_race_names_the_owner(sandbox):
    async with system_of(sandbox) as system:
        workdir, name = f"/home/alice/race-{uuid.uuid4().hex[:8]}", "a.hb1aaaabbbbccccdddd"
        await system.mkdir(f"{workdir}/.hpcbridge")
        os.symlink("4711", sandbox.host_path(Places(workdir, name).lock))  # noqa: PTH211
        info = JobInfo("4712", name, JobState.FAILED, 75, 0, "NonZeroExitCode", datetime.now(UTC), workdir=workdir)
        failure = await post_mortem(system.client, system.name, info)
        assert isinstance(failure, LostRace)
        assert "4711" in str(failure)
