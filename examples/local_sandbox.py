"""`hpcbridge sandbox` as a child process: started, ready, and ended with everything that it started."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from local_airflow import die_with_parent


class LocalSandbox:
    """A sandbox on a free port of this machine; use as a context manager. `environment` is what its env file says."""

    def __init__(self, log: Path, *flags: str) -> None:
        """`log` receives its output; `flags` are added to the command line."""
        self.log = log
        self.flags = flags
        self.environment: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, timeout: float = 60.0) -> None:
        """Start it and wait for its one line; raises RuntimeError with its log when it ends instead."""
        env_file = self.log.with_suffix(".env")
        command = [sys.executable, "-m", "hpcbridge_sandbox", "--port", "0", "--env-file", str(env_file), *self.flags]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._process = process
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        deadline = time.monotonic() + timeout
        while not process.stdout.read():
            if process.poll() is not None:
                raise RuntimeError(f"the sandbox ended with {process.returncode}\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the sandbox was not ready after {timeout:.0f} s\n{self.log_tail()}")
            time.sleep(0.1)
        self.environment = read_env_file(env_file)

    def stop(self, grace: float = 15.0) -> None:
        """SIGTERM, which ends all of it; SIGKILL after `grace` seconds."""
        process, self._process = self._process, None
        if process is None:
            return
        family: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for left in psutil.wait_procs(family, timeout=2)[1]:
            with suppress(psutil.NoSuchProcess):
                left.kill()

    def log_tail(self, lines: int = 20) -> str:
        """The last lines that it wrote."""
        text = self.log.read_text(errors="replace").splitlines()[-lines:] if self.log.exists() else []
        return "--- sandbox\n" + "\n".join(text)


def read_env_file(path: Path) -> dict[str, str]:
    """The variables of a file of `export NAME=value` lines."""
    variables = {}
    for line in path.read_text().splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["export"]:
            variables.update(word.split("=", 1) for word in words[1:] if "=" in word)
    return variables
