"""An outage in the middle of a transfer is waited out: nothing is lost, nothing is doubled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import hpcbridge
from hpcbridge.staging import Progress, get_file, put_file
from support.sandbox import SandboxProcess
from support.scale import PROVE
from support.staging import connected, leftovers, random_file, sha256

SIZE = 200_000_000 if PROVE else 30_000_000
SECONDS = 60 if PROVE else 4
KINDS = ["refused", "503", "hang"]
# A submit whose answer is lost is only repeated when no job can turn up any more: that is most of a minute.
UPLOADS = [(kind, phase) for phase in ("uploading", "queued") for kind in KINDS]
UPLOADS = UPLOADS if PROVE else [*UPLOADS[:3], ("refused", "queued")]
DOWNLOADS = [(kind, route) for route in ("s3", "chunked") for kind in KINDS]
DOWNLOADS = DOWNLOADS if PROVE else [("refused", "s3"), ("hang", "s3"), ("503", "chunked")]
NEEDS = {"s3": [pytest.mark.needs("curl")], "chunked": []}


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_file(tmp_path_factory.mktemp("outage") / "big", SIZE)


@pytest.fixture
async def system(
    sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[hpcbridge.System]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    async with connected(sandbox) as system:
        yield system


def outage_at(sandbox: SandboxProcess, kind: str, phase: str) -> tuple[Callable[[Progress], None], list[float]]:
    """A progress callback that starts the outage when `phase` is first seen; and when that was."""
    begun: list[float] = []

    def look(progress: Progress) -> None:
        if progress.phase == phase and not begun:
            begun.append(time.monotonic())
            sandbox.post("/outage", {"kind": kind, "seconds": SECONDS})

    return look, begun


@pytest.mark.parametrize(("kind", "phase"), UPLOADS)
async def test_an_upload_outlasts_an_outage(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, kind: str, phase: str
) -> None:
    # Jobs of ours run beside the target: in a directory of its own no other test's job is counted, however late told.
    directory = f"/home/alice/up-{kind}-{phase}"
    await system.mkdir(directory)
    look, begun = outage_at(sandbox, kind, phase)
    sent = await put_file(system, big, f"{directory}/big", progress=look)
    assert begun
    assert time.monotonic() - begun[0] >= SECONDS
    assert sent.sha256 == sha256(big) == sha256(sandbox.host_path(f"{directory}/big"))
    assert leftovers(sandbox) == []
    await asyncio.sleep(2)
    assert len([job for job in await system.jobs() if (job.working_directory or "").startswith(directory)]) == 1


@pytest.mark.parametrize(("kind", "route"), [pytest.param(*one, marks=NEEDS[one[1]]) for one in DOWNLOADS])
async def test_a_download_outlasts_an_outage(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, big: Path, kind: str, route: str
) -> None:
    await put_file(system, big, "/home/alice/down")
    look, begun = outage_at(sandbox, kind, "downloading" if route == "chunked" else "staging")
    got = await get_file(system, "/home/alice/down", tmp_path / "out", route=route, progress=look)
    assert begun
    assert got.sha256 == sha256(big) == sha256(tmp_path / "out")
    assert leftovers(sandbox) == []


@pytest.mark.needs("curl")
@pytest.mark.parametrize("kind", KINDS if PROVE else ["refused"])
async def test_an_s3_upload_outlasts_an_outage(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, kind: str
) -> None:
    look, begun = outage_at(sandbox, kind, "uploading")
    sent = await put_file(system, big, "/home/alice/up-s3", route="s3", progress=look)
    assert begun
    assert sent.sha256 == sha256(big) == sha256(sandbox.host_path("/home/alice/up-s3"))
    assert leftovers(sandbox) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_small_transfer_outlasts_an_outage(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, kind: str
) -> None:
    source = random_file(tmp_path / "small", 1000)
    await put_file(system, source, "/home/alice/small-1")
    sandbox.post("/outage", {"kind": kind, "seconds": min(SECONDS, 2)})
    await put_file(system, source, "/home/alice/small-2")
    sandbox.post("/outage", {"kind": kind, "seconds": min(SECONDS, 2)})
    await get_file(system, "/home/alice/small-2", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == source.read_bytes()


async def test_an_overloaded_login_node_only_slows_a_transfer_down(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path
) -> None:
    sandbox.post("/sessions", {"max": 2})
    sandbox.post("/faults", [{"method": "POST", "path": "*/ops/upload", "kind": "drop_after", "probability": 0.2}])
    sent = await put_file(system, big, "/home/alice/slow")
    assert sent.sha256 == sha256(big) == sha256(sandbox.host_path("/home/alice/slow"))
    assert leftovers(sandbox) == []
