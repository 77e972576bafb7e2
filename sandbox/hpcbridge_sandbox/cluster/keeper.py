"""The first process inside the cluster's namespaces: it builds the file tree and starts every other process.

It runs as a plain file (``python -I -S keeper.py FD``) with nothing but the standard library, because the checkout and
its environment are out of sight once the tree stands. The server talks to it over the SOCK_SEQPACKET socket FD in JSON:

    -> {"op": "spawn", "id": n, "argv": […], "cwd": …, "env": {…}, "ids": [uid, gid, [groups]] | null,
        "files": {"1": [path, flags]}, "offline": bool}      with the descriptors of stdin, stdout and stderr
    <- {"id": n, "pid": p}   then, when it has ended,   {"id": n, "status": wait status}
    -> {"op": "signal", "id": n, "signal": s, "group": bool}

A message above 64 KiB travels in a memfd that is passed as the last descriptor. When the server goes, however it goes,
the socket reports its end, this process exits, and the kernel ends everything else in the pid namespace.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import ctypes.util
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE, MS_RELATIME = (
    1024, 2048, 4096, 8192, 16384, 1 << 18, 1 << 21,
)  # fmt: skip
MNT_DETACH = 2
CLONE_NEWNET = 0x40000000
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
CAPABILITY_VERSION_3 = 0x20080522
LARGEST_PACKET = 256 * 1024

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """Raise OSError with the C library's errno when a call failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mount a file system, or change a mount, as the system call does."""
    arguments = [None if x is None else os.fsencode(x) for x in (source, target, kind, data)]
    check(
        libc.mount(arguments[0], arguments[1], arguments[2], ctypes.c_ulong(flags), arguments[3]),
        f"mount {kind or source} on {target}",
    )


def make_directory(path: str | Path) -> None:
    """Create the directory ``path`` and those above it, world-readable."""
    Path(path).mkdir(mode=0o755, parents=True, exist_ok=True)


def bind(source: str, target: str, read_only: bool) -> None:
    """Show ``source`` (a directory, file or device) at ``target``; never with set-uid rights."""
    if Path(source).is_dir():
        make_directory(target)
    else:
        make_directory(Path(target).parent)
        if not os.path.lexists(target):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(source, target, None, MS_BIND | MS_REC)
    # A user namespace may not drop the flags that the mount already carries.
    present = os.statvfs(target).f_flag
    keep = 0
    for flag, native in ((os.ST_NODEV, MS_NODEV), (os.ST_NOEXEC, MS_NOEXEC), (os.ST_RDONLY, MS_RDONLY),
                         (os.ST_NOATIME, MS_NOATIME), (os.ST_NODIRATIME, MS_NODIRATIME),
                         (os.ST_RELATIME, MS_RELATIME)):  # fmt: skip
        if present & flag:
            keep |= native
    keep |= MS_RDONLY if read_only else 0
    mount(None, target, None, MS_BIND | MS_REMOUNT | MS_NOSUID | keep)


def build(root: str, entries: list[dict[str, Any]]) -> None:
    """Build the cluster's file tree on a fresh tmpfs at ``root`` and make it this process's root."""
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID, "mode=0755")
    modes = []
    sealed = []
    for entry in entries:
        kind, target = entry["kind"], root + entry["target"]
        if kind == "bind":
            bind(entry["source"], target, entry["read_only"])
        elif kind == "tmpfs":
            make_directory(target)
            mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV)
        elif kind == "symlink":
            make_directory(Path(target).parent)
            Path(target).symlink_to(entry["source"])
        elif kind == "dir":
            make_directory(target)
        elif kind == "proc":
            make_directory(target)
            mount("proc", target, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        if entry.get("mode") is not None:
            modes.append((target, entry["mode"]))
        if entry["read_only"] and kind != "bind":
            sealed.append(target)
    for target, mode in modes:
        Path(target).chmod(mode)
    for target in sealed:  # each is a mount; what is mounted below keeps its own flags
        mount(None, target, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID)
    os.chdir(root)
    check(libc.pivot_root(b".", b"."), "pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "umount the machine's root")
    os.chdir("/")


def drop_capabilities() -> None:
    """Give up every capability that the user namespace granted for the mounts."""
    check(libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "clear ambient capabilities")
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    check(libc.capset(header, data), "capset")


def child(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Become the requested program; runs after fork and never returns."""
    code = 126
    try:
        os.setsid()
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        for target, source in enumerate(descriptors):
            os.dup2(source, target, inheritable=True)
        os.closerange(3, 4096)
        os.umask(0o022)
        if request.get("offline"):
            check(libc.unshare(CLONE_NEWNET), "a network namespace")
        if request["ids"] is not None:
            uid, gid, groups = request["ids"]
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
            check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        os.chdir(request["cwd"])
        for target, (path, flags) in request.get("files", {}).items():
            opened = os.open(path, flags, 0o644)
            os.dup2(opened, int(target), inheritable=True)
            if opened > 2:
                os.close(opened)
        code = 127
        os.execvpe(request["argv"][0], request["argv"], request["env"])  # noqa: S606 (that is what it is for)
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else request["argv"][0]
        os.write(2, f"{name}: {os.strerror(error.errno or 0)}\n".encode(errors="replace"))
    finally:
        os._exit(code)


class Keeper:
    """The loop: requests from the socket, ends of children from SIGCHLD."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.ids: dict[int, int] = {}
        self.pids: dict[int, int] = {}
        self.wakeup, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # only the server decides when the cluster ends

    def receive(self) -> tuple[dict[str, Any] | None, list[int]]:
        """Return the next request and its descriptors, or None at the end of the server."""
        size = array.array("i").itemsize
        data, ancillary, _, _ = self.control.recvmsg(LARGEST_PACKET, socket.CMSG_SPACE(4 * size))
        passed = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                passed.frombytes(payload[: len(payload) - len(payload) % size])
        descriptors = passed.tolist()
        if not data:
            return None, descriptors
        if data == b"memfd":
            with os.fdopen(descriptors.pop(), "rb") as large:
                large.seek(0)
                data = large.read()
        request: dict[str, Any] = json.loads(data)
        return request, descriptors

    def answer(self, message: dict[str, Any]) -> None:
        """Send one message to the server."""
        self.control.sendmsg([json.dumps(message).encode()])

    def spawn(self, request: dict[str, Any], descriptors: list[int]) -> None:
        """Fork; the child becomes the program."""
        pid = os.fork()
        if pid == 0:
            child(request, descriptors)
        self.ids[pid] = request["id"]
        self.pids[request["id"]] = pid
        self.answer({"id": request["id"], "pid": pid})

    def signal(self, request: dict[str, Any]) -> None:
        """Signal one started process, or the whole group that it leads."""
        pid = self.pids.get(request["id"])
        if pid is None and not request["group"]:
            return
        # It may have ended in the meantime, or the rest of its group may belong to somebody else by now.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            (os.killpg if request["group"] else os.kill)(pid or request["pid"], request["signal"])

    def reap(self) -> None:
        """Collect every ended child, own or inherited, and report the own ones."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            request_id = self.ids.pop(pid, None)
            if request_id is not None:
                self.pids.pop(request_id, None)
                self.answer({"id": request_id, "status": status})

    def run(self) -> None:
        """Serve until the server's end of the socket is closed."""
        poller = select.poll()
        poller.register(self.control, select.POLLIN)
        poller.register(self.wakeup, select.POLLIN)
        while True:
            for descriptor, _ in poller.poll():
                if descriptor == self.wakeup:
                    os.read(self.wakeup, 4096)
                    self.reap()
                    continue
                request, descriptors = self.receive()
                if request is None:
                    return
                try:
                    if request["op"] == "spawn":
                        self.spawn(request, descriptors)
                    elif request["op"] == "signal":
                        self.signal(request)
                finally:
                    for number in descriptors:
                        os.close(number)


def main() -> None:
    """Read the first message (how to set up), set up, report, and serve."""
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    keeper = Keeper(control)
    setup, _ = keeper.receive()
    assert setup is not None, "the server went before it said anything"
    try:
        if setup.get("entries") is not None:
            build(setup["root"], setup["entries"])
        if setup.get("drop_capabilities"):
            drop_capabilities()
    except OSError as error:
        keeper.answer({"ready": False, "error": str(error)})
        return
    keeper.answer({"ready": True, "uid": os.getuid()})
    keeper.run()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server has gone, and so does the cluster
        main()
