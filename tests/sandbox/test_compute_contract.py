"""``/compute`` answers as the recorded server does, on the local queue and on a real Slurm, over real HTTP."""

import concurrent.futures
import json
import time
import uuid

import pytest

SHEBANG = "#!/bin/bash\n"
LIVE = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"}


class Api:
    """The compute endpoints of one system for one user."""

    def __init__(self, sandbox, user="alice"):
        self.sandbox, self.user = sandbox, user
        self.http = sandbox.client(user)
        self.path = f"/compute/{sandbox.system}/jobs"
        self.home = f"/home/{user}"

    def post(self, text=None, /, **job):
        job.setdefault("workingDirectory", self.home)
        if text is not None:
            job["script"] = text if text.startswith("#!") else SHEBANG + text
        return self.http.post(self.path, json={"job": job})

    def submit(self, text, /, **job):
        answer = self.post(text, **job)
        assert answer.status_code == 201, answer.text
        assert list(answer.json()) == ["jobId"]
        return answer.json()["jobId"]

    def rows(self, job_id):
        answer = self.http.get(f"{self.path}/{job_id}")
        return answer.json()["jobs"] if answer.status_code == 200 else []

    def until(self, job_id, test, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            rows = self.rows(job_id)
            if rows and test(rows):
                return rows
            time.sleep(0.1)
        raise AssertionError(f"job {job_id} on {self.sandbox.system}: {rows}")

    def ended(self, job_id, seconds=60):
        """Rows once every task has ended and accounting shows the job itself, not its placeholder."""
        return self.until(job_id, self.settled, seconds)

    @staticmethod
    def settled(rows):
        states = {row["status"]["state"].split()[0] for row in rows}
        return not states & LIVE and all(row["name"] != "allocation" and row["tasks"] for row in rows)

    def running(self, job_id):
        return self.until(job_id, lambda rows: any(row["status"]["state"] == "RUNNING" for row in rows))

    def release(self, gate):
        """Lets the jobs go on that are `held`."""
        self.sandbox.host_path(f"/home/alice/{gate}").touch()

    def text(self, path):
        return self.sandbox.host_path(path).read_text()


def held(gate):
    """Words of a script that wait: what is to be seen meanwhile is seen, however slow the machine is."""
    return f"until [ -e /home/alice/{gate} ]; do sleep 0.2; done"


@pytest.fixture
def api(any_sandbox):
    return Api(any_sandbox)


def code(row):
    return tuple(row["status"][key] for key in ("state", "exitCode", "interruptSignal"))


def error(answer, status, kind="error"):
    body = answer.json()
    assert answer.status_code == status, answer.text
    assert set(body) == {"errorType", "message", "data", "causedBy", "user"}
    assert body["errorType"] == kind
    return body


def test_a_job_runs_and_its_row_has_the_recorded_shape(api):
    name = f"rec-{uuid.uuid4().hex[:8]}"
    job_id = api.submit('#SBATCH -t 5\necho "A=$A E=$E y=$y"', name=name, env={"A": "b c", "E": "x,y=z"},
                        standardOutput=f"{name}.txt")  # fmt: skip
    (row,) = api.ended(job_id)
    assert set(row) == {
        *("account", "allocationNodes", "cluster", "group", "jobId", "killRequestUser", "name", "nodes", "partition"),
        *("priority", "status", "tasks", "time", "user", "workingDirectory"),
    }
    assert code(row) == ("COMPLETED", 0, 0)
    assert row["status"]["stateReason"] == "None"
    assert (row["user"], row["group"], row["account"]) == ("alice", "users", "staff")
    assert (row["nodes"], row["partition"], row["cluster"], row["allocationNodes"]) == (
        "localhost",
        "normal",
        "cluster",
        1,
    )
    assert row["time"]["limit"] == 300
    assert row["time"]["end"] - row["time"]["start"] == row["time"]["elapsed"]
    assert [task["id"] for task in row["tasks"]] == [f"{job_id}.batch"]
    assert set(row["tasks"][0]) == {"id", "name", "status", "time"}
    assert api.text(f"/home/alice/{name}.txt") == "A=b c E=x y=z\n"


@pytest.mark.parametrize(
    ("script", "expected", "batch"),
    [
        ("exit 5", ("FAILED", 5, 0), ("FAILED", 5, 0)),
        ("kill -SEGV $$", ("FAILED", 0, 11), ("CANCELLED", 0, 11)),
    ],
)
def test_failures_carry_code_and_signal(api, script, expected, batch):
    (row,) = api.ended(api.submit(script))
    assert code(row) == expected
    assert code(row["tasks"][0]) == batch


def test_a_working_directory_that_is_missing_is_accepted_and_fails(api):
    (row,) = api.ended(api.submit("true", workingDirectory="/nonexistent"))
    assert code(row) == ("FAILED", 0, 53)


def test_a_running_job_is_cancelled_with_204_and_named_after_who_did_it(api):
    job_id = api.submit("sleep 300")
    api.running(job_id)
    answer = api.http.delete(f"{api.path}/{job_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["content-type"] == "application/json"
    (row,) = api.ended(job_id)
    assert code(row) == ("CANCELLED by 2001", 0, 0)
    again = error(api.http.delete(f"{api.path}/{job_id}"), 500)
    assert again["message"] == (
        f"Unexpected Slurm command response. exit_status:0 std_err:scancel: Terminating job {job_id}\n"
        f"scancel: error: Kill job error on job id {job_id}: Job/step already completing or completed\n"
    )


def test_what_cannot_be_cancelled(api):
    job_id = Api(api.sandbox, "bob").submit("sleep 30")
    for target, words in (
        ("999999", "exit_status:0 std_err:scancel: Terminating job 999999\nscancel: error: Kill job error on job id "
         "999999: Invalid job id specified\n"),
        ("abc", "exit_status:1 std_err:scancel: error: Invalid job id abc\n"),
        (job_id, f"exit_status:210 std_err:scancel: Terminating job {job_id}\nscancel: error: Kill job error on job id "
         f"{job_id}: Access/permission denied\n"),
    ):  # fmt: skip
        body = error(api.http.delete(f"{api.path}/{target}"), 500)
        assert body["message"] == f"Unexpected Slurm command response. {words}"
    assert Api(api.sandbox, "bob").http.delete(f"{api.path}/{job_id}").status_code == 204


def test_ids_that_are_none(api):
    assert error(api.http.get(f"{api.path}/999999"), 404)["message"] == "Job not found."
    for bad in ("abc-1", "120_1"):
        body = error(api.http.get(f"{api.path}/{bad}"), 400, "validation")
        assert body["data"]["fields"] == [
            {"location": "path", "name": "job_id", "message": "String should match pattern '^[a-zA-Z0-9]+$'"}
        ]
    body = error(api.http.get(f"{api.path}/abc"), 500)
    assert body["message"] == "Error executing Slurm command."
    assert body["causedBy"] == [
        "Unexpected Slurm command response. exit_status:1 std_err:sacct: fatal: Bad job/step specified: abc\n"
    ]
    for unknown in ("999999", "abc"):
        assert error(api.http.get(f"{api.path}/{unknown}/metadata"), 404)["message"] == "Job not found."


SBATCH = "Unexpected Slurm command response. exit_status:1 std_err:sbatch: error: "
FAILED = "Batch job submission failed: "
USAGE = "Unexpected Slurm command response. exit_status:255 std_err:sbatch: "
REFUSALS = [
    ("true", {"account": "nosuch"}, f"{SBATCH}{FAILED}Invalid account or account/partition combination specified\n"),
    ("true", {"partition": "nosuch"}, f"{SBATCH}invalid partition specified: nosuch\nsbatch: error: {FAILED}"
     "Invalid partition name specified\n"),
    ("true", {"constraints": "gpu"}, f"{SBATCH}{FAILED}Invalid feature specification\n"),
    ("true", {"reservation": "nope"}, f"{SBATCH}{FAILED}Requested reservation is invalid\n"),
    ("#SBATCH --nonsense=1\ntrue", {}, f"{USAGE}unrecognized "
     "option '--nonsense=1'\nTry \"sbatch --help\" for more information\n"),
    ("#!/bin/bash\r\ntrue\r\n", {}, f"{SBATCH}Batch script contains DOS line breaks (\\r\\n)\nsbatch: error: "
     "instead of expected UNIX line breaks (\\n).\n"),
    ("#!/bin/bash\n# " + "x" * 6_000_000, {}, f"{SBATCH}{FAILED}Pathname of a file, directory or other parameter too "
     "long\n"),
    (None, {"script": "true\n"}, f"{SBATCH}This does not look like a batch script.  The first\nsbatch: error: "
     "line must start with #! followed by the path to an interpreter.\nsbatch: error: For instance: #!/bin/sh\n"),
    (None, {"scriptPath": "/home/alice/nope.sh"}, f"{SBATCH}Unable to open file /home/alice/nope.sh\n"),
    ("#SBATCH -a 3-1\ntrue", {}, f"{SBATCH}{FAILED}Invalid job array specification\n"),
    ("#SBATCH -t soon\ntrue", {}, f"{USAGE}error: Invalid --time specification\n"),
    ("#SBATCH -N x\ntrue", {}, f"{USAGE}error: \"x\" is not a valid node count\n"),
    ("#SBATCH -n x\ntrue", {}, f"{SBATCH}Invalid numeric value \"x\" for --ntasks.\n"),
    ("#SBATCH --no=1\ntrue", {}, f"{USAGE}option '--no=1' is "
     "ambiguous; possibilities: '--no-kill' '--no-requeue' '--nodefile' '--nodelist' '--nodes'\n"
     "Try \"sbatch --help\" for more information\n"),
    ("#SBATCH -J name extra\ntrue", {}, f"{USAGE}error: Invalid directive found in batch script: extra\n"),
    ("#SBATCH -d foo:1\ntrue", {}, f"{SBATCH}{FAILED}Job dependency problem\n"),
    ("#SBATCH -q nope\ntrue", {}, f"{SBATCH}{FAILED}Invalid qos specification\n"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "job", "message"), REFUSALS)
def test_refused_submits_answer_500_in_sbatchs_words(api, script, job, message):
    assert error(api.post(script, **job), 500)["message"] == message


DOS = (
    f"{SBATCH}Batch script contains DOS line breaks (\\r\\n)\n"
    "sbatch: error: instead of expected UNIX line breaks (\\n).\n"
)
NUL = f"{SBATCH}The Slurm controller does not allow scripts that\nsbatch: error: contain a NULL character '\\0'.\n"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (b"#!/bin/bash\ntrue\r\n", DOS),
        (b"#!/bin/bash\n#SBATCH --nonsense=1\r\ntrue\n", DOS),
        (b"#!/bin/bash\necho a\0b\n", NUL),
        (b"#!/bin/bash\necho a\0b\r\n", NUL),
    ],
)
def test_scripts_with_dos_line_breaks_or_nul_are_refused(api, script, message):
    name = f"refused-{uuid.uuid4().hex[:8]}.sh"
    api.sandbox.host_path(f"{api.home}/{name}").write_bytes(script)
    assert error(api.post(scriptPath=f"{api.home}/{name}"), 500)["message"] == message
    assert error(api.post(script.decode()), 500)["message"] == message


def test_a_carriage_return_alone_is_no_line_break(api):
    job_id = api.submit("printf 'a\rb' >/dev/null\ntrue\r")
    assert code(api.ended(job_id)[0]) == ("FAILED", 127, 0)


def test_over_quota_is_403(api):
    first = api.submit("sleep 20", account="limited")
    body = error(api.post("sleep 20", account="limited"), 403)
    assert body["message"] == (
        "Job submission rejected: accounting/QOS policy limit exceeded. sbatch: error: AssocMaxSubmitJobLimit\nsbatch: "
        "error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or "
        "time limits)"
    )
    api.http.delete(f"{api.path}/{first}")


def test_malformed_submits(api):
    body = error(api.http.post(api.path, json={}), 400, "validation")
    assert body["data"]["fields"] == [{"location": "body", "name": "job", "message": "Field required"}]
    body = error(api.http.post(api.path, json={"job": {"script": "#!/bin/bash\ntrue"}}), 400, "validation")
    assert body["data"]["fields"] == [{"location": "body", "name": "job", "message": "Field required"}]
    body = error(api.post("sleep 1", env=["A=b"]), 500)
    assert body["message"] == "(\"'list' object has no attribute 'items'\",)"
    assert body["user"] is None


def test_a_submit_without_a_script_ends_in_408_after_five_seconds(api):
    started = time.monotonic()
    body = error(api.post(), 408)
    assert body["message"] == "Command execution timeout limit exceeded."
    assert 4.5 < time.monotonic() - started < 8


def test_a_script_by_path_and_the_calls_fields_override_its_directives(api):
    script = api.sandbox.host_path("/home/alice/bypath.sh")
    script.write_text("#!/bin/sh\n#SBATCH -J inside\n#SBATCH -o inside.txt\necho $SLURM_JOB_NAME\n")
    job_id = api.submit(None, scriptPath="/home/alice/bypath.sh", standardOutput="outside.txt", name="outside")
    (row,) = api.ended(job_id)
    assert row["name"] == "outside"
    assert api.text("/home/alice/outside.txt") == "outside\n"


@pytest.mark.parametrize(
    ("directives", "reason"),
    [
        ("#SBATCH -H", "JobHeldUser"),
        ("#SBATCH -N 5", "PartitionNodeLimit"),
        ("#SBATCH -p debug -t 99:00:00", "PartitionTimeLimit"),
        ("#SBATCH --begin=now+1hour", "BeginTime"),
    ],
)
def test_jobs_that_wait_say_why(api, directives, reason):
    job_id = api.submit(f"{directives}\ntrue")
    (row,) = api.until(job_id, lambda rows: rows[0]["status"]["stateReason"] == reason, seconds=20)
    assert code(row) == ("PENDING", None, None)
    assert (row["nodes"], row["tasks"], row["time"]["elapsed"]) == ("", [], 0)
    assert api.http.delete(f"{api.path}/{job_id}").status_code == 204
    (row,) = api.until(job_id, lambda rows: rows[0]["status"]["state"] == "CANCELLED by 2001")
    assert row["tasks"] == []


def test_an_array_answers_with_a_row_per_task(api):
    name = f"arr-{uuid.uuid4().hex[:8]}"
    array = api.submit(f"#SBATCH --array=0-3%2\necho $SLURM_ARRAY_TASK_ID\n{held(name)}", name=name)

    def reasons(rows):
        return {row["jobId"]: (row["status"]["state"], row["status"]["stateReason"]) for row in rows}

    api.until(array, lambda rows: reasons(rows).get(array) == ("PENDING", "JobArrayTaskLimit"))
    api.until(array, lambda rows: {f"{array}_0", f"{array}_1"} <= set(reasons(rows)))
    api.release(name)
    # Slurm's accounting may be late with a single task.
    rows = api.until(array, lambda rows: len(rows) == 4 and api.settled(rows))
    assert sorted(row["jobId"] for row in rows) == [f"{array}_{index}" for index in range(4)]
    assert {code(row) for row in rows} == {("COMPLETED", 0, 0)}
    assert api.text(f"/home/alice/slurm-{array}_2.out") == "2\n"


def test_listings_filter_and_look_back(api):
    name = f"list-{uuid.uuid4().hex[:8]}"
    mine = api.submit("true", name=name)
    other = api.submit("true", name=f"{name}-b", account="proj1")
    api.ended(mine)
    api.ended(other)

    def listed(**query):
        answer = api.http.get(api.path, params=query)
        assert answer.status_code == 200, answer.text
        return {row["jobId"] for row in answer.json()["jobs"]}

    end = time.monotonic() + 15
    while not {mine, other} <= listed() and time.monotonic() < end:
        time.sleep(0.2)
    assert {mine, other} <= listed(time_window="1h")
    assert listed(name=name) == {mine}
    assert listed(name=f"{name},{name}-b") == {mine, other}
    assert other in listed(account="proj1")
    assert mine not in listed(account="proj1")
    assert listed(name="doesnotexist") == set()
    assert listed(account="nosuch") == set()
    assert mine not in {row["jobId"] for row in Api(api.sandbox, "bob").http.get(api.path).json()["jobs"]}
    assert Api(api.sandbox, "bob").rows(mine), "another user's job is readable by id"
    body = error(api.http.get(api.path, params={"time_window": "2w"}), 400, "validation")
    assert body["data"]["fields"] == [
        {"location": "query", "name": "time_window", "message": "Input should be '1h', '8h', '24h', '3d' or '7d'"}
    ]
    assert error(api.http.get(api.path, params={"name": "x" * 236}), 400, "validation")


def test_metadata_holds_the_script_for_its_owner(api):
    name = f"meta-{uuid.uuid4().hex[:8]}"
    script = "#!/bin/bash\n#SBATCH -t 5\necho hi\nsleep 60\n"
    job_id = api.submit(script, name=name, standardOutput="o-%j.txt")
    api.running(job_id)
    (row,) = api.http.get(f"{api.path}/{job_id}/metadata").json()["jobs"]
    out = f"/home/alice/o-{job_id}.txt"
    expected = {
        "jobId": job_id,
        "script": script,
        "standardInput": "/dev/null",
        "standardOutput": out,
        "standardError": out,
    }
    assert row == expected
    (foreign,) = Api(api.sandbox, "bob").http.get(f"{api.path}/{job_id}/metadata").json()["jobs"]
    assert foreign == {**expected, "script": ""}
    api.http.delete(f"{api.path}/{job_id}")


def test_attach_runs_a_step_in_the_allocation(api):
    job_id = api.submit("sleep 30")
    api.running(job_id)
    answer = api.http.put(f"{api.path}/{job_id}/attach", json={"command": "echo attached > attach.out"})
    assert (answer.status_code, answer.content) == (204, b"")
    assert api.text("/home/alice/attach.out") == "attached\n"
    body = error(api.http.put(f"{api.path}/999999/attach", json={"command": "true"}), 500)
    assert body["message"] == (
        "Unexpected Slurm command response. exit_status:1 std_err:srun: error: Unable to confirm allocation for job "
        "999999: Invalid job id specified\nsrun: Check SLURM_JOB_ID environment variable. Expired or invalid job "
        "999999\n"
    )
    api.http.delete(f"{api.path}/{job_id}")


def test_steps_of_srun_run_once_per_task(api):
    job_id = api.submit("#SBATCH -n 2\nsrun -n2 sh -c 'echo task $SLURM_PROCID' | sort")
    (row,) = api.ended(job_id)
    assert code(row) == ("COMPLETED", 0, 0)
    assert api.text(f"/home/alice/slurm-{job_id}.out") == "task 0\ntask 1\n"


def test_a_system_that_is_not_there_and_one_that_is_ill(api):
    answer = api.http.post("/compute/nosuch/jobs", json={"job": {"script": "#!/bin/sh\n", "workingDirectory": "/"}})
    assert error(answer, 404)["message"] == "System not found"
    assert answer.headers["f7t-authusername"] == "alice"
    api.sandbox.post(f"/systems/{api.sandbox.system}", {"unhealthy": ["scheduler"]})
    try:
        body = error(api.post("true"), 503)
        assert body["message"] == f"The scheduler service for the requested system ({api.sandbox.system}) is unhealthy."
    finally:
        api.sandbox.post(f"/systems/{api.sandbox.system}", {"unhealthy": []})


def test_a_login_node_that_refuses(api):
    api.sandbox.post(f"/systems/{api.sandbox.system}", {"ssh": "refused"})
    try:
        body = error(api.post("true"), 500)
        assert (body["message"], body["user"]) == ("(111, 'Connection refused')", None)
    finally:
        api.sandbox.post(f"/systems/{api.sandbox.system}", {"ssh": "ok"})


def test_a_bar_in_a_name_makes_every_later_listing_500(any_sandbox):
    mallory = Api(any_sandbox, "mallory")
    job_id = mallory.submit("true", name="a|b")
    end = time.monotonic() + 15
    while mallory.http.get(mallory.path).status_code == 200 and time.monotonic() < end:
        time.sleep(0.2)
    for path in (mallory.path, f"{mallory.path}/{job_id}"):
        body = error(mallory.http.get(path), 500)
        assert (body["message"], body["causedBy"]) == ("Error executing Slurm command.", None)
    assert Api(any_sandbox).http.get(mallory.path).status_code == 200


def test_rows_are_utf8(api):
    name = "quo'te `d` é"
    job_id = api.submit("true", name=name)
    (row,) = api.ended(job_id)
    assert row["name"] == name
    assert json.dumps(row)


def test_dependencies_hold_a_job_back(api):
    gate = f"gate-{uuid.uuid4().hex[:8]}"
    bad = api.submit(f"{held(gate)}; exit 1")
    never = api.submit(f"#SBATCH -d afterok:{bad}\ntrue")
    after = api.submit(f"#SBATCH -d afterany:{bad}\ntrue")
    unknown = api.submit("#SBATCH -d afterok:999999\ntrue")
    api.until(never, lambda rows: rows[0]["status"]["stateReason"] == "Dependency")
    api.release(gate)
    assert code(api.ended(after)[0]) == ("COMPLETED", 0, 0)
    assert code(api.ended(unknown)[0]) == ("COMPLETED", 0, 0)
    api.until(never, lambda rows: rows[0]["status"]["stateReason"] == "DependencyNeverSatisfied")


def test_too_many_sessions_at_once(api):
    api.sandbox.post("/sessions", {"max": 4})
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: api.http.get(api.path), range(36)))
    api.sandbox.post("/sessions", {"max": None})
    bodies = [error(answer, 500) for answer in answers if answer.status_code != 200]
    assert bodies
    assert {body["message"] for body in bodies} == {"Error executing Slurm command."}
    assert {cause for body in bodies for cause in body["causedBy"]} == {"Unable to open a new SSH channel."}


def test_a_listing_costs_two_commands_and_a_submit_one(api):
    api.sandbox.delete("/requests")
    api.http.get(api.path)
    assert api.sandbox.get("/requests")["commands"] == 2
    job_id = api.submit("true")
    assert api.sandbox.get("/requests")["commands"] == 3
    api.http.get(f"{api.path}/{job_id}")
    assert api.sandbox.get("/requests")["commands"] == 5
    api.http.get(f"/status/{api.sandbox.system}/userinfo")
    assert api.sandbox.get("/requests")["commands"] == 8
