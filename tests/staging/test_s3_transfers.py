"""Through the object store: parts and ranges that fail one by one, and server jobs that do not tell the truth."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import hpcbridge
from hpcbridge.credentials.secret import Secret
from hpcbridge.errors import (
    HpcBridgeError,
    IntegrityError,
    InvalidPath,
    InvalidRequest,
    PathNotFound,
    TransferError,
    Unavailable,
)
from hpcbridge.staging import Progress, get_file, put_file, server_jobs
from hpcbridge.staging.context import Transfer
from hpcbridge.staging.object_store import ObjectMissing, ObjectStore, completion_body, error_code, total_size
from hpcbridge.staging.progress import Reporter
from hpcbridge.staging.ranges import RangeReader
from support.sandbox import SandboxProcess, start_sandbox
from support.staging import clear_leftovers, connected, leftovers, random_file, sha256

pytestmark = pytest.mark.needs("curl")  # of the cluster's jobs

SIZE = 70 * (1 << 20) + 7
"""Two parts of the sandbox's 64 MiB."""


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_file(tmp_path_factory.mktemp("s3") / "big", SIZE)


@pytest.fixture(scope="module")
def quick() -> Iterator[SandboxProcess]:
    """Looks for the object so often that these tests are not about waiting."""
    with start_sandbox("--ingress-look", "0.3", "--accounting-lag", "0.3") as started:
        yield started


@pytest.fixture
def sandbox(quick: SandboxProcess) -> Iterator[SandboxProcess]:
    yield quick
    quick.reset()


@pytest.fixture
async def system(
    sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[hpcbridge.System]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(server_jobs, "LOG_LAG", 1.0)
    clear_leftovers(sandbox)
    async with connected(sandbox) as system:
        yield system


async def test_up_and_down_and_nothing_left_behind(
    any_sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, big: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    seen: list[Progress] = []
    async with connected(any_sandbox) as system:
        clear_leftovers(any_sandbox)
        sent = await put_file(system, big, "/home/alice/staged", route="s3", progress=seen.append)
        assert (sent.route, sent.bytes, sent.sha256) == ("s3", SIZE, sha256(big))
        assert sha256(any_sandbox.host_path("/home/alice/staged")) == sha256(big)
        assert seen[-1].done == SIZE
        assert {"uploading", "staging", "verifying", "done"} <= {p.phase for p in seen}
        seen.clear()
        got = await get_file(system, "/home/alice/staged", tmp_path / "out", progress=seen.append)
        assert (got.route, got.bytes, got.sha256) == ("s3", SIZE, sha256(big))
    assert sha256(tmp_path / "out") == sha256(big)
    assert {"staging", "downloading", "verifying", "done"} <= {p.phase for p in seen}
    assert leftovers(any_sandbox) == []


@pytest.mark.parametrize(
    "faults",
    [
        {"part_failure": 1, "count": 2},
        {"part_drop": 1, "count": 2},
        {"part_corruption": 1, "count": 2},
        {"completion_status": 500, "count": 2},
        {"completion_lost": 1, "count": 1},
        {"part_delay": 0.5},
    ],
    ids=lambda faults: next(iter(faults)),
)
async def test_parts_and_completion_that_fail_are_sent_again(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, faults: dict[str, float]
) -> None:
    sandbox.post("/s3-faults", faults)
    seen: list[Progress] = []
    sent = await put_file(system, big, "/home/alice/again", route="s3", progress=seen.append)
    assert sent.sha256 == sha256(big) == sha256(sandbox.host_path("/home/alice/again"))
    assert seen[-1].done == SIZE
    assert leftovers(sandbox) == []


async def test_parts_that_arrive_damaged_every_time_are_an_error(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path
) -> None:
    sandbox.post("/s3-faults", {"part_corruption": 1})
    with pytest.raises(IntegrityError, match="damaged"):
        await put_file(system, big, "/home/alice/damaged", route="s3")
    assert not sandbox.host_path("/home/alice/damaged").exists()


@pytest.mark.parametrize(
    "faults",
    [
        {"get_failure": 1, "count": 3},
        {"get_truncation": 0.5, "count": 5},
        {"get_delay": 0.2},
    ],
    ids=lambda faults: next(iter(faults)),
)
async def test_ranges_that_fail_are_asked_for_again(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, big: Path, faults: dict[str, float]
) -> None:
    await put_file(system, big, "/home/alice/ranges")
    sandbox.post("/s3-faults", faults)
    got = await get_file(system, "/home/alice/ranges", tmp_path / "out", route="s3")
    assert got.sha256 == sha256(big) == sha256(tmp_path / "out")
    assert leftovers(sandbox) == []


async def test_a_range_that_arrives_damaged_is_noticed(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, big: Path
) -> None:
    await put_file(system, big, "/home/alice/bad-range")

    def spoil_once(progress: Progress) -> None:
        if progress.phase == "downloading" and not spoiled:
            spoiled.append(sandbox.post("/s3-faults", {"get_corruption": 1, "count": 1}))

    spoiled: list[object] = []
    got = await get_file(system, "/home/alice/bad-range", tmp_path / "out", route="s3", progress=spoil_once)
    assert spoiled
    assert got.sha256 == sha256(big) == sha256(tmp_path / "out")

    def spoil(progress: Progress) -> None:
        if progress.phase == "downloading":
            sandbox.post("/s3-faults", {"get_corruption": 1})

    with pytest.raises(IntegrityError, match="damaged"):
        await get_file(system, "/home/alice/bad-range", tmp_path / "never", route="s3", progress=spoil)
    assert not (tmp_path / "never").exists()


async def test_a_server_job_that_failed_but_says_completed_is_noticed(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    info = await system.info()
    t = Transfer(system, info, tmp_path, Reporter(None))
    job = await system.client.transfer_cp(info.name, "/home/alice/no-such", "/home/alice/copy")
    ended = await system.watcher.wait(job.job_id)
    assert ended.ok
    with pytest.raises(TransferError, match=r"COMPLETED.*No such file") as caught:
        await server_jobs.confirm(t, job, ended)
    assert caught.value.job_id == job.job_id
    # The logs are evidence: they stay.
    assert len(leftovers(sandbox)) == 2
    await server_jobs.remove_logs(t, job)
    assert leftovers(sandbox) == []


async def test_an_ingress_job_that_cannot_write_is_an_error_with_its_words(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, tmp_path: Path
) -> None:
    small = random_file(tmp_path / "small", 1000)
    closed = sandbox.host_path("/home/alice/closed")
    closed.mkdir(mode=0o555)
    shutil.chown(closed, closed.parent.stat().st_uid, closed.parent.stat().st_gid)
    try:
        with pytest.raises(HpcBridgeError, match=r"transfer job|Permission denied"):
            await put_file(system, small, "/home/alice/closed/x", route="s3")
    finally:
        closed.rmdir()


async def test_what_is_for_a_directory_that_does_not_exist_is_not_sent(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    sandbox.delete("/requests")
    with pytest.raises(PathNotFound, match="/home/alice/no/such does not exist"):
        await put_file(system, random_file(tmp_path / "small", 1000), "/home/alice/no/such/x", route="s3")
    assert all(each.startswith("GET") for each in sandbox.get("/requests")["counts"])


async def test_an_egress_job_that_fails_is_an_error_with_its_words(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, big: Path
) -> None:
    await put_file(system, big, "/home/alice/gone")

    def remove(progress: Progress) -> None:
        if progress.phase == "checking":
            sandbox.post("/s3-faults", {"part_failure": 1})

    with pytest.raises(TransferError, match="without having done its work"):
        await get_file(system, "/home/alice/gone", tmp_path / "out", route="s3", progress=remove)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["sp ace", "a&b", 'quo"te'])
async def test_names_that_break_the_servers_scripts_go_by_a_publishing_job(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, name: str
) -> None:
    source = random_file(tmp_path / "in", 6_000_000)
    sent = await put_file(system, source, f"/home/alice/{name}", route="s3")
    assert sent.sha256 == sha256(source) == sha256(sandbox.host_path(f"/home/alice/{name}"))
    with pytest.raises(InvalidPath):
        await get_file(system, f"/home/alice/{name}", tmp_path / "out", route="s3")
    got = await get_file(system, f"/home/alice/{name}", tmp_path / "out")
    assert got.sha256 == sha256(source)
    await system.mkdir("/home/alice/sp dir")
    with pytest.raises(InvalidPath, match="directory"):
        await put_file(system, source, "/home/alice/sp dir/x", route="s3")
    assert (await put_file(system, source, "/home/alice/sp dir/x")).route == "chunked"
    assert leftovers(sandbox) == []


async def test_a_link_is_followed_before_the_servers_script_measures_it(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    source = random_file(tmp_path / "in", 6_000_000)
    await put_file(system, source, "/home/alice/real-one")
    for name, target in (("link-1", "real-one"), ("link-2", "/home/alice/link-1")):
        path = sandbox.host_path(f"/home/alice/{name}")
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    got = await get_file(system, "/home/alice/link-2", tmp_path / "out")
    assert (got.route, got.sha256) == ("s3", sha256(source))


async def test_an_empty_file_never_goes_through_the_store(system: hpcbridge.System, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        await put_file(system, random_file(tmp_path / "in", 0), "/home/alice/empty-s3", route="s3")


async def test_no_presigned_url_reaches_log_or_error(
    system: hpcbridge.System,
    sandbox: SandboxProcess,
    tmp_path: Path,
    big: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    sandbox.post("/s3-faults", {"part_failure": 1, "count": 1})
    await put_file(system, big, "/home/alice/quiet", route="s3")
    await get_file(system, "/home/alice/quiet", tmp_path / "out")
    assert "X-Amz-Algorithm" in caplog.text
    signatures = [part for part in caplog.text.split("X-Amz-Signature=")[1:] if not part.startswith("***")]
    assert signatures == []


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_no_presigned_url_is_in_a_traceback_with_local_variables(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, direction: str
) -> None:
    source = random_file(tmp_path / "in", 6_000_000)
    await put_file(system, source, "/home/alice/shown")
    sandbox.post("/s3-faults", {"part_corruption": 1})
    up = direction == "up"
    path, out = "/home/alice/shown", tmp_path / "out"
    moving = put_file(system, source, path, route="s3") if up else get_file(system, path, out, route="s3")
    with pytest.raises(IntegrityError) as caught:
        await moving
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "system = " in shown
    assert "X-Amz" not in shown


async def test_the_stores_own_words_and_absences(system: hpcbridge.System, sandbox: SandboxProcess) -> None:
    await system.client.upload("sandbox", "/home/alice", "tiny", b"abc")
    ask = await system.client.transfer_download("sandbox", "/home/alice/tiny")
    store = ObjectStore(system.client.session.storage, patience=0.5)
    with pytest.raises(TransferError) as caught:
        await store.size(Secret(ask.url.reveal().replace("X-Amz-Signature=", "X-Amz-Signature=0")))
    assert "Signature=" not in str(caught.value)
    with pytest.raises((ObjectMissing, TransferError)):
        await store.size(Secret(ask.url.reveal().split("?")[0] + "-no?" + ask.url.reveal().split("?")[1]))
    sandbox.post("/s3-faults", {"get_failure": 1})
    reader = RangeReader(system.client.session.site, ask.url, readers=1, patience=0.5)
    with pytest.raises(Unavailable) as gone:
        await reader.read(0, 3, _nowhere)
    assert "X-Amz" not in str(gone.value)
    reader.close()
    await asyncio.sleep(1)
    await server_jobs.remove_logs(Transfer(system, await system.info(), Path(), Reporter(None)), ask.job)


def _nowhere(_offset: int, _data: bytes) -> None:
    raise AssertionError("nothing was to arrive")


async def test_a_cancelled_range_has_written_its_last_byte(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, big: Path
) -> None:
    await put_file(system, big, "/home/alice/cancelled")
    ask = await system.client.transfer_download("sandbox", "/home/alice/cancelled")
    store = ObjectStore(system.client.session.storage)
    for _ in range(200):
        with contextlib.suppress(ObjectMissing):
            if await store.size(ask.url) == SIZE:
                break
        await asyncio.sleep(0.05)
    reader = RangeReader(system.client.session.site, ask.url, readers=1)
    arrived: list[int] = []

    def slowly(_offset: int, data: bytes) -> None:
        time.sleep(0.05)
        arrived.append(len(data))

    reading = asyncio.ensure_future(reader.read(0, SIZE, slowly))
    await asyncio.sleep(0.5)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    before = len(arrived)
    await asyncio.sleep(0.3)
    assert 0 < len(arrived) == before < SIZE // (512 << 10)
    reader.close()


def test_s3s_words_are_understood() -> None:
    assert completion_body(['"a"', '"b"']).count(b"<Part>") == 2
    assert error_code("<Error><Code>SlowDown</Code></Error>") == "SlowDown"
    assert error_code("<CompleteMultipartUploadResult/>") is None
    assert total_size({"content-range": "bytes 0-0/17"}) == 17
