"""What the scheduler object promises to ReFrame, asked of it directly."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from reframe.core.backends import getscheduler
from reframe.core.exceptions import ConfigError, JobError, SkipTestError

from hpcbridge_reframe.nodes import describe
from hpcbridge_reframe.options import Options
from hpcbridge_reframe.session import Session
from support.reframe_inside import make_job, partition
from support.sandbox import SandboxProcess

STAGE = Path("rfm/stage/cluster/normal/gnu")


def poll_until_over(scheduler: Any, *jobs: Any, seconds: float = 120) -> float:
    """Poll as ReFrame does, and return how long the longest poll took."""
    longest, deadline = 0.0, time.monotonic() + seconds
    while True:
        begun = time.monotonic()
        scheduler.poll(*jobs, None)
        longest = max(longest, time.monotonic() - begun)
        if all(scheduler.finished(job) for job in jobs):
            return longest
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_job_from_submit_to_its_output(sandbox: SandboxProcess, tmp_path: Path) -> None:
    with partition(tmp_path, sandbox.client_env()) as part:
        directory = tmp_path / STAGE / "A"
        job = make_job(part, directory, ["echo out; echo err >&2; echo $PWD; exit 3"])
        job.submit()
        assert job.jobid.startswith("hpcbridge-")
        assert job.submit_time
        assert not job.finished()
        poll_until_over(part.scheduler, job)
        assert job.jobid.isdigit()
        assert (job.state, job.exitcode, job.nodelist) == ("FAILED", 3, ["localhost"])
        assert abs(job.completion_time - time.time()) < 120
        assert (directory / "rfm_job.out").read_text() == f"out\n{directory}\n"
        assert (directory / "rfm_job.err").read_text() == "err\n"
        job.wait()


def test_wait_needs_no_poll(sandbox: SandboxProcess, tmp_path: Path) -> None:
    with partition(tmp_path, sandbox.client_env()) as part:
        job = make_job(part, tmp_path / STAGE / "B", ["echo out"])
        job.submit()
        job.wait()
        assert job.finished()
        assert (tmp_path / STAGE / "B/rfm_job.out").read_text() == "out\n"


def test_a_job_that_never_began_takes_nothing_away(sandbox: SandboxProcess, tmp_path: Path) -> None:
    """Nothing was laid out on the cluster: what is missing there was not removed by the job."""
    with partition(tmp_path, sandbox.client_env()) as part:
        directory = tmp_path / STAGE / "N"
        directory.mkdir(parents=True)
        (directory / "input").write_text("of the test")
        job = make_job(part, directory, ["rm input"], sched_options=["--begin=now+1hour"])
        job.submit()
        deadline = time.monotonic() + 60
        while job.state != "PENDING":
            assert time.monotonic() < deadline
            part.scheduler.poll(job)
            time.sleep(0.1)
        with sandbox.client() as client:
            assert client.delete(f"/compute/{sandbox.system}/jobs/{job.jobid}").status_code < 300
        with pytest.raises(JobError, match="cancelled by somebody else"):
            job.wait()
        assert job.state == "CANCELLED"
        assert {path.name for path in directory.iterdir()} >= {"input", "rfm_job.sh"}


def test_what_must_not_stop_the_session_is_said_by_the_job(sandbox: SandboxProcess, tmp_path: Path) -> None:
    with partition(tmp_path, sandbox.client_env()) as part:
        job = make_job(part, tmp_path / STAGE / "C", ["true"])
        (tmp_path / STAGE / "C" / "rfm_job.sh").unlink()
        job.submit()
        poll_until_over(part.scheduler, job)
        with pytest.raises(JobError, match=r"rfm_job\.sh"):
            job.finished()
        assert job.finished()  # said once


def test_the_preamble_is_that_of_slurms_backend(sandbox: SandboxProcess, tmp_path: Path) -> None:
    texts = []
    for scheduler in ("firecrest", "slurm"):
        access = ["--partition=normal", "-C a"]
        with partition(tmp_path, sandbox.client_env(), scheduler=scheduler, access=access) as part:
            job = make_job(part, tmp_path / STAGE / "D", ["true"], sched_options=["--gres=x:1", "-C b"])
            job.num_tasks, job.num_tasks_per_node, job.use_smt, job.exclusive_access = 8, 4, False, True
            job.options = ["--array=0-3", "#DW something"]
            texts.append(part.scheduler.emit_preamble(job))
    assert texts[0] == texts[1]
    assert "" not in texts[0]


def test_submit_and_poll_do_not_wait_for_the_network(sandbox: SandboxProcess, tmp_path: Path) -> None:
    """Each in well under a round trip, which takes seconds here."""
    with partition(tmp_path, sandbox.client_env()) as part:
        jobs = [make_job(part, tmp_path / STAGE / f"E{n}", ["true"]) for n in range(3)]
        sandbox.post("/latency", {"seconds": 1.0})
        for job in jobs:
            begun = time.monotonic()
            job.submit()
            assert time.monotonic() - begun < 0.5
        assert poll_until_over(part.scheduler, *jobs) < 0.5
        sandbox.post("/latency", {"seconds": 0})


def test_nodes(sandbox: SandboxProcess, tmp_path: Path) -> None:
    options = {"firecrest_default_partition": "normal"}
    with partition(tmp_path, sandbox.client_env(), options=options) as part:
        scheduler = part.scheduler
        assert [node.name for node in scheduler.allnodes()] == ["localhost"]
        job = make_job(part, tmp_path / STAGE / "F", ["true"])
        for given, left in {
            (): {"localhost"},
            ("--partition=debug",): {"localhost"},
            ("--partition=nowhere",): set(),
            ("-C f7t&mc",): {"localhost"},
            ("-C gpu",): set(),
            ("--nodelist=localhost",): {"localhost"},
            ("--exclude=localhost",): set(),
            ("-w other[1-3]",): set(),
        }.items():
            job.options = list(given)
            assert {node.name for node in scheduler.filternodes(job, scheduler.allnodes())} == left, given
        flexible = make_flexible(part, tmp_path, 4)
        assert flexible.num_tasks == 4
        with pytest.raises(SkipTestError, match="minimum task requirement"):
            make_flexible(part, tmp_path, 4, least=16)


def make_flexible(part: Any, folder: Path, tasks_per_node: int, least: int = 0) -> Any:
    job = part.scheduler.make_job("flexible", workdir=str(folder), sched_flex_alloc_nodes="all")
    job._scheduler = part.scheduler
    job.num_tasks, job.num_tasks_per_node = -least, tasks_per_node
    job.prepare(["true"])
    return job


def test_nodes_are_told_apart_by_their_states() -> None:
    row = {"name": "nid1", "state": ["IDLE", "DRAIN"], "partitions": ["a", "b"], "features": "x,y"}
    assert describe(row) == "NodeName=nid1 Partitions=a,b ActiveFeatures=x,y State=IDLE+DRAIN"
    assert describe({"name": "n", "state": None, "features": None}).endswith(
        "(null) ActiveFeatures=(null) State=UNKNOWN"
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"firecrest_sytem": "x"}, "there is no scheduler option firecrest_sytem; there are firecrest_site"),
        ({"firecrest_outage_budget": "long"}, "firecrest_outage_budget cannot be 'long'"),
        ({"firecrest_credential": {"client_secret": "s3cret"}}, "client_secret_env"),
    ],
)
def test_options_that_are_wrong(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refusal:
        Options.of(given)
    assert "s3cret" not in str(refusal.value)


def test_options_of_slurms_backend_are_not_ours() -> None:
    assert Options.of({"use_nodes_option": True, "firecrest_system": "daint"}) == Options(system="daint")
    assert Options.of(None) == Options()


def test_a_credential_by_reference(sandbox: SandboxProcess, tmp_path: Path) -> None:
    env = sandbox.client_env()
    secret = tmp_path / "secret"
    secret.write_text(env["FIRECREST_CLIENT_SECRET"])
    secret.chmod(0o600)
    options = {
        "firecrest_url": env["FIRECREST_URL"],
        "firecrest_token_url": env["AUTH_TOKEN_URL"],
        "firecrest_client_id": "alice",
        "firecrest_system": env["FIRECREST_SYSTEM"],
        "firecrest_credential": {"client_secret_file": str(secret)},
        "firecrest_stage_prefix": "/scratch/alice/here",
        "firecrest_stage_name": "mine",
        "firecrest_cleanup": False,
    }
    with partition(tmp_path, {}, options=options) as part:
        job = make_job(part, tmp_path / STAGE / "G", ["echo out"])
        job.submit()
        job.wait()
        assert job.state == "COMPLETED"
    assert sandbox.host_path("/scratch/alice/here/mine/cluster/normal/gnu/G/rfm_job.out").exists()


def test_what_the_patterns_leave_out_stays_on_either_side(sandbox: SandboxProcess, tmp_path: Path) -> None:
    options = {"firecrest_sync_exclude": ["*.o", "cache/"], "firecrest_sync_max_file_size": 1000}
    with partition(tmp_path, sandbox.client_env(), options=options) as part:
        directory = tmp_path / STAGE / "H"
        (directory / "cache").mkdir(parents=True)
        for name in ("cache/a", "b.o", "c"):
            (directory / name).write_text(name)
        (directory / "large").write_bytes(b"x" * 2000)
        job = make_job(part, directory, ["ls; touch d.o e; head -c 2000 /dev/zero > big"])
        job.submit()
        job.wait()
        assert (directory / "rfm_job.out").read_text().split() == ["c", "rfm_job.err", "rfm_job.out", "rfm_job.sh"]
        names = {path.name for path in directory.iterdir()}
        assert "e" in names
        assert not names & {"d.o", "big"}
        assert {"cache", "b.o", "large"} <= names


def test_a_large_input_goes_by_whatever_the_site_has(sandbox: SandboxProcess, tmp_path: Path) -> None:
    with partition(tmp_path, sandbox.client_env()) as part:
        data = os.urandom(6_000_000)
        for name in ("I", "J"):
            directory = tmp_path / STAGE / name
            directory.mkdir(parents=True)
            (directory / "large.dat").write_bytes(data)
            job = make_job(part, directory, ["sha256sum large.dat; cat large.dat large.dat > twice.dat"])
            job.submit()
            job.wait()
            assert (directory / "twice.dat").read_bytes() == data + data
        (session,) = Session._all.values()
        assert session._opening.result().shipping.shipped.bytes < 7_000_000


def test_the_name_is_taken_once() -> None:
    assert getscheduler("firecrest").registered_name == "firecrest"
    assert getscheduler("firecrest").is_local is False
