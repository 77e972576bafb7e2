"""How the cluster is kept apart from the machine, and which keeper serves which user.

- as root: one keeper in a mount and pid namespace of its own, real uids, set per process;
- else: one keeper per user in a user namespace that maps only that user, made by bubblewrap or, where that is missing,
  by util-linux ``unshare``.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from hpcbridge_sandbox.cluster import keeper, users, view
from hpcbridge_sandbox.cluster.link import Link
from hpcbridge_sandbox.cluster.users import User
from hpcbridge_sandbox.settings import Settings
from hpcbridge_sandbox.streamer.software import interpreter, software

KEEPER = Path(keeper.__file__)
INSIDE_PYTHON = "/run/hpcbridge/python"
INSIDE_KEEPER = "/run/hpcbridge/keeper.py"


class Isolation:
    """The file trees, the namespaces and the keepers of one cluster."""

    def __init__(self, settings: Settings, state: Path, everyone: Mapping[str, User]) -> None:
        self._state, self._users, self._expose = state, everyone, settings.expose
        self._has_streamer = settings.transfer == "streamer"
        self.is_root = os.geteuid() == 0
        self.kind = self._choose(settings.isolation)
        self._links: dict[str | None, Link] = {}

    def _choose(self, wanted: str) -> str:
        if wanted == "auto":
            wanted = "namespace" if self.is_root or not shutil.which("bwrap") else "bwrap"
        if wanted == "bwrap" and self.is_root:
            raise RuntimeError("--isolation bwrap is for unprivileged users; as root the cluster has real uids")
        tool = "bwrap" if wanted == "bwrap" else "unshare"
        if not shutil.which(tool):
            raise RuntimeError(f"--isolation {wanted} needs the program {tool} (packages bubblewrap, util-linux)")
        return wanted

    def link(self, user: User | None) -> Link:
        """Return the keeper that starts processes of ``user`` (None: root)."""
        return self._links[None if self.is_root or user is None else user.name]

    async def start(self) -> None:
        """Make directories and start the keepers; raises `RuntimeError` where namespaces are not to be had."""
        reason = await asyncio.to_thread(unsupported)
        if reason is not None:
            raise RuntimeError(f"the cluster cannot be isolated: {reason}")
        self._make_directories()
        if self._has_streamer:
            self._expose = (*self._expose, *await asyncio.to_thread(software, self._state))
        everyone = list(self._users.values())
        if self.is_root:
            await self._start_namespace(None, everyone)
            return
        for user in everyone:
            if self.kind == "bwrap":
                await self._start_bwrap(user)
            else:
                await self._start_namespace(user, [user])

    async def stop(self) -> None:
        """End the keepers."""
        for link in self._links.values():
            await link.stop()
        self._links.clear()

    def _make_directories(self) -> None:
        for name in ("etc", "var", "home", "scratch", "root", "spool"):
            (self._state / name).mkdir(parents=True, exist_ok=True)
        (self._state / "etc" / "passwd").write_text(users.passwd(self._users))
        (self._state / "etc" / "group").write_text(users.group(self._users))
        for user in self._users.values():
            (self._state / "spool" / user.name).mkdir(exist_ok=True)
            for directory in (user.home, user.scratch):
                path = self._state / directory.lstrip("/")
                path.mkdir(mode=0o700, exist_ok=True)
                if self.is_root:
                    os.chown(path, user.uid, user.gid)

    async def _start_namespace(self, user: User | None, shown: list[User]) -> None:
        entries = view.tree(self._state, shown, self._users.values(), self._expose, closed=user is not None)
        command = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=SIGKILL"]
        if user is not None:
            command[1:1] = ["--user", f"--map-user={user.uid}", f"--map-group={user.gid}", "--keep-caps"]
        setup = {
            "root": str(self._state / "root"),
            "entries": [entry.message() for entry in entries],
            "drop_capabilities": user is not None,
        }
        link = self._links[user.name if user else None] = Link()
        await link.start([*command, sys.executable, "-I", "-S", str(KEEPER)], setup)

    async def _start_bwrap(self, user: User) -> None:
        entries = view.tree(self._state, [user], self._users.values(), self._expose, closed=True)
        link = self._links[user.name] = Link()
        await link.start(bwrap_command(user, entries), {"entries": None})


def bwrap_command(user: User, entries: list[view.Entry]) -> list[str]:
    """Return bubblewrap's arguments for the tree ``entries``, up to the keeper's own."""
    command = ["bwrap", "--unshare-user", "--unshare-pid", "--die-with-parent", "--new-session"]
    command += ["--uid", str(user.uid), "--gid", str(user.gid)]
    modes: list[str] = []
    sealed: list[str] = []
    for entry in entries:
        match entry.kind:
            case "bind" if entry.target.startswith("/dev/"):
                command += ["--dev-bind", entry.source, entry.target]
            case "bind":
                command += ["--ro-bind" if entry.read_only else "--bind", entry.source, entry.target]
            case "symlink":
                command += ["--symlink", entry.source, entry.target]
            case "dir" if entry.target == "/":
                pass
            case _:
                command += [f"--{entry.kind}", entry.target]
        if entry.mode is not None:
            modes += ["--chmod", f"{entry.mode:04o}", entry.target]
        if entry.read_only and entry.kind != "bind":
            sealed += ["--remount-ro", entry.target]
    python, shown = interpreter(INSIDE_PYTHON)
    extra = ["--ro-bind", str(shown.host), shown.target] if shown else []
    command += [*extra, "--ro-bind", str(KEEPER), INSIDE_KEEPER, *modes, *sealed]
    return [*command, python, "-I", "-S", INSIDE_KEEPER]


def unsupported() -> str | None:
    """Return why no cluster can be isolated here, or None when it can."""
    if os.geteuid() == 0:
        return None if shutil.which("unshare") else "the program unshare (package util-linux) is missing"
    probe = ["bwrap", "--ro-bind", "/", "/"] if shutil.which("bwrap") else ["unshare", "--user", "--map-root-user"]
    done = subprocess.run([*probe, "true"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    ways = "run the sandbox as root, or let the administrator allow them (docs/sandbox.md)"
    if probe[0] == "unshare":
        ways = f"install the package bubblewrap, which may be allowed them, {ways}"
    return f"user namespaces are not allowed here ({done.stderr.strip()}); {ways}"
