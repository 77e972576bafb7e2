"""A throwaway AiiDA: a profile as `verdi presto` makes it, with its real daemon and broker."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest

from support.sandbox import alive

TESTS = Path(__file__).parents[1]
VERDI = str(Path(sys.executable).with_name("verdi"))
OPTIONS = {
    # The engine waits 20, 40, 80 … s after a failure: a test that sees one must not take minutes to say so.
    "transport.task_retry_initial_interval": 5,
    "logging.aiida_loglevel": "REPORT",
    "warnings.development_version": False,
    "warnings.showdeprecations": False,
}


class VerdiFailed(AssertionError):
    """A `verdi` command ended badly; the message holds what it said."""


class AiidaProfile:
    """A profile of its own under a directory of its own, and the daemon that works for it.

    The broker is aiida-core's own (ZeroMQ), which the daemon starts: no RabbitMQ is needed.

    Attributes:
        path: AIIDA_PATH.
        env: the environment of `verdi` and of the daemon.
        commands: a directory of programs that the daemon finds first.
        loop_log: for how long we blocked the event loops of the daemon's workers (see aiida_worker/sitecustomize.py).
    """

    def __init__(self, path: Path, env: Mapping[str, str] | None = None, name: str = "proof") -> None:
        self.path, self.name = path, name
        self.commands, self.loop_log = path / "bin", path / "loop.jsonl"
        python_path = [str(TESTS), os.environ.get("PYTHONPATH", "")]
        # XDG: what the adapter keeps between processes must not come from, or go to, the user's own directories.
        kept = {f"XDG_{kind}_HOME": str(path / f"xdg-{kind.lower()}") for kind in ("STATE", "CACHE", "CONFIG", "DATA")}
        self.env = {
            **os.environ,
            "AIIDA_PATH": str(path),
            "PATH": os.pathsep.join([str(self.commands), str(Path(VERDI).parent), os.environ.get("PATH", os.defpath)]),
            "PYTHONPATH": os.pathsep.join(filter(None, python_path)),
            "HPCBRIDGE_LOOP_LOG": str(self.loop_log),
            "PYTHONWARNINGS": "ignore",
            **kept,
            **(env or {}),
        }

    def create(self) -> None:
        """Make the profile as a user does, and load it into this process."""
        self.verdi_here("presto", "--non-interactive", "--use-zeromq", "--profile-name", self.name)
        from aiida import load_profile
        from aiida.manage import get_config

        config = get_config()
        for option, value in OPTIONS.items():
            config.set_option(option, value, scope=self.name)
        config.store()
        load_profile(self.name, allow_switch=True)

    def verdi_here(self, *words: str) -> str:
        """Run `verdi` in this process, which spares the seconds that it takes to start; returns what it printed."""
        from aiida.cmdline.commands.cmd_verdi import verdi
        from click.testing import CliRunner

        done = CliRunner().invoke(verdi, list(words), prog_name="verdi")
        if done.exit_code:
            trace = "".join(traceback.format_exception(*done.exc_info)) if done.exc_info else ""
            raise VerdiFailed(
                f"verdi {' '.join(words)} ended with {done.exit_code}:\n{done.output}\n{trace}\n{self.log()}"
            )
        return done.output

    def verdi(self, *words: str, check: bool = True, timeout: float = 280, stdin: str = "") -> str:
        """Run `verdi` and return what it printed; raises `VerdiFailed` when it ends badly."""
        done = subprocess.run(
            [VERDI, *words],
            env=self.env,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise VerdiFailed(f"verdi {' '.join(words)} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def start(self, workers: int = 1) -> None:
        """Start the daemon and wait until it takes work: AiiDA gives up on a broker after ten seconds."""
        # Circus keeps sockets in temporary directories, and does not remove them when it is killed.
        temporary = self.path / "tmp"
        temporary.mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", str(temporary))
            # The daemon's PYTHONPATH is this process's path.
            patch.syspath_prepend(str(TESTS / "support" / "aiida_worker"))
            self.verdi_here("-p", self.name, "daemon", "start", str(workers))
        wait_until(lambda: [*self.path.rglob("broker.sockets")] and self.workers(), 90, "the daemon's broker is ready")

    def stop(self) -> None:
        """End the daemon at once; nothing of it is left."""
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _family(self) -> list[psutil.Process]:
        """The daemon's processes, found by what its own pid files say."""
        family = []
        for file in self.path.rglob("*.pid"):
            with contextlib.suppress(ValueError, psutil.Error):
                process = psutil.Process(int(file.read_text().split()[-1]))
                if process.environ().get("AIIDA_PATH", "").startswith(str(self.path)):
                    family += [process, *process.children(recursive=True)]
        return family

    def workers(self) -> list[int]:
        """The pids of the processes that run calculations."""
        found = set()
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                if "worker" in process.cmdline():
                    found.add(process.pid)
        return sorted(pid for pid in found if alive(pid))

    def kill_workers(self) -> None:
        """Kill them with SIGKILL; the daemon's supervisor starts new ones."""
        pids = self.workers()
        assert pids, f"no worker of the daemon runs:\n{self.log()}"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(alive(pid) for pid in pids), 10, "the killed workers are gone")

    def failures(self) -> list[str]:
        """What the engine tried again after a while, and what it gave up."""
        texts = (file.read_text(errors="replace") for file in self.path.rglob("aiida-*.log"))
        marks = ("excepted, retrying after", "times consecutively")
        return [line for text in texts for line in text.splitlines() if any(mark in line for mark in marks)]

    def log(self, lines: int = 60) -> str:
        """The end of what the daemon and its broker wrote, and what the workers are doing."""
        for pid in self.workers():
            if Path(f"{self.loop_log}.{pid}.threads").exists():  # otherwise a signal would end it
                os.kill(pid, signal.SIGUSR1)
                os.kill(pid, signal.SIGUSR2)
        time.sleep(1)  # they have no way to say that they have written it down
        files = [path for kind in ("*.log", "loop.jsonl.*", "broker.status") for path in self.path.rglob(kind)]
        return "\n".join(
            f"--- {file.name}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-lines:]) for file in files
        )


def wait_until(condition: Callable[[], object], seconds: float, what: str, every: float = 0.1) -> None:
    """Wait until `condition` holds; an AssertionError names `what` did not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain: {what}"
        time.sleep(every)
