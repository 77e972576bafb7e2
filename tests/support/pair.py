"""A local tree and one in a sandbox, and what syncs between them cost."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import hpcbridge
from hpcbridge.staging.trees.results import TreeResult
from hpcbridge.staging.trees.sync_down import sync_down
from hpcbridge.staging.trees.sync_up import sync_up
from support.node import seen
from support.sandbox import SandboxProcess
from support.staging import clear_leftovers

REMOTE = "/home/alice/tree"


class Pair:
    """A local tree and a remote one, and what syncs between them cost."""

    def __init__(self, sandbox: SandboxProcess, local: Path, remote: str = REMOTE) -> None:
        self.sandbox, self.local, self.remote = sandbox, local, remote
        self.there = sandbox.host_path(remote)
        self.calls: Counter[str] = Counter()

    def fill(self, root: Path, files: int) -> None:
        """Random files of 1 kB, a hundred to a directory, and some that are not plain."""
        root.mkdir()
        for number in range(files):
            path = root / f"d{number // 100}" / f"f {number}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(os.urandom(1000))
        (root / "-").write_text("dash")
        (root / "new\nline").write_text("x")
        (root / "empty").mkdir(mode=0o700)
        (root / "link").symlink_to("d0//nowhere")
        self.give(root)

    def give(self, root: Path) -> None:
        """What a test, as root, has made over there belongs to the user."""
        if root.is_relative_to(self.there) and root.exists():
            found = self.there.parent.stat()
            for path in (root, *root.rglob("*")):
                os.chown(path, found.st_uid, found.st_gid, follow_symlinks=False)

    def equal(self) -> bool:
        return seen(self.local) == seen(self.there)

    async def up(self, system: hpcbridge.System, **options: object) -> TreeResult:
        self.sandbox.delete("/requests")
        result = await sync_up(system, self.local, self.remote, **options)  # type: ignore[arg-type]
        self._count()
        return result

    async def down(self, system: hpcbridge.System, **options: object) -> TreeResult:
        self.sandbox.delete("/requests")
        result = await sync_down(system, self.remote, self.local, **options)  # type: ignore[arg-type]
        self._count()
        return result

    def _count(self) -> None:
        """Calls apart from polls of the queue, and of the answer until it is there."""
        self.calls = Counter(self.sandbox.get("/requests")["counts"])
        for polling in ("GET /compute/{}/jobs", "GET /compute/{}/jobs/{}", "GET /status/systems"):
            self.calls.pop(polling, None)
        looks = self.calls["GET /filesystem/{}/ops/download"]
        self.calls["GET /filesystem/{}/ops/download"] = min(looks, self.calls["POST /compute/{}/jobs"])

    @property
    def state(self) -> Path:
        """The one state directory."""
        (found,) = self.there.parent.glob(".hpcbridge-sync-*")
        return found


def wiped(sandbox: SandboxProcess) -> SandboxProcess:
    clear_leftovers(sandbox)
    shutil.rmtree(sandbox.host_path(REMOTE), ignore_errors=True)
    return sandbox
