"""The raw limit: parallel curl on the same object store, and dd on the same disk."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.transfers import HOME, Row
from support.sandbox import SandboxProcess

CURLS = 4
"""Transfers that curl keeps in flight, as hpcbridge does."""
_CURL = ["curl", "--parallel", "--parallel-immediate", "--parallel-max", str(CURLS), "--no-progress-meter", "-K", "-"]


def _timed(command: list[str], work: Path, given: str = "") -> Row:
    """Wall and processor seconds of a program; `given` is its standard input."""
    begun = time.monotonic()
    process = subprocess.Popen(
        command, cwd=work, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stderr is not None
    with process.stdin, process.stderr:
        process.stdin.write(given)
        process.stdin.close()
        said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {said[-500:]}")
    return {"seconds": time.monotonic() - begun, "cpu": used.ru_utime + used.ru_stime}


def _config(transfers: list[str]) -> str:
    """What curl reads from its standard input: presigned URLs are no arguments."""
    return "\nnext\n".join(f'fail\nnoproxy = "*"\n{each}' for each in transfers)


def _ask(client: httpx.Client, sandbox: SandboxProcess, way: str, path: str, directives: dict[str, Any]) -> Any:
    body = {"path": path, "transferDirectives": {"transferMethod": "s3", **directives}}
    answer = client.post(f"/filesystem/{sandbox.system}/transfer/{way}", json=body)
    answer.raise_for_status()
    return answer.json()


def _end_job(client: httpx.Client, sandbox: SandboxProcess, job_id: str) -> None:
    client.delete(f"/compute/{sandbox.system}/jobs/{job_id}")


def _remove_logs(sandbox: SandboxProcess) -> None:
    for log in sandbox.host_path(HOME).glob(".f7t_file_handling_job_*"):
        log.unlink(missing_ok=True)


def curl_up(sandbox: SandboxProcess, local: Path, work: Path) -> Row:
    """The file's parts into the store, without what follows on the system."""
    size = local.stat().st_size
    with sandbox.client() as client:
        answer = _ask(client, sandbox, "upload", f"{HOME}/raw", {"fileSize": size})
        directives = answer["transferDirectives"]
        step, transfers = directives["maxPartSize"], []
        for index, url in enumerate(directives["partsUploadUrls"]):
            part = work / f"part-{index}"
            with local.open("rb") as source, part.open("wb") as target:
                os.sendfile(target.fileno(), source.fileno(), index * step, min(step, size - index * step))
            transfers.append(f'upload-file = "{part.name}"\nurl = "{url}"')
        try:
            return _timed(_CURL, work, _config(transfers))
        finally:
            for part in work.glob("part-*"):
                part.unlink()
            _end_job(client, sandbox, answer["transferJob"]["jobId"])
            _remove_logs(sandbox)


def curl_down(sandbox: SandboxProcess, remote: str, size: int, work: Path) -> Row:
    """Ranges of an object that is there already."""
    with sandbox.client() as client:
        url = _ask(client, sandbox, "download", remote, {})["transferDirectives"]["downloadUrl"]
    while httpx.get(url, headers={"Range": "bytes=0-0"}, trust_env=False).status_code != 206:
        time.sleep(0.1)
    time.sleep(0.5)
    spans = [(start, min(size, start + -(-size // CURLS)) - 1) for start in range(0, size, -(-size // CURLS))]
    transfers = [
        f'range = "{start}-{end}"\noutput = "curl-{index}"\nurl = "{url}"' for index, (start, end) in enumerate(spans)
    ]
    row = _timed(_CURL, work, _config(transfers))
    parts = list(work.glob("curl-*"))
    arrived = sum(part.stat().st_size for part in parts)
    for part in parts:
        part.unlink()
    _remove_logs(sandbox)
    if arrived != size:
        raise RuntimeError(f"curl fetched {arrived} of {size} bytes")
    return row


def tar(local: Path, work: Path, into: Path) -> Row:
    """What it takes to make the same files again on the same disk."""
    archive = work / "tree.tar"
    _timed(["tar", "-C", str(local), "-cf", str(archive), "."], work)
    into.mkdir()
    row = _timed(["tar", "-C", str(into), "-xf", str(archive)], work)
    archive.unlink()
    return row


def dd(local: Path, work: Path) -> Row:
    """A copy on the same disk, through the page cache as transfers go."""
    row = _timed(["dd", f"if={local}", "of=dd", "bs=4M", "status=none"], work)
    (work / "dd").unlink()
    return row
