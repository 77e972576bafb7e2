"""Up and down, beside pyfirecrest and beside parallel curl, and the memory that large files take."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from support.sandbox import SandboxProcess

HOME = "/home/alice"
CURLS = 4
ROOT = Path(__file__).resolve().parent.parent


def random_file(path: Path, size: int) -> Path:
    """`size` random bytes."""
    with path.open("wb") as file:
        for offset in range(0, size, 1 << 20):
            file.write(os.urandom(min(1 << 20, size - offset)))
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_worker(sandbox: SandboxProcess, state: Path, *arguments: str) -> dict[str, Any]:
    """One transfer in its own process."""
    env = {**os.environ, **sandbox.client_env(), "XDG_STATE_HOME": str(state)}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.worker", *arguments]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


class JobEnd:
    """When the server's egress job has done its work, seen where the cluster's files are on this machine."""

    WORDS = "successfully completed"

    def __init__(self, sandbox: SandboxProcess) -> None:
        self._home = sandbox.host_path(HOME)
        self._known = set(self._logs())
        self._over = threading.Event()
        self.time: float | None = None
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _logs(self) -> Iterator[Path]:
        return self._home.glob(".f7t_file_handling_job_[0-9a-f]*.log")

    def _look(self) -> None:
        while not self._over.wait(0.004):
            for path in set(self._logs()) - self._known:
                try:
                    if self.WORDS in path.read_text(errors="replace"):
                        self.time = path.stat().st_mtime
                        return
                except FileNotFoundError:
                    continue

    @contextmanager
    def watching(self) -> Iterator[JobEnd]:
        """Look while the block runs."""
        self._thread.start()
        try:
            yield self
        finally:
            self._over.set()
            self._thread.join()


def upload_rows(sandbox: SandboxProcess, local: Path, work: Path, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Both clients in turn, `repeats` times each; what arrived is compared."""
    rows: dict[str, list[dict[str, Any]]] = {"hpcbridge": [], "pyfirecrest": []}
    digest = sha256(local)
    for repeat in range(repeats):
        for client in rows:
            remote = f"{HOME}/up-{client}-{repeat}"
            row = run_worker(sandbox, work, client, "up", str(local), remote)
            row["intact"] = sha256(sandbox.host_path(remote)) == digest
            sandbox.host_path(remote).unlink()
            rows[client].append(row)
    return rows


def download_rows(sandbox: SandboxProcess, local: Path, work: Path, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Both clients in turn, and parallel curl on the same object, `repeats` times each."""
    rows: dict[str, list[dict[str, Any]]] = {"hpcbridge": [], "pyfirecrest": [], "curl": []}
    digest, remote, out = sha256(local), f"{HOME}/down", work / "out"
    run_worker(sandbox, work, "hpcbridge", "up", str(local), remote)
    for _ in range(repeats):
        for client in ("hpcbridge", "pyfirecrest"):
            with JobEnd(sandbox).watching() as job:
                row = run_worker(sandbox, work, client, "down", str(out), remote)
            row["intact"] = sha256(out) == digest
            out.unlink()
            if job.time is None:
                raise RuntimeError(f"the end of the server's job was not seen ({client})")
            row["after_job"] = row.get("phases", {}).get("verifying", row["ended"]) - job.time
            rows[client].append(row)
        rows["curl"].append({"seconds": curl(sandbox, remote, local.stat().st_size, work)})
    sandbox.host_path(remote).unlink()
    return rows


def curl(sandbox: SandboxProcess, remote: str, size: int, work: Path) -> float:
    """Seconds that parallel curl takes for an object that is already there."""
    with sandbox.client() as client:
        body = {"path": remote, "transferDirectives": {"transferMethod": "s3"}}
        answer = client.post(f"/filesystem/{sandbox.system}/transfer/download", json=body)
        answer.raise_for_status()
        url = answer.json()["transferDirectives"]["downloadUrl"]
    while httpx.get(url, headers={"Range": "bytes=0-0"}).status_code != 206:
        time.sleep(0.1)
    time.sleep(0.5)
    step = -(-size // CURLS)
    command = ["curl", "--parallel", "--parallel-immediate", "--silent", "--show-error", "--fail", "--noproxy", "*"]
    for part in range(CURLS):
        span = f"{part * step}-{min(size, (part + 1) * step) - 1}"
        command += [
            *(["--next", "--silent", "--fail"] if part else []),
            "-r",
            span,
            "-o",
            str(work / f"curl-{part}"),
            url,
        ]
    begun = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.monotonic() - begun
    arrived = sum((work / f"curl-{part}").stat().st_size for part in range(CURLS))
    if arrived != size:
        raise RuntimeError(f"curl fetched {arrived} of {size} bytes")
    return seconds


def memory_rows(sandbox: SandboxProcess, work: Path, size: int) -> list[dict[str, Any]]:
    """A file of `size` bytes by every route; peak memory of the process."""
    local, out, remote = random_file(work / "large", size), work / "large-out", f"{HOME}/large"
    digest, rows = sha256(local), []
    for direction, route in (("up", "chunked"), ("up", "s3"), ("down", "s3"), ("down", "chunked")):
        if direction == "up":
            row = run_worker(sandbox, work, "hpcbridge", "up", str(local), remote, route)
            row["intact"] = sha256(sandbox.host_path(remote)) == digest
        else:
            row = run_worker(sandbox, work, "hpcbridge", "down", str(out), remote, route)
            row["intact"] = sha256(out) == digest
            out.unlink()
        rows.append({"direction": direction, **row})
    sandbox.host_path(remote).unlink()
    local.unlink()
    return rows


def mid(rows: list[dict[str, Any]], what: str) -> float:
    """The median of one figure."""
    return float(median(row[what] for row in rows))
