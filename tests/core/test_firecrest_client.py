"""The client against a real sandbox: every endpoint, its quirks, and its faults."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcbridge import errors
from hpcbridge.firecrest import FirecrestClient, check_path
from hpcbridge.http import HttpPolicy, HttpSession
from hpcbridge.http.breaker import BreakerPolicy
from hpcbridge.sites import load_site
from support.sandbox import SandboxProcess
from support.scale import PROVE

OUTAGE = 60.0 if PROVE else 4.0
HOME = "/home/alice"
SCRIPT = "#!/bin/bash\n#SBATCH --time=5\necho out\n"


@pytest.fixture
async def client(sandbox: SandboxProcess, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FirecrestClient]:
    """As alice, with short time-outs; 100 polling requests per second."""
    for name, value in sandbox.client_env().items():
        monkeypatch.setenv(name, value)
    site, credential = load_site(polling_rate=100.0)
    policy = HttpPolicy(read=10 if PROVE else 6, breaker=BreakerPolicy(failures=5, pause=0.2, longest_pause=2))
    session = HttpSession(site, credential, policy=policy)
    yield FirecrestClient(session)
    await session.aclose()


@pytest.fixture
async def place(client: FirecrestClient, sandbox: SandboxProcess, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """A directory of the test's own."""
    path = f"{HOME}/client-{time.monotonic_ns()}"
    await client.mkdir(sandbox.system, path)
    yield path
    await client.rm(sandbox.system, path, patience=30)


async def finished(client: FirecrestClient, system: str, job_id: str) -> None:
    for _ in range(100):
        rows = await client.job(system, job_id)
        if rows[0].state not in ("PENDING", "RUNNING", "COMPLETING"):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the job does not end")


async def test_status(client: FirecrestClient, sandbox: SandboxProcess) -> None:
    systems = await client.systems()
    assert [system.name for system in systems] == [sandbox.system]
    assert (await client.system(sandbox.system.upper())).name == sandbox.system
    assert client.server_version == "2.5.7"
    assert client.has_time_window
    with pytest.raises(errors.SystemNotFound, match=sandbox.system):
        await client.system("nowhere")
    before = client.session.requests
    await client.systems()
    assert client.session.requests == before  # cached
    assert client._systems is not None
    client._systems = client._systems[0] - 301, client._systems[1]
    await asyncio.gather(*(client.system(sandbox.system) for _ in range(10)))
    assert client.session.requests == before + 1  # one asks again, the others have the last answer
    assert await client.liveness()


@pytest.mark.needs("file")
async def test_what_goes_through_pyfirecrest(client: FirecrestClient, sandbox: SandboxProcess, place: str) -> None:
    system = sandbox.system
    assert (await client.userinfo(system)).name == "alice"
    assert await client.nodes(system)
    assert {item["name"] for item in await client.partitions(system)} >= {"normal"}
    assert await client.reservations(system) == []
    await client.upload(system, place, "f", b"#!/bin/bash\n")
    assert (await client.chmod(system, f"{place}/f", "640")).permissions == "rw-r-----"
    await client.chown(system, f"{place}/f", group="users")
    await client.symlink(system, f"{place}/f", f"{place}/l")
    with pytest.raises(errors.AlreadyExists):
        await client.symlink(system, f"{place}/f", f"{place}/l")
    assert "script" in await client.file(system, f"{place}/f")
    with pytest.raises(errors.SystemNotFound):
        await client.nodes("nowhere")


async def test_pyfirecrest_uses_our_session_and_never_sees_a_token(
    client: FirecrestClient, sandbox: SandboxProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    from firecrest.v2 import AsyncFirecrest

    seen: list[dict[str, str]] = []
    original = AsyncFirecrest._auth_headers

    async def watched(self: AsyncFirecrest) -> dict[str, str]:
        headers: dict[str, str] = await original(self)
        seen.append(headers)
        return headers

    monkeypatch.setattr(AsyncFirecrest, "_auth_headers", watched)
    before = client.session.requests
    await client.nodes(sandbox.system)
    assert client.session.requests == before + 1
    assert seen == [{}]
    sandbox.post("/faults", [{"path": "/status/*/nodes", "kind": "status", "status": 503, "count": 2}])
    assert await client.nodes(sandbox.system)  # our retries
    assert client.session.requests == before + 4


async def test_files(client: FirecrestClient, sandbox: SandboxProcess, place: str) -> None:
    system = sandbox.system
    data = bytes(range(256)) * 40
    await client.upload(system, place, "bytes", data)
    assert await client.download(system, f"{place}/bytes") == data
    assert (await client.stat(system, f"{place}/bytes")).size == len(data)
    await client.upload(system, place, "bytes", b"short")
    assert await client.download(system, f"{place}/bytes") == b"short"
    await client.mkdir(system, f"{place}/a/b")
    await client.mkdir(system, f"{place}/a/b")
    with pytest.raises(errors.AlreadyExists):
        await client.mkdir(system, f"{place}/a", parents=False)
    with pytest.raises(errors.PathNotFound):
        await client.mkdir(system, f"{place}/x/y", parents=False)
    names = {entry.name for entry in await client.ls(system, place, recursive=True, hidden=True)}
    assert {"a", "bytes"} <= names
    await client.upload(system, place, "lines", b"one\ntwo\nthree\n")
    assert (await client.head(system, f"{place}/lines", lines=1)).content == "one\n"
    assert (await client.tail(system, f"{place}/lines", bytes_=6)).content == "three\n"
    assert (await client.tail(system, f"{place}/lines", bytes_=5, skip_heading=True)).content == "two\nthree\n"
    assert await client.view(system, f"{place}/lines", offset=4, size=3) == "two"
    await client.compress(system, f"{place}/a", f"{place}/a.tar.gz")
    await client.mkdir(system, f"{place}/out")
    await client.extract(system, f"{place}/a.tar.gz", f"{place}/out")
    with pytest.raises(errors.PathNotFound) as missing:
        await client.download(system, f"{place}/nope")
    assert missing.value.path == f"{place}/nope"
    with pytest.raises(errors.TooLarge):
        await client.upload(system, place, "big", b"x" * (5 * 1024 * 1024 + 1))
    with pytest.raises(errors.InvalidPath):
        await client.ls(system, "/etc")
    with pytest.raises(errors.PermissionDenied):
        await client.ls(system, "/home/bob")


async def test_an_empty_file_arrives(client: FirecrestClient, sandbox: SandboxProcess, place: str) -> None:
    await client.upload(sandbox.system, place, "empty", b"")
    assert (await client.stat(sandbox.system, f"{place}/empty")).size == 0
    assert await client.download(sandbox.system, f"{place}/empty") == b""


async def test_a_checksum_of_a_name_with_blanks(client: FirecrestClient, sandbox: SandboxProcess, place: str) -> None:
    await client.upload(sandbox.system, place, "sp ace é.txt", b"hello\n")
    digest = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert await client.checksum(sandbox.system, f"{place}/sp ace é.txt") == digest


@pytest.mark.parametrize("path", ["relative", "/a'b", "/a\nb", "/a\tb", "/a\x7f", "/\udcff", ""])
async def test_paths_that_would_not_arrive_are_refused_before_anything_is_sent(path: str) -> None:
    client = FirecrestClient(None)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidPath):
        await client.download("s", path)


@pytest.mark.parametrize("name", ["", "a/b", "..", "-rf", 'a"b', "it's", "a\nb", "a\x00"])
async def test_names_that_would_not_arrive_are_refused(name: str) -> None:
    client = FirecrestClient(None)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidPath):
        await client.upload("s", "/home", name, b"x")


@given(st.text(max_size=40).map(lambda text: "/home/" + text))
def test_a_path_that_is_accepted_survives_the_servers_single_quotes(path: str) -> None:
    try:
        check_path(path)
    except errors.InvalidPath:
        assert any(character in "'\x7f" or character < " " or "\ud800" <= character <= "\udfff" for character in path)
    else:
        assert shlex.split(f"'{path}'") == [path]
        assert path.encode().decode() == path


async def test_jobs(client: FirecrestClient, sandbox: SandboxProcess, place: str) -> None:
    system = sandbox.system
    body = {"name": "relax.test", "script": SCRIPT, "workingDirectory": place}
    job_id = await client.submit(system, body)
    await finished(client, system, job_id)
    (row,) = await client.job(system, job_id)
    assert (row.job_id, row.state, row.exit_code) == (job_id, "COMPLETED", 0)
    await asyncio.sleep(1.2)  # the sandbox's accounting lag
    assert job_id in [row.job_id for row in await client.jobs(system, names=["relax.test", "another"])]
    assert await client.jobs(system, names=["nobody"], time_window="1h") == []
    assert await client.jobs(system, names=["x" * 40 + str(n) for n in range(20)]) == []  # past the filter's length
    assert (await client.metadata(system, job_id)).script
    with pytest.raises(errors.Conflict):
        await client.cancel(system, job_id)
    with pytest.raises(errors.JobNotFound):
        await client.job(system, "999999")
    with pytest.raises(errors.InvalidRequest):
        await client.job(system, "../x")
    with pytest.raises(errors.InvalidRequest):
        await client.jobs(system, time_window="2w")


async def test_a_job_is_cancelled(client: FirecrestClient, sandbox: SandboxProcess, place: str) -> None:
    body = {"name": "sleeper", "script": "#!/bin/bash\nsleep 60\n", "workingDirectory": place}
    job_id = await client.submit(sandbox.system, body)
    await client.cancel(sandbox.system, job_id)
    await finished(client, sandbox.system, job_id)
    assert (await client.job(sandbox.system, job_id))[0].state.startswith("CANCELLED")


async def test_what_the_scheduler_refuses(client: FirecrestClient, sandbox: SandboxProcess) -> None:
    body = {"script": SCRIPT, "workingDirectory": HOME, "partition": "nosuch"}
    with pytest.raises(errors.SubmitRejected, match="invalid partition") as refused:
        await client.submit(sandbox.system, body)
    assert refused.value.request_id
    with pytest.raises(errors.SystemNotFound):
        await client.submit("nowhere", body)
    with pytest.raises(errors.InvalidRequest):
        await client.submit(sandbox.system, {"script": SCRIPT})


SUBMIT_FAULTS = [
    ({"kind": "drop_before"}, errors.AmbiguousOutcome),
    ({"kind": "drop_after"}, errors.AmbiguousOutcome),
    ({"kind": "status_after", "status": 408}, errors.AmbiguousOutcome),
    ({"kind": "status_after", "status": 424}, errors.AmbiguousOutcome),
    ({"kind": "status_after", "status": 500}, errors.AmbiguousOutcome),
    ({"kind": "status_after", "status": 503}, errors.AmbiguousOutcome),
    ({"kind": "hang", "seconds": 3}, errors.AmbiguousOutcome),
    ({"kind": "status", "status": 429, "headers": {"Retry-After": "2"}}, errors.RateLimited),
    ({"kind": "status", "status": 403}, errors.PermissionDenied),
]


@pytest.mark.parametrize(("fault", "kind"), SUBMIT_FAULTS, ids=lambda item: str(item))
async def test_a_submit_is_sent_once_whatever_comes_back(
    client: FirecrestClient, sandbox: SandboxProcess, fault: dict[str, object], kind: type[errors.HpcBridgeError]
) -> None:
    await client.systems()
    sandbox.post("/faults", [{"method": "POST", "path": "/compute/*/jobs", **fault}])
    with pytest.raises(kind):
        await client.submit(sandbox.system, {"script": SCRIPT, "workingDirectory": HOME}, timeout=1)
    assert sandbox.get("/requests")["counts"]["POST /compute/{}/jobs"] == 1


async def test_a_submit_into_a_refused_connection_was_not_sent(
    client: FirecrestClient, sandbox: SandboxProcess
) -> None:
    await client.systems()
    sandbox.post("/outage", {"kind": "refused", "seconds": 2})
    with pytest.raises(errors.NotSent):
        await client.submit(sandbox.system, {"script": SCRIPT, "workingDirectory": HOME})
    assert await client.systems(fresh=True, patience=20)


@pytest.mark.parametrize("kind", ["refused", "503", "hang"])
async def test_reads_and_repeatable_writes_outlast_an_outage(
    client: FirecrestClient, sandbox: SandboxProcess, place: str, kind: str
) -> None:
    system, patience = sandbox.system, 3 * OUTAGE + 30
    began = time.monotonic()
    sandbox.post("/outage", {"kind": kind, "seconds": OUTAGE})
    await asyncio.gather(
        client.systems(fresh=True, patience=patience),
        client.upload(system, place, "f", b"content", patience=patience),
        client.mkdir(system, f"{place}/d", patience=patience),
        client.jobs(system, patience=patience),
        *(client.ls(system, place, patience=patience) for _ in range(10)),
    )
    took = time.monotonic() - began
    assert await client.download(system, f"{place}/f") == b"content"
    assert OUTAGE * 0.9 <= took < OUTAGE + 25


async def test_an_outage_of_the_issuer_too(client: FirecrestClient, sandbox: SandboxProcess) -> None:
    # no token yet: the issuer is behind the same listener
    sandbox.post("/outage", {"kind": "refused", "seconds": 2})
    with pytest.raises(errors.NotSent, match="no token"):
        await client.systems(patience=0)
    assert await client.systems(patience=30)


@pytest.mark.parametrize("kind", ["drop_before", "drop_after", "status_after"])
async def test_a_repeated_upload_arrives_whole(
    client: FirecrestClient, sandbox: SandboxProcess, place: str, kind: str
) -> None:
    data = os.urandom(300_000)
    fault = {"method": "POST", "path": "*/ops/upload", "kind": kind, "status": 503, "count": 2}
    sandbox.post("/faults", [fault])
    await client.upload(sandbox.system, place, "f", data)
    assert await client.download(sandbox.system, f"{place}/f") == data


async def test_a_removal_whose_answer_was_lost_is_done(
    client: FirecrestClient, sandbox: SandboxProcess, place: str
) -> None:
    system = sandbox.system
    await client.upload(system, place, "f", b"x")
    sandbox.post("/faults", [{"method": "DELETE", "path": "*/ops/rm", "kind": "drop_after", "count": 1}])
    await client.rm(system, f"{place}/f")
    with pytest.raises(errors.PathNotFound):
        await client.rm(system, f"{place}/f")
    sandbox.post(
        "/faults", [{"method": "POST", "path": "*/ops/mkdir", "kind": "status_after", "status": 504, "count": 1}]
    )
    await client.mkdir(system, f"{place}/once", parents=False)
    sandbox.post("/faults", [{"method": "POST", "path": "*/ops/mkdir", "kind": "drop_after", "count": 1}])
    await client.mkdir(system, f"{place}/twice", parents=False)
    sandbox.post("/faults", [{"method": "POST", "path": "*/ops/symlink", "kind": "drop_after", "count": 1}])
    await client.symlink(system, f"{place}/once", f"{place}/link")


async def test_too_many_sessions_are_found_out(client: FirecrestClient, sandbox: SandboxProcess, place: str) -> None:
    sandbox.post("/sessions", {"max": 4})
    began = time.monotonic()
    await asyncio.gather(*(client.ls(sandbox.system, place, patience=60) for _ in range(60)))
    assert client.session.limiter.limit <= 8 + (time.monotonic() - began)  # it grows by one a second
    assert client.session.counters.by_status[200] >= 60


async def test_a_token_that_expires_in_the_middle(client: FirecrestClient, sandbox: SandboxProcess, place: str) -> None:
    await client.systems()
    sandbox.post("/expire-tokens")
    job_id = await client.submit(sandbox.system, {"script": SCRIPT, "workingDirectory": place})
    await finished(client, sandbox.system, job_id)
    assert client.session.counters.refreshes == 1


@pytest.mark.needs("curl")
async def test_a_transfer_answers_with_urls_that_work_and_do_not_show(
    client: FirecrestClient, sandbox: SandboxProcess, place: str
) -> None:
    system = sandbox.system
    upload = await client.transfer_upload(system, f"{place}/big", 10)
    assert upload.job.system == system
    done = await client.session.storage.put(upload.part_urls[0].reveal(), content=b"0123456789")
    assert done.status_code == 200
    await client.cancel(system, upload.job_id)
    sandbox.post("/faults", [{"method": "POST", "path": "*/transfer/upload", "kind": "drop_after"}])
    with pytest.raises(errors.AmbiguousOutcome):
        await client.transfer_upload(system, f"{place}/big", 10)
    assert sandbox.get("/requests")["counts"]["POST /filesystem/{}/transfer/upload"] == 2


async def test_the_hot_path_does_not_import_pyfirecrest(sandbox: SandboxProcess) -> None:
    code = (
        "import asyncio, sys\n"
        "from hpcbridge.sites import load_site\n"
        "from hpcbridge.http import HttpSession\n"
        "from hpcbridge.firecrest import FirecrestClient\n"
        "async def main():\n"
        "    client = FirecrestClient(HttpSession(*load_site()))\n"
        f"    await client.systems(); await client.jobs({sandbox.system!r})\n"
        f"    await client.ls({sandbox.system!r}, {HOME!r})\n"
        "    print([m for m in ('firecrest', 'pydantic') if m in sys.modules])\n"
        "asyncio.run(main())\n"
    )
    env = {**os.environ, **sandbox.client_env()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert out.decode().strip() == "[]", err.decode()
