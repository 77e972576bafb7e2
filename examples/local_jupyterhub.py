"""A sandbox, the proxy and the example hub on this machine, until Ctrl-C: `make demo-jupyterhub`.

Open the address that it prints and log in as alice, at the sandbox's own issuer.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

from local_sandbox import LocalSandbox

ROOT = Path(__file__).parents[1]
CONFIG = Path(__file__).parent / "jupyterhub/jupyterhub_config.py"
PROXY = ROOT / ".env/proxy/node_modules/.bin/configurable-http-proxy"
SOFTWARE = ROOT / ".env/cluster"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return bytes(answer.read())


def environment_of(sandbox: dict[str, str], users: dict[str, str], port: int) -> dict[str, str]:
    """What `jupyterhub_config.py` reads."""
    auth = sandbox["AUTH_TOKEN_URL"].removesuffix("/token")
    return {
        "FIRECREST_URL": sandbox["FIRECREST_URL"],
        "AUTH_TOKEN_URL": sandbox["AUTH_TOKEN_URL"],
        "FIRECREST_SYSTEM": sandbox["FIRECREST_SYSTEM"],
        "OIDC_CLIENT_ID": "hub",
        "OIDC_CLIENT_SECRET": users["hub"],
        "OIDC_AUTHORIZE_URL": f"{auth}/authorize",
        "OIDC_USERINFO_URL": f"{auth}/userinfo",
        "HUB_PUBLIC_URL": f"http://127.0.0.1:{port}",
        "HUB_API_URL": f"http://127.0.0.1:{free_port()}",
        "PROXY_API_URL": f"http://127.0.0.1:{free_port()}",
        "JUPYTERHUB_CRYPT_KEY": secrets.token_hex(32),
        "CONFIGPROXY_AUTH_TOKEN": secrets.token_hex(32),
    }


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hpcbridge-hub-")))
        flags = ("--user", "alice", "--user", "bob", "--user", "hub", "--expose", f"{SOFTWARE}:/opt/software:ro")
        sandbox = stack.enter_context(LocalSandbox(folder / "sandbox.log", *flags)).environment
        users = json.loads(ask(f"{sandbox['HPCBRIDGE_SANDBOX_CONTROL']}/users"))
        port = free_port()
        environment = {**os.environ, **environment_of(sandbox, users, port)}
        api = environment["PROXY_API_URL"].rpartition(":")[2]
        proxy = [str(PROXY), "--ip=127.0.0.1", f"--port={port}", "--api-ip=127.0.0.1", f"--api-port={api}"]
        hub = [sys.executable, "-m", "jupyterhub", "-f", str(CONFIG)]
        log = stack.enter_context((folder / "hub.log").open("wb"))
        processes = []
        for command in (proxy, hub):
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            processes.append(process)
        url = environment["HUB_PUBLIC_URL"]
        while processes[1].poll() is None:
            with suppress(OSError):
                ask(f"{url}/hub/api/")
                break
            time.sleep(0.5)
        else:
            sys.exit((folder / "hub.log").read_text(errors="replace"))
        print(f"{url}  log in as alice, password {users['alice']}  (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            processes[1].wait()


if __name__ == "__main__":
    main()
