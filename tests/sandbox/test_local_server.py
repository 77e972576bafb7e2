"""What the local queue can do besides running scripts: modes, versions, lag, faults, simulated jobs, restarts."""

import collections
import concurrent.futures
import time

import httpx
import pytest

from support.sandbox import start_sandbox
from support.scale import PROVE

TERMINAL = {"COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


def submit(http, sandbox, script="#!/bin/sh\ntrue\n", **job):
    body = {"job": {"script": script, "workingDirectory": "/home/alice", **job}}
    return http.post(f"/compute/{sandbox.system}/jobs", json=body)


def jobs(http, sandbox, job_id="", **query):
    answer = http.get(f"/compute/{sandbox.system}/jobs{'/' if job_id else ''}{job_id}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["jobs"]


def until(test, seconds=20):
    end = time.monotonic() + seconds
    while not (result := test()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return result


def test_rest_mode_takes_no_path_reads_no_directives_and_calls_the_job_allocation():
    with start_sandbox("--scheduler-mode", "rest", "--accounting-lag", "0") as sandbox, sandbox.client() as http:
        answer = submit(http, sandbox, "", scriptPath="/home/alice/x.sh")
        assert answer.status_code == 501
        words = "Scheduler can't handle this request when configured to use rest connection mode"
        assert answer.json()["message"] == words
        script = "#!/bin/bash\n#SBATCH -J inside --nonsense\n#SBATCH -o inside.txt\necho $A $HOME.\n"
        job_id = submit(http, sandbox, script, env={"A": "b,c"}).json()["jobId"]
        (row,) = until(lambda: [row for row in jobs(http, sandbox, job_id) if row["status"]["state"] == "COMPLETED"])
        assert row["name"] == "allocation"
        assert sandbox.host_path(f"/home/alice/slurm-{job_id}.out").read_text() == "b .\n"
        named = submit(http, sandbox, name="given").json()["jobId"]
        assert jobs(http, sandbox, named)[0]["name"] == "given"
        assert http.get(f"/compute/{sandbox.system}/jobs/{named}/metadata").status_code == 501
        (system,) = http.get("/status/systems").json()["systems"]
        assert system["scheduler"]["connectionMode"] == "rest"


def test_hybrid_mode_takes_paths_by_sbatch_and_inline_scripts_by_slurmrestd():
    with start_sandbox("--scheduler-mode", "hybrid", "--accounting-lag", "0") as sandbox, sandbox.client() as http:
        sandbox.host_path("/home/alice/x.sh").write_text("#!/bin/sh\n#SBATCH -J inside\ntrue\n")
        by_path = submit(http, sandbox, "", scriptPath="/home/alice/x.sh")
        assert by_path.status_code == 201
        assert jobs(http, sandbox, by_path.json()["jobId"])[0]["name"] == "inside"
        inline = submit(http, sandbox, "#!/bin/sh\n#SBATCH -J inside\ntrue\n").json()["jobId"]
        assert jobs(http, sandbox, inline)[0]["name"] == "allocation"


def test_server_2_5_6_knows_neither_names_nor_windows():
    with start_sandbox("--server-version", "2.5.6", "--accounting-lag", "0") as sandbox, sandbox.client() as http:
        ids = {submit(http, sandbox, name=name).json()["jobId"] for name in ("one", "two")}
        assert {row["jobId"] for row in jobs(http, sandbox, name="one", time_window="1h")} == ids


@pytest.mark.parametrize("scheduler", ["local", pytest.param("slurm", marks=pytest.mark.slurm)])
def test_an_account_can_be_required(scheduler, request):
    if scheduler == "slurm":
        request.getfixturevalue("slurm_installed")
    with start_sandbox("--require-account", "--scheduler", scheduler) as sandbox, sandbox.client() as http:
        answer = submit(http, sandbox)
        assert answer.status_code == 500
        assert "Invalid account or account/partition combination specified" in answer.json()["message"]
        assert submit(http, sandbox, account="staff").status_code == 201
        accounts = http.get(f"/status/{sandbox.system}/userinfo").json()["accounts"]
        assert [entry["name"] for entry in accounts] == ["limited", "proj1", "staff"]
        assert submit(http, sandbox, "#!/bin/sh\n#SBATCH -A staff\ntrue\n").status_code == 201


def test_two_hundred_submits_at_once_are_two_hundred_jobs(sandbox):
    with sandbox.client(limits=httpx.Limits(max_connections=32)) as http:
        script = "#!/bin/sh\necho run >> many.txt\n"
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: submit(http, sandbox, script), range(200)))
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.json()["jobId"] for answer in answers}) == 200
        path = sandbox.host_path("/home/alice/many.txt")
        until(lambda: path.exists() and len(path.read_text().splitlines()) == 200, seconds=60)


def test_accounting_lags_but_never_shows_an_end_too_early(sandbox):
    lag = 3.0
    sandbox.post("/scheduler-faults", {"accounting_lag": lag})
    count = 60
    ids = sandbox.post("/jobs", {"user": "alice", "count": count, "duration": 1.5, "name": "lag-{i}"})["job_ids"]
    began = time.time()
    seen = collections.Counter()
    with sandbox.client() as http:
        while time.time() < began + 1.5 + lag + 2:
            listed = {row["jobId"]: row for row in jobs(http, sandbox) if row["jobId"] in set(ids)}
            seen["missing"] += count - len(listed)
            for row in listed.values():
                if row["status"]["state"] == "PENDING" and row["time"]["start"]:
                    seen["pending although started"] += 1
                if row["status"]["state"] == "COMPLETED":
                    assert time.time() >= began + 1.4, "an end before it happened"
                if row["status"]["state"] == "RUNNING" and time.time() > began + 1.7:
                    seen["running although ended"] += 1
            time.sleep(0.2)
        names = collections.Counter()
        late = sandbox.post("/jobs", {"user": "alice", "count": 20, "duration": 0.1, "name": "late-{i}"})["job_ids"]
        time.sleep(0.3)
        for job_id in late:
            (row,) = jobs(http, sandbox, job_id)
            names[row["name"]] += 1
            if row["name"] == "allocation":
                assert (row["partition"], row["workingDirectory"], row["time"]["limit"]) == ("", "", None)
        listed = jobs(http, sandbox)
    assert len({row["jobId"] for row in listed} & set(ids)) == count, "everything is told in the end"
    assert set(seen) == {"missing", "pending although started", "running although ended"}
    assert all(seen.values()), seen
    assert names["allocation"] >= 1


def test_rows_are_missing_at_random_and_listings_fail_on_demand(sandbox):
    ids = set(sandbox.post("/jobs", {"user": "bob", "count": 400, "duration": 0.0, "name": "miss-{i}"})["job_ids"])
    sandbox.post("/scheduler-faults", {"accounting_lag": 0, "missing_fraction": 0.05})
    time.sleep(0.3)
    with sandbox.client("bob") as http:
        found = [{row["jobId"] for row in jobs(http, sandbox)} & ids for _ in range(5)]
        assert all(340 < len(one) < 400 for one in found)
        assert len(set.union(*found)) > 395
        assert found[0] != found[1]
        sandbox.post("/scheduler-faults", {"listing_error": True, "missing_fraction": 0})
        assert http.get(f"/compute/{sandbox.system}/jobs").status_code == 500
        assert jobs(http, sandbox, next(iter(ids)))
        sandbox.delete("/scheduler-faults")
        assert http.get(f"/compute/{sandbox.system}/jobs").status_code == 200


def test_a_lost_job_is_unknown_and_goes_on(sandbox):
    lost, kept = sandbox.post("/jobs", {"user": "bob", "count": 2, "duration": 60, "name": "lost-{i}"})["job_ids"]
    sandbox.post("/scheduler-faults", {"accounting_lag": 0, "lost_jobs": [lost]})
    with sandbox.client("bob") as http:
        assert {row["jobId"] for row in jobs(http, sandbox)} & {lost, kept} == {kept}
        answer = http.get(f"/compute/{sandbox.system}/jobs/{lost}")
        assert (answer.status_code, answer.json()["message"]) == (404, "Job not found.")
        sandbox.delete("/scheduler-faults")
        assert jobs(http, sandbox, lost)[0]["status"]["state"] == "RUNNING"


@pytest.mark.parametrize(
    "state", ["OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL", "DEADLINE", "CANCELLED", "SUSPENDED", "NEW"]
)
def test_simulated_jobs_take_any_state(sandbox, state):
    sandbox.post("/scheduler-faults", {"accounting_lag": 0})
    wanted = {"user": "alice", "duration": 0.2, "state": state, "exit_code": 3, "signal": 9, "reason": "Why"}
    (job_id,) = sandbox.post("/jobs", wanted)["job_ids"]
    with sandbox.client() as http:
        row = until(
            lambda: next((row for row in jobs(http, sandbox, job_id) if row["status"]["state"].startswith(state)), None)
        )
    assert row["status"]["stateReason"] == "Why"
    if state not in ("SUSPENDED", "NEW"):
        assert (row["status"]["exitCode"], row["status"]["interruptSignal"]) == (3, 9)
        assert row["time"]["end"]


def test_ten_thousand_jobs_are_listed_in_well_under_a_second(sandbox):
    count = 10_000 if PROVE else 4_000
    sandbox.post("/scheduler-faults", {"accounting_lag": 0})
    before = len(sandbox.client("bob").get(f"/compute/{sandbox.system}/jobs").json()["jobs"])
    sandbox.post("/jobs", {"user": "bob", "count": count, "duration": 3, "name": "big-{i}"})
    with sandbox.client("bob") as http:
        started = time.monotonic()
        running = jobs(http, sandbox)
        while_running = time.monotonic() - started
        assert len(running) == before + count
        until(lambda: all(row["status"]["state"] in TERMINAL for row in jobs(http, sandbox)[-count:]), seconds=30)
        started = time.monotonic()
        answer = http.get(f"/compute/{sandbox.system}/jobs")
        settled = time.monotonic() - started
    assert answer.status_code == 200
    assert while_running < 3, "client's parsing included"
    assert settled < 1.5


@pytest.mark.parametrize("how", ["term", "kill"])
def test_a_restarted_sandbox_still_knows_its_jobs(how):
    with start_sandbox("--accounting-lag", "0") as sandbox:
        with sandbox.client() as http:
            done = submit(http, sandbox, "#!/bin/sh\nexit 3\n").json()["jobId"]
            until(lambda: jobs(http, sandbox, done)[0]["status"]["state"] == "FAILED")
            running = submit(http, sandbox, "#!/bin/sh\nsleep 60\n").json()["jobId"]
            until(lambda: jobs(http, sandbox, running)[0]["status"]["state"] == "RUNNING")
            held = submit(http, sandbox, "#!/bin/sh\n#SBATCH -H\ntrue\n").json()["jobId"]
            time.sleep(0.3)
        if how == "kill":
            sandbox.kill()
        sandbox.restart()
        with sandbox.client() as http:
            assert jobs(http, sandbox, done)[0]["status"]["exitCode"] == 3
            assert jobs(http, sandbox, running)[0]["status"]["state"] == "NODE_FAIL"
            assert jobs(http, sandbox, held)[0]["status"]["stateReason"] == "JobHeldUser"
            assert int(submit(http, sandbox).json()["jobId"]) > int(held)


@pytest.mark.parametrize("isolation", [pytest.param("bwrap", marks=pytest.mark.needs("bwrap")), "namespace"])
def test_an_unprivileged_queue_tells_signals_from_codes_and_keeps_scripts_apart(isolation):
    flags = ("--accounting-lag", "0", "--isolation", isolation)
    with start_sandbox(*flags, as_root=False) as sandbox, sandbox.client() as http, sandbox.client("bob") as bob:
        script = "#!/bin/bash\nid -un; srun -n2 sh -c 'echo task'; sleep 2; kill -SEGV $$\n"
        mine = submit(http, sandbox, script, standardOutput="o.txt").json()["jobId"]
        code = submit(http, sandbox, "#!/bin/sh\nexit 137\n").json()["jobId"]
        until(lambda: jobs(http, sandbox, mine)[0]["status"]["state"] == "RUNNING")
        spy = "#!/bin/sh\ncat /var/spool/slurmd/*/*/slurm_script\nls /var/spool/slurmd /var/lib/cluster\n"
        found = submit(bob, sandbox, spy, workingDirectory="/home/bob", standardOutput="spy.txt").json()["jobId"]
        until(lambda: jobs(bob, sandbox, found)[0]["status"]["state"] in TERMINAL)
        assert "SEGV" not in sandbox.host_path("/home/bob/spy.txt").read_text()
        (row,) = until(lambda: [row for row in jobs(http, sandbox, mine) if row["status"]["state"] in TERMINAL])
        assert (row["status"]["exitCode"], row["status"]["interruptSignal"]) == (0, 11)
        assert sandbox.host_path("/home/alice/o.txt").read_text() == "alice\ntask\ntask\n"
        assert jobs(http, sandbox, code)[0]["status"]["exitCode"] == 137
