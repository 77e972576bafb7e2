"""A streamer that comes late or never, breaks off, or delivers something else: never silently wrong, nothing left."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

import hpcbridge
from hpcbridge.errors import IntegrityError, PermissionDenied, TransferError
from hpcbridge.staging import Progress, get_file, put_file, server_jobs, streamer_link
from hpcbridge.staging.streamer_link import CHUNK
from support.sandbox import SandboxProcess, start_sandbox, with_streamer
from support.staging import clear_leftovers, connected, leftovers, random_file, sha256

SIZE = 3 * CHUNK + 12_345
HALF = 2 * CHUNK
REMOTE = "/home/alice/faulty"


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_file(tmp_path_factory.mktemp("streamer") / "big", SIZE)


@pytest.fixture(scope="module")
def started() -> Iterator[SandboxProcess]:
    with start_sandbox("--accounting-lag", "0.3", *with_streamer()) as started:
        yield started


@pytest.fixture
def sandbox(started: SandboxProcess) -> Iterator[SandboxProcess]:
    yield started
    started.reset()


@pytest.fixture
async def system(sandbox: SandboxProcess) -> AsyncIterator[hpcbridge.System]:
    clear_leftovers(sandbox)
    sandbox.host_path(REMOTE).unlink(missing_ok=True)
    async with connected(sandbox) as system:
        yield system


@pytest.fixture
async def there(system: hpcbridge.System, sandbox: SandboxProcess, big: Path) -> Path:
    """The file on the system, and where this machine finds it."""
    await put_file(system, big, REMOTE, route="chunked")
    return sandbox.host_path(REMOTE)


async def nothing_left(system: hpcbridge.System, sandbox: SandboxProcess, *, stage: bool = False) -> None:
    """No log and no job; a staging directory only where an upload was given up for damage."""
    end = time.monotonic() + 15
    while True:
        live = [row.job_id for row in await system.client.jobs(system.name) if row.state in ("PENDING", "RUNNING")]
        left = [name for name in leftovers(sandbox) if not (stage and name.startswith(".hpcbridge-put-"))]
        if not live and not left:
            return
        assert time.monotonic() < end, (live, left)
        await asyncio.sleep(0.2)


@pytest.mark.parametrize(
    "faults",
    [{"drop_after": HALF}, {"drop_after": 0}, {"corruption": 1}, {"wrong_hash": 1}],
    ids=["broken-off", "at-once", "damaged", "another-hash"],
)
async def test_one_fault_is_outlived(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, big: Path, faults: dict[str, float]
) -> None:
    sandbox.post("/streamer-faults", {**faults, "count": 1})
    sent = await put_file(system, big, REMOTE, route="streamer")
    assert sent.sha256 == sha256(big) == sha256(sandbox.host_path(REMOTE))
    sandbox.post("/streamer-faults", {**faults, "count": 1})
    got = await get_file(system, REMOTE, tmp_path / "out", route="streamer")
    assert got.sha256 == sha256(big) == sha256(tmp_path / "out")
    await nothing_left(system, sandbox)


@pytest.mark.parametrize(
    ("faults", "kind"),
    [({"drop_after": HALF}, TransferError), ({"corruption": 1}, IntegrityError), ({"wrong_hash": 1}, IntegrityError)],
    ids=["broken-off", "damaged", "another-hash"],
)
async def test_a_fault_that_stays_is_an_error_and_leaves_both_sides_as_they_were(
    system: hpcbridge.System,
    sandbox: SandboxProcess,
    tmp_path: Path,
    there: Path,
    faults: dict[str, float],
    kind: type[TransferError],
) -> None:
    before = sha256(there)
    other = random_file(tmp_path / "other", SIZE)
    local = random_file(tmp_path / "out", 1000)
    kept = sha256(local)
    sandbox.post("/streamer-faults", faults)
    with pytest.raises(kind, match=r"damaged|did not arrive whole"):
        await put_file(system, other, REMOTE, route="streamer")
    assert sha256(there) == before
    with pytest.raises(kind, match="did not arrive whole in 3 attempts"):
        await get_file(system, REMOTE, local, route="streamer")
    assert sha256(local) == kept
    await nothing_left(system, sandbox, stage=True)


async def test_a_streamer_that_comes_late_is_waited_for_quietly(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path
) -> None:
    sandbox.post("/streamer-faults", {"start_delay": 5, "count": 1})
    sandbox.delete("/requests")
    seen: list[Progress] = []
    await put_file(system, big, REMOTE, route="streamer", progress=seen.append)
    assert any(p.phase == "staging" and "runs" in p.detail for p in seen)
    counts = sandbox.get("/requests")["counts"]
    # The watcher's ticks; nobody looks at a log.
    assert sum(count for what, count in counts.items() if "/jobs" in what) < 20
    assert not any("ops/download" in what and count > 5 for what, count in counts.items())
    assert sha256(sandbox.host_path(REMOTE)) == sha256(big)


async def test_a_streamer_that_cannot_be_installed_is_an_error_in_its_own_words(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, there: Path
) -> None:
    sandbox.post("/streamer-faults", {"no_start": 1})
    for ask in (
        put_file(system, random_file(tmp_path / "other", SIZE), REMOTE, route="streamer"),
        get_file(system, REMOTE, tmp_path / "out", route="streamer"),
    ):
        with pytest.raises(
            TransferError, match=r"before it could be reached \(ERROR: Could not find a version"
        ) as error:
            await ask
        assert "chunked" in (error.value.hint or "")
        assert error.value.job_id
    assert not (tmp_path / "out").exists()
    await nothing_left(system, sandbox)


async def test_a_streamer_behind_a_firewall_is_given_up(
    system: hpcbridge.System, sandbox: SandboxProcess, big: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamer_link, "STARTED_LIMIT", 2.0)
    sandbox.post("/streamer-faults", {"deaf": 1})
    with pytest.raises(TransferError, match=r"cannot be reached from here \(127\.0\.0\.1, ports \d+-\d+: ") as error:
        await put_file(system, big, REMOTE, route="streamer")
    assert "firewall" in (error.value.hint or "")
    await nothing_left(system, sandbox)


async def test_a_streamer_without_a_port_says_so(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        flags = ("--transfer", "streamer", "--streamer-ports", f"{port}-{port}", "--accounting-lag", "0.3")
        with start_sandbox(*flags) as sandbox:
            async with connected(sandbox) as system:
                with pytest.raises(TransferError, match=f"Server unable to bing on port: {port}"):
                    await put_file(system, random_file(tmp_path / "f", 1000), REMOTE, route="streamer")
                await nothing_left(system, sandbox)


async def test_ports_of_others_are_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes connections and says nothing, and one that speaks another language."""
    monkeypatch.setattr(streamer_link, "OPENING", 0.3)
    flags = with_streamer()
    first = int(flags[-1].partition("-")[0])

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"220 ready\r\n")
        writer.close()

    with socket.socket() as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        silent.bind(("127.0.0.1", first))
        silent.listen()
        async with await asyncio.start_server(answer, "127.0.0.1", first + 1):
            with start_sandbox(*flags, "--accounting-lag", "0.3") as sandbox:
                async with connected(sandbox) as system:
                    local = random_file(tmp_path / "f", 1000)
                    sent = await put_file(system, local, REMOTE, route="streamer")
                    assert sent.sha256 == sha256(local)


async def test_a_streamer_that_stops_answering_is_replaced(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamer_link, "STALL", 1.5)
    stopped: list[psutil.Process] = []

    def stop(progress: Progress) -> None:
        if progress.phase in ("uploading", "downloading") and not stopped:
            stopped.extend(p for p in psutil.Process(sandbox.process.pid).children(recursive=True) if streams(p))
            for process in stopped:
                process.suspend()

    other = random_file(tmp_path / "other", 20 * CHUNK)
    sent = await put_file(system, other, REMOTE, route="streamer", progress=stop)
    assert stopped
    assert sent.sha256 == sha256(other) == sha256(there)
    stopped.clear()
    got = await get_file(system, REMOTE, tmp_path / "out", route="streamer", progress=stop)
    assert stopped
    assert got.sha256 == sha256(other) == sha256(tmp_path / "out")
    await nothing_left(system, sandbox)


def streams(process: psutil.Process) -> bool:
    words = process.cmdline()
    return "streamer" in words and "--secret" in words


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_job_that_is_cancelled_in_the_middle_is_replaced(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, there: Path, way: str
) -> None:
    ended: list[asyncio.Task[None]] = []

    def cancel(progress: Progress) -> None:
        if progress.phase in ("uploading", "downloading") and not ended:
            ended.append(asyncio.ensure_future(cancel_transfers(system)))

    if way == "up":
        other = random_file(tmp_path / "other", 20 * CHUNK)
        sent = await put_file(system, other, REMOTE, route="streamer", progress=cancel)
        assert sent.sha256 == sha256(other) == sha256(there)
    else:
        got = await get_file(system, REMOTE, tmp_path / "out", route="streamer", progress=cancel)
        assert got.sha256 == sha256(there) == sha256(tmp_path / "out")
    await ended[0]
    await nothing_left(system, sandbox)


async def cancel_transfers(system: hpcbridge.System) -> None:
    for row in await system.client.jobs(system.name):
        if row.state in ("RUNNING", "PENDING"):
            await system.client.cancel(system.name, row.job_id)


@pytest.mark.parametrize("way", ["upload", "download"])
async def test_the_job_of_a_lost_answer_is_ended(
    system: hpcbridge.System,
    sandbox: SandboxProcess,
    tmp_path: Path,
    big: Path,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_jobs, "UNANSWERED_LAG", 2.0)
    remote = f"/home/alice/lost-{way}"
    lost = [{"method": "POST", "path": f"*/transfer/{way}", "kind": "drop_after", "count": 1}]
    if way == "upload":
        sandbox.post("/faults", lost)
        await put_file(system, big, remote, route="streamer")
    else:
        await put_file(system, big, remote, route="chunked")
        sandbox.post("/faults", lost)
        await get_file(system, remote, tmp_path / "out", route="streamer")
        assert sha256(tmp_path / "out") == sha256(big)
    assert sha256(sandbox.host_path(remote)) == sha256(big)
    await nothing_left(system, sandbox)


async def test_files_that_change_meanwhile_are_noticed(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, there: Path, big: Path
) -> None:
    local = random_file(tmp_path / "local", 20 * CHUNK)

    def touch(progress: Progress) -> None:
        if progress.phase == "uploading":
            local.touch()

    def grow(progress: Progress) -> None:
        if progress.detail == "asking for a streamer":
            with there.open("ab") as file:
                file.write(b"more")

    with pytest.raises(TransferError, match="changed while it was being sent"):
        await put_file(system, local, REMOTE, route="streamer", progress=touch)
    assert sha256(there) == sha256(big)
    with pytest.raises(IntegrityError, match="announces"):
        await get_file(system, REMOTE, tmp_path / "out", route="streamer", progress=grow)
    assert not (tmp_path / "out").exists()
    await nothing_left(system, sandbox)


async def test_a_file_that_may_not_be_read_is_told_as_such(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, there: Path
) -> None:
    there.chmod(0)
    try:
        with pytest.raises(PermissionDenied):
            await get_file(system, REMOTE, tmp_path / "out", route="streamer")
    finally:
        there.chmod(0o644)
    await nothing_left(system, sandbox)


async def test_an_outage_of_the_server_does_not_end_a_transfer_that_runs(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, there: Path
) -> None:
    begun: list[Progress] = []

    def outage(progress: Progress) -> None:
        if progress.phase in ("uploading", "downloading") and not begun:
            begun.append(progress)
            sandbox.post("/outage", {"kind": "refused", "seconds": 1})

    other = random_file(tmp_path / "other", SIZE)
    sent = await put_file(system, other, REMOTE, route="streamer", progress=outage)
    assert sent.sha256 == sha256(other) == sha256(there)
    begun.clear()
    got = await get_file(system, REMOTE, tmp_path / "out", route="streamer", progress=outage)
    assert got.sha256 == sha256(other) == sha256(tmp_path / "out")
    assert begun
    await nothing_left(system, sandbox)


async def test_a_caller_who_gives_up_leaves_nothing(
    system: hpcbridge.System, sandbox: SandboxProcess, tmp_path: Path, there: Path
) -> None:
    async def given_up(ask: asyncio.Task[object], phase: asyncio.Event) -> None:
        await phase.wait()
        ask.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ask

    sandbox.post("/streamer-faults", {"start_delay": 30})
    reached = asyncio.Event()

    def note(progress: Progress) -> None:
        if progress.phase == "staging":
            reached.set()

    other = random_file(tmp_path / "other", SIZE)
    await given_up(asyncio.create_task(put_file(system, other, REMOTE, route="streamer", progress=note)), reached)
    reached.clear()
    out = tmp_path / "out"
    await given_up(asyncio.create_task(get_file(system, REMOTE, out, route="streamer", progress=note)), reached)
    assert not out.exists()
    await nothing_left(system, sandbox, stage=True)
