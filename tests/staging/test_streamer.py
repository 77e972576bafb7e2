"""Over the streamer: byte-equal in spite of what it appends, published whole, and nothing left behind."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import hpcbridge
from hpcbridge.errors import ConfigurationError, InvalidPath, PathNotFound, TooLarge, TransferError
from hpcbridge.firecrest.stream import Stream
from hpcbridge.staging import Progress, get_file, put_file, streamer
from hpcbridge.staging.context import Transfer
from hpcbridge.staging.local import LocalFile
from hpcbridge.staging.names import parse_remote
from hpcbridge.staging.partfile import PartFile, Source
from hpcbridge.staging.plan import RANGE, Verify
from hpcbridge.staging.progress import Reporter
from hpcbridge.staging.streamer_link import CHUNK
from support.sandbox import SandboxProcess, start_sandbox, with_streamer
from support.scale import PROVE
from support.staging import clear_leftovers, connected, leftovers, random_file, sha256

SIZE = 200_000_000 if PROVE else 3 * CHUNK + 12_345
END = b'{"type": "eof", "sha256_hash": "' + b"0" * 64 + b'"}'
"""98 bytes that look like the end of a stream."""


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_file(tmp_path_factory.mktemp("streamer") / "big", SIZE)


@pytest.fixture(scope="module")
def with_local_queue() -> Iterator[SandboxProcess]:
    with start_sandbox("--accounting-lag", "0.3", *with_streamer()) as started:
        yield started


@pytest.fixture
def sandbox(with_local_queue: SandboxProcess) -> Iterator[SandboxProcess]:
    yield with_local_queue
    with_local_queue.reset()


@pytest.fixture
async def system(sandbox: SandboxProcess) -> AsyncIterator[hpcbridge.System]:
    clear_leftovers(sandbox)
    async with connected(sandbox) as system:
        yield system


@pytest.fixture(params=["local", "unprivileged", pytest.param("slurm", marks=pytest.mark.slurm)])
def any_sandbox(request: pytest.FixtureRequest) -> Iterator[SandboxProcess]:
    if request.param == "local":
        yield request.getfixturevalue("sandbox")
        return
    if request.param == "slurm":
        request.getfixturevalue("slurm_installed")
    flags = ("--scheduler", "slurm") if request.param == "slurm" else ()
    with start_sandbox(
        "--accounting-lag", "1", *with_streamer(), *flags, timeout=180, as_root=request.param != "unprivileged"
    ) as started:
        yield started


async def nothing_left(sandbox: SandboxProcess) -> None:
    """No log, no staging directory, no environment of a job, no job."""
    end = time.monotonic() + 20
    with sandbox.client() as client:
        while True:
            jobs = client.get(f"/compute/{sandbox.system}/jobs").json()["jobs"] or []
            live = [job["jobId"] for job in jobs if job["status"]["state"] in ("PENDING", "RUNNING", "COMPLETING")]
            left = [*leftovers(sandbox), *(p.name for p in sandbox.host_path("/home/alice").glob(".venv-*"))]
            if not live and not left:
                return
            assert time.monotonic() < end, (live, left)
            await asyncio.sleep(0.2)


async def test_up_and_down_and_nothing_left_behind(any_sandbox: SandboxProcess, tmp_path: Path, big: Path) -> None:
    seen: list[Progress] = []
    async with connected(any_sandbox) as system:
        sent = await put_file(system, big, "/home/alice/streamed", route="streamer", progress=seen.append)
        assert (sent.route, sent.bytes, sent.sha256) == ("streamer", SIZE, sha256(big))
        assert sha256(any_sandbox.host_path("/home/alice/streamed")) == sha256(big)
        assert seen[-1].done == SIZE
        assert {"checking", "uploading", "queued", "done"} <= {p.phase for p in seen}
        seen.clear()
        got = await get_file(
            system, "/home/alice/streamed", tmp_path / "out", route="streamer", verify="sha256", progress=seen.append
        )
        assert (got.route, got.bytes, got.sha256) == ("streamer", SIZE, sha256(big))
        assert {"downloading", "verifying", "done"} <= {p.phase for p in seen}
        assert sha256(tmp_path / "out") == sha256(big)
        await nothing_left(any_sandbox)


async def test_the_file_appears_whole_and_an_older_one_keeps_its_mode(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, big: Path
) -> None:
    old = random_file(tmp_path / "old", 1000)
    await put_file(system, old, "/home/alice/whole")
    target = sandbox.host_path("/home/alice/whole")
    target.chmod(0o640)
    sizes = set()

    async def look() -> None:
        while True:
            sizes.add(target.stat().st_size)
            await asyncio.sleep(0.002)

    looking = asyncio.ensure_future(look())
    await put_file(system, big, "/home/alice/whole", route="streamer")
    looking.cancel()
    assert sizes <= {1000, SIZE}
    assert target.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "content",
    [b"", b"x", END, b"x" * 1000 + END, bytes(CHUNK - 1), bytes(CHUNK), bytes(CHUNK) + b"\n", bytes(CHUNK - 98) + END],
    ids=["empty", "one", "end", "ends-with-end", "below", "chunk", "above", "chunk-of-end"],
)
async def test_any_content_arrives_as_it_is(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, content: bytes
) -> None:
    local, back = tmp_path / "local", tmp_path / "back"
    local.write_bytes(content)
    target, size = parse_remote("/home/alice/content"), len(content)
    info = await system.client.system(system.name)
    source = LocalFile(local)
    t = Transfer(system, info, local, Reporter(None, size), Verify.AUTO, None, size)
    digest = hashlib.sha256(content).hexdigest()
    # What is there already is replaced; the second time there is something.
    for _ in range(2):
        assert await streamer.put(t, source, target) == digest
        assert sandbox.host_path(str(target)).read_bytes() == content
    source.close()
    part = PartFile.open(back, Source("s", "s", str(target), size, 1), RANGE)
    assert await streamer.get(t, target, part) == digest
    assert list(part.missing()) == []
    part.publish()
    part.close()
    assert back.read_bytes() == content


@pytest.mark.parametrize("name", ["it's a name", "a b", "-x", "ünï"])
async def test_names_that_the_servers_script_cannot_carry(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, name: str
) -> None:
    local = random_file(tmp_path / "local", 10_000)
    sent = await put_file(system, local, f"/home/alice/{name}", route="streamer")
    assert (sent.route, sent.sha256) == ("streamer", sha256(local))
    assert sha256(sandbox.host_path(f"/home/alice/{name}")) == sha256(local)
    sandbox.host_path("/home/alice/a dir").mkdir(exist_ok=True)
    with pytest.raises(InvalidPath):
        await put_file(system, local, "/home/alice/a dir/x", route="streamer")


@pytest.mark.parametrize("verify", [None, "size", "auto", "sha256"])
async def test_what_is_compared_is_told(
    system: hpcbridge.System, tmp_path: Path, big: Path, verify: str | None
) -> None:
    digest = sha256(big) if verify in ("auto", "sha256") else None
    sent = await put_file(system, big, "/home/alice/verified", route="streamer", verify=verify)
    assert sent.sha256 == digest
    got = await get_file(system, "/home/alice/verified", tmp_path / "out", route="streamer", verify=verify)
    assert got.sha256 == digest
    assert sha256(tmp_path / "out") == sha256(big)


async def test_links_are_followed_and_other_peoples_streamers_passed_by(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    with sandbox.client("bob") as bob:
        body = {"path": "/home/bob/f", "transferDirectives": {"transferMethod": "streamer"}}
        for number in range(3):
            answer = bob.post(
                f"/filesystem/{sandbox.system}/transfer/upload", json=body | {"path": f"/home/bob/{number}"}
            )
            assert answer.status_code == 201
        await asyncio.sleep(1)
        content = random_file(tmp_path / "local", 100_000)
        await put_file(system, content, "/home/alice/linked", route="streamer")
        link = sandbox.host_path("/home/alice/link")
        link.unlink(missing_ok=True)
        link.symlink_to("linked")
        await get_file(system, "/home/alice/link", tmp_path / "out", route="streamer")
        assert sha256(tmp_path / "out") == sha256(content)
        for job in bob.get(f"/compute/{sandbox.system}/jobs").json()["jobs"]:
            bob.delete(f"/compute/{sandbox.system}/jobs/{job['jobId']}")


async def test_what_cannot_be_done_is_said_before_anything_is_sent(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    local = random_file(tmp_path / "local", 1000)
    with pytest.raises(PathNotFound):
        await get_file(system, "/home/alice/nowhere", tmp_path / "x", route="streamer")
    with pytest.raises(PathNotFound):
        await put_file(system, local, "/home/alice/nowhere/x", route="streamer")
    info = await system.client.system(system.name)
    t = Transfer(system, info, local, Reporter(None), Verify.AUTO, None, 1000)
    sandbox.delete("/requests")
    source = LocalFile(local)
    with pytest.raises(InvalidPath):
        await streamer.put(t, source, parse_remote("/home/alice/a;b"))
    source.size = 6 << 30
    with pytest.raises(TooLarge, match="over the streamer's 5368709120"):
        await streamer.put(t, source, parse_remote("/home/alice/large"))
    assert sandbox.get("/requests")["counts"] == {}
    source.size = 1000
    with pytest.raises(InvalidPath, match="is a directory"):
        await streamer.put(t, source, parse_remote("/home/alice"))
    assert sandbox.host_path("/home/alice").is_dir()
    source.close()


async def test_a_queue_that_is_full_is_visible_and_waited_for(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    local = random_file(tmp_path / "local", 1000)
    seen: list[Progress] = []
    script = "#!/bin/bash\n#SBATCH --exclusive\n#SBATCH -o /dev/null\nsleep 4\n"
    job = {"workingDirectory": "/home/alice", "script": script}
    with sandbox.client() as client:
        assert client.post(f"/compute/{sandbox.system}/jobs", json={"job": job}).status_code == 201
    await put_file(system, local, "/home/alice/queued", route="streamer", progress=seen.append)
    waits = [p.detail for p in seen if p.phase == "queued" and "waits in the queue" in p.detail]
    assert waits
    assert sha256(sandbox.host_path("/home/alice/queued")) == sha256(local)


async def test_secrets_are_seen_nowhere(
    system: hpcbridge.System,
    sandbox: SandboxProcess,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    own_state: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secrets: list[str] = []
    parse = Stream.from_json.__func__  # type: ignore[attr-defined]

    def noting(cls: type[Stream], data: object) -> Stream:
        made: Stream = parse(cls, data)
        secrets.append(made.secret.reveal())
        assert made.secret.reveal() not in repr(made)
        return made

    monkeypatch.setattr(Stream, "from_json", classmethod(noting))
    caplog.set_level(logging.DEBUG)
    local = random_file(tmp_path / "local", 1000)
    await put_file(system, local, "/home/alice/secret", route="streamer")
    sandbox.post("/streamer-faults", {"no_start": 1})
    with pytest.raises(TransferError) as caught:
        await get_file(system, "/home/alice/secret", tmp_path / "x", route="streamer")
    ours = caught.value.with_traceback(caught.tb.tb_next)  # without this test's own variables
    told = "".join(traceback.TracebackException.from_exception(ours, capture_locals=True).format())
    kept = "".join(path.read_text() for path in own_state.rglob("*") if path.is_file())
    assert len(secrets) == 2
    for secret in secrets:
        assert secret not in caplog.text
        assert secret not in told
        assert secret not in kept


@pytest.mark.parametrize(
    "coordinates",
    [None, "", "!", "e30=", "bnVsbA==", "eyJpcHMiOiBbXSwgInBvcnRzIjogWzFdLCAic2VjcmV0IjogImh1c2gtaHVzaCJ9"],
)
def test_coordinates_that_cannot_be_read_are_not_shown(coordinates: str | None) -> None:
    answer = {"transferJob": {"jobId": "1"}, "transferDirectives": {"coordinates": coordinates}}
    with pytest.raises(ValueError, match="the coordinates of the streamer cannot be read") as caught:
        Stream.from_json(answer)
    told = "".join(traceback.format_exception(caught.value))
    assert "hush" not in told


async def test_without_the_library_the_extra_is_named(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [each for each in sys.modules if each.split(".")[0] == "websockets"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "websockets", None)
    local = random_file(tmp_path / "local", 1000)
    with pytest.raises(ConfigurationError, match=r"hpcbridge\[streamer\]"):
        await put_file(system, local, "/home/alice/x", route="streamer")


MEASURED = """
import asyncio, resource
import hpcbridge
from hpcbridge.staging import get_file, put_file

async def main():
    async with hpcbridge.connect() as hpc:
        await put_file(hpc.system(), {local!r}, "/home/alice/memory", route="streamer")
        await get_file(hpc.system(), "/home/alice/memory", {back!r}, route="streamer")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

asyncio.run(main())
"""


async def test_memory_does_not_grow_with_the_file(sandbox: SandboxProcess, tmp_path: Path) -> None:
    sizes = (50_000_000, 2_000_000_000) if PROVE else (20_000_000, 200_000_000)
    peaks = []
    for size in sizes:
        local, back = random_file(tmp_path / "local", size), tmp_path / "back"
        code = MEASURED.format(local=str(local), back=str(back))
        env = {**os.environ, **sandbox.client_env()}
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True
        )
        peaks.append(int(done.stdout) * 1024)
        assert sha256(local) == sha256(back)
    assert peaks[1] - peaks[0] < 10 * CHUNK, peaks


KILLED = """
import asyncio, os, signal
import hpcbridge
from hpcbridge.staging import get_file, progress, put_file

progress.Reporter.INTERVAL = 0

def stop(progress):
    if progress.phase == {phase!r} and progress.done >= {done} and {words!r} in progress.detail:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with hpcbridge.connect() as hpc:
        if {up}:
            await put_file(hpc.system(), {local!r}, {remote!r}, route="streamer", progress=stop)
        else:
            await get_file(hpc.system(), {remote!r}, {local!r}, route="streamer", progress=stop)

asyncio.run(main())
"""


@pytest.mark.parametrize(("phase", "done"), [("staging", 0), ("uploading", CHUNK), ("queued", SIZE)])
async def test_an_upload_that_was_killed_leaves_no_job_and_can_be_repeated(
    sandbox: SandboxProcess, tmp_path: Path, big: Path, phase: str, done: int
) -> None:
    clear_leftovers(sandbox)
    remote = f"/home/alice/killed-{phase}"
    await killed(sandbox, phase, done, big, remote, up=True)
    assert not sandbox.host_path(remote).exists()
    async with connected(sandbox) as system:
        sent = await put_file(system, big, remote, route="streamer")
    assert sent.sha256 == sha256(big) == sha256(sandbox.host_path(remote))
    await nothing_left(sandbox)


@pytest.mark.parametrize(("phase", "done"), [("staging", 0), ("downloading", CHUNK)])
async def test_a_download_that_was_killed_leaves_no_job_and_can_be_repeated(
    sandbox: SandboxProcess, tmp_path: Path, big: Path, phase: str, done: int
) -> None:
    clear_leftovers(sandbox)
    async with connected(sandbox) as system:
        await put_file(system, big, "/home/alice/killed-down", route="streamer")
        local = tmp_path / "out"
        await killed(sandbox, phase, done, local, "/home/alice/killed-down", up=False)
        assert not local.exists()
        got = await get_file(system, "/home/alice/killed-down", local, route="streamer")
    assert got.sha256 == sha256(big) == sha256(local)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    await nothing_left(sandbox)


async def killed(sandbox: SandboxProcess, phase: str, done: int, local: Path, remote: str, *, up: bool) -> None:
    """Run a transfer that kills itself in `phase`; in "staging" its streamer does not listen yet."""
    words = "runs" if phase == "staging" else ""
    if phase == "staging":
        sandbox.post("/streamer-faults", {"start_delay": 30, "count": 1})
    code = KILLED.format(phase=phase, done=done, words=words, local=str(local), remote=remote, up=up)
    env = {**os.environ, **sandbox.client_env()}
    ended = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], env=env, check=False)
    assert ended.returncode == -signal.SIGKILL
