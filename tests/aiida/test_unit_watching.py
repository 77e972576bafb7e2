"""What AiiDA hears of its jobs, and when: an answer waits for news, because it costs AiiDA work for every job in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hpcbridge import JobSpec
from hpcbridge.errors import PermissionDenied
from hpcbridge_aiida import watching
from hpcbridge_aiida.references import Endpoint
from hpcbridge_aiida.sessions import Session, open_session
from support.aiida_computers import auth_params, credential_file
from support.sandbox import SandboxProcess

LONG = 600


@pytest.fixture
async def session(
    sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Session, Path]]:
    """A session of alice's, and a directory of the test's own on the system."""
    monkeypatch.setenv("HPCBRIDGE_STATE_DIR", str(tmp_path / "state"))
    secret = credential_file(sandbox, tmp_path / "alice.toml")
    session = await open_session(Endpoint(hostname=sandbox.system, **auth_params(sandbox, secret)))
    workdir = f"/scratch/alice/{tmp_path.name}"
    await session.client.mkdir(session.system, workdir, parents=True)
    yield session, Path(workdir)
    for job_id in session.watch._followed:
        await session.handle.job(job_id).cancel(verify=False)
    await session.hpc.aclose()


async def submit(session: Session, workdir: Path, seconds: float) -> str:
    """What the scheduler plugin does."""
    spec = JobSpec(script=f"#!/bin/bash\n#SBATCH --time=20\nsleep {seconds}\n", workdir=str(workdir), name="aiida")
    job = await session.handle.submit(spec)
    session.watch.submitted(job.id, job.name or "", datetime.now(UTC))
    return str(job.id)


async def until_running(session: Session, *job_ids: str) -> None:
    while True:
        known = await session.watch.look(job_ids)
        if all(info is not None and str(info.state) == "RUNNING" for info in known.values()):
            return


async def test_an_answer_waits_for_an_end(session: tuple[Session, Path]) -> None:
    own, workdir = session
    short, long = [await submit(own, workdir, seconds) for seconds in (4, LONG)]
    await until_running(own, short, long)
    asked = own.handle.watcher.counters.ticks
    known = await own.watch.look([short, long])
    assert {job_id: info is not None and info.is_terminal for job_id, info in known.items()} == {
        short: True,
        long: False,
    }
    assert own.handle.watcher.counters.ticks > asked  # it was not the first that came
    begun = time.monotonic()
    again = await own.watch.look([short])
    assert again[short] == known[short]
    assert time.monotonic() - begun < 1  # an end is told as often as it is asked for


async def test_where_nothing_happens_the_same_is_told_after_a_while(
    session: tuple[Session, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, workdir = session
    job_id = await submit(own, workdir, LONG)
    await until_running(own, job_id)
    monkeypatch.setattr(watching, "HOLD", 3.0)
    begun = time.monotonic()
    known = await own.watch.look([job_id])
    assert time.monotonic() - begun >= 3
    assert known[job_id] is not None
    assert str(known[job_id].state) == "RUNNING"


async def test_a_job_that_is_submitted_meanwhile_is_asked_for_soon(session: tuple[Session, Path]) -> None:
    own, workdir = session
    first = await submit(own, workdir, LONG)
    await until_running(own, first)
    held = asyncio.ensure_future(own.watch.look([first]))
    await asyncio.sleep(1)
    assert not held.done()
    second = await submit(own, workdir, LONG)
    assert first in await asyncio.wait_for(held, 5)
    assert second in await asyncio.wait_for(own.watch.look([first, second]), 8)


@pytest.mark.prove  # hpcbridge's watcher believes a refusal when it has come several times
async def test_a_refusal_is_told(session: tuple[Session, Path], sandbox: SandboxProcess) -> None:
    own, workdir = session
    job_id = await submit(own, workdir, LONG)
    await until_running(own, job_id)

    async def ask() -> None:
        while True:
            await own.watch.look([job_id])

    sandbox.post("/faults", [{"method": "GET", "path": "/compute/*/jobs*", "kind": "status", "status": 403}])
    try:
        with pytest.raises(PermissionDenied):
            await asyncio.wait_for(ask(), 240)
    finally:
        sandbox.delete("/faults")
    assert job_id in await own.watch.look([job_id])  # and it is watched again
