"""One process of the object store: ``python -m hpcbridge_sandbox.s3.server ETC KIND=FD [KIND=FD ...]``.

The parent binds the sockets and hands them down, so that no port is guessed. The parent's death ends the process.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

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


def main(arguments: list[str]) -> None:
    """Serve until killed; *arguments* as in the module's first line, with the parent's process id put first."""
    parent, etc, *servers = arguments
    _die_with_parent(int(parent))
    warnings.filterwarnings("ignore", module="eventlet")

    from swift.common import utils
    from swift.common.concurrency import greenthread_spawn, hubs
    from swift.common.wsgi import loadapp

    hubs.use_hub(utils.get_hub())
    utils.monkey_patch()
    utils.set_swift_dir(etc)
    utils.validate_configuration()
    utils.disable_fallocate()
    # A killed sandbox may lose its last object; waiting for the disk would only slow every test down.
    from swift.obj import diskfile

    diskfile.fsync = lambda _fd: None
    diskfile.fsync_dir = lambda _path: None
    threads = []
    for pair in servers:
        kind, _, descriptor = pair.partition("=")
        os.set_inheritable(int(descriptor), False)
        app = loadapp(str(Path(etc) / f"{kind}-server.conf"), global_conf={"log_name": f"{kind}-server"})
        threads.append(greenthread_spawn(_serve, app, int(descriptor)))
    for thread in threads:
        thread.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
