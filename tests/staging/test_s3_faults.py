"""An object store that fails: a transfer ends byte-equal or with a clear error, never silently wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
import urllib3

import hpcbridge
from hpcbridge.errors import HpcBridgeError, IntegrityError, TransferError, Unavailable
from hpcbridge.staging import Progress, get_file, object_store, put_file, ranges, server_jobs
from hpcbridge.staging.object_store import ObjectStore
from hpcbridge.staging.ranges import RangeReader
from support.sandbox import SandboxProcess, start_sandbox
from support.scale import PROVE
from support.staging import clear_leftovers, connected, leftovers, random_file, sha256

pytestmark = pytest.mark.needs("curl")  # of the cluster's jobs

SIZE = 100_000_000 if PROVE else 26_000_000
PART = 5 << 20
ROUNDS = 2 if PROVE else 1

UP = {
    "the whole": {"part_failure": 0.05, "part_corruption": 0.01, "part_drop": 0.02, "part_delay": 0.05},
    "many": {"part_failure": 0.2, "part_corruption": 0.1, "part_drop": 0.1},
    "corrupted": {"part_corruption": 0.1},
    "slow start": {"part_failure": 1, "part_delay": 0.3, "count": 6},
    "completion 500": {"completion_status": 500, "count": 3},
    "completion 503": {"completion_status": 503, "count": 3},
    "completion 200 with an error": {"completion_error": 1, "count": 3},
    "completion lost": {"completion_lost": 1, "count": 1},
    "completion dropped": {"completion_drop": 1, "count": 1},
    "other ETags": {"opaque_etags": 1, "part_corruption": 0.1, "part_failure": 0.05},
    "random ETags": {"opaque_etags": 2, "part_corruption": 0.1, "part_failure": 0.05},
}
UPLOADS = [(fault, "auto") for fault in UP]
UPLOADS += [(fault, "size") for fault in UP if PROVE or "ETags" in fault or fault == "corrupted"]
DOWN = {
    "the whole": {"get_failure": 0.05, "get_truncation": 0.05, "get_range": 0.02, "get_delay": 0.05},
    "truncated": {"get_truncation": 0.4},
    "another range": {"get_range": 0.4},
    "slow start": {"part_failure": 0.2, "part_delay": 0.5, "get_failure": 0.2},
    "corrupted": {"get_corruption": 0.05},
    "other ETags": {"opaque_etags": 1, "get_failure": 0.05},
}


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_file(tmp_path_factory.mktemp("faults") / "big", SIZE)


@pytest.fixture(scope="module")
def quick() -> Iterator[SandboxProcess]:
    with start_sandbox("--ingress-look", "0.3", "--accounting-lag", "0.3", "--s3-part-size", str(PART)) as started:
        yield started


@pytest.fixture
def sandbox(quick: SandboxProcess) -> Iterator[SandboxProcess]:
    yield quick
    quick.reset()


@pytest.fixture
async def system(
    sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[hpcbridge.System]:
    monkeypatch.setenv("HPCBRIDGE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(server_jobs, "LOG_LAG", 1.0)
    clear_leftovers(sandbox)
    async with connected(sandbox) as system:
        yield system
    assert list((tmp_path / "state" / "transfers").glob("*")) == []


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs is given up after a second."""
    monkeypatch.setattr(object_store, "_TIMEOUT", httpx.Timeout(1.0, pool=None))
    monkeypatch.setattr(ranges, "_TIMEOUT", urllib3.Timeout(connect=1.0, read=1.0))


@pytest.mark.parametrize(("fault", "verify"), UPLOADS)
async def test_up(system: hpcbridge.System, sandbox: SandboxProcess, big: Path, fault: str, verify: str) -> None:
    for _ in range(ROUNDS):
        sandbox.post("/s3-faults", UP[fault])
        sent = await put_file(system, big, "/home/alice/up", route="s3", verify=verify)
        assert sha256(sandbox.host_path("/home/alice/up")) == sha256(big)
        assert sent.sha256 == (sha256(big) if verify == "auto" else None)
        assert leftovers(sandbox) == []


def once_downloading(sandbox: SandboxProcess, rules: dict[str, float]) -> Callable[[Progress], None]:
    """The fault begins when the egress job has put the object there."""
    begun = []

    def look(progress: Progress) -> None:
        if progress.phase == "downloading" and not begun:
            begun.append(sandbox.post("/s3-faults", rules))

    return look


@pytest.mark.parametrize("fault", DOWN)
async def test_down(system: hpcbridge.System, sandbox: SandboxProcess, big: Path, tmp_path: Path, fault: str) -> None:
    await put_file(system, big, "/home/alice/down")
    rules = DOWN[fault]
    for _ in range(ROUNDS):
        sandbox.reset()
        late = "get_corruption" in rules
        if not late:
            sandbox.post("/s3-faults", rules)
        look = once_downloading(sandbox, rules) if late else None
        with contextlib.suppress(IntegrityError):
            got = await get_file(system, "/home/alice/down", tmp_path / "out", route="s3", progress=look)
            assert got.sha256 == sha256(big)
        # Where the ranges arrived damaged again and again, there is no file at all.
        assert not (tmp_path / "out").exists() or sha256(tmp_path / "out") == sha256(big)
        (tmp_path / "out").unlink(missing_ok=True)
        assert leftovers(sandbox) == []


@pytest.mark.parametrize("tags", [1, 2])
async def test_a_store_whose_etags_say_nothing_compares_the_parts_itself(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, tags: int
) -> None:
    """Without it, and with the size alone compared, a damaged part would go unnoticed."""
    sandbox.post("/s3-faults", {"opaque_etags": tags, "part_corruption": 1})
    with pytest.raises(IntegrityError, match="damaged 4 times"):
        await put_file(system, big, "/home/alice/opaque", route="s3", verify="size")
    assert not sandbox.host_path("/home/alice/opaque").exists()
    assert leftovers(sandbox) == []


async def test_a_part_that_hangs_is_sent_again(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    sandbox.post("/s3-faults", {"part_hang": 1, "count": 2})
    sent = await put_file(system, big, "/home/alice/hang", route="s3")
    assert sent.sha256 == sha256(big) == sha256(sandbox.host_path("/home/alice/hang"))


async def test_a_range_that_hangs_is_asked_for_again(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    await put_file(system, big, "/home/alice/hang-down")
    look = once_downloading(sandbox, {"get_hang": 1, "count": 2})
    got = await get_file(system, "/home/alice/hang-down", tmp_path / "out", route="s3", progress=look)
    assert got.sha256 == sha256(big) == sha256(tmp_path / "out")


async def test_what_the_ingress_job_damages_is_sent_once_more(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path
) -> None:
    sandbox.post("/s3-faults", {"get_corruption": 1, "count": 1})
    sent = await put_file(system, big, "/home/alice/ingress", route="s3")
    assert sent.sha256 == sha256(big) == sha256(sandbox.host_path("/home/alice/ingress"))
    assert leftovers(sandbox) == []
    sandbox.post("/s3-faults", {"get_corruption": 1})
    with pytest.raises(IntegrityError, match="SHA-256"):
        await put_file(system, big, "/home/alice/ingress", route="s3")
    assert leftovers(sandbox) == []


async def test_what_the_egress_job_damages_is_asked_for_once_more(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, tmp_path: Path
) -> None:
    await put_file(system, big, "/home/alice/egress")
    sandbox.post("/s3-faults", {"part_corruption": 1, "count": 1})
    got = await get_file(system, "/home/alice/egress", tmp_path / "out", route="s3")
    assert got.sha256 == sha256(big) == sha256(tmp_path / "out")
    assert leftovers(sandbox) == []


async def test_what_fails_for_good_is_a_clear_error(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    await system.client.upload("sandbox", "/home/alice", "tiny", b"abc")
    upload = await system.client.transfer_upload("sandbox", "/home/alice/never", 3)
    store = ObjectStore(system.client.session.storage, patience=0.5)
    for rules, words in (
        ({"completion_status": 500}, "InternalError"),
        ({"completion_error": 1}, "InternalError"),
        ({"completion_status": 400}, "BadRequest"),
    ):
        sandbox.post("/s3-faults", rules)
        with pytest.raises(HpcBridgeError, match=words) as caught:
            await store.complete(upload.complete_url, ['"x"'])
        assert isinstance(caught.value, Unavailable | TransferError)
        assert "X-Amz" not in str(caught.value)
    sandbox.delete("/s3-faults")
    got = await get_file(system, "/home/alice/tiny", tmp_path / "tiny", route="s3")
    assert got.bytes == 3
    egress = await system.client.transfer_download("sandbox", "/home/alice/tiny")
    await asyncio.sleep(2)
    sandbox.post("/s3-faults", {"get_range": 1})
    with pytest.raises(Unavailable, match="another range"):
        await store.size(egress.url)
    reader = RangeReader(system.client.session.site, egress.url, readers=1, patience=0.5)
    with pytest.raises(Unavailable, match="another range"):
        await reader.read(0, 2, _nowhere)
    reader.close()
    await system.client.cancel("sandbox", upload.job_id)


def _nowhere(_offset: int, _data: bytes) -> None:
    raise AssertionError("nothing was to arrive")
