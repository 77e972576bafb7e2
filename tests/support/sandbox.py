"""Start real sandboxes for tests and look behind them."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx


class SandboxFailed(AssertionError):
    """The sandbox did not come up; the message holds its log."""


def unprivileged_command(scratch: Path) -> list[str]:
    """Return the words that, put before a command, run it as an unprivileged user.

    Root only. The interpreter and the checkout may lie where only root can go (``/root``): they are shown to that user
    in a mount namespace of the command's own.
    """
    needed = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), Path(__file__).resolve().parents[2]}
    blocked: set[Path] = set()
    for path in needed:
        closed = [parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001]
        blocked.update(closed[:1])
    keep = [path for path in needed if any(path.is_relative_to(one) for one in blocked)]
    script = Path(__file__).with_name("unprivileged.sh")
    lists = [":".join(sorted(map(str, paths))) for paths in (blocked, keep)]
    return ["unshare", "--mount", "--propagation", "private", "sh", str(script), str(scratch), *lists]


class SandboxProcess:
    """A running ``hpcbridge sandbox``.

    Attributes:
        url: FIRECREST_URL.
        token_url: AUTH_TOKEN_URL.
        env: the variables of the env file.
        system: FIRECREST_SYSTEM.
        control: the control URL.
        users: user name -> client secret.
        state: the state directory.
    """

    def __init__(self, flags: tuple[str, ...], state: Path, log: Path, timeout: float, *, as_root: bool = True) -> None:
        self.state, self.log, self._flags, self._timeout = state, log, flags, timeout
        self._before = [] if as_root else unprivileged_command(state.parent / "scratch")
        self.env: dict[str, str] = {}
        self.users: dict[str, str] = {}
        self._control = httpx.Client(timeout=60)
        self.start()

    def start(self) -> None:
        """Start the process and wait until it is ready."""
        env_file = self.state.parent / "env"
        env_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "hpcbridge_sandbox", "--state", str(self.state), "--env-file", str(env_file)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._before, *command, *self._flags],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        deadline = time.monotonic() + self._timeout
        while not env_file.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                self.process.wait()
                raise SandboxFailed(f"the sandbox did not start:\n{self.log.read_text(errors='replace')}")
            time.sleep(0.02)
        assert self.process.stdout is not None
        self.ready_line = self.process.stdout.readline().strip()
        self.env = read_env_file(env_file)
        self.url, self.token_url = self.env["FIRECREST_URL"], self.env["AUTH_TOKEN_URL"]
        self.system, self.control = self.env["FIRECREST_SYSTEM"], self.env["HPCBRIDGE_SANDBOX_CONTROL"]
        self.users = self.get("/users")

    def client_env(self, user: str = "alice") -> dict[str, str]:
        """Return the environment of a client that acts for ``user``, without the control URL."""
        env = {name: value for name, value in self.env.items() if name != "HPCBRIDGE_SANDBOX_CONTROL"}
        return {**env, "FIRECREST_CLIENT_ID": user, "FIRECREST_CLIENT_SECRET": self.users[user]}

    def token(self, user: str = "alice") -> str:
        """Return a fresh access token, by client credentials."""
        answer = httpx.post(
            self.token_url, data={"grant_type": "client_credentials"}, auth=(user, self.users[user]), timeout=30
        )
        answer.raise_for_status()
        return str(answer.json()["access_token"])

    def client(self, user: str = "alice", **options: Any) -> httpx.Client:
        """Return an httpx client for the REST interface with ``user``'s token."""
        headers = {"Authorization": f"Bearer {self.token(user)}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, **options)

    def get(self, path: str) -> Any:
        """GET on the control URL; returns the JSON answer."""
        return self._call("GET", path)

    def post(self, path: str, json: Any = None) -> Any:
        """POST on the control URL."""
        return self._call("POST", path, json)

    def delete(self, path: str) -> Any:
        """DELETE on the control URL."""
        return self._call("DELETE", path)

    def _call(self, method: str, path: str, json: Any = None) -> Any:
        answer = self._control.request(method, self.control + path, json=json)
        if answer.is_error:
            raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json()

    def host_path(self, cluster_path: str) -> Path:
        """Return where this machine finds a path of the cluster (as root; for checks only)."""
        return self.state / "cluster" / cluster_path.lstrip("/")

    def reset(self) -> None:
        """Take back every fault and begin to count requests anew."""
        for path in ("/faults", "/outage", "/requests", "/s3-faults", "/streamer-faults", "/scheduler-faults"):
            self.delete(path)
        self.post("/sessions", {"max": None})
        self.post("/latency", {"seconds": 0})

    def stop(self, timeout: float = 30) -> int:
        """End it with SIGTERM and return its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(timeout)
        self._close()
        return code

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        # An unclosed pipe or socket warns whenever it is collected: in the middle of another test, or of a compilation.
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._control.close()
        self._control = httpx.Client(timeout=60)

    def restart(self) -> None:
        """Start again on the same state; stops it first where it runs."""
        if self.process.poll() is None:
            self.stop()
        self.start()


def read_env_file(path: Path) -> dict[str, str]:
    """Read ``export NAME=value`` lines as a shell would."""
    words = (shlex.split(line) for line in path.read_text().splitlines())
    return dict(word[1].split("=", 1) for word in words if len(word) == 2 and word[0] == "export")


@contextlib.contextmanager
def start_sandbox(
    *flags: str, state: Path | None = None, timeout: float = 90, as_root: bool = True
) -> Iterator[SandboxProcess]:
    """Run a sandbox with ``flags`` for the length of the context; its log is printed when the test fails.

    With ``as_root=False`` a test that runs as root starts it as an unprivileged user.
    """
    folder = Path(tempfile.mkdtemp(prefix="hpcbridge-test-"))
    folder.chmod(0o755 if as_root else 0o777)
    log = folder / "sandbox.log"
    try:
        sandbox = SandboxProcess(flags, state or folder / "state", log, timeout, as_root=as_root or os.geteuid() != 0)
        try:
            yield sandbox
        except BaseException:
            print(f"--- log of the sandbox {' '.join(flags)}\n{log.read_text(errors='replace')}", file=sys.stderr)
            raise
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                sandbox.stop()
            if sandbox.process.poll() is None:
                sandbox.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def with_streamer() -> tuple[str, ...]:
    """Flags of a sandbox that moves files by streamer, on ports that no other sandbox of these tests is likely to use.

    Below the range from which this machine takes ports for its own connections.
    """
    first = random.randrange(12_000, 32_000, 20)
    return "--transfer", "streamer", "--streamer-ports", f"{first}-{first + 10}"


def children_of(pid: int) -> list[int]:
    """Return every descendant of a process."""
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def alive(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def end(pid: int) -> None:
    """End one process by its id."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
