"""Cluster users, and the ``passwd`` and ``group`` files that name them inside the cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hpcbridge_sandbox.settings import FIRST_UID, USERS_GID, Settings
from hpcbridge_sandbox.store import Store

CLUSTER_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/games"
"""Where the commands of cluster users look for programs."""
DAEMONS = ("munge", "slurm", "mysql")
"""Service accounts that a real Slurm needs; copied from the machine when it has them."""


@dataclass(frozen=True)
class User:
    """A user of the cluster. Paths are paths inside the cluster."""

    name: str
    uid: int
    gid: int
    home: str
    account: str
    groups: tuple[int, ...] = ()
    shell: str = "/bin/bash"

    @property
    def scratch(self) -> str:
        """The user's directory on the scratch file system."""
        return f"/scratch/{self.name}"

    def environment(self) -> dict[str, str]:
        """The environment of an SSH session: a C locale and Debian's default PATH, as recorded."""
        return {
            "HOME": self.home,
            "LOGNAME": self.name,
            "PATH": CLUSTER_PATH,
            "SHELL": self.shell,
            "USER": self.name,
        }


def make_users(settings: Settings, store: Store) -> dict[str, User]:
    """Give every configured user a home and a uid, from 2001 up; a uid once given is kept in ``store``."""
    uids: dict[str, int] = store.get("uids", {})
    for entry in settings.users:
        uids.setdefault(entry.name, max(uids.values(), default=FIRST_UID - 1) + 1)
    store.put("uids", uids)
    return {
        entry.name: User(entry.name, uids[entry.name], USERS_GID, f"/home/{entry.name}", settings.account)
        for entry in settings.users
    }


def _machine_lines(path: str, keep: Iterable[str]) -> list[str]:
    wanted = set(keep)
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.split(":", 1)[0] in wanted]


def passwd(users: Mapping[str, User]) -> str:
    """Return the text of ``/etc/passwd`` inside the cluster."""
    lines = _machine_lines("/etc/passwd", ("root", "daemon", "nobody", *DAEMONS))
    lines += [f"{user.name}:x:{user.uid}:{user.gid}::{user.home}:{user.shell}" for user in users.values()]
    return "\n".join(lines) + "\n"


def group(users: Mapping[str, User]) -> str:
    """Return the text of ``/etc/group`` inside the cluster."""
    lines = _machine_lines("/etc/group", ("root", "daemon", "nogroup", *DAEMONS))
    lines.append(f"users:x:{USERS_GID}:{','.join(users)}")
    return "\n".join(lines) + "\n"
