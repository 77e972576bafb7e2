"""What the cluster sees: the one list of mounts from which both kinds of isolation build their file tree.

Only software comes from the machine (read-only, without set-uid rights): ``/usr``, ``/opt``, ``/etc``, ``/sys`` and the
links to them. ``/home``, ``/scratch``, ``/tmp``, ``/run`` and ``/var`` are the cluster's own. Nothing else exists, so
neither the checkout nor the client's home nor its temporary directory can be reached, unless ``--expose`` shows it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hpcbridge_sandbox.cluster.users import User
from hpcbridge_sandbox.settings import Exposed

SOFTWARE = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "nix", "sys")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
VAR = "/var/lib/cluster"
"""Where the cluster's daemons keep their files (kept with the state); only where they can run, so as root."""
SPOOL = "/var/spool/slurmd"
"""One directory per user for the scripts of running jobs; unprivileged, each user sees only the own one."""


@dataclass(frozen=True)
class Entry:
    """One entry of the tree; ``mode`` and what is ``read_only`` are set after everything is in place."""

    kind: Literal["bind", "tmpfs", "symlink", "dir", "proc"]
    target: str
    source: str = ""
    read_only: bool = False
    mode: int | None = None

    def message(self) -> dict[str, Any]:
        """Return the entry as the keeper reads it."""
        return asdict(self)


def host_secrets() -> list[Path]:
    """Directories of the client that must not be seen even where they lie inside the software."""
    checkout = Path(__file__).resolve().parents[3]
    found = [Path.home(), Path(tempfile.gettempdir())]
    if (checkout / "pyproject.toml").exists():
        found.append(checkout)
    return [path.resolve() for path in found]


def _software(owned: int, closed: bool) -> Iterable[Entry]:
    for name in SOFTWARE:
        path = Path("/", name)
        if path.is_symlink():
            yield Entry("symlink", f"/{name}", str(path.readlink()))
        elif path.is_dir():
            yield Entry("bind", f"/{name}", f"/{name}", read_only=True)
    yield Entry("tmpfs", "/opt", mode=owned, read_only=closed)
    opt = Path("/opt")
    for child in sorted(opt.iterdir()) if opt.is_dir() else ():
        if child.is_dir() and not child.is_symlink():
            yield Entry("bind", str(child), str(child), read_only=True)


def _devices(owned: int, closed: bool) -> Iterable[Entry]:
    yield Entry("tmpfs", "/dev", mode=owned, read_only=closed)
    for name in DEVICES:
        yield Entry("bind", f"/dev/{name}", f"/dev/{name}")
    yield Entry("tmpfs", "/dev/shm", mode=0o1777)  # noqa: S108 (the cluster's own)
    yield Entry("symlink", "/dev/fd", "/proc/self/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        yield Entry("symlink", f"/dev/{name}", f"/proc/self/fd/{number}")


def tree(
    state: Path, users: Sequence[User], everyone: Iterable[User], expose: Iterable[Exposed], *, closed: bool
) -> list[Entry]:
    """Return the cluster's tree for ``users``.

    Args:
        state: the cluster's directory in the sandbox's state (homes, scratch, var, etc).
        users: whose homes are shown: all of them (real uids), or only one (unprivileged).
        everyone: all users; a home that is not shown exists as an empty directory that cannot be entered.
        expose: the machine's directories that the user asked to show.
        closed: the tree belongs to its only user, who could change every mode in it, so what root owns elsewhere is
            read-only: also the other users' empty homes.
    """
    owned = 0o555 if closed else 0o755
    entries = [*_software(owned, closed), *_devices(owned, closed), Entry("proc", "/proc")]
    entries += [Entry("tmpfs", path, mode=0o1777) for path in ("/tmp", "/var/tmp")]  # noqa: S108
    entries += [Entry("dir", path, mode=owned) for path in ("/run", "/var/log", "/var/spool", "/mnt", "/root")]
    entries.append(Entry("symlink", "/var/run", "/run"))
    if not closed:
        entries.append(Entry("bind", VAR, str(state / "var")))
    entries += [
        Entry("bind", f"/etc/{name}", str(state / "etc" / name), read_only=True) for name in ("passwd", "group")
    ]
    shown = {user.name for user in users}
    entries += [Entry("bind", f"{SPOOL}/{name}", str(state / "spool" / name)) for name in sorted(shown)]
    for user in everyone:
        for directory in (user.home, user.scratch):
            if user.name in shown:
                entries.append(Entry("bind", directory, str(state / directory[1:])))
            else:
                entries.append(Entry("dir", directory, mode=0o000))
    entries += [Entry("dir", path, mode=owned) for path in ("/home", "/scratch", "/var", "/var/lib")]
    for path in host_secrets():
        inside_software = any(path.is_relative_to(f"/{name}") for name in (*SOFTWARE, "opt"))
        if inside_software and path.is_dir() and not Path("/").samefile(path):
            entries.append(Entry("tmpfs", str(path), mode=0o755, read_only=closed))
    for shown_directory in expose:
        source, target = str(shown_directory.host), os.path.normpath(shown_directory.target)
        entries.append(Entry("bind", target, source, read_only=shown_directory.read_only))
    entries.append(Entry("dir", "/", mode=owned, read_only=closed))
    return entries
