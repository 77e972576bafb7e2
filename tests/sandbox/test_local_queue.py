"""The local queue runs #SBATCH scripts in the cluster as Slurm would: output, environment, states, codes, rows."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest

from hpcbridge_sandbox.cluster import Cluster
from hpcbridge_sandbox.errors import ApiError
from hpcbridge_sandbox.scheduling.base import JobSubmission
from hpcbridge_sandbox.scheduling.local.job import Simulation
from hpcbridge_sandbox.scheduling.local.scheduler import LocalScheduler
from hpcbridge_sandbox.settings import Settings, UserSettings
from hpcbridge_sandbox.store import Store


@asynccontextmanager
async def running_queue(state, **flags):
    settings = Settings(
        state=state, users=(UserSettings(name="alice"), UserSettings(name="bob")), **{"accounting_lag": 0.0} | flags
    )
    store = Store(state / "sandbox.sqlite")
    cluster = Cluster(settings, store)
    await cluster.start()
    scheduler = LocalScheduler(settings, cluster, store)
    await scheduler.start()
    try:
        yield scheduler, cluster
    finally:
        await scheduler.stop()
        await cluster.stop()
        store.close()


@pytest.fixture
async def queue(tmp_path):
    async with running_queue(tmp_path) as (scheduler, cluster):
        yield Bench(scheduler, cluster)


class Bench:
    def __init__(self, scheduler, cluster):
        self.scheduler, self.cluster = scheduler, cluster
        self.alice, self.bob = cluster.users["alice"], cluster.users["bob"]

    async def submit(self, text, /, user=None, **fields):
        user = user or self.alice
        fields.setdefault("workingDirectory", user.home)
        script = text if text.startswith("#!") else f"#!/bin/bash\n{text}"
        return await self.scheduler.submit(user, JobSubmission.model_validate({"script": script, **fields}))

    async def rows(self, job_id, user=None):
        return await self.scheduler.jobs(user or self.alice, ids=[job_id])

    async def row(self, job_id):
        (row,) = await self.rows(job_id)
        return row

    async def listing(self, user=None, **filters):
        return await self.scheduler.jobs(user or self.alice, **filters)

    async def until(self, job_id, *states, seconds=15.0):
        end = time.monotonic() + seconds
        while True:
            rows = await self.rows(job_id)
            if rows and all(row["status"]["state"].split()[0] in states for row in rows):
                return rows
            assert time.monotonic() < end, f"job {job_id} is still {[row['status'] for row in rows]}"
            await asyncio.sleep(0.05)

    async def ended(self, job_id, **kwargs):
        return await self.until(
            job_id, "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", **kwargs
        )

    async def shown(self, job_id, test, seconds=15.0):
        """Rows by job id, once they are as `test` says."""
        end = time.monotonic() + seconds
        while True:
            rows = {row["jobId"]: row for row in await self.rows(job_id)}
            if test(rows):
                return rows
            assert time.monotonic() < end, f"job {job_id} is shown as {rows}"
            await asyncio.sleep(0.05)

    def release(self, gate="gate"):
        """Lets the jobs go on that are `held`."""
        self.cluster.host_path(f"/home/alice/{gate}").touch()

    def text(self, path):
        return self.cluster.host_path(path).read_text(errors="replace")


def held(gate="gate"):
    """Words of a script that wait: what is to be seen meanwhile is seen, however slow the machine is."""
    return f"until [ -e /home/alice/{gate} ]; do sleep 0.1; done"


def code(row):
    status = row["status"]
    return status["state"], status["exitCode"], status["interruptSignal"]


async def test_a_script_runs_as_its_user_in_its_working_directory(queue):
    job_id = await queue.submit("id -un; pwd; echo oops >&2; basename $0", name="who")
    (row,) = await queue.ended(job_id)
    assert code(row) == ("COMPLETED", 0, 0)
    assert queue.text(f"/home/alice/slurm-{job_id}.out") == "alice\n/home/alice\noops\nslurm_script\n"
    assert row["name"] == "who"
    assert row["nodes"] == "localhost"
    assert row["tasks"][0]["id"] == f"{job_id}.batch"
    assert row["time"]["limit"] == 3600


async def test_slurms_variables_and_the_calls_environment_are_set(queue):
    job_id = await queue.submit(
        "#SBATCH -J label --ntasks=3\nenv | sort",
        env={"A": "b c", "E": "x,y=z", "Q": 'it\'s "q" $HOME', "N": "l1\nl2"},
        standardOutput="out.txt",
    )
    await queue.ended(job_id)
    lines = queue.text("/home/alice/out.txt").splitlines()
    for line in (
        f"SLURM_JOB_ID={job_id}", "SLURM_JOB_NAME=label", "SLURM_NTASKS=3", "SLURM_SUBMIT_DIR=/home/alice",
        "SLURM_JOB_NODELIST=localhost", "A=b c", "E=x", "y=z", "Q=it's \"q\" $HOME", "N=l1", "l2", "HOME=/home/alice",
    ):  # fmt: skip
        assert line in lines
    assert not [line for line in lines if line.startswith("SLURM_ARRAY")]


@pytest.mark.parametrize(
    ("script", "expected"),
    [("exit 5", ("FAILED", 5, 0)), ("kill -SEGV $$", ("FAILED", 0, 11)), ("exit 137", ("FAILED", 137, 0))],
)
async def test_exit_codes_and_signals_are_told_apart(queue, script, expected):
    (row,) = await queue.ended(await queue.submit(script))
    assert code(row) == expected


async def test_output_patterns_and_separate_error_file(queue):
    script = "#SBATCH -o out-%x-%u-%N-%5j.log\n#SBATCH --error=%A_%a.err\necho out; echo err >&2"
    job_id = await queue.submit(script, name="pat")
    await queue.ended(job_id)
    assert queue.text(f"/home/alice/out-pat-alice-localhost-{int(job_id):05d}.log") == "out\n"
    assert queue.text(f"/home/alice/{job_id}_4294967294.err") == "err\n"


async def test_an_output_file_that_cannot_be_opened_fails_the_job(queue):
    (row,) = await queue.ended(await queue.submit("echo hi", standardOutput="/nowhere/out.txt"))
    assert code(row) == ("FAILED", 0, 53)


async def test_a_time_limit_ends_in_timeout(queue):
    job_id = await queue.submit("#SBATCH -t 0:01\ntrap '' TERM\nsleep 60")
    (row,) = await queue.ended(job_id)
    assert code(row) == ("TIMEOUT", 0, 0)
    assert row["tasks"][0]["status"] == {
        "state": "CANCELLED", "stateReason": None, "exitCode": 0, "interruptSignal": 15,
    }  # fmt: skip


async def test_the_batch_shell_is_warned_before_the_limit(queue):
    script = "#SBATCH -t 0:30\n#SBATCH --signal=B:USR1@26\ntrap 'echo warned; exit 7' USR1\nwhile :; do sleep 0.1; done"
    job_id = await queue.submit(script)
    (row,) = await queue.ended(job_id)
    assert code(row) == ("FAILED", 7, 0)
    assert queue.text(f"/home/alice/slurm-{job_id}.out") == "warned\n"


async def test_cancel_ends_the_whole_job_and_names_who_did_it(queue):
    job_id = await queue.submit("sleep 300 & echo $! > made; mv made pid; wait")
    pid_file = queue.cluster.host_path("/home/alice/pid")
    await queue.shown(job_id, lambda rows: pid_file.exists())
    await queue.scheduler.cancel(queue.alice, job_id)
    row = await queue.row(job_id)
    assert code(row) == (f"CANCELLED by {queue.alice.uid}", 0, 0)
    await asyncio.sleep(0.5)
    pid = queue.text("/home/alice/pid").strip()
    result = await queue.cluster.run(queue.alice, ["/bin/sh", "-c", f"kill -0 {pid}"])
    assert result.returncode != 0


async def test_arrays_show_rows_as_slurm_does(queue):
    script = "#SBATCH --array=0-4%2\necho $SLURM_ARRAY_JOB_ID/$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT\n" + held()
    array = await queue.submit(script, name="arrmix")
    expected = {f"{array}_0", f"{array}_1", f"{array}_[2-4%2]", array}
    # Running tasks show by their raw id too.
    shown = await queue.shown(array, lambda rows: expected <= set(rows) and len(rows) == 6)
    assert shown[array]["status"] == {
        "state": "PENDING", "stateReason": "JobArrayTaskLimit", "exitCode": None, "interruptSignal": None,
    }  # fmt: skip
    assert f"{array}_[2-4%2]" not in {row["jobId"] for row in await queue.listing()}
    queue.release()
    rows = await queue.until(array, "COMPLETED", seconds=20)
    assert [row["jobId"] for row in rows] == [f"{array}_{index}" for index in range(5)]
    assert queue.text(f"/home/alice/slurm-{array}_3.out") == f"{array}/3/5\n"


async def test_cancelling_an_array_ends_every_task(queue):
    array = await queue.submit("#SBATCH --array=0-9%2\nsleep 60")
    await asyncio.sleep(0.3)
    await queue.scheduler.cancel(queue.alice, array)
    rows = await queue.ended(array)
    assert {row["status"]["state"] for row in rows} == {f"CANCELLED by {queue.alice.uid}"}


async def test_jobs_beyond_the_slots_wait_for_resources(queue):
    first = await queue.submit(f"#SBATCH -n 60\n{held()}")
    second = await queue.submit("#SBATCH -n 10\ntrue")
    await queue.until(first, "RUNNING")
    row = await queue.row(second)
    assert code(row) == ("PENDING", None, None)
    assert row["status"]["stateReason"] == "Resources"
    assert row["time"] == {"elapsed": 0, "start": None, "end": None, "suspended": None, "limit": 3600}
    assert row["nodes"] == ""
    queue.release()
    await queue.ended(second)


@pytest.mark.parametrize(
    ("directives", "reason"),
    [
        ("#SBATCH -H", "JobHeldUser"),
        ("#SBATCH -N 99", "PartitionNodeLimit"),
        ("#SBATCH -p debug -t 99:00:00", "PartitionTimeLimit"),
        ("#SBATCH --begin=now+1hour", "BeginTime"),
    ],
)
async def test_pending_reasons(queue, directives, reason):
    job_id = await queue.submit(f"{directives}\ntrue")
    await asyncio.sleep(0.05)
    row = await queue.row(job_id)
    assert (row["status"]["state"], row["status"]["stateReason"]) == ("PENDING", reason)
    await queue.scheduler.cancel(queue.alice, job_id)
    assert code(await queue.row(job_id))[0] == f"CANCELLED by {queue.alice.uid}"


async def test_dependencies_hold_a_job_until_they_are_met_or_never_will_be(queue):
    good = await queue.submit(held())
    after = await queue.submit(f"#SBATCH -d afterok:{good}\ntrue")
    bad = await queue.submit(f"{held()}; exit 1")
    never = await queue.submit(f"#SBATCH -d afterok:{bad}\ntrue")

    def waits_for(reason):
        return lambda rows: [row["status"]["stateReason"] for row in rows.values()] == [reason]

    await queue.shown(after, waits_for("Dependency"))
    queue.release()
    (row,) = await queue.ended(after)
    assert code(row) == ("COMPLETED", 0, 0)
    await queue.shown(never, waits_for("DependencyNeverSatisfied"))


async def test_an_account_over_its_limit_is_refused_with_403(queue):
    await queue.submit("sleep 5", account="limited")
    with pytest.raises(ApiError) as caught:
        await queue.submit("sleep 5", account="limited")
    assert caught.value.status == 403
    assert caught.value.message.startswith("Job submission rejected: accounting/QOS policy limit exceeded. sbatch: ")


async def test_a_submit_without_a_script_times_out(queue):
    with pytest.raises(ApiError) as caught:
        await queue.scheduler.submit(queue.alice, JobSubmission(workingDirectory="/home/alice"))
    assert caught.value.status == 408


async def test_a_script_on_the_cluster_is_submitted_by_path(queue):
    queue.cluster.host_path("/home/alice/run.sh").write_text("#!/bin/sh\n#SBATCH -o byp.txt\necho by path\n")
    job_id = await queue.scheduler.submit(
        queue.alice, JobSubmission(workingDirectory="/home/alice", scriptPath="/home/alice/run.sh")
    )
    (row,) = await queue.ended(job_id)
    assert row["name"] == "run.sh"
    assert queue.text("/home/alice/byp.txt") == "by path\n"


async def test_a_bar_in_a_name_breaks_the_users_listings_only(queue):
    job_id = await queue.submit("true", name="a|b")
    await queue.submit("true", user=queue.bob)
    for read in (queue.rows(job_id), queue.listing(), queue.scheduler.listing(queue.alice)):
        with pytest.raises(ApiError, match="Error executing Slurm command"):
            await read
    assert await queue.listing(user=queue.bob) is not None


async def test_listings_filter_by_name_account_and_user(queue):
    one = await queue.submit("true", name="one")
    two = await queue.submit("true", name="two", account="proj1")
    other = await queue.submit("true", name="one", user=queue.bob)
    for job_id in (one, two, other):
        await queue.ended(job_id)

    async def ids(**filters):
        return {row["jobId"] for row in await queue.listing(**filters)}

    assert await ids() == {one, two}
    assert await ids(names=["one", "x"]) == {one}
    assert await ids(account="proj1") == {two}
    assert await ids(all_users=True) == {one, two, other}
    assert await ids(names=["nope"]) == set()


async def test_metadata_holds_script_and_paths_and_the_script_only_for_its_owner(queue):
    job_id = await queue.submit("true", standardOutput="o-%j.txt")
    (row,) = await queue.scheduler.metadata(queue.alice, job_id)
    assert row == {
        "jobId": job_id,
        "script": "#!/bin/bash\ntrue",
        "standardInput": "/dev/null",
        "standardOutput": f"/home/alice/o-{job_id}.txt",
        "standardError": f"/home/alice/o-{job_id}.txt",
    }
    (foreign,) = await queue.scheduler.metadata(queue.bob, job_id)
    assert foreign["script"] == ""
    assert await queue.scheduler.metadata(queue.alice, "999999") is None


async def test_attach_runs_a_step_and_refuses_unknown_jobs(queue):
    job_id = await queue.submit("sleep 30")
    await queue.until(job_id, "RUNNING")
    await queue.scheduler.attach(queue.alice, job_id, "hostname > attach.out")
    assert queue.text("/home/alice/attach.out")
    assert [task["id"] for task in (await queue.row(job_id))["tasks"]] == [f"{job_id}.batch", f"{job_id}.0"]
    with pytest.raises(ApiError, match="Unable to confirm allocation for job 999999: Invalid job id specified"):
        await queue.scheduler.attach(queue.alice, "999999", "true")


async def test_nothing_of_a_job_outlives_its_script(queue):
    job_id = await queue.submit("sleep 300 & echo $!")
    await queue.ended(job_id)
    pid = queue.text(f"/home/alice/slurm-{job_id}.out").strip()
    await asyncio.sleep(0.2)
    assert (await queue.cluster.run(queue.alice, ["/bin/sh", "-c", f"kill -0 {pid}"])).returncode != 0


async def test_a_restart_keeps_every_job(tmp_path):
    async with running_queue(tmp_path) as (scheduler, cluster):
        bench = Bench(scheduler, cluster)
        done = await bench.submit("exit 3")
        await bench.ended(done)
        running = await bench.submit("sleep 60")
        again = await bench.submit("#SBATCH --requeue\necho run $SLURM_RESTART_COUNT; [ -n \"$SLURM_RESTART_COUNT\" ] "
                                   "|| sleep 60")  # fmt: skip
        held = await bench.submit("#SBATCH -H\ntrue")
        simulated = scheduler.simulate(bench.alice, ["sim"], Simulation(duration=1, state="OUT_OF_MEMORY", signal=9))[0]
        await bench.until(running, "RUNNING")
        await bench.until(again, "RUNNING")
        await asyncio.sleep(0.2)
    async with running_queue(tmp_path) as (scheduler, cluster):
        bench = Bench(scheduler, cluster)
        assert code(await bench.row(done)) == ("FAILED", 3, 0)
        assert code(await bench.row(running))[0] == "NODE_FAIL"
        assert code((await bench.ended(again))[0]) == ("COMPLETED", 0, 0)
        assert bench.text(f"/home/alice/slurm-{again}.out").splitlines()[-1] == "run 1"
        assert code(await bench.row(held))[0] == "PENDING"
        assert code((await bench.ended(simulated))[0]) == ("OUT_OF_MEMORY", 0, 9)
        assert int(await bench.submit("true")) > int(simulated)


async def test_a_script_can_ask_for_a_simulated_end(queue):
    job_id = await queue.submit("#SBATCH --comment=simulate:duration=0.2,state=NODE_FAIL,reason=NodeDown\nexit 1")
    (row,) = await queue.ended(job_id)
    assert code(row) == ("NODE_FAIL", 0, 0)
    assert row["status"]["stateReason"] == "NodeDown"


async def test_ten_thousand_simulated_jobs_are_cheap(queue):
    before = time.process_time()
    ids = queue.scheduler.simulate(queue.alice, [f"sim-{n}" for n in range(10_000)], Simulation(duration=1.0))
    made = time.process_time() - before
    assert len(set(ids)) == 10_000
    await asyncio.sleep(2.5)
    started = time.process_time()
    body = await queue.scheduler.listing(queue.alice)
    first = time.process_time() - started
    started = time.process_time()
    again = await queue.scheduler.listing(queue.alice)
    second = time.process_time() - started
    assert body.count(b'"COMPLETED"') == 20_000
    assert body == again
    assert made < 5
    assert first < 1
    assert second < 0.1


async def test_a_listing_past_five_mebibytes_fails_but_reads_by_id_do_not(queue):
    ids = queue.scheduler.simulate(queue.alice, [f"many-{n}" for n in range(16_500)], Simulation(duration=60.0))
    with pytest.raises(ApiError) as caught:
        await queue.scheduler.listing(queue.alice)
    assert caught.value.caused_by == ["Command output exceeded buffer limit."]
    assert len(await queue.rows(ids[-1])) == 1
