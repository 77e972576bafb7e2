"""Every answer recorded from a real FirecREST v2 server, asked of the sandbox: same status, keys, headers and error.

An answer is asked as recorded unless the table ASK says how; ABSENT names the files that must not be there before.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from joserfc import jwk, jwt

from support.programs import give_up, require
from support.recorded import ANSWERS, OTHER, USER, at, differences, header_differences, message_of
from support.replay import COMMAND_TIMEOUT, MIB, SYSTEMS, World
from support.sandbox import start_sandbox, with_streamer

Ask = Callable[[World, str], httpx.Response]

BY_STREAMER = {
    "xfer_download_streamer_201",
    "xfer_download_streamer_404",
    "xfer_upload_streamer_201",
    "xfer_upload_streamer_403_exists",
}
"""Asked of a server that moves large files by streamer; the others are those of one with an object store."""

NOT_ON_SLURM = {
    "job_suspended_200": "an operator's command, which the sandbox gives nobody",
    "job_timeout_200": "takes Slurm a minute and more; tested with Slurm's other states",
}

ABSENT = {
    "ops_mkdir_201": {"."},
    "ops_mkdir_parent_201": {"a"},
    "ops_rm_404": {"bin"},
    "ops_symlink_201": {"l"},
    "xfer_cp_201": {"cp.txt"},
}

UPLOADS = {
    "ops_upload_204": ("new.txt", b"hello world\n"),
    "ops_upload_3932160_204": ("u393", b"\0" * 3_932_160),
    "ops_upload_39e5_204": ("u39", b"\0" * 3_900_000),
    "ops_upload_403": ("f", b"x"),
    "ops_upload_404_dir": ("f", b"x"),
    "ops_upload_413": ("f", b"\0" * (5 * MIB + 1)),
    "ops_upload_5242880_204": ("u5", b"\0" * 5 * MIB),
    "ops_upload_binary_204": ("f", bytes(range(256))),
    "ops_upload_empty_204": ("f", b""),
    "ops_upload_overwrite_204": ("s.txt", b"x"),
    "ops_upload_quote_in_name": ("it's", b"x"),
    "ops_upload_slash_in_name": ("a/y.txt", b"x"),
    "ops_upload_space_unicode_204": ("ein é.txt", b"x"),
}

MESSAGE_DIFFERS = {
    "ops_checksum_space_in_name": "the checksum is of another file",
    "ops_compress_408_timeout": "the recorded system stopped the command one second before its connection",
    "xfer_upload_500_s3down": "the port is another",
    "xfer_upload_400_no_directives": "the body is printed with its other spelling",
    "job_cancel_again_500": "the job's id is another",
    "job_cancel_finished": "the job's id is another",
    "job_cancel_other_users": "the job's id is another",
    "job_array_task_400": "the job's id is another",
}

STATUS_DIFFERS = {
    "job_never_runnable_200": "which limit stands in the way first is the site's choice",
    "job_array_running_200": "how far accounting lags behind a new job is chance",
    "job_get_200_at_once": "how far accounting lags behind a new job is chance",
}


def ask_recorded(name: str, base: str, world: World, user: str = USER, **changes: Any) -> httpx.Response:
    """Send the recorded request."""
    request = ANSWERS[name]["request"]
    path: str = changes.pop("path", None) or at(request["path"].replace("%2F", "/"), base)
    body = changes.pop("json", None) or at(request["json"], base)
    options: dict[str, Any] = {"json": body} if body is not None else {}
    if request["multipart"]:
        filename, content = UPLOADS[name]
        options = {"files": {"file": (filename, content)}}
    return world.client(user).request(request["method"], path, **options, **changes)


# Tokens


def with_token(make: Callable[[World], str | None], scheme: str = "Bearer") -> Ask:
    def ask(world: World, _base: str) -> httpx.Response:
        token = make(world)
        headers = {} if token is None else {"Authorization": f"{scheme} {token}"}
        return httpx.get(f"{world.sandbox.url}/status/systems", headers=headers)

    return ask


def minted(user: str = USER, **order: Any) -> Callable[[World], str]:
    return lambda world: world.sandbox.post("/mint", {"user": user, **order})["access_token"]


def foreign_key(world: World) -> str:
    key = jwk.RSAKey.generate_key(2048, parameters={"kid": "nobody-knows"})
    claims = {"preferred_username": USER, "exp": int(time.time()) + 300, "iat": int(time.time())}
    return jwt.encode({"alg": "RS256", "kid": "nobody-knows"}, claims, key)


def spoilt(world: World) -> str:
    head, body, signature = world.sandbox.token(USER).split(".")
    return f"{head}.{body}.{'B' if signature[0] != 'B' else 'C'}{signature[1:]}"


def as_user_without_keys(path: str) -> Ask:
    def ask(world: World, _base: str) -> httpx.Response:
        token = minted("nokeys")(world)
        return httpx.get(world.sandbox.url + path, headers={"Authorization": f"Bearer {token}"})

    return ask


# Conditions of the machinery


def while_ssh_is(state: str, path: str) -> Ask:
    def ask(world: World, _base: str) -> httpx.Response:
        world.sandbox.post("/systems/lab-s3", {"ssh": state})
        try:
            return world.client().get(path)
        finally:
            world.sandbox.post("/systems/lab-s3", {"ssh": "ok"})

    return ask


def without_sessions(path: str) -> Ask:
    """OpenSSH's MaxSessions, met."""

    def ask(world: World, _base: str) -> httpx.Response:
        world.sandbox.post("/sessions", {"max": 0})
        try:
            return world.client().get(path)
        finally:
            world.sandbox.post("/sessions", {"max": None})

    return ask


def without_store(world: World, base: str) -> httpx.Response:
    world.sandbox.post("/s3-faults", {"down": 1})
    try:
        return ask_recorded("xfer_upload_500_s3down", base, world)
    finally:
        world.sandbox.delete("/s3-faults")


def slow_compress(world: World, base: str) -> httpx.Response:
    big = world.sandbox.host_path(f"/home/{USER}/xfer-big")
    if not big.exists():
        big.write_bytes(os.urandom(40 * MIB))
        big.chmod(0o644)
    return ask_recorded("ops_compress_408_timeout", base, world)


def where_accounts_are_required(name: str) -> Ask:
    def ask(world: World, base: str) -> httpx.Response:
        request = ANSWERS[name]["request"]
        options = {"json": request["json"]} if request["json"] else {}
        with world.with_account.client(USER) as client:
            return client.request(request["method"], request["path"], **options)

    return ask


# Jobs


def job(job_id: Callable[[World], str], rest: str = "", method: str = "GET", user: str = USER, **options: Any) -> Ask:
    return lambda world, _base: world.jobs(method, f"/{job_id(world)}{rest}", user=user, **options)


def fresh(world: World) -> str:
    return world.recorded_submit("jobs_submit_201")


def to_cancel(state: str) -> Callable[[World], str]:
    def make(world: World) -> str:
        script = "#!/bin/bash\n#SBATCH -H\ntrue\n" if state == "PENDING" else "#!/bin/bash\nsleep 60\n"
        return world.wait_state(world.submit(script), state)

    return make


def dependent_to_cancel(world: World) -> str:
    return world.dependent(world.running, "Dependency")


def listed(world: World, job_id: str, query: str) -> httpx.Response:
    """A listing that holds the job; listings flicker for a while after a job's end."""
    end = time.monotonic() + 30
    while True:
        answer = world.jobs("GET", query)
        if job_id in answer.text or time.monotonic() > end:
            return answer
        time.sleep(0.2)


def with_array(query: str) -> Ask:
    return lambda world, _base: listed(world, world.array if query == "?name=arr" else world.mixed_array, query)


def with_ended_jobs(query: str = "") -> Ask:
    def ask(world: World, _base: str) -> httpx.Response:
        world.wait(world.failed, lambda row: row["name"] != "allocation")
        return world.jobs("GET", query)

    return ask


def with_account_jobs(world: World, _base: str) -> httpx.Response:
    job_id = world.submit("#!/bin/bash\nexit 7\n", account="proj1", name="viapath")
    world.wait_state(job_id, "FAILED")
    return listed(world, f'"{job_id}"', "?account=proj1")


def over_quota(world: World, base: str) -> httpx.Response:
    ask_recorded("jobs_submit_quota_first_201", base, world)
    return ask_recorded("jobs_submit_403_quota", base, world)


def after_cancel_of_quota_jobs(world: World, base: str) -> httpx.Response:
    for row in world.jobs("GET", "?account=limited").json()["jobs"]:
        if row["status"]["state"] in {"PENDING", "RUNNING"}:
            world.jobs("DELETE", f"/{row['jobId']}")
    time.sleep(0.5)
    return ask_recorded("jobs_submit_quota_first_201", base, world)


def large_script(size: int) -> Ask:
    def ask(world: World, base: str) -> httpx.Response:
        script = "#!/bin/bash\n# " + "x" * size + "\ntrue\n"
        return world.jobs("POST", json={"job": {"workingDirectory": base, "script": script}})

    return ask


def submit_dependent(world: World, base: str) -> httpx.Response:
    body = {
        "name": "dep",
        "script": f"#!/bin/bash\n#SBATCH -d afterok:{world.running}\ntrue\n",
        "workingDirectory": base,
    }
    return world.jobs("POST", json={"job": body})


def malformed_json(world: World, _base: str) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return world.client().post("/filesystem/lab-s3/ops/mkdir", content=b"{not json", headers=headers)


def no_file(world: World, base: str) -> httpx.Response:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    url = f"/filesystem/lab-s3/ops/upload?path={base}"
    return world.client().post(url, content=b"--x--\r\n", headers=headers)


RUNNING: Callable[[World], str] = lambda world: world.running  # noqa: E731
CANCELLED: Callable[[World], str] = lambda world: world.cancelled  # noqa: E731


def unknown(_world: World) -> str:
    return "999999"


def letters(_world: World) -> str:
    return "abc"


ASK: dict[str, Ask] = {
    "auth_400_missing_claim": with_token(minted(claims={"preferred_username": None})),
    "auth_401_bad_signature": with_token(spoilt),
    "auth_401_basic_scheme": with_token(lambda world: "YTpi", "Basic"),
    "auth_401_expired": with_token(minted(lifetime=-60)),
    "auth_401_garbage": with_token(lambda world: "garbage"),
    "auth_401_no_header": with_token(lambda world: None),
    "auth_401_shortlived": with_token(minted(lifetime=20)),
    "auth_401_unknown_kid": with_token(foreign_key),
    "auth_500_user_without_ssh_key": as_user_without_keys("/status/lab-s3/userinfo"),
    "fs_user_without_ssh_key": as_user_without_keys("/filesystem/lab-s3/ops/ls?path=/home"),
    "job_500_max_sessions": without_sessions("/compute/lab-s3/jobs/1"),
    "job_array_done_200": job(lambda world: world.array),
    "job_array_metadata": job(lambda world: world.array, "/metadata"),
    "job_array_mixed_2s_200": job(lambda world: world.mixed_array),
    "job_array_mixed_7s_200": job(lambda world: world.mixed_array_later),
    "job_array_running_200": job(lambda world: world.recorded_submit("jobs_submit_array_201")),
    "job_array_task_400": job(lambda world: f"{world.array}_1"),
    "job_attach_204": job(RUNNING, "/attach", "PUT", json={"command": "hostname > attach.out"}),
    "job_cancel_204": job(to_cancel("RUNNING"), method="DELETE"),
    "job_cancel_again_500": job(CANCELLED, method="DELETE"),
    "job_cancel_dep_204": job(dependent_to_cancel, method="DELETE"),
    "job_cancel_finished": job(lambda world: world.failed, method="DELETE"),
    "job_cancel_held_204": job(to_cancel("PENDING"), method="DELETE"),
    "job_cancel_other_users": job(RUNNING, method="DELETE", user=OTHER),
    "job_cancelled_200": job(CANCELLED),
    "job_cancelled_later_200": job(CANCELLED),
    "job_dependency_200": job(dependent_to_cancel),
    "job_dependency_never_200": job(lambda world: world.dependent(world.failed, "DependencyNeverSatisfied")),
    "job_failed_200": job(lambda world: world.failed),
    "job_get_200_at_once": job(fresh),
    "job_get_other_users_job_200": job(RUNNING, user=OTHER),
    "job_held_200": job(lambda world: world.held),
    "job_in_reservation_200": job(lambda world: world.reserved),
    "job_metadata_200": job(RUNNING, "/metadata"),
    "job_metadata_other_user": job(RUNNING, "/metadata", user=OTHER),
    "job_env_output": lambda world, base: world.view(f"{base}/env.txt"),
    "job_name_quotes": job(lambda world: world.quoted_name),
    "job_name_with_pipe": lambda world, base: world.with_pipe.get(f"/compute/lab-acct/jobs/{world.piped_name}"),
    "job_never_runnable_200": job(lambda world: world.too_large),
    "job_requeued_200": job(lambda world: world.requeued),
    "job_requeued_later_200": job(lambda world: world.requeued),
    "job_running_200": job(RUNNING),
    "job_signal_200": job(lambda world: world.signalled),
    "job_steps_200": job(lambda world: world.steps),
    "job_suspended_200": job(lambda world: world.suspended),
    "job_timeout_200": job(lambda world: world.timed_out),
    "jobs_list_1h_200": with_ended_jobs("?time_window=1h"),
    "jobs_list_200": with_ended_jobs(),
    "jobs_list_500_after_a_pipe_in_a_job_name": lambda world, base: (
        world.piped_name and world.with_pipe.get("/compute/lab-acct/jobs")
    ),
    "jobs_list_account_200": with_account_jobs,
    "jobs_list_allusers_200": with_ended_jobs("?allusers=true"),
    "jobs_list_name_200": with_array("?name=arr"),
    "jobs_list_other_user_empty": lambda world, base: world.jobs("GET", user="idle"),
    "jobs_list_with_array_200": with_array("?name=arrmix"),
    "jobs_submit_3MB_script": large_script(3 * MIB),
    "jobs_submit_403_quota": over_quota,
    "jobs_submit_6MB_script": large_script(6 * MIB),
    "jobs_submit_dep_201": submit_dependent,
    "jobs_submit_quota_first_201": after_cancel_of_quota_jobs,
    "jobs_submit_reservation_201": lambda world, base: (
        world.reservation and ask_recorded("jobs_submit_reservation_201", base, world)
    ),
    "ops_compress_408_timeout": slow_compress,
    "ops_mkdir_400_bad_json": malformed_json,
    "ops_upload_400_no_file": no_file,
    "ssh_424_max_sessions": without_sessions("/filesystem/lab-s3/ops/ls?path=/home"),
    "ssh_424_permission_denied": while_ssh_is("denied", "/filesystem/lab-s3/ops/ls?path=/home"),
    "ssh_nodes_permission_denied": while_ssh_is("denied", "/status/lab-s3/nodes"),
    "status_reservations_200": lambda world, base: world.with_pipe.get("/status/lab-acct/reservations"),
    "status_reservations_with_res1_200": lambda world, base: (
        world.reservation and world.client().get("/status/lab-s3/reservations")
    ),
    "xfer_rm_400_account_required": where_accounts_are_required("xfer_rm_400_account_required"),
    "xfer_upload_400_account_required": where_accounts_are_required("xfer_upload_400_account_required"),
    "xfer_upload_500_bad_account": where_accounts_are_required("xfer_upload_500_bad_account"),
    "xfer_upload_500_s3down": without_store,
}


def ask_of_transfer(name: str, world: World, base: str) -> httpx.Response:
    """``<transfer>__job``, ``__outlog`` and ``__errlog``: what a transfer left behind."""
    transfer, _, part = name.partition("__")
    left = world.transfer(transfer, base, lambda which, where: ask_recorded(which, where, world))
    if part == "job":
        return world.jobs("GET", f"/{left['jobId']}")
    return world.view(left["logs"]["outputLog" if part == "outlog" else "errorLog"])


NEEDS = {"ops_file_200": ("file",), "ops_file_nope": ("file",), "ops_compress_408_timeout": ("xz",)}
"""Programs that an answer comes from."""


@pytest.fixture(scope="module", params=["local", pytest.param("slurm", marks=pytest.mark.slurm)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "slurm":
        request.getfixturevalue("real_slurm")  # says what is missing where Slurm is not installed
    systems = [flag for system in SYSTEMS for flag in ("--system", system)]
    users = [flag for user in (USER, OTHER, "idle") for flag in ("--user", user)]
    quick = ("--accounting-lag", "1", "--ingress-look", "1", "--command-timeout", str(COMMAND_TIMEOUT))
    account = ("--user", USER, "--system", "lab-acct", "--require-account")
    with (
        start_sandbox(*users, *systems, *quick, "--scheduler", request.param, timeout=180) as main,
        start_sandbox(*account) as second,
    ):
        yield World(main, second, request.param)


@pytest.mark.parametrize("name", sorted(ANSWERS.keys() - BY_STREAMER - NOT_ON_SLURM.keys()))
def test_the_answer_is_the_recorded_one(world: World, name: str) -> None:
    replay(world, name)


@pytest.mark.parametrize("world", ["local"], indirect=True)
@pytest.mark.parametrize("name", sorted(NOT_ON_SLURM))
def test_the_local_queues_answer_is_the_recorded_one(world: World, name: str) -> None:
    replay(world, name)


def replay(world: World, name: str) -> None:
    """Ask again what the answer *name* answered, and compare."""
    require(*NEEDS.get(name, ()))
    if name.startswith("ops_") and name.endswith("_403") and os.geteuid() != 0:
        give_up("other users' files are there only for root: real uids need root")
    recorded = ANSWERS[name]
    base = world.new_base(frozenset(ABSENT.get(name, ())))
    try:
        if "__" in name:
            answer = ask_of_transfer(name, world, base)
        elif name in ASK:
            answer = ASK[name](world, base)
        else:
            answer = ask_recorded(name, base, world)
    finally:
        world.drop(base)
    assert answer.status_code == recorded["status"], answer.text
    body, ours = recorded["body"], _body(answer)
    assert differences(body, ours) == []
    if recorded.get("headers"):
        assert header_differences(recorded["headers"], dict(answer.headers)) == []
    if isinstance(body, dict) and "errorType" in body:
        assert ours["errorType"] == body["errorType"]
        if name not in MESSAGE_DIFFERS and "__" not in name:
            assert message_of(ours) == message_of(at(body, base))
    if name.startswith("job_") and name not in STATUS_DIFFERS and isinstance(body, dict) and "jobs" in body:
        assert ours["jobs"][0].get("status") == body["jobs"][0].get("status")


def _body(answer: httpx.Response) -> Any:
    is_json = answer.headers.get("content-type", "").startswith("application/json")
    return answer.json() if is_json and answer.content else answer.text


def test_every_recorded_answer_is_asked() -> None:
    assert len(ANSWERS) == 262
    assert ASK.keys() | BY_STREAMER | NOT_ON_SLURM.keys() <= ANSWERS.keys()


@pytest.fixture(scope="module")
def streaming() -> Iterator[World]:
    systems = [flag for system in ("lab-stream-local", *SYSTEMS) for flag in ("--system", system)]
    with start_sandbox("--user", USER, "--user", OTHER, *systems, *with_streamer()) as started:
        yield World(started, started, "local")


@pytest.mark.parametrize("name", sorted(BY_STREAMER))
def test_the_streamers_answer_is_the_recorded_one(streaming: World, name: str) -> None:
    replay(streaming, name)


@pytest.mark.parametrize("name", sorted(BY_STREAMER))
def test_a_request_for_the_streamer_is_refused_as_by_a_server_without_it(world: World, name: str) -> None:
    base = world.new_base()
    path: str = ANSWERS[name]["request"]["path"].replace("lab-stream-local", "lab-s3")
    answer = ask_recorded(name, base, world, path=path)
    assert answer.status_code == 400
    assert answer.json()["message"] == "Requested transfer method is not available."
