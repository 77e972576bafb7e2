"""The node's side: start jupyterhub-singleuser on a free port of this node, and leave word where it listens.

It runs inside the batch job and needs Python 3.8 with its standard library, and `jupyterhub-singleuser`. The spawner
puts this file's text into the batch script, so nothing of hpcbridge has to be installed on the cluster; where it is,
`hpcbridge-singleuser` is the same program.

Configuration comes in the environment, out of the job's private file: `HPCBRIDGE_RENDEZVOUS` (path of the file that
says `{key, host, port}`), `HPCBRIDGE_KEY` (which start it is), `HPCBRIDGE_NODE_HOST` (auto, hostname, fqdn, or an
address), `HPCBRIDGE_PORTS` (`first-last`, or empty for any), and with internal_ssl `HPCBRIDGE_SSL_KEY`, `…_CERT` and
`…_CA` (PEM texts). None of them reaches the server that is started.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from urllib.parse import urlsplit, urlunsplit

ATTEMPTS = 5
"""Ports to try: between our look and the server's bind another program may take one."""

OWN = "HPCBRIDGE_"
_LISTEN = "0A"


def main(argv: list[str] | None = None) -> int:
    """Run the server until it ends; returns its exit code."""
    command = list(sys.argv[1:] if argv is None else argv) or ["jupyterhub-singleuser"]
    settings = {name[len(OWN) :]: os.environ.pop(name) for name in list(os.environ) if name.startswith(OWN)}
    rendezvous = settings["RENDEZVOUS"]
    certificates = _store_certificates(settings)
    try:
        for attempt in range(1, ATTEMPTS + 1):
            host = node_host(settings.get("NODE_HOST", "auto"), os.environ.get("JUPYTERHUB_API_URL", ""))
            code = _serve(command, host, settings, rendezvous)
            if code is not None:
                return code
            print(f"hpcbridge: the port was taken meanwhile (attempt {attempt} of {ATTEMPTS})", file=sys.stderr)
        return 98
    finally:
        _take_back(rendezvous, settings.get("KEY", ""))
        if certificates is not None:
            shutil.rmtree(certificates, ignore_errors=True)


def node_host(how: str, hub: str) -> str:
    """The address under which the hub may reach this node.

    auto: that of the interface which leads to the hub; hostname, fqdn: the node's names; anything else is taken as it
    is.
    """
    if how == "hostname":
        return socket.gethostname()
    if how == "fqdn":
        return socket.getfqdn()
    if how != "auto":
        return how
    parts = urlsplit(hub)
    try:
        target = socket.getaddrinfo(parts.hostname or "", parts.port or 80, type=socket.SOCK_DGRAM)[0]
        with socket.socket(target[0], socket.SOCK_DGRAM) as probe:
            probe.connect(target[4])  # UDP: nothing is sent
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()


def hold_port(host: str, ports: str) -> socket.socket:
    """A socket bound to a free port but not listening.

    Nobody is given that port while it lives, and the server, which sets SO_REUSEADDR as well, can bind to it.
    """
    candidates = [0] * 3
    if ports:
        first, _, last = ports.partition("-")
        candidates = list(range(int(first), int(last or first) + 1))
        random.shuffle(candidates)
    address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    for port in candidates:
        holder = socket.socket(address[0], socket.SOCK_STREAM)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind((address[4][0], port))
        except OSError as error:
            failure = error
            holder.close()
        else:
            return holder
    raise SystemExit(f"hpcbridge: no free port on {host} ({ports or 'any'}): {failure}")


def _serve(command: list[str], host: str, settings: dict[str, str], rendezvous: str) -> int | None:
    """One attempt: the server's exit code, or None when it ended because its port was taken."""
    with hold_port(host, settings.get("PORTS", "")) as holder:
        port = holder.getsockname()[1]
        server = subprocess.Popen(command, env={**os.environ, "JUPYTERHUB_SERVICE_URL": service_url(host, port)})
        _pass_on_signals(server)
        while server.poll() is None and not _listens(port):
            time.sleep(0.1)
    if server.poll() is None:
        _leave_word(rendezvous, {"format": 1, "key": settings.get("KEY", ""), "host": host, "port": port})
        print(f"hpcbridge: the server listens on {host}:{port}", file=sys.stderr)
        return _exit_code(server.wait())
    code = _exit_code(server.returncode)
    return None if code and _listens(port, anybody=True) else code


def service_url(host: str, port: int) -> str:
    """JUPYTERHUB_SERVICE_URL with this node's address in place of the hub's guess."""
    parts = urlsplit(os.environ.get("JUPYTERHUB_SERVICE_URL", "http://:0/"))
    name = f"[{host}]" if ":" in host else host
    return urlunsplit(parts._replace(netloc=f"{name}:{port}"))


def _listens(port: int, anybody: bool = False) -> bool:
    """Whether a process of this user (or `anybody`) listens on the port: another's must not get our users."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(table) as lines:
            for line in list(lines)[1:]:
                fields = line.split()
                local, state, uid = int(fields[1].rpartition(":")[2], 16), fields[3], int(fields[7])
                if local == port and state == _LISTEN and (anybody or uid == os.getuid()):
                    return True
    return False


def _leave_word(path: str, word: dict[str, object]) -> None:
    """Write the rendezvous file, readable for its owner only, in one step."""
    directory = os.path.dirname(path)
    os.makedirs(directory, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=directory, prefix=".rendezvous-")  # 0600
    with os.fdopen(handle, "w") as file:
        json.dump(word, file)
    os.replace(temporary, path)


def _store_certificates(settings: dict[str, str]) -> str | None:
    """Files for internal_ssl in a directory of their own (0700); their paths replace the hub's in the environment."""
    texts = {name: settings.get(f"SSL_{name}") for name in ("KEY", "CERT", "CA")}
    if not all(texts.values()):
        return None
    directory = tempfile.mkdtemp(prefix="hpcbridge-tls-")  # 0700
    variables = {"KEY": "JUPYTERHUB_SSL_KEYFILE", "CERT": "JUPYTERHUB_SSL_CERTFILE", "CA": "JUPYTERHUB_SSL_CLIENT_CA"}
    for name, text in texts.items():
        path = os.path.join(directory, name.lower() + ".pem")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text or "")
        os.environ[variables[name]] = path
    return directory


def _pass_on_signals(server: subprocess.Popen[bytes]) -> None:
    """The scheduler's TERM is for the server, which shuts its kernels down; we end when it has."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: server.send_signal(received))


def _exit_code(code: int) -> int:
    return 128 - code if code < 0 else code


def _take_back(path: str, key: str) -> None:
    """Remove our word; a later start of the same server may have left its own by now."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        with open(path) as file:
            word = json.load(file)
        if word["key"] == key:
            os.remove(path)


if __name__ == "__main__":
    sys.exit(main())
