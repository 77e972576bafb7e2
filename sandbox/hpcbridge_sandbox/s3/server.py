"""The object store's processes: ``python -m hpcbridge_sandbox.s3.server PARENT ETC READY KIND=FD [KIND=FD ...]``.

PARENT is the process id whose death ends this one; a byte is written to the descriptor READY when requests are served,
and it is closed by the last process's death. The parent binds the sockets and hands them down, so that no port is
guessed. The storage servers and the proxy are two processes, as every byte goes through both and a small machine has
two cores.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

from hpcbridge_sandbox.s3.layout import SERVERS, write_ring

_PR_SET_PDEATHSIG = 1


def log_to_stderr(
    _conf: Any, _name: str, _console: bool, _route: str, _fmt: str, logger: logging.Logger, _adapted: Any
) -> None:
    """Swift's ``log_custom_handlers`` hook: standard error instead of the machine's syslog."""
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logger.handlers[:] = [handler]


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _serve(app: Any, descriptor: int) -> None:
    # swift.common.wsgi.run_server's own settings. It cannot be used: it replaces the hub, so serves one socket only.
    from swift.common.concurrency import socket as green_socket
    from swift.common.concurrency import wsgi
    from swift.common.constraints import MAX_REQUEST_LINE
    from swift.common.http_protocol import SwiftHttpProtocol
    from swift.common.utils import NullLogger
    from swift.common.wsgi import RestrictedGreenPool

    wsgi.server(
        green_socket.socket(fileno=descriptor),
        app,
        NullLogger(),
        custom_pool=RestrictedGreenPool(size=1024),
        protocol=SwiftHttpProtocol,
        socket_timeout=120.0,
        capitalize_response_headers=False,  # S3 clients look for "ETag", not "Etag"
        url_length_limit=MAX_REQUEST_LINE,
    )


def _open_listeners(pairs: list[str]) -> dict[str, socket.socket]:
    listeners = {}
    for pair in pairs:
        kind, _, descriptor = pair.partition("=")
        listeners[kind] = socket.socket(fileno=int(descriptor))
        listeners[kind].set_inheritable(False)
    return listeners


def _serve_all(etc: Path, listeners: dict[str, socket.socket], ready: int | None) -> None:
    from swift.common import utils
    from swift.common.concurrency import greenthread_spawn, hubs
    from swift.common.wsgi import loadapp
    from swift.obj import diskfile

    hubs.use_hub(utils.get_hub())
    utils.monkey_patch()
    # A killed sandbox may lose its last object; waiting for the disk would only slow every test down.
    diskfile.fsync = lambda _fd: None
    diskfile.fsync_dir = lambda _path: None
    threads = []
    for kind, listener in listeners.items():
        app = loadapp(str(etc / f"{kind}-server.conf"), global_conf={"log_name": f"{kind}-server"})
        threads.append(greenthread_spawn(_serve, app, listener.detach()))
    if ready is not None:
        os.write(ready, b"1")
    for thread in threads:
        thread.wait()


def main(arguments: list[str]) -> None:
    """Serve until killed; *arguments* as in the module's first line."""
    _die_with_parent(int(arguments[0]))
    warnings.filterwarnings("ignore", module="eventlet")
    etc, listeners = Path(arguments[1]), _open_listeners(arguments[3:])
    ready: int | None = int(arguments[2])

    from swift.common import utils
    from swift.obj import server as _storage
    from swift.proxy import server as _proxy

    assert _storage, _proxy  # imported once, before the fork
    utils.set_swift_dir(str(etc))
    utils.validate_configuration()
    utils.disable_fallocate()
    for kind in SERVERS:
        write_ring(etc, kind, listeners[kind].getsockname()[1])
    front = {"proxy": listeners.pop("proxy")}
    this = os.getpid()
    if os.fork() == 0:
        _die_with_parent(this)
        listeners, front = front, listeners
    else:
        # Only the proxy, which needs the others, says when all is well; its death closes the pipe.
        os.close(int(arguments[2]))
        ready = None
    for listener in front.values():
        listener.close()
    _serve_all(etc, listeners, ready)


if __name__ == "__main__":
    main(sys.argv[1:])
