"""pyfirecrest 3.10, unmodified, works against the sandbox: its synchronous client, its asynchronous client, its CLI."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import firecrest
import pytest
from firecrest import cli2
from firecrest.FirecrestException import TransferJobFailedException
from typer.testing import CliRunner

from support.sandbox import SandboxProcess
from support.scale import PROVE

LARGE = 200_000_000 if PROVE else 20_000_000
SCRIPT = (
    '#!/bin/bash\n#SBATCH --job-name=pf\n#SBATCH -o pf.out\necho "hello from $SLURM_JOB_ID $COLOUR"\nsleep {seconds}\n'
)


class Caller:
    """Either client; every call is awaited."""

    def __init__(self, client: Any, system: str, home: str) -> None:
        self.client, self.system = client, system
        self.home, self.base = home, f"{home}/pf-{time.time_ns()}"

    async def __call__(self, name: str, *args: Any, **options: Any) -> Any:
        method = getattr(self.client, name)
        if inspect.iscoroutinefunction(method):
            return await method(*args, **options)
        return await asyncio.to_thread(method, *args, **options)

    async def on(self, name: str, *args: Any, **options: Any) -> Any:
        """Call a method that takes the system first."""
        return await self(name, self.system, *args, **options)


@pytest.fixture(params=["sync", "async"])
async def call(request: pytest.FixtureRequest, any_sandbox: SandboxProcess) -> AsyncIterator[Caller]:
    env = any_sandbox.client_env()
    authorization = firecrest.ClientCredentialsAuth(
        env["FIRECREST_CLIENT_ID"], env["FIRECREST_CLIENT_SECRET"], env["AUTH_TOKEN_URL"]
    )
    kind = firecrest.v2.AsyncFirecrest if request.param == "async" else firecrest.v2.Firecrest
    client = kind(firecrest_url=env["FIRECREST_URL"], authorization=authorization)
    client.timeout = 60
    made = Caller(client, any_sandbox.system, "/home/alice")
    await made.on("mkdir", made.base)
    yield made
    if request.param == "async":
        await client.close_session()


def file_of(folder: Path, size: int) -> tuple[Path, str]:
    """A local file of random bytes and its SHA-256."""
    path = folder / f"local-{size}"
    block = os.urandom(1_000_000)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, len(block)):
            piece = block[: min(len(block), size - start)]
            file.write(piece)
            digest.update(piece)
    return path, digest.hexdigest()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def test_status(call: Caller) -> None:
    (system,) = await call("systems")
    assert system["name"] == call.system
    (node,) = await call.on("nodes")
    assert node["cpus"] > 0
    assert {"normal", "debug", "xfer"} <= {partition["name"] for partition in await call.on("partitions")}
    assert await call.on("reservations") == []
    who = await call.on("userinfo")
    assert who["user"]["name"] == "alice"
    assert who["group"]["name"] == "users"


@pytest.mark.needs("file")
async def test_files(call: Caller, tmp_path: Path) -> None:
    local, digest = file_of(tmp_path, 10_000)
    path = f"{call.base}/a.bin"
    assert await call.on("upload", local, call.base, "a.bin") is None
    assert await call.on("download", path, tmp_path / "back") is None
    assert sha256(tmp_path / "back") == digest
    assert (await call.on("checksum", path))["checksum"] == digest
    assert (await call.on("stat", path))["size"] == 10_000
    assert [entry["name"] for entry in await call.on("list_files", call.base)] == ["a.bin"]
    assert (await call.on("chmod", path, "600"))["permissions"] == "rw-------"
    await call.on("symlink", path, f"{call.base}/link")
    assert {entry["linkTarget"] for entry in await call.on("list_files", call.base)} == {None, path}
    await call.on("rm", f"{call.base}/link")
    (tmp_path / "lines").write_text("one\ntwo\nthree\n")
    await call.on("upload", tmp_path / "lines", call.base, "lines")
    lines = f"{call.base}/lines"
    assert (await call.on("head", lines, num_lines=1))["content"] == "one\n"
    assert (await call.on("tail", lines, num_lines=1))["content"] == "three\n"
    assert (await call.on("head", lines, num_bytes=3))["content"] == "one"
    assert await call.on("view", lines) == "one\ntwo\nthree\n"
    assert "text" in await call.on("file_type", lines)


async def test_moves_copies_and_archives(call: Caller, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    await call.on("upload", tmp_path / "text", call.base, "a")
    assert (await call.on("cp", f"{call.base}/a", f"{call.base}/b"))["transferJob"]["system"] == call.system
    await call.on("mv", f"{call.base}/b", f"{call.base}/c")
    assert await call.on("view", f"{call.base}/c") == "hello"
    await call.on("compress", f"{call.base}/c", f"{call.base}/c.tgz")
    await call.on("rm", f"{call.base}/c")
    await call.on("extract", f"{call.base}/c.tgz", call.base)
    assert await call.on("view", f"{call.base}/c") == "hello"
    with pytest.raises(TransferJobFailedException):
        await call.on("cp", f"{call.base}/none", f"{call.base}/d")


@pytest.mark.needs("curl")
async def test_large_files_go_through_the_staging_area(call: Caller, tmp_path: Path) -> None:
    local, digest = file_of(tmp_path, LARGE)
    begin = time.monotonic()
    done = await call.on("upload", local, call.base, "large.bin")
    print(f"{LARGE / 1e6:.0f} MB up in {time.monotonic() - begin:.1f} s")
    assert done.transfer_data["transferDirectives"]["transferMethod"] == "s3"
    local.unlink()
    begin = time.monotonic()
    await call.on("download", f"{call.base}/large.bin", tmp_path / "back")
    print(f"{LARGE / 1e6:.0f} MB down in {time.monotonic() - begin:.1f} s")
    assert sha256(tmp_path / "back") == digest


async def test_jobs(call: Caller, tmp_path: Path) -> None:
    inline = SCRIPT.format(seconds=0)
    first = await call.on("submit", call.base, script_str=inline, env_vars={"COLOUR": "red"})
    (row,) = (await call.on("wait_for_job", first["jobId"]))[:1]
    assert row["status"]["state"] == "COMPLETED"
    assert await call.on("view", f"{call.base}/pf.out") == f"hello from {first['jobId']} red\n"
    (tmp_path / "job.sh").write_text(SCRIPT.format(seconds=60))
    await call.on("upload", tmp_path / "job.sh", call.base, "job.sh")
    second = str((await call.on("submit", call.base, script_remote_path=f"{call.base}/job.sh"))["jobId"])
    local = await call.on("submit", call.base, script_local_path=str(tmp_path / "job.sh"))
    await call.on("cancel_job", local["jobId"])
    await until_running(call, second)
    await until_listed(call, second)
    (metadata,) = await call.on("job_metadata", second)
    assert metadata["standardOutput"] == f"{call.base}/pf.out"
    await call.on("attach_to_job", second, "hostname")
    await call.on("cancel_job", second)
    (row,) = (await call.on("wait_for_job", second))[:1]
    assert row["status"]["state"].startswith("CANCELLED")


async def until_running(call: Caller, job_id: str) -> None:
    """Wait for the job; by-id answers 404 until accounting knows it."""
    end = time.monotonic() + 60
    rows: list[dict[str, Any]] = []
    while not any(row["status"]["state"] == "RUNNING" for row in rows):
        assert time.monotonic() < end, rows
        await asyncio.sleep(0.2)
        with contextlib.suppress(firecrest.FirecrestException):
            rows = await call.on("job_info", job_id)


async def until_listed(call: Caller, job_id: str) -> None:
    """Wait for the listing, which lags behind accounting's truth."""
    end = time.monotonic() + 60
    while job_id not in {row["jobId"] for row in await call.on("job_info")}:
        assert time.monotonic() < end
        await asyncio.sleep(0.2)


# The command line


class Cli:
    """``firecrest``; inside this process, as its imports take a second."""

    def __init__(self, sandbox: SandboxProcess) -> None:
        self.env = {**sandbox.client_env(), "COLUMNS": "200", "NO_COLOR": "1"}
        self.base = f"/home/alice/cli-{time.time_ns()}"

    def run(self, *words: str, check: bool = True) -> str:
        """Run a command and return what it printed."""
        done = CliRunner().invoke(cli2.app, list(words), env=self.env)
        assert not check or done.exit_code == 0, done.output
        return str(done.stdout)

    def json(self, *words: str) -> Any:
        """Run a command and read the JSON that it printed."""
        return json.loads(self.run(*words))


@pytest.fixture
def cli(any_sandbox: SandboxProcess) -> Cli:
    made = Cli(any_sandbox)
    made.run("mkdir", made.base)
    return made


def test_the_installed_command_runs(any_sandbox: SandboxProcess) -> None:
    program = Path(sys.executable).with_name("firecrest")
    env = {**os.environ, **any_sandbox.client_env()}
    done = subprocess.run([program, "systems", "--no-pager"], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["name"] == any_sandbox.system


def test_cli_status_and_files(cli: Cli, tmp_path: Path) -> None:
    local, digest = file_of(tmp_path, 10_000)
    assert cli.json("systems", "--no-pager")
    assert cli.json("get-nodes", "--no-pager")
    assert cli.json("get-partitions", "--no-pager")
    assert cli.json("get-reservations", "--no-pager") == []
    assert "alice" in cli.run("id")
    cli.run("upload", str(local), cli.base, "a.bin")
    assert "a.bin" in cli.run("ls", cli.base)
    cli.run("download", f"{cli.base}/a.bin", str(tmp_path / "back"))
    assert sha256(tmp_path / "back") == digest
    assert digest in cli.run("checksum", f"{cli.base}/a.bin")
    assert "10000" in cli.run("stat", f"{cli.base}/a.bin")
    cli.run("chmod", f"{cli.base}/a.bin", "600")
    cli.run("symlink", f"{cli.base}/a.bin", f"{cli.base}/link")
    (tmp_path / "lines").write_text("one\ntwo\nthree\n")
    cli.run("upload", str(tmp_path / "lines"), cli.base, "lines")
    assert "one" in cli.run("head", "-n", "1", f"{cli.base}/lines")
    assert "three" in cli.run("tail", "-n", "1", f"{cli.base}/lines")
    cli.run("cp", f"{cli.base}/lines", f"{cli.base}/copy")
    cli.run("mv", f"{cli.base}/copy", f"{cli.base}/moved")
    cli.run("compress", f"{cli.base}/moved", f"{cli.base}/moved.tgz")
    cli.run("rm", "--force", f"{cli.base}/moved")
    cli.run("extract", f"{cli.base}/moved.tgz", cli.base)
    assert "moved" in cli.run("ls", cli.base)


@pytest.mark.needs("curl")
def test_cli_large_files(cli: Cli, tmp_path: Path) -> None:
    local, digest = file_of(tmp_path, LARGE)
    cli.run("upload", str(local), cli.base, "large.bin")
    cli.run("download", f"{cli.base}/large.bin", str(tmp_path / "back"))
    assert sha256(tmp_path / "back") == digest


def test_cli_jobs(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text(SCRIPT.format(seconds=60))
    job_id = str(cli.json("submit", "--working-dir", cli.base, "-e", "COLOUR=red", str(tmp_path / "job.sh"))["jobId"])
    end = time.monotonic() + 60
    while "RUNNING" not in (shown := cli.run("job-info", job_id, check=False)):
        assert time.monotonic() < end, shown
        time.sleep(0.2)
    while job_id not in cli.run("job-info"):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert "pf.out" in cli.run("job-metadata", job_id)
    cli.run("attach-to-job", job_id, "hostname")
    cli.run("cancel", job_id)
    assert "CANCELLED" in cli.run("wait-for-job", job_id)
