"""Interrupted transfers through the object store: what is taken up, what starts again, and what is cleared away."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hpcbridge
from hpcbridge.errors import Conflict, TransferError
from hpcbridge.jobs.state import JobState
from hpcbridge.staging import Progress, get_file, put_file, s3_upload, server_jobs
from support.sandbox import SandboxProcess, start_sandbox
from support.staging import clear_leftovers, connected, leftovers, random_file, sha256

pytestmark = pytest.mark.needs("curl")  # of the cluster's jobs

SIZE = 40_000_000
PART = 5 << 20
PARTS = -(-SIZE // PART)


class Stop(Exception):
    """Raised by a progress callback, as Ctrl-C would be."""


@pytest.fixture(scope="module")
def quick() -> Iterator[SandboxProcess]:
    with start_sandbox("--ingress-look", "0.3", "--accounting-lag", "0.3", "--s3-part-size", str(PART)) as started:
        yield started


@pytest.fixture
def sandbox(quick: SandboxProcess) -> Iterator[SandboxProcess]:
    quick.delete("/s3-requests")
    yield quick
    quick.reset()


@pytest.fixture
def big(tmp_path: Path) -> Path:
    return random_file(tmp_path / "big", SIZE)


@pytest.fixture
def journals(tmp_path: Path) -> Path:
    return tmp_path / "state" / "transfers"


@pytest.fixture
async def system(
    sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[hpcbridge.System]:
    monkeypatch.setenv("HPCBRIDGE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(server_jobs, "LOG_LAG", 1.0)
    monkeypatch.setattr(server_jobs, "UNANSWERED_LAG", 2.0)
    clear_leftovers(sandbox)
    async with connected(sandbox) as system:
        yield system


def stop_at(phase: str, share: float = 0.0) -> Callable[[Progress], None]:
    def look(progress: Progress) -> None:
        if progress.phase == phase and progress.done >= share * SIZE:
            raise Stop

    return look


def edit(journals: Path, change: Callable[[str], str]) -> None:
    (path,) = journals.glob("*.jsonl")
    path.write_text(change(path.read_text()))


def parts_sent(sandbox: SandboxProcess) -> int:
    rows = sandbox.get("/s3-requests")
    return sum(1 for row in rows if row["method"] == "PUT" and row["agent"] != "curl" and row["received"])


def asked(sandbox: SandboxProcess, which: str) -> int:
    return int(sandbox.get("/requests")["counts"].get(f"POST /filesystem/{{}}/transfer/{which}", 0))


async def live(system: hpcbridge.System) -> list[Any]:
    return [job for job in await system.jobs() if not JobState.parse(job.state).is_terminal]


async def cancel_the_job(system: hpcbridge.System) -> None:
    while not (jobs := await live(system)):
        await asyncio.sleep(0.1)
    await system.client.cancel(system.name, jobs[0].job_id)


async def check_up(system: hpcbridge.System, sandbox: SandboxProcess, big: Path, journals: Path, path: str) -> None:
    assert sha256(sandbox.host_path(path)) == sha256(big)
    assert leftovers(sandbox) == []
    assert list(journals.glob("*")) == []
    for _ in range(50):
        if not await live(system):
            break
        await asyncio.sleep(0.1)
    assert await live(system) == []


async def interrupted(system: hpcbridge.System, big: Path, path: str, phase: str) -> None:
    """An upload that ends when it enters a phase, or in "parts" when half of them have been taken."""
    if phase != "parts":
        with pytest.raises(Stop):
            await put_file(system, big, path, route="s3", progress=stop_at(phase))
        return
    sending = asyncio.ensure_future(put_file(system, big, path, route="s3"))
    while not parts_taken():
        await asyncio.sleep(0.01)
        assert not sending.done()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    # What has left this machine the store still takes.
    await asyncio.sleep(1)


def parts_taken() -> int:
    journals = Path(os.environ["HPCBRIDGE_STATE_DIR"], "transfers").glob("*.jsonl")
    return sum(path.read_text().count('"etag"') for path in journals)


async def test_only_the_missing_parts_are_sent(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, journals: Path
) -> None:
    sandbox.post("/s3-faults", {"part_delay": 0.4})
    await interrupted(system, big, "/home/alice/missing", "parts")
    taken = parts_taken()
    assert 0 < taken < PARTS
    sandbox.delete("/s3-requests")
    sent = await put_file(system, big, "/home/alice/missing", route="s3")
    assert sent.sha256 == sha256(big)
    assert parts_sent(sandbox) == PARTS - taken
    assert asked(sandbox, "upload") == 1
    await check_up(system, sandbox, big, journals, "/home/alice/missing")


async def test_a_completed_upload_is_awaited_and_not_repeated(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, journals: Path
) -> None:
    await interrupted(system, big, "/home/alice/awaited", "staging")
    await asyncio.sleep(2)
    sandbox.delete("/s3-requests")
    sent = await put_file(system, big, "/home/alice/awaited", route="s3")
    assert sent.sha256 == sha256(big)
    assert (parts_sent(sandbox), asked(sandbox, "upload")) == (0, 1)
    await check_up(system, sandbox, big, journals, "/home/alice/awaited")


async def test_a_file_that_somebody_changed_after_it_was_sent_is_sent_again(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, journals: Path
) -> None:
    await interrupted(system, big, "/home/alice/changed", "verifying")
    sandbox.host_path("/home/alice/changed").write_bytes(os.urandom(SIZE))
    await put_file(system, big, "/home/alice/changed", route="s3")
    assert asked(sandbox, "upload") == 2
    await check_up(system, sandbox, big, journals, "/home/alice/changed")


async def test_a_job_that_has_gone_means_a_new_key(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, journals: Path
) -> None:
    await interrupted(system, big, "/home/alice/gone", "parts")
    await cancel_the_job(system)
    while await live(system):
        await asyncio.sleep(0.1)
    sandbox.delete("/s3-requests")
    await put_file(system, big, "/home/alice/gone", route="s3")
    assert (parts_sent(sandbox), asked(sandbox, "upload")) == (PARTS, 2)
    await check_up(system, sandbox, big, journals, "/home/alice/gone")


async def test_another_file_means_a_new_key_and_the_old_job_ends(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, journals: Path
) -> None:
    await interrupted(system, big, "/home/alice/other", "parts")
    random_file(big, SIZE)
    await put_file(system, big, "/home/alice/other", route="s3")
    assert asked(sandbox, "upload") == 2
    await check_up(system, sandbox, big, journals, "/home/alice/other")


async def test_urls_that_the_store_refuses_mean_a_new_key(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, journals: Path
) -> None:
    await interrupted(system, big, "/home/alice/expired", "parts")
    edit(journals, lambda text: text.replace("X-Amz-Signature=", "X-Amz-Signature=0"))
    await put_file(system, big, "/home/alice/expired", route="s3")
    assert asked(sandbox, "upload") == 2
    await check_up(system, sandbox, big, journals, "/home/alice/expired")


async def test_without_its_journal_an_upload_starts_again(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, journals: Path
) -> None:
    await interrupted(system, big, "/home/alice/deleted", "parts")
    (path,) = journals.glob("*.jsonl")
    path.unlink()
    sent = await put_file(system, big, "/home/alice/deleted", route="s3")
    assert sent.sha256 == sha256(big) == sha256(sandbox.host_path("/home/alice/deleted"))
    await cancel_the_job(system)


async def test_a_job_whose_answer_was_lost_is_ended(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, journals: Path
) -> None:
    sandbox.post("/faults", [{"method": "POST", "path": "*/transfer/upload", "kind": "drop_after", "count": 1}])
    await put_file(system, big, "/home/alice/lost", route="s3")
    assert asked(sandbox, "upload") == 2
    await check_up(system, sandbox, big, journals, "/home/alice/lost")


async def test_a_second_upload_to_the_same_place_is_told(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, journals: Path
) -> None:
    sandbox.post("/s3-faults", {"part_delay": 0.2})
    first = asyncio.ensure_future(put_file(system, big, "/home/alice/twice", route="s3"))
    while not list(journals.glob("*")):
        await asyncio.sleep(0.02)
    with pytest.raises(Conflict, match="/home/alice/twice"):
        await put_file(system, big, "/home/alice/twice", route="s3")
    await first
    await check_up(system, sandbox, big, journals, "/home/alice/twice")


async def test_a_job_that_ends_too_early_is_told(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, monkeypatch: pytest.MonkeyPatch, journals: Path
) -> None:
    monkeypatch.setattr(s3_upload, "UNWATCHED", 0.2)
    sandbox.post("/s3-faults", {"part_delay": 30})
    ending = asyncio.ensure_future(cancel_the_job(system))
    with pytest.raises(TransferError, match=r"ended as CANCELLED before the file was sent"):
        await put_file(system, big, "/home/alice/early", route="s3")
    await ending
    assert leftovers(sandbox) == []
    assert list(journals.glob("*")) == []


@pytest.mark.parametrize("phase", ["parts", "staging"])
async def test_names_that_need_a_publishing_job_are_taken_up_too(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, journals: Path, phase: str
) -> None:
    sandbox.post("/s3-faults", {"part_delay": 0.4})
    await interrupted(system, big, "/home/alice/sp ace", phase)
    sandbox.delete("/s3-requests")
    sent = await put_file(system, big, "/home/alice/sp ace", route="s3")
    assert sent.sha256 == sha256(big)
    assert asked(sandbox, "upload") == 1
    assert parts_sent(sandbox) < PARTS
    await check_up(system, sandbox, big, journals, "/home/alice/sp ace")


async def staged(system: hpcbridge.System, big: Path, out: Path, path: str, phase: str, share: float = 0.0) -> None:
    await put_file(system, big, path)
    with pytest.raises(Stop):
        await get_file(system, path, out, route="s3", progress=stop_at(phase, share))


async def test_an_object_that_is_there_is_read_without_a_second_job(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, tmp_path: Path, journals: Path
) -> None:
    for phase in ("staging", "downloading", "verifying"):
        sandbox.delete("/requests")
        await staged(system, big, tmp_path / "out", "/home/alice/object", phase, 0.5 if phase == "downloading" else 0)
        got = await get_file(system, "/home/alice/object", tmp_path / "out", route="s3")
        assert got.sha256 == sha256(big) == sha256(tmp_path / "out")
        assert asked(sandbox, "download") == 1
        await check_up(system, sandbox, big, journals, "/home/alice/object")


async def test_an_object_that_cannot_be_read_is_asked_for_again(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, tmp_path: Path, journals: Path
) -> None:
    await staged(system, big, tmp_path / "out", "/home/alice/refused", "downloading")
    edit(journals, lambda text: text.replace("X-Amz-Signature=", "X-Amz-Signature=0"))
    got = await get_file(system, "/home/alice/refused", tmp_path / "out", route="s3")
    assert got.sha256 == sha256(big)
    assert asked(sandbox, "download") == 2
    await check_up(system, sandbox, big, journals, "/home/alice/refused")


@pytest.mark.parametrize("change", ["content", "resume=False"])
async def test_another_file_is_another_object(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, tmp_path: Path, journals: Path, change: str
) -> None:
    await staged(system, big, tmp_path / "out", "/home/alice/anew", "downloading")
    if change == "content":
        there = sandbox.host_path("/home/alice/anew")
        there.write_bytes(random_file(big, SIZE).read_bytes())
        os.utime(there, (1_000_000_000, 1_000_000_000))
    got = await get_file(system, "/home/alice/anew", tmp_path / "out", route="s3", resume=change == "content")
    assert got.sha256 == sha256(big) == sha256(tmp_path / "out")
    assert asked(sandbox, "download") == 2
    await check_up(system, sandbox, big, journals, "/home/alice/anew")


async def test_a_download_whose_answer_was_lost_leaves_nothing(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, tmp_path: Path, journals: Path
) -> None:
    await put_file(system, big, "/home/alice/lost-down")
    sandbox.post("/faults", [{"method": "POST", "path": "*/transfer/download", "kind": "drop_after", "count": 1}])
    await get_file(system, "/home/alice/lost-down", tmp_path / "out", route="s3")
    assert asked(sandbox, "download") == 2
    await check_up(system, sandbox, big, journals, "/home/alice/lost-down")


async def test_the_journal_holds_no_more_than_its_owner_may_see(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, journals: Path
) -> None:
    await interrupted(system, big, "/home/alice/secret", "parts")
    (path,) = journals.glob("*.jsonl")
    assert path.stat().st_mode & 0o777 == 0o600
    assert "alice" not in path.name
    assert [line for line in path.read_text().splitlines() if json.loads(line)]
    await put_file(system, big, "/home/alice/secret", route="s3")
