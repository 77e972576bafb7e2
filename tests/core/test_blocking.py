"""hpcbridge.blocking: the same names without `await`, from any thread, after a fork, never inside a loop."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import hpcbridge
from hpcbridge import JobSpec, blocking, errors
from hpcbridge import hpc as asynchronous
from support.sandbox import SandboxProcess


@pytest.fixture
def system(sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> blocking.System:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for name, value in sandbox.client_env("alice").items():
        monkeypatch.setenv(name, value)
    return blocking.connect().system()


@pytest.mark.parametrize("name", ["Hpc", "System", "Job"])
def test_it_has_the_same_names_and_parameters(name: str) -> None:
    ours, theirs = getattr(blocking, name), getattr(asynchronous, name)
    left_out = {"client", "watcher", "hpc", "resolve", "credential"}
    for method, function in inspect.getmembers(theirs, inspect.isfunction):
        if method.startswith("_") or method in left_out:
            continue
        method_here = "close" if method == "aclose" else method
        assert list(inspect.signature(getattr(ours, method_here)).parameters) == list(
            inspect.signature(function).parameters
        )


def test_a_job_and_its_files(system: blocking.System, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("b\na\n")
    workdir = f"{system.home()}/{tmp_path.name}"
    system.mkdir(workdir)
    system.put(tmp_path / "in.txt", f"{workdir}/in.txt")
    job = system.submit(JobSpec(script="#!/bin/bash\nsort in.txt | tee out.txt\n", workdir=workdir), key="sort")
    assert (
        system.submit(JobSpec(script="#!/bin/bash\nsort in.txt | tee out.txt\n", workdir=workdir), key="sort").id
        == job.id
    )
    assert b"".join(job.logs(follow=True)) == b"a\nb\n"
    assert job.wait(check=True).ok
    system.get(f"{workdir}/out.txt", tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text() == "a\nb\n"
    assert any(job.id in [row.job_id for row in system.jobs()] or time.sleep(0.5) for _ in range(30))
    assert job.system.name == system.name


def test_directories_and_files_on_the_system(system: blocking.System, tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "a.txt").write_text("a\n")
    (tmp_path / "in" / "b.tmp").write_text("b\n")
    there = f"{system.home()}/{tmp_path.name}"
    system.put(tmp_path / "in", there, exclude=["*.tmp"])
    system.cp(f"{there}/sub/a.txt", f"{there}/c.txt")
    assert system.glob(f"{there}/**/*.txt") == [f"{there}/c.txt", f"{there}/sub/a.txt"]
    system.mv([f"{there}/c.txt"], f"{there}/sub/")
    assert b"".join(system.read(f"{there}/sub/c.txt")) == b"a\n"
    assert (system.du(there).bytes, system.du(there).files) == (4, 2)
    system.get(there, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "sub").iterdir()) == ["a.txt", "c.txt"]
    result = system.sync(tmp_path / "in", there, delete=True)
    assert (result.files, result.deleted) == (1, 1)
    assert system.sync(tmp_path / "out", there, direction="down", delete=True).deleted == 1
    with pytest.raises(errors.TooLarge):
        system.put(tmp_path / "in" / "b.tmp", f"{there}/", max_size=1)
    with pytest.raises(errors.InvalidRequest, match="for directories"):
        system.get(f"{there}/b.tmp", tmp_path / "x", include=["*"])
    assert system.get(f"{there}/b.tmp", tmp_path / "x", dry_run=True).bytes == 2
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="direction"):
        system.sync(tmp_path / "in", there, direction="sideways")  # type: ignore[arg-type]
    system.rm(there)


def test_as_context_manager(system: blocking.System) -> None:
    with blocking.connect() as hpc:
        assert hpc.systems()[0].name == system.name


def test_errors_are_the_same(system: blocking.System) -> None:
    with pytest.raises(errors.PathNotFound):
        system.stat("/home/alice/no-such-thing")


def test_many_threads_share_one_portal_thread(system: blocking.System) -> None:
    with ThreadPoolExecutor(16) as pool:
        homes = list(pool.map(lambda _: system.stat("/home/alice").size >= 0, range(64)))
    assert all(homes)
    assert [thread.name for thread in threading.enumerate()].count("hpcbridge") == 1


async def test_inside_a_running_loop_it_says_so(system: blocking.System) -> None:
    with pytest.raises(errors.BlockingInsideLoop, match="await"):
        system.home()
    with pytest.raises(errors.BlockingInsideLoop):
        next(iter(system.job("1").logs()))
    assert await asyncio.to_thread(system.home) == "/home/alice"


def test_a_callback_that_calls_back_is_told(system: blocking.System) -> None:
    job = system.submit(JobSpec(script="#!/bin/bash\ntrue\n"))
    with pytest.raises(errors.BlockingInsideLoop):
        job.wait(on_change=lambda info: system.home() and None)
    job.wait()


def test_a_forked_child_starts_its_own_thread(system: blocking.System) -> None:
    assert system.home() == "/home/alice"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if system.stat("/home/alice").nlink > 0 and blocking.connect().systems() else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert system.stat("/home/alice").nlink > 0


def test_an_interrupt_ends_the_call_not_the_job(system: blocking.System) -> None:
    job = system.submit(JobSpec(script="#!/bin/bash\nsleep 60\n"))
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        job.wait()
    assert time.monotonic() - start < 5
    assert not job.info().is_terminal
    assert job.cancel().state is hpcbridge.JobState.CANCELLED


def test_a_host_that_polls_begins_work_and_goes_on(system: blocking.System) -> None:
    job = system.submit(JobSpec(script="#!/bin/bash\nsleep 60\n"))
    begun = time.monotonic()
    waiting = blocking.start(job._wrapped.wait)
    assert time.monotonic() - begun < 1
    with pytest.raises(TimeoutError):
        waiting.result(timeout=0.5)
    assert waiting.cancel()
    ended = blocking.start(job._wrapped.cancel, verify=True).result(timeout=60)
    assert ended.state is hpcbridge.JobState.CANCELLED
