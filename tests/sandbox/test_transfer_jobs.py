"""Transfers are batch jobs: what they do, what they leave in their logs, and how they fail."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from hpcbridge_sandbox.transfer.jobs import render_script
from support.sandbox import SandboxProcess, start_sandbox
from support.scale import PROVE

SIZE = 200_000_000 if PROVE else 70_000_000  # two parts of 64 MiB at least
LIVE = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}
S3 = {"transferMethod": "s3"}


class Transfers:
    """The transfer endpoints for one user, in a directory of its own."""

    def __init__(self, sandbox: SandboxProcess) -> None:
        self.sandbox, self.http = sandbox, sandbox.client()
        self.base = f"/home/alice/transfer-{time.time_ns()}"
        self.ops = f"/filesystem/{sandbox.system}/ops"
        self.http.post(f"{self.ops}/mkdir", json={"path": self.base}).raise_for_status()

    def write(self, name: str, content: bytes) -> str:
        """Upload a small file and return its path."""
        answer = self.http.post(f"{self.ops}/upload", params={"path": self.base}, files={"file": (name, content)})
        assert answer.status_code == 204, answer.text
        return f"{self.base}/{name}"

    def ask(self, operation: str, **body: Any) -> httpx.Response:
        """POST to a transfer endpoint (DELETE for rm)."""
        path = f"/filesystem/{self.sandbox.system}/transfer/{operation}"
        return self.http.delete(path, params=body) if operation == "rm" else self.http.post(path, json=body)

    def job(self, answer: httpx.Response, seconds: float = 60) -> Ended:
        """Wait for the job of an answer."""
        assert answer.is_success, answer.text
        job = answer.json()["transferJob"]
        assert job["workingDirectory"] == "/home/alice"
        assert job["system"] == self.sandbox.system
        end = time.monotonic() + seconds
        while True:
            row = self.row(job["jobId"])
            if row and row["status"]["state"] not in LIVE and row["name"] != "allocation" and row["tasks"]:
                return Ended(row, self.view(job["logs"]["outputLog"]), self.view(job["logs"]["errorLog"]))
            assert time.monotonic() < end, (row, self.view(job["logs"]["errorLog"]))
            time.sleep(0.2)

    def row(self, job_id: str) -> dict[str, Any] | None:
        """The job's row, or None while accounting does not know it."""
        answer = self.http.get(f"/compute/{self.sandbox.system}/jobs/{job_id}")
        return answer.json()["jobs"][0] if answer.status_code == 200 else None

    def view(self, path: str) -> str:
        """A text file, or what the server says instead."""
        answer = self.http.get(f"{self.ops}/view", params={"path": path})
        return str(answer.json().get("output", answer.text))

    def read(self, path: str) -> bytes | None:
        """A file's bytes, or None when there is none."""
        answer = self.http.get(f"{self.ops}/download", params={"path": path})
        return answer.content if answer.status_code == 200 else None

    def sha256(self, path: str) -> str:
        """Checksum of a file of the cluster."""
        host = self.sandbox.host_path(path)
        with host.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class Ended:
    """A job's end."""

    def __init__(self, row: dict[str, Any], output: str, error: str) -> None:
        self.row, self.output, self.error = row, output, error
        self.name, self.partition = row["name"], row["partition"]
        self.state, self.exit_code = row["status"]["state"], row["status"]["exitCode"]


@pytest.fixture
def transfers(sandbox: SandboxProcess) -> Iterator[Transfers]:
    made = Transfers(sandbox)
    yield made
    made.http.close()


@pytest.fixture
def any_transfers(any_sandbox: SandboxProcess) -> Iterator[Transfers]:
    """On both schedulers: what depends on how they run and report a job."""
    made = Transfers(any_sandbox)
    yield made
    made.http.close()


def test_cp_mv_rm_do_their_work_and_say_successfully(any_transfers: Transfers) -> None:
    transfers = any_transfers
    source = transfers.write("a.txt", b"hello")
    copied = transfers.job(transfers.ask("cp", path=source, targetPath=f"{transfers.base}/b.txt"))
    assert (copied.name, copied.partition, copied.state) == ("CopyFiles", "xfer", "COMPLETED")
    assert "Files were successfully copied." in copied.output
    assert transfers.read(f"{transfers.base}/b.txt") == b"hello"
    moved = transfers.job(transfers.ask("mv", sourcePath=source, targetPath=f"{transfers.base}/c.txt"))
    assert moved.name == "MoveFiles"
    assert "Files were successfully moved." in moved.output
    assert transfers.read(source) is None
    removed = transfers.job(transfers.ask("rm", path=f"{transfers.base}/c.txt"))
    assert removed.name == "DeleteFiles"
    assert "Files were successfully deleted." in removed.output
    assert transfers.read(f"{transfers.base}/c.txt") is None


@pytest.mark.needs("xz")
def test_compress_and_extract_keep_a_directory(transfers: Transfers) -> None:
    transfers.write("a.txt", b"hello")
    archive = f"/home/alice/{time.time_ns()}.tar.xz"
    packed = transfers.job(transfers.ask("compress", path=transfers.base, targetPath=archive, compression="xz"))
    assert "Files were successfully compressed." in packed.output
    target = transfers.base + "-out"
    transfers.http.post(f"{transfers.ops}/mkdir", json={"path": target}).raise_for_status()
    unpacked = transfers.job(transfers.ask("extract", path=archive, targetPath=target, compression="xz"))
    assert "Files were successfully extracted." in unpacked.output
    assert transfers.read(f"{target}/{transfers.base.rsplit('/', 1)[1]}/a.txt") == b"hello"


def test_compress_by_pattern_takes_plain_files(transfers: Transfers) -> None:
    transfers.write("a.txt", b"a")
    transfers.write("b.bin", b"b")
    archive = f"/home/alice/{time.time_ns()}.tar.gz"
    transfers.job(transfers.ask("compress", path=f"{transfers.base}/", targetPath=archive, matchPattern=r".*\.txt"))
    listing = subprocess.run(["tar", "-tzf", transfers.sandbox.host_path(archive)], capture_output=True, text=True)
    assert listing.stdout.split() == ["./a.txt"]


@pytest.mark.parametrize(
    ("operation", "extra", "words"),
    [
        ("cp", {"targetPath": "/home/alice/x"}, "Unable to copy files exit code:0"),
        ("mv", {"targetPath": "/home/alice/x"}, "Unable to move files exit code:0"),
        ("rm", {}, "Unable to delete files exit code:0"),
        ("compress", {"targetPath": "/home/alice/x.tgz"}, "Unable to compress files exit code:0"),
        ("extract", {"targetPath": "/home/alice"}, "Unable to extract files exit code:0"),
    ],
)
def test_a_failed_job_ends_completed_and_tells_the_truth_in_its_log_only(
    transfers: Transfers, operation: str, extra: dict[str, str], words: str
) -> None:
    ended = transfers.job(transfers.ask(operation, path=f"{transfers.base}/nope", **extra))
    assert (ended.state, ended.exit_code) == ("COMPLETED", 0)
    assert "successfully" not in ended.output
    assert words in ended.error


def test_another_users_file_stays_out_of_reach(transfers: Transfers) -> None:
    secret = f"secret-{time.time_ns()}.txt"
    with transfers.sandbox.client("bob") as bob:
        answer = bob.post(f"{transfers.ops}/upload", params={"path": "/home/bob"}, files={"file": (secret, b"secret")})
        assert answer.status_code == 204
        bob.put(f"{transfers.ops}/chmod", json={"path": f"/home/bob/{secret}", "mode": "600"}).raise_for_status()
    target = f"{transfers.base}/stolen"
    ended = transfers.job(transfers.ask("cp", path=f"/home/bob/{secret}", targetPath=target))
    assert "successfully" not in ended.output
    assert transfers.read(target) is None
    assert transfers.ask("download", path=f"/home/bob/{secret}", transferDirectives=S3).status_code in {201, 403, 404}


def test_quotes_in_a_path_reach_no_shell(transfers: Transfers) -> None:
    target = f"{transfers.base}/x'; touch '{transfers.base}/owned"
    source = transfers.write("a.txt", b"hello")
    transfers.job(transfers.ask("cp", path=source, targetPath=target))
    assert transfers.read(f"{transfers.base}/owned") is None


def upload(transfers: Transfers, name: str, content: bytes) -> dict[str, Any]:
    answer = transfers.ask(
        "upload", path=f"{transfers.base}/{name}", transferDirectives={**S3, "fileSize": len(content)}
    )
    assert answer.status_code == 201, answer.text
    directives = answer.json()["transferDirectives"]
    part = directives["maxPartSize"]

    def put(number: int) -> str:
        piece = content[number * part : (number + 1) * part]
        stored = httpx.put(directives["partsUploadUrls"][number], content=piece, timeout=60)
        assert stored.status_code == 200, stored.text
        return stored.headers["ETag"]

    with ThreadPoolExecutor(4) as pool:
        tags = list(pool.map(put, range(len(directives["partsUploadUrls"]))))
    parts = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{tag}</ETag></Part>" for n, tag in enumerate(tags, 1))
    body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>"
    assert httpx.post(directives["completeUploadUrl"], content=body, timeout=60).status_code == 200
    return answer


@pytest.mark.needs("curl")
def test_an_s3_upload_arrives_whole_and_an_s3_download_comes_back(any_transfers: Transfers) -> None:
    transfers = any_transfers
    content = os.urandom(1_000_000) * (SIZE // 1_000_000)
    digest = hashlib.sha256(content).hexdigest()
    begin = time.monotonic()
    arrived = transfers.job(upload(transfers, "big.bin", content))
    assert (arrived.name, arrived.partition, arrived.state) == ("IngressFileTransfer", "xfer", "COMPLETED")
    assert f"Received {SIZE} bytes" in arrived.output
    assert "File was successfully downloaded (size: " in arrived.output
    assert transfers.sha256(f"{transfers.base}/big.bin") == digest
    print(f"{SIZE / 1e6:.0f} MB up in {time.monotonic() - begin:.1f} s")
    begin = time.monotonic()
    answer = transfers.ask("download", path=f"{transfers.base}/big.bin", transferDirectives=S3)
    assert answer.json()["transferDirectives"].keys() == {"transferMethod", "downloadUrl"}
    sent = transfers.job(answer)
    assert (sent.name, sent.state) == ("OutgressFileTransfer", "COMPLETED")
    assert "Multipart file upload successfully completed" in sent.output
    back = hashlib.sha256()
    with httpx.stream("GET", answer.json()["transferDirectives"]["downloadUrl"], timeout=60) as stream:
        for chunk in stream.iter_bytes():
            back.update(chunk)
    assert back.hexdigest() == digest
    print(f"{SIZE / 1e6:.0f} MB down in {time.monotonic() - begin:.1f} s")


@pytest.mark.needs("curl")
def test_the_ingress_job_looks_once_and_then_only_every_few_seconds(transfers: Transfers) -> None:
    """Two seconds here, sixty on the real server."""
    answer = transfers.ask("upload", path=f"{transfers.base}/late", transferDirectives={**S3, "fileSize": 0})
    assert answer.status_code == 201
    assert answer.json()["transferDirectives"]["partsUploadUrls"] == []
    job = answer.json()["transferJob"]
    end = time.monotonic() + 30
    while "Waiting till file" not in (output := transfers.view(job["logs"]["outputLog"])):
        assert time.monotonic() < end, output
        time.sleep(0.1)
    time.sleep(3)
    row = transfers.row(job["jobId"])
    assert row is not None
    assert row["status"]["state"] in LIVE
    transfers.http.delete(f"/compute/{transfers.sandbox.system}/jobs/{job['jobId']}")


@pytest.mark.needs("curl")
def test_an_upload_onto_a_directory_fails_in_the_job(any_transfers: Transfers) -> None:
    transfers = any_transfers
    (directory,) = [f"{transfers.base}/d"]
    transfers.http.post(f"{transfers.ops}/mkdir", json={"path": directory}).raise_for_status()
    ended = transfers.job(upload(transfers, "d", b"x"))
    assert (ended.state, ended.exit_code) == ("FAILED", 3)
    assert "targetPath must point to a file path" in ended.error


@pytest.mark.needs("curl")
def test_an_empty_file_a_directory_and_a_name_with_a_space_cannot_be_downloaded(transfers: Transfers) -> None:
    transfers.sandbox.host_path(f"{transfers.base}/empty").touch()
    spaced = transfers.write("a b.txt", b"x")
    for path, code in ((f"{transfers.base}/empty", 70), (transfers.base, 34), (spaced, 34)):
        ended = transfers.job(transfers.ask("download", path=path, transferDirectives=S3))
        assert (ended.state, ended.exit_code) == ("FAILED", code), path


@pytest.mark.needs("curl")
def test_part_faults_reach_the_clusters_jobs_too(transfers: Transfers) -> None:
    """A corrupted egress part is stored as it is; a failing one is tried a second time, then given up."""
    source = transfers.write("a.bin", b"hello")
    transfers.sandbox.post("/s3-faults", {"part_corruption": 1})
    answer = transfers.ask("download", path=source, transferDirectives=S3)
    assert transfers.job(answer).state == "COMPLETED"
    assert httpx.get(answer.json()["transferDirectives"]["downloadUrl"]).content not in (b"hello", b"")
    transfers.sandbox.post("/s3-faults", {"part_failure": 1, "count": 1})
    answer = transfers.ask("download", path=source, transferDirectives=S3)
    assert transfers.job(answer).state == "COMPLETED"
    assert httpx.get(answer.json()["transferDirectives"]["downloadUrl"]).content == b"hello"
    transfers.sandbox.post("/s3-faults", {"part_failure": 1})
    failed = transfers.job(transfers.ask("download", path=source, transferDirectives=S3))
    assert (failed.state, failed.exit_code) == ("FAILED", 70)
    assert "error_curl part 1" in failed.error


def test_unknown_s3_faults_are_refused(sandbox: SandboxProcess) -> None:
    with pytest.raises(AssertionError, match="400"):
        sandbox.post("/s3-faults", {"part_failures": 1})


def test_where_an_account_is_required_jobs_run_under_it() -> None:
    with start_sandbox("--require-account", "--accounting-lag", "1") as sandbox:
        transfers = Transfers(sandbox)
        source = transfers.write("a.txt", b"hello")
        target = f"{transfers.base}/b.txt"
        refused = transfers.ask("cp", path=source, targetPath=target)
        assert (refused.status_code, refused.json()["message"]) == (
            400,
            "Account parameter is required on this system.",
        )
        ended = transfers.job(transfers.ask("cp", path=source, targetPath=target, account="proj1"))
        assert ended.row["account"] == "proj1"
        assert transfers.read(target) == b"hello"


@pytest.mark.parametrize("template", ["ingress", "egress"])
def test_a_machine_without_curl_is_named_in_the_log(template: str) -> None:
    values = {"head_url": "u", "download_url": "u", "part_size": 1, "look_seconds": 1, "target_path": "t"}
    values |= {"source_path": "s", "part_urls": [], "complete_url": "u", "scratch": "tmp/", "parallel": 3}
    script = render_script(template, directives="", **values)
    done = subprocess.run(["/bin/bash", "-c", script], env={"PATH": "/nonexistent"}, capture_output=True, text=True)
    assert done.returncode == 127
    assert "curl is not installed on this system" in done.stderr
