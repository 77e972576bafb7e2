"""What AiiDA hears of new jobs, and when: "nothing known" costs it work, and is said only where no answer comes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hpcbridge import JobSpec
from hpcbridge_aiida import watching
from hpcbridge_aiida.references import Endpoint
from hpcbridge_aiida.sessions import Session, open_session
from support.aiida_computers import auth_params, credential_file
from support.sandbox import SandboxProcess


@pytest.fixture
async def session(
    sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Session, str]]:
    """A session of alice's, and a running job that was submitted through it."""
    monkeypatch.setenv("HPCBRIDGE_STATE_DIR", str(tmp_path / "state"))
    secret = credential_file(sandbox, tmp_path / "alice.toml")
    session = await open_session(Endpoint(hostname=sandbox.system, **auth_params(sandbox, secret)))
    workdir = f"/scratch/alice/{tmp_path.name}"
    await session.client.mkdir(session.system, workdir, parents=True)
    spec = JobSpec(script="#!/bin/bash\n#SBATCH --time=20\nsleep 600\n", workdir=workdir, name="aiida")
    job = await session.handle.submit(spec)
    session.watch.submitted(job.id, job.name or "", datetime.now(UTC))
    yield session, str(job.id)
    sandbox.reset()
    await session.handle.job(job.id).cancel(verify=False)
    await session.hpc.aclose()


async def test_the_first_question_waits_for_a_listing_that_is_late(
    sandbox: SandboxProcess, session: tuple[Session, str]
) -> None:
    own, job = session
    sandbox.post("/latency", {"seconds": 3})
    known = await own.watch.look([job])
    assert known[job] is not None


async def test_without_any_answer_it_is_told_after_a_while_and_later_questions_do_not_wait(
    sandbox: SandboxProcess, session: tuple[Session, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "FIRST_ANSWER", 3.0)
    own, job = session
    sandbox.post("/outage", {"kind": "503", "seconds": 60})
    begun = time.monotonic()
    assert await own.watch.look([job]) == {job: None}
    first = time.monotonic() - begun
    assert await own.watch.look([job]) == {job: None}
    assert first >= 3.0
    assert time.monotonic() - begun - first < 2.0
