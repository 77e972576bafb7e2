"""The server's end of the socket to a keeper: start processes inside the cluster, signal them, learn of their end."""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

LARGEST_INLINE = 64 * 1024
START_TIMEOUT = 20.0


class KeeperGone(RuntimeError):
    """The keeper has ended, and with it everything in its namespaces."""


class Link:
    """One keeper process; all calls belong to the loop that called `start`."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._next = 0
        self._started: dict[int, asyncio.Future[int]] = {}
        self._ended: dict[int, asyncio.Future[int]] = {}
        self._ready: asyncio.Future[dict[str, Any]] | None = None

    async def start(self, command: Sequence[str], setup: Mapping[str, Any]) -> None:
        """Start ``command`` plus the socket's number, send ``setup``, and wait until the tree stands.

        Raises:
            RuntimeError: the keeper could not set itself up; the message carries its reason.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        ours.setblocking(False)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                cwd="/",
                env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"},
            )
        self._socket = ours
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        loop.add_reader(ours.fileno(), self._on_readable)
        try:
            self._send(setup, ())
            answer = await asyncio.wait_for(self._ready, START_TIMEOUT)
        except (KeeperGone, OSError, TimeoutError) as error:
            await self.stop()
            assert self._process.stderr is not None
            said = (await self._process.stderr.read()).decode(errors="replace").strip()
            raise RuntimeError(f"the cluster's namespaces could not be set up: {said or error}") from error
        if not answer["ready"]:
            await self.stop()
            raise RuntimeError(f"the cluster's file tree could not be built: {answer['error']}")

    async def spawn(
        self, request: Mapping[str, Any], descriptors: Sequence[int]
    ) -> tuple[int, int, asyncio.Future[int]]:
        """Start one process.

        Args:
            request: ``argv``, ``cwd``, ``env``, ``ids`` and optionally ``files``.
            descriptors: standard input, output and error.

        Returns:
            the keeper's id for it, its process id inside the cluster, and a future of its exit code (negative signal
            number when it was killed).
        """
        loop = asyncio.get_running_loop()
        self._next += 1
        number = self._next
        started, ended = loop.create_future(), loop.create_future()
        self._started[number], self._ended[number] = started, ended
        try:
            self._send({**request, "op": "spawn", "id": number}, descriptors)
        except BaseException:
            del self._started[number], self._ended[number]
            raise
        return number, await started, ended

    def signal(self, number: int, pid: int, signal_number: int, *, group: bool) -> None:
        """Send a signal to a started process, or to the group it leads (also after the leader has ended)."""
        try:
            self._send({"op": "signal", "id": number, "pid": pid, "signal": int(signal_number), "group": group}, ())
        except KeeperGone:
            return  # nothing is left that could be signalled

    async def stop(self) -> None:
        """End the keeper and with it every process of its namespaces."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            asyncio.get_running_loop().remove_writer(self._socket.fileno())
            self._drop_waiting()
            self._socket.close()
            self._socket = None
        self._fail(KeeperGone("the sandbox is stopping"))
        if self._process is not None and self._process.returncode is None:
            try:
                await asyncio.wait_for(self._process.wait(), 5)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    def _send(self, message: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        if self._socket is None:
            raise KeeperGone("the cluster is not running")
        data = json.dumps(message).encode()
        passed = [os.dup(descriptor) for descriptor in descriptors]
        if len(data) > LARGEST_INLINE:
            passed.append(_in_memory(data))
            data = b"memfd"
        self._waiting.append((data, passed))
        self._flush()

    def _flush(self) -> None:
        """Send what waits. The keeper must never be waited for here: it may be waiting for this loop to read."""
        if self._socket is None:
            return
        loop = asyncio.get_running_loop()
        while self._waiting:
            data, passed = self._waiting[0]
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", passed))] if passed else []
            try:
                self._socket.sendmsg([data], ancillary)
            except BlockingIOError:
                loop.add_writer(self._socket.fileno(), self._flush)
                return
            except (BrokenPipeError, ConnectionResetError) as error:
                self._drop_waiting()
                raise KeeperGone("the cluster has ended") from error
            self._waiting.popleft()
            for descriptor in passed:
                os.close(descriptor)
        loop.remove_writer(self._socket.fileno())

    def _drop_waiting(self) -> None:
        for _, passed in self._waiting:
            for descriptor in passed:
                os.close(descriptor)
        self._waiting.clear()

    def _on_readable(self) -> None:
        assert self._socket is not None
        while True:
            try:
                data = self._socket.recv(LARGEST_INLINE)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                asyncio.get_running_loop().remove_reader(self._socket.fileno())
                asyncio.get_running_loop().remove_writer(self._socket.fileno())
                self._drop_waiting()
                self._fail(KeeperGone("the cluster has ended"))
                return
            self._on_message(json.loads(data))

    def _on_message(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(message)
            return
        if "pid" in message:
            started = self._started.pop(message["id"])
            if not started.done():
                started.set_result(message["pid"])
            return
        ended = self._ended.pop(message["id"])
        if not ended.done():
            ended.set_result(os.waitstatus_to_exitcode(message["status"]))

    def _fail(self, error: KeeperGone) -> None:
        futures: list[asyncio.Future[Any]] = [
            *self._started.values(),
            *self._ended.values(),
            *([self._ready] if self._ready else []),
        ]
        self._started.clear()
        self._ended.clear()
        for future in futures:
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever waits still sees it; nobody else needs a warning


def _in_memory(data: bytes) -> int:
    """Return a descriptor of an anonymous file that holds ``data``."""
    descriptor = os.memfd_create("request", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(data)
    return descriptor
