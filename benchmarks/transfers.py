"""What measuring transfers needs: files to move, one transfer in its own process, and what it cost the site."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from support.sandbox import SandboxProcess

HOME = "/home/alice"
ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]


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


def run_worker(sandbox: SandboxProcess, state: Path, *arguments: str) -> Row:
    """One transfer in its own process: what it says of itself, and the requests and commands it cost the site.

    `calls` are requests to the REST interface without those for a token, `commands` those on the login node.
    """
    env = {**os.environ, **sandbox.client_env(), "XDG_STATE_HOME": str(state), "XDG_CACHE_HOME": str(state / "cache")}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.worker", *arguments]
    sandbox.delete("/requests")
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    cost = sandbox.get("/requests")
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    facts: Row = json.loads(done.stdout.splitlines()[-1])
    counts = {path: count for path, count in cost["counts"].items() if "/auth" not in path}
    return {**facts, "calls": sum(counts.values()), "counts": counts, "commands": cost["commands"]}


def besides_polling(row: Row) -> int:
    """Requests but for `/status/systems` and polling, of which the reading of each job's answer counts."""
    answers = row["counts"].get("POST /compute/{}/jobs", 0)
    return int(row["calls"] - row["counts"].get("GET /status/systems", 0) - row["polling"] + answers)


def remove(path: Path) -> None:
    """Remove a file or directory."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def mid(rows: list[Row], what: str) -> float:
    """The median of one figure."""
    return float(median(row[what] for row in rows))


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
