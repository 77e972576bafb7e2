"""Listening sockets, and the life of a whole sandbox from start to SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import secrets
import shlex
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from hpcbridge_sandbox.app import create_app
from hpcbridge_sandbox.auth import TokenVerifier
from hpcbridge_sandbox.cluster import Cluster
from hpcbridge_sandbox.context import Sandbox, SystemCondition
from hpcbridge_sandbox.control import create_control
from hpcbridge_sandbox.faults import Faults
from hpcbridge_sandbox.issuer import PATH as ISSUER_PATH
from hpcbridge_sandbox.issuer import Issuer
from hpcbridge_sandbox.s3 import ObjectStore
from hpcbridge_sandbox.scheduling import make_scheduler
from hpcbridge_sandbox.settings import Settings
from hpcbridge_sandbox.store import Store

logger = logging.getLogger("hpcbridge.sandbox")
BACKLOG = 2048
OPEN_FILES = 16384


class _Uvicorn(uvicorn.Server):
    """Uvicorn without its own signal handlers: the sandbox has several servers and one way to end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


class Listener:
    """One HTTP server on one loopback port; the port can be closed and opened again while the server lives."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._socket = self._bind(port)
        # Listening from now on makes a second sandbox on this port fail at once.
        self._socket.listen(BACKLOG)
        self.port: int = self._socket.getsockname()[1]
        self._holder: socket.socket | None = None
        self._server: _Uvicorn | None = None
        self._task: asyncio.Task[None] | None = None

    def _bind(self, port: int) -> socket.socket:
        # asyncio switches Nagle's algorithm off only where the protocol is named; else every answer takes 40 ms.
        bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((self._host, port))
        except OSError:
            bound.close()
            raise
        return bound

    async def start(self, app: Any) -> None:
        """Serve ``app``; returns when connections are accepted."""
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_keep_alive=60,
            timeout_graceful_shutdown=1,
            backlog=BACKLOG,
            server_header=True,
        )
        self._server = _Uvicorn(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            if self._task.done():
                await self._task
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        """Refuse new connections and cut the open ones."""
        assert self._server is not None
        for server in self._server.servers:
            server.close()
        self._server.servers = []
        # Bound, but not listening: refuses connections, and nobody else gets the port in the meantime.
        self._holder = self._bind(self.port)
        for connection in list(self._server.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()

    def reopen(self) -> None:
        """Accept connections again; does nothing when they are accepted."""
        server = self._server
        if server is None or server.servers or server.should_exit:
            return
        server.servers = [None]  # type: ignore[list-item]  # taken, until the task below has it
        asyncio.get_running_loop().create_task(self._reopen(server)).add_done_callback(lambda task: task.result())

    async def _reopen(self, server: _Uvicorn) -> None:
        config = server.config
        opened = await asyncio.get_running_loop().create_server(
            lambda: config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=server.server_state, app_state={}
            ),
            sock=self._bind(self.port),
            backlog=config.backlog,
        )
        server.servers = [opened]
        if self._holder is not None:
            self._holder.close()
            self._holder = None

    async def stop(self) -> None:
        """Stop serving."""
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            for connection in list(self._server.server_state.connections):
                if not getattr(connection, "cycle", None):
                    connection.shutdown()
            await self._task
        for held in (self._holder, self._socket):
            if held is not None:
                held.close()


class Running:
    """A sandbox with everything started; made by `run`."""

    def __init__(self, sandbox: Sandbox, rest: Listener, control: Listener) -> None:
        self.sandbox, self.rest, self.control = sandbox, rest, control

    def environment(self) -> dict[str, str]:
        """Return what a client needs, under the names that pyfirecrest uses, and the control URL last."""
        first = self.sandbox.settings.users[0]
        return {
            "FIRECREST_URL": self.sandbox.base_url,
            "AUTH_TOKEN_URL": f"{self.sandbox.issuer.url}/token",
            "FIRECREST_CLIENT_ID": first.name,
            "FIRECREST_CLIENT_SECRET": first.secret,
            "FIRECREST_SYSTEM": self.sandbox.settings.systems[0],
            "HPCBRIDGE_SANDBOX_CONTROL": self.sandbox.control_url,
        }


def write_env_file(path: Path, environment: dict[str, str]) -> None:
    """Write ``export`` lines for a shell, readable for the owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    partial.touch(mode=0o600)
    partial.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()))
    partial.replace(path)


def _listen(settings: Settings, store: Store, name: str, port: int) -> Listener:
    """Listen on the port asked for, or on the one of the last run, or on any free one."""
    for candidate in [port] if port else [store.get(name, 0), 0]:
        try:
            listener = Listener(settings.host, candidate)
        except OSError as error:
            if port:
                told = f"port {port} of {settings.host}: {error.strerror}; choose another --port, or 0 for a free one"
                raise OSError(told) from error
            continue
        store.put(name, listener.port)
        return listener
    raise AssertionError("unreachable: port 0 always binds or raises")


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    """Start a sandbox; leaving the context ends everything that it started.

    Raises:
        RuntimeError: this machine cannot isolate the cluster, or a scheduler is not installed.
        OSError: the port is taken.
    """
    async with contextlib.AsyncExitStack() as stack:
        store = Store(settings.state / "sandbox.db")
        stack.callback(store.close)
        issuer = Issuer(settings, store)
        cluster = Cluster(settings, store)
        sandbox = Sandbox(
            settings=settings,
            store=store,
            cluster=cluster,
            faults=Faults(settings.latency),
            issuer=issuer,
            verifier=TokenVerifier(issuer),
            systems={name: SystemCondition(name) for name in settings.systems},
        )
        stack.push_async_callback(cluster.stop)
        await cluster.start()
        rest = _listen(settings, store, "rest_port", settings.port)
        stack.push_async_callback(rest.stop)
        control = _listen(settings, store, "control_port", 0)
        stack.push_async_callback(control.stop)
        sandbox.base_url = f"http://{settings.host}:{rest.port}{settings.root_path}"
        issuer.url = f"{sandbox.base_url}{ISSUER_PATH}"
        token = store.get("control_token") or secrets.token_urlsafe(24)
        store.put("control_token", token)
        sandbox.control_url = f"http://{settings.host}:{control.port}/_sandbox/{token}"
        sandbox.s3 = ObjectStore(settings.state / "s3")
        stack.push_async_callback(sandbox.s3.stop)
        sandbox.scheduler = make_scheduler(settings, cluster, store)
        stack.push_async_callback(sandbox.scheduler.stop)
        await sandbox.scheduler.start()
        await control.start(create_control(sandbox, rest, token))
        await rest.start(create_app(sandbox))
        yield Running(sandbox, rest, control)


def _allow_many_files() -> None:
    """Every command takes three pipes: the usual limit of 1,024 descriptors would end at some hundred requests."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def run(settings: Settings, ready: Any) -> None:
    """Run a sandbox until SIGTERM or SIGINT; call ``ready(Running)`` once it serves."""
    _allow_many_files()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    async with running(settings) as started:
        if settings.env_file is not None:
            write_env_file(settings.env_file, started.environment())
        ready(started)
        await stop.wait()
