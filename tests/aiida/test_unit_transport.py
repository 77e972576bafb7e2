"""The transport without AiiDA's engine: what is shared, what is repeated, what is fallen back on."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcbridge_aiida.transport import HpcbridgeTransport
from support.sandbox import SandboxProcess

Make = Callable[..., HpcbridgeTransport]


@pytest.fixture
def make(sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Make transports to the sandbox, as alice."""
    monkeypatch.setenv("HPCBRIDGE_STATE_DIR", str(tmp_path / "state"))
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_text(sandbox.users["alice"])

    def make(**more: Any) -> HpcbridgeTransport:
        given = {
            "url": sandbox.url,
            "token_url": sandbox.token_url,
            "client_id": "alice",
            "credential": f"file:{secret}",
        }
        return HpcbridgeTransport(machine=sandbox.system, **(given | more))

    return make


@pytest.fixture
def work(sandbox: SandboxProcess, tmp_path: Path) -> str:
    """A work directory of this test's own on the system."""
    return f"/scratch/alice/{tmp_path.name}"


def _counts(sandbox: SandboxProcess) -> dict[str, int]:
    found: dict[str, int] = sandbox.get("/requests")["counts"]
    return {name.rpartition("/")[2]: number for name, number in found.items()}


async def _upload(transport: HpcbridgeTransport, directory: str, source: Path) -> None:
    """What AiiDA's engine does for a calculation."""
    await transport.makedirs_async(directory.rpartition("/")[0], ignore_existing=True)
    await transport.mkdir_async(directory)
    await transport.put_async(source, f"{directory}/in")


def _input(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.write_text("input\n")
    return path


async def test_nothing_is_sent_before_it_is_opened(make: Make, sandbox: SandboxProcess) -> None:
    make()
    assert _counts(sandbox) == {}


async def test_calculations_side_by_side_are_one_archive(
    make: Make, sandbox: SandboxProcess, work: str, tmp_path: Path
) -> None:
    source = _input(tmp_path)
    async with make() as transport:
        assert not await transport.path_exists_async(work)
        await transport.makedirs_async(work)
        sandbox.delete("/requests")
        await asyncio.gather(*(_upload(transport, f"{work}/{n:02}/ab/cd", source) for n in range(12)))
        assert _counts(sandbox) == {}, "nothing can be in a directory that was just made"
    assert _counts(sandbox) == {"upload": 1, "extract": 1, "rm": 1}
    there = sandbox.host_path(work)
    assert [path.read_text() for path in sorted(there.glob("*/ab/cd/in"))] == ["input\n"] * 12
    assert [path for path in there.iterdir() if path.name.startswith(".")] == []


async def test_those_who_find_it_missing_make_it_once(make: Make, sandbox: SandboxProcess, work: str) -> None:
    async with make() as transport:
        sandbox.delete("/requests")
        assert await asyncio.gather(*(transport.path_exists_async(work) for _ in range(12))) == [False] * 12
        await asyncio.gather(*(transport.makedirs_async(work) for _ in range(12)))
        assert _counts(sandbox) == {"stat": 1, "mkdir": 1}
        with pytest.raises(FileExistsError):
            await transport.makedirs_async(work)


async def test_an_upload_that_is_tried_again_finds_what_it_has_left(
    make: Make, sandbox: SandboxProcess, work: str, tmp_path: Path
) -> None:
    """Also in a work directory that is new."""
    for attempt in range(2):
        async with make() as transport:
            if not await transport.path_exists_async(work):
                await transport.makedirs_async(work)
            if attempt == 0:
                await _upload(transport, f"{work}/00/ab/cd", _input(tmp_path))
            else:
                with pytest.raises(FileExistsError):
                    await transport.mkdir_async(f"{work}/00/ab/cd")


@pytest.mark.parametrize("removed", [False, True], ids=["it is there", "it was removed"])
def test_the_next_worker_knows_the_user_and_the_work_directory(
    make: Make, sandbox: SandboxProcess, work: str, tmp_path: Path, removed: bool
) -> None:
    async def calculation(number: int) -> None:
        async with make() as transport:
            assert await transport.whoami_async() == "alice"
            if not await transport.path_exists_async(work):
                await transport.makedirs_async(work)
            await _upload(transport, f"{work}/{number}/ab", _input(tmp_path))

    asyncio.run(calculation(1))
    if removed:
        shutil.rmtree(sandbox.host_path(work))
    sandbox.delete("/requests")
    asyncio.run(calculation(2))
    assert (sandbox.host_path(work) / "2/ab/in").exists()
    asked = {"systems": 1, "stat": 1, "upload": 1, "extract": 1, "rm": 1}
    assert _counts(sandbox) == (asked | {"mkdir": 1, "upload": 2} if removed else asked)


async def test_a_work_directory_that_somebody_removes_is_made_again(
    make: Make, sandbox: SandboxProcess, work: str, tmp_path: Path
) -> None:
    source = _input(tmp_path)
    for number in range(3):
        async with make() as transport:
            if not await transport.path_exists_async(work):
                await transport.makedirs_async(work)
            await _upload(transport, f"{work}/{number}/ab", source)
        assert (sandbox.host_path(work) / f"{number}/ab/in").exists()
        shutil.rmtree(sandbox.host_path(work))


async def test_an_archive_that_takes_too_long_is_unpacked_by_a_job(
    make: Make, sandbox: SandboxProcess, work: str, tmp_path: Path
) -> None:
    async with make() as transport:
        await transport.makedirs_async(work)
        sandbox.post("/faults", [{"method": "POST", "path": "*/ops/extract", "kind": "status", "status": 408}])
        await _upload(transport, f"{work}/ab/cd", _input(tmp_path))
        assert await transport.listdir_async(f"{work}/ab/cd") == ["in"]


@pytest.mark.parametrize("status", [424, 429, 502, 503, 504])
async def test_what_may_pass_is_waited_out(
    make: Make, sandbox: SandboxProcess, work: str, tmp_path: Path, status: int
) -> None:
    """AiiDA would take any error for a reason to pause the process in the end."""
    async with make() as transport:
        await transport.makedirs_async(work)
        rule = {"method": "*", "path": "/filesystem/*", "kind": "status", "status": status, "count": 3}
        sandbox.post("/faults", [rule | ({"headers": {"Retry-After": "1"}} if status == 429 else {})])
        await _upload(transport, f"{work}/ab/cd", _input(tmp_path))
        await transport.get_async(f"{work}/ab/cd/in", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "input\n"


async def test_an_error_names_its_request(make: Make, sandbox: SandboxProcess) -> None:
    async with make() as transport:
        with pytest.raises(OSError, match=r"request id [0-9a-f-]{36}"):
            await transport.listdir_async("/scratch/alice/nothing-here")


async def test_what_could_not_be_sent_is_sent_before_the_submit(
    make: Make, sandbox: SandboxProcess, work: str, tmp_path: Path
) -> None:
    transport = make()
    await transport.open_async()
    await transport.makedirs_async(work)
    await _upload(transport, f"{work}/ab/cd", _input(tmp_path))
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/bash\n#SBATCH --nodes=1\necho hello\n")
    await transport.put_async(script, f"{work}/ab/cd/run.sh")
    sandbox.post("/faults", [{"method": "POST", "path": "*/ops/extract", "kind": "status", "status": 500}])
    with pytest.raises(OSError, match="HTTP 500"):
        await transport.close_async()
    sandbox.delete("/faults")
    async with make() as later:
        assert await later.session.script_for(f"{work}/ab/cd", "run.sh") == script.read_text()
    assert (sandbox.host_path(work) / "ab/cd/in").exists()
