"""What ReFrame's own tests of its Slurm backends ask of a scheduler, asked of ours with jobs as they make them.

Such a job names its script and its output by absolute paths, in a directory that is no stage directory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reframe.core.backends import getlauncher, getscheduler
from reframe.core.exceptions import JobError, JobNotStartedError
from reframe.core.schedulers import Job

from support.reframe_inside import partition
from support.sandbox import SandboxProcess


@pytest.fixture
def part(sandbox: SandboxProcess, tmp_path: Path) -> Iterator[Any]:
    """A partition, with the access options that sites write."""
    with partition(tmp_path, sandbox.client_env(), access=["--partition=normal"]) as found:
        yield found


def named(part: Any, folder: Path, command: str, *options: str, **settings: Any) -> Job:
    """A job whose names are absolute, with its script."""
    folder.mkdir(exist_ok=True)
    names = {
        "script_filename": str(folder / "job.sh"),
        "stdout": str(folder / "job.out"),
        "stderr": str(folder / "job.err"),
    }
    launcher = getlauncher("local")()
    job = Job.create(
        part.scheduler, launcher, name="testjob", workdir=folder, sched_access=part.access, **{**names, **settings}
    )
    job.options = list(options)
    job.prepare(["echo before", command, "echo after"])
    return job


def test_absolute_names(part: Any, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    job = named(part, folder, "hostname; echo wrong >&2")
    assert job.nodelist == []
    job.submit()
    assert job.jobid is not None
    job.wait()
    assert (job.state, job.exitcode, job.nodelist) == ("COMPLETED", 0, ["localhost"])
    assert (folder / "job.out").read_text().splitlines()[::2] == ["before", "after"]
    assert (folder / "job.err").read_text() == "wrong\n"


def test_absolute_names_of_an_array(part: Any, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    job = named(part, folder, "echo task $SLURM_ARRAY_TASK_ID", "--array=0-1")
    job.submit()
    job.wait()
    assert job.exitcode == 0
    text = (folder / "job.out").read_text()
    assert "task 0\n" in text
    assert "task 1\n" in text


def test_names_outside_of_the_directory(part: Any, tmp_path: Path) -> None:
    """Nothing of it is on the cluster: refused before anything is sent."""
    job = named(part, tmp_path / "elsewhere", "true", stdout=str(tmp_path / "other" / "job.out"))
    with pytest.raises(JobError, match=r"other/job\.out lies outside of the job's directory"):
        job.submit()
    assert job.jobid is None


def test_cancelled_at_once(part: Any, sandbox: SandboxProcess, tmp_path: Path) -> None:
    begun = time.monotonic()
    job = named(part, tmp_path / "elsewhere", "sleep 300")
    job.submit()
    assert not job.finished()
    job.cancel()
    job.wait()
    assert job.finished()
    assert time.monotonic() - begun < 30
    assert job.state == "CANCELLED"


@pytest.mark.parametrize("what", ["cancel", "wait", "finished"])
def test_before_it_is_submitted(part: Any, tmp_path: Path, what: str) -> None:
    with pytest.raises(JobNotStartedError):
        getattr(named(part, tmp_path / "elsewhere", "true"), what)()


def test_what_was_noted_while_polling_is_raised_once(part: Any, tmp_path: Path) -> None:
    job = named(part, tmp_path / "elsewhere", "true")
    job.submit()
    job.wait()
    job._exception = JobError("an error of a poll")
    with pytest.raises(JobError, match="an error of a poll"):
        job.finished()
    assert job.finished()


def test_pending_for_too_long_by_what_the_job_says(part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ReFrame's own test lets a job that runs call itself pending."""
    job = named(part, tmp_path / "elsewhere", "sleep 300")
    monkeypatch.setattr(type(job), "state", property(lambda _: "PENDING"))
    job.max_pending_time = 0.05
    job.submit()
    with pytest.raises(JobError, match="maximum pending time exceeded"):
        job.wait()


def test_tasks_are_guessed_from_the_nodes(part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = named(part, tmp_path / "elsewhere", "true", sched_flex_alloc_nodes="all")
    job.num_tasks, job.num_tasks_per_node = 0, 4
    assert job.guess_num_tasks() == 4
    monkeypatch.setattr(job.scheduler, "allnodes", set)
    assert job.guess_num_tasks() == 0


def test_a_scheduler_that_no_partition_configures(part: Any, tmp_path: Path) -> None:
    """Its text is Slurm's, whatever the runtime was set up with."""
    scheduler = getscheduler("firecrest")()
    job = Job.create(scheduler, getlauncher("local")(), name="testjob", workdir=tmp_path)
    assert scheduler.emit_preamble(job) == [
        '#SBATCH --job-name="testjob"',
        "#SBATCH --ntasks=1",
        "#SBATCH --output=testjob.out",
        "#SBATCH --error=testjob.err",
    ]
