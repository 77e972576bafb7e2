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


def _serve(etc: Path, kind: str, descriptor: int) -> None:
    from swift.common import wsgi  # type: ignore[import-untyped]
    from swift.common.concurrency import socket as green_socket  # type: ignore[import-untyped]
    from swift.common.utils import get_logger  # type: ignore[import-untyped]

    conf = wsgi.appconfig(str(etc / f"{kind}-server.conf"), name=f"{kind}-server")
    listener = green_socket.socket(fileno=descriptor)
    logger = get_logger(conf, f"{kind}-server", log_route="wsgi")
    wsgi.run_server(conf, logger, listener, global_conf={"log_name": f"{kind}-server"})


def main(arguments: list[str]) -> None:
    """Serve until killed; *arguments* as in the module's first line, with the parent's process id put first."""
    parent, etc, *servers = arguments
    _die_with_parent(int(parent))
    warnings.filterwarnings("ignore", module="eventlet")

    from swift.common import utils
    from swift.common.concurrency import greenthread_spawn

    utils.monkey_patch()
    utils.set_swift_dir(etc)
    utils.validate_configuration()
    utils.disable_fallocate()
    # A killed sandbox may lose its last object; waiting for the disk would only slow every test down.
    from swift.obj import diskfile  # type: ignore[import-untyped]

    diskfile.fsync = lambda _fd: None
    diskfile.fsync_dir = lambda _path: None
    threads = []
    for pair in servers:
        kind, _, descriptor = pair.partition("=")
        os.set_inheritable(int(descriptor), False)
        threads.append(greenthread_spawn(_serve, Path(etc), kind, int(descriptor)))
    for thread in threads:
        thread.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
