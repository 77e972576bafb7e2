"""Run commands and processes as cluster users."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hpcbridge_sandbox.cluster.isolation import Isolation
from hpcbridge_sandbox.cluster.link import Link
from hpcbridge_sandbox.cluster.pipes import PIPE_SIZE, Collector, Feeder
from hpcbridge_sandbox.cluster.users import User, make_users
from hpcbridge_sandbox.cluster.view import SPOOL, VAR
from hpcbridge_sandbox.errors import CommandTimeout, OutputLimit, SSHError
from hpcbridge_sandbox.settings import COMMAND_OUTPUT_LIMIT, Settings
from hpcbridge_sandbox.store import Store

PIPE: Final = asyncio.subprocess.PIPE
STDOUT: Final = asyncio.subprocess.STDOUT
ROOT_ENVIRONMENT = {"HOME": "/root", "USER": "root", "LOGNAME": "root", "LC_ALL": "C",
                    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}  # fmt: skip
Output = int | str | None
"""A descriptor, `PIPE`, `STDOUT`, a path that the user opens for writing inside the cluster, or nothing."""


@dataclass(frozen=True)
class CommandResult:
    """What a command left: exit status (negative: killed by that signal) and output."""

    returncode: int
    stdout: bytes
    stderr: bytes


class ClusterProcess:
    """A started process and the group that it leads; looks like `asyncio.subprocess.Process`."""

    def __init__(self, link: Link, number: int, pid: int, ended: asyncio.Future[int]) -> None:
        self._link, self._number, self._ended = link, number, ended
        self.pid = pid
        """Process id inside the cluster's pid namespace; it means nothing outside."""
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None

    @property
    def returncode(self) -> int | None:
        """Exit code, negative signal number, or None while it runs."""
        return self._ended.result() if self._ended.done() and not self._ended.exception() else None

    async def wait(self) -> int:
        """Wait for the end; raises `KeeperGone` when the whole cluster ends first."""
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        """Signal the process itself."""
        self._link.signal(self._number, self.pid, number, group=False)

    def signal_group(self, number: int) -> None:
        """Signal every process of the group, also after the leader has ended."""
        self._link.signal(self._number, self.pid, number, group=True)

    def terminate(self) -> None:
        """Send SIGTERM to the group."""
        self.signal_group(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the group."""
        self.signal_group(signal.SIGKILL)


class Cluster:
    """The users, their file trees, and the keepers that start processes for them.

    Attributes:
        users: every cluster user by name.
        commands: how many commands (`run`) were started since the last reset.
        is_root: True when the cluster has real uids (`spawn_root` works); False under a user namespace per user.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings = settings
        self.users: Mapping[str, User] = make_users(settings, store)
        self.state = settings.state / "cluster"
        self.commands = 0
        self._sessions: Counter[str] = Counter()
        self.max_sessions = settings.max_sessions
        self._isolation = Isolation(settings, self.state, self.users)
        self.is_root = self._isolation.is_root

    async def start(self) -> None:
        """Make homes and the file trees, and start the keepers."""
        await self._isolation.start()

    async def stop(self) -> None:
        """End every process of the cluster."""
        await self._isolation.stop()

    def host_path(self, cluster_path: str) -> Path:
        """Return where the server finds ``/home/…``, ``/scratch/…``, ``/var/lib/cluster/…`` or the spool.

        For tests and set-up only: it follows symbolic links on this machine, so never give it a user's path.
        """
        if cluster_path == VAR or cluster_path.startswith(f"{VAR}/"):
            return self.state / "var" / cluster_path[len(VAR) + 1 :]
        if cluster_path.startswith(f"{SPOOL}/"):
            return self.state / "spool" / cluster_path[len(SPOOL) + 1 :]
        return self.state / cluster_path.lstrip("/")

    async def run(
        self,
        user: User,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        hold_stdin: bool = False,
    ) -> CommandResult:
        """Run one "SSH command" as ``user`` and return what it wrote.

        Args:
            user: who runs it.
            argv: program and arguments; no shell is involved.
            input: bytes for its standard input; without them it reads an empty one.
            timeout: seconds; default ``settings.command_timeout``.
            cwd: working directory inside the cluster; default the user's home.
            env: added to the user's environment.
            hold_stdin: leave standard input open without data, as the real server does when there is nothing to send.

        Raises:
            SSHError: the user already has ``max_sessions`` commands running.
            CommandTimeout: it ran too long and was killed.
            OutputLimit: it wrote 5 MiB or more.
        """
        with self.session(user):
            limit = self.settings.command_timeout if timeout is None else timeout
            return await self._run(user, argv, input, limit, cwd, env, hold_stdin)

    @contextmanager
    def session(self, user: User) -> Iterator[None]:
        """Hold one "SSH session" of the user and count one command; for commands that the sandbox answers itself.

        Raises:
            SSHError: the user already has ``max_sessions`` of them.
        """
        if self.max_sessions is not None and self._sessions[user.name] >= self.max_sessions:
            raise SSHError
        self._sessions[user.name] += 1
        self.commands += 1
        try:
            yield
        finally:
            self._sessions[user.name] -= 1

    async def _run(
        self,
        user: User,
        argv: Sequence[str],
        data: bytes | None,
        timeout: float,
        cwd: str | None,
        env: Mapping[str, str] | None,
        hold_stdin: bool,
    ) -> CommandResult:
        out, err, feeder = Collector(COMMAND_OUTPUT_LIMIT), Collector(COMMAND_OUTPUT_LIMIT), Feeder(data)
        process: ClusterProcess | None = None
        try:
            request = self._request(user, argv, cwd, env)
            process = await self._start(user, request, (feeder.child, out.child, err.child))
            for pipe in (feeder, out, err):
                pipe.begin()
            if not hold_stdin and not data:
                feeder.close()
            async with asyncio.timeout(timeout):
                await asyncio.gather(out.done, err.done)
                code = await process.wait()
        except TimeoutError:
            raise CommandTimeout from None
        finally:
            for pipe in (feeder, out, err):
                pipe.close()
            if process is not None and (process.returncode is None or out.overflow or err.overflow):
                process.kill()
        if out.overflow or err.overflow:
            raise OutputLimit
        return CommandResult(code, bytes(out.data), bytes(err.data))

    async def spawn(
        self,
        user: User,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: Output = None,
        stdout: Output = None,
        stderr: Output = None,
        clean_env: bool = False,
        offline: bool = False,
    ) -> ClusterProcess:
        """Start a long-running process as ``user`` in a session of its own; it takes no session slot.

        Args:
            user: who runs it.
            argv: program and arguments.
            cwd: working directory; default the user's home.
            env: added to the user's environment, or all of it with ``clean_env``.
            stdin: a descriptor, `PIPE`, a path to read, or None for an empty one.
            stdout: a descriptor, `PIPE`, a path that the user truncates and writes, or None to drop it.
            stderr: the same, or `STDOUT`.
            clean_env: start from an empty environment.
            offline: with no network, not even this machine's own; only when `is_root`.

        A program or path that cannot be opened shows as exit code 127 or 126 with a line on standard error.
        """
        request = self._request(user, argv, cwd, env, clean_env=clean_env) | {"offline": offline}
        return await self._start_piped(user, request, stdin, stdout, stderr)

    async def spawn_root(
        self,
        argv: Sequence[str],
        *,
        cwd: str = "/",
        env: Mapping[str, str] | None = None,
        stdin: Output = None,
        stdout: Output = None,
        stderr: Output = None,
    ) -> ClusterProcess:
        """Start a daemon of the cluster as root inside its namespaces; only when `is_root`."""
        if not self.is_root:
            raise RuntimeError("cluster daemons need a sandbox that runs as root")
        request = {"argv": list(argv), "cwd": cwd, "env": {**ROOT_ENVIRONMENT, **(env or {})}, "ids": None}
        return await self._start_piped(None, request, stdin, stdout, stderr)

    async def run_root(
        self, argv: Sequence[str], *, timeout: float = 30.0, env: Mapping[str, str] | None = None
    ) -> CommandResult:
        """Run a command as root inside the cluster and return its output; only when `is_root`."""
        process = await self.spawn_root(argv, env=env, stdout=PIPE, stderr=PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with asyncio.timeout(timeout):
                out, err = await asyncio.gather(process.stdout.read(), process.stderr.read())
                return CommandResult(await process.wait(), out, err)
        finally:
            if process.returncode is None:
                process.kill()

    def _request(
        self,
        user: User,
        argv: Sequence[str],
        cwd: str | None,
        env: Mapping[str, str] | None,
        *,
        clean_env: bool = False,
    ) -> dict[str, Any]:
        base = {} if clean_env else user.environment()
        ids = [user.uid, user.gid, [user.gid, *user.groups]] if self.is_root else None
        return {"argv": list(argv), "cwd": cwd or user.home, "env": {**base, **(env or {})}, "ids": ids}

    async def _start(self, user: User | None, request: Mapping[str, Any], files: Sequence[int]) -> ClusterProcess:
        link = self._isolation.link(user)
        number, pid, ended = await link.spawn(request, files)
        return ClusterProcess(link, number, pid, ended)

    async def _start_piped(
        self, user: User | None, request: dict[str, Any], stdin: Output, stdout: Output, stderr: Output
    ) -> ClusterProcess:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        close = [null]
        streams: dict[int, int] = {}
        files: dict[str, tuple[str, int]] = {}
        passed = [null, null, null]
        for number, wanted in enumerate((stdin, stdout, stderr)):
            if wanted == STDOUT and number == 2:
                passed[2] = passed[1]
                if "1" in files:
                    # Opened a second time, for appending, so that neither stream overwrites the other.
                    files["1"] = (files["1"][0], files["1"][1] | os.O_APPEND)
                    files["2"] = (files["1"][0], os.O_WRONLY | os.O_APPEND)
            elif wanted == PIPE:
                read, write = os.pipe2(os.O_CLOEXEC)
                passed[number], streams[number] = (read, write) if number == 0 else (write, read)
                close.append(passed[number])
            elif isinstance(wanted, str):
                files[str(number)] = (wanted, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            elif isinstance(wanted, int):
                passed[number] = wanted
        try:
            process = await self._start(user, {**request, "files": files}, passed)
        finally:
            for descriptor in close:
                os.close(descriptor)
        await _attach(process, streams)
        return process


async def _attach(process: ClusterProcess, streams: Mapping[int, int]) -> None:
    loop = asyncio.get_running_loop()
    for number, descriptor in streams.items():
        file = os.fdopen(descriptor, "wb" if number == 0 else "rb", buffering=0)
        if number == 0:
            transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, file)
            process.stdin = asyncio.StreamWriter(transport, protocol, None, loop)
            continue
        reader = asyncio.StreamReader(limit=PIPE_SIZE)
        await loop.connect_read_pipe(lambda reader=reader: asyncio.StreamReaderProtocol(reader), file)  # type: ignore[misc]
        if number == 1:
            process.stdout = reader
        else:
            process.stderr = reader
