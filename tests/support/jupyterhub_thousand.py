"""Many live servers in a hub's database, one HTTP server that answers for all of them, and what a poll costs."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

MEASURE = """
import asyncio.events, gc, threading, time
_run, _log = asyncio.events.Handle._run, open("held.log", "a", buffering=1)
_collecting, _began = [0.0], [0.0]
def _collected(phase, info):
    if threading.current_thread() is not threading.main_thread():
        return
    if phase == "start":
        _began[0] = time.thread_time()
        return
    spent = time.thread_time() - _began[0]
    _collecting[0] += spent
    if spent > 0.02:
        _log.write(f"{spent:.4f} garbage collection of generation {info['generation']}\\n")
gc.callbacks.append(_collected)
def _whose(owner):
    coroutine = owner.get_coro() if hasattr(owner, "get_coro") else None
    frame = getattr(coroutine, "cr_frame", None)
    periodic = getattr(frame.f_locals.get("self"), "callback", None) if frame else None
    return f"{owner.get_name() if coroutine else ''} {getattr(coroutine, '__qualname__', owner)} {periodic or ''}"
def _measured(self):
    began, collecting = time.thread_time(), _collecting[0]
    _run(self)
    spent = time.thread_time() - began - (_collecting[0] - collecting)
    if spent > 0.02:
        _log.write(f"{spent:.4f} {_whose(getattr(self._callback, '__self__', self))}\\n")  # the task that made the step
asyncio.events.Handle._run = _measured
"""
"""Config lines: each step of the hub's loop that took more than 20 ms of processor time goes to `held.log`.

Without the collection of garbage, which falls into whatever step comes next and has a line of its own: with a thousand
users in SQLAlchemy's session Python takes a quarter of a second to look through all objects of the hub.
"""


_filling = threading.Lock()  # making a database, Alembic can do one at a time


class _Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("X-JupyterHub-Version", "6.1.1")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        return


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True


@contextlib.contextmanager
def everybodys_server() -> Iterator[int]:
    """The port of an HTTP server that answers as a single-user server."""
    server = _Server(("127.0.0.1", 0), _Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fill_database(path: Path, jobs: list[str], system: str, port: int) -> None:
    """A user per job, with a server that an earlier process of the hub has started."""
    from jupyterhub import orm

    with _filling:
        session = orm.new_session_factory(f"sqlite:///{path}")()
    now = datetime.now(UTC).replace(tzinfo=None)
    for number, job in enumerate(jobs):
        name = f"user{number}"
        user = orm.User(name=name, created=now, last_activity=now)
        state = {
            "format": 1,
            "system": system,
            "key": f"{number:032x}",
            "since": datetime.now(UTC).isoformat(),
            "server": "jupyter",
            "workdir": "/home/alice",
            "name": f"sim-{number}",
            "job_id": job,
            "host": "127.0.0.1",
            "port": port,
        }
        server = orm.Server(proto="http", ip="127.0.0.1", port=port, base_url=f"/user/{name}/")
        spawner = orm.Spawner(name="", server=server, state={"hpcbridge": state}, started=now, last_activity=now)
        user._orm_spawners.append(spawner)
        session.add(user)
    session.commit()
    session.close()
