"""Stages on this host: git, downloads and uploads, as the shell executor would run them.

Their scripts name the job's directory on the system. It is replaced by the directory of this project's clone on this
host; both are plain text that stands for nothing else. A shim in front of gitlab-runner asks for the files that an
uploader is about to pack: those are brought here first (see sources), then the real program runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from hpcbridge_gitlab import slots, sources
from hpcbridge_gitlab.output import say
from hpcbridge_gitlab.records import write_text
from hpcbridge_gitlab.verdicts import Cause, Stop

if TYPE_CHECKING:
    from hpcbridge_gitlab.contract import CiJob
    from hpcbridge_gitlab.records import Attempt
    from hpcbridge_gitlab.settings import Settings

_KEPT = ("LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_PATH = "/usr/local/bin:/usr/bin:/bin"


def check_hooks(settings: Settings, job: CiJob) -> None:
    """Raise Stop (POLICY) where a user's own code would run on this host beside its credentials."""
    if job.hooks and not settings.driver.allow_hooks and not isolated(settings):
        raise Stop(
            Cause.POLICY,
            f"`hooks` ({', '.join(job.hooks)}) would run on the runner's host",
            hint="Remove them, or have the administrator install bubblewrap",
        )


def isolated(settings: Settings) -> bool:
    """Whether host stages run under bubblewrap."""
    if settings.driver.isolate == "none":
        return False
    works = shutil.which("bwrap") is not None and (
        subprocess.run([*_bwrap(), "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0
    )
    if not works and settings.driver.isolate == "bwrap":
        raise Stop(Cause.CONFIGURATION, "bubblewrap (bwrap) does not work here, and [driver] isolate asks for it")
    return works


def _bwrap() -> list[str]:
    return [
        *("bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-pid", "--die-with-parent"),
        *("--tmpfs", "/tmp"),  # noqa: S108 (the sandbox's own)
    ]


def runner_program(settings: Settings) -> str:
    """The real gitlab-runner: configured, in PATH, or the program that called us. Raises Stop (CONFIGURATION)."""
    if configured := settings.driver.runner or shutil.which("gitlab-runner"):
        return configured
    with contextlib.suppress(OSError):
        caller = Path(f"/proc/{os.getppid()}/exe").readlink()
        if "gitlab-runner" in caller.name:
            return str(caller)
    raise Stop(
        Cause.CONFIGURATION,
        "gitlab-runner is not in PATH on the runner's host, so artifacts and caches would be lost silently",
        hint="Name it as `runner` in [driver]",
    )


async def run(
    settings: Settings, job: CiJob, attempt: Attempt, script: Path, stage: str, cancelled: asyncio.Event
) -> None:
    """Run the stage's script here. Raises Stop."""
    if not attempt.slot:
        if stage == "cleanup_file_variables":
            return  # nothing has been here
        attempt.slot = str(slots.take(settings, job, attempt))
        attempt.save()
    slot = Path(attempt.slot)
    local = _lay_out(slot, attempt.home, script)
    try:
        code = await _Stage(settings, job, attempt, slot, cancelled).run(local)
    finally:
        shutil.rmtree(local.parent, ignore_errors=True)
    if cancelled.is_set():
        raise Stop(Cause.CANCELLED, "cancelled", hint="")
    if code:
        raise Stop(Cause.SCRIPT, f"{stage} ended with exit code {code}", code=code if 0 < code < 256 else 1)


def _lay_out(slot: Path, home: str, script: Path) -> Path:
    """The stage's private directory, with the shim, and the script with this host's paths in it; the script's path."""
    work = slot / ".hpcbridge"
    shutil.rmtree(work, ignore_errors=True)
    for folder in (work, work / "bin", work / "home", work / "tmp", slot / "builds"):
        folder.mkdir(mode=0o700, exist_ok=True)
    local = work / "script"
    local.touch(mode=0o600)
    local.write_bytes(script.read_bytes().replace(home.encode(), os.fsencode(slot)))
    shim = work / "bin" / "gitlab-runner"
    shutil.copyfile(Path(__file__).with_name("shim.sh"), shim)
    shim.chmod(0o700)
    return local


class _Stage:
    """One script that runs here, and what it asks for."""

    def __init__(self, settings: Settings, job: CiJob, attempt: Attempt, slot: Path, cancelled: asyncio.Event) -> None:
        self.settings, self.job, self.attempt, self.slot, self.cancelled = settings, job, attempt, slot, cancelled
        self.work = slot / ".hpcbridge"

    async def run(self, script: Path) -> int:
        """The script's exit code."""
        process = await asyncio.create_subprocess_exec(
            *self._before(),
            "bash",
            str(script),
            stdin=asyncio.subprocess.DEVNULL,
            env=self._environment(),
            cwd=self.slot,
            start_new_session=True,
        )
        ended = asyncio.ensure_future(process.wait())
        stop = asyncio.ensure_future(self.cancelled.wait())
        try:
            while not ended.done():
                await asyncio.wait({ended, stop}, timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
                if stop.done():
                    await self._kill(process)
                    break
                for ask in self.work.glob("ask.*[0-9]"):
                    await self._answer(ask)
        finally:
            stop.cancel()
        return await ended

    def _before(self) -> list[str]:
        if not isolated(self.settings):
            return []
        home = Path.home()
        hidden = [home, self.settings.state, *map(Path, self.settings.driver.hide)]
        hidden += [path.parent for path in _configuration(self.settings)]
        masks = [word for path in dict.fromkeys(hidden) if path.is_dir() for word in ("--tmpfs", str(path))]
        shared = slots.cache(self.settings, self.job)
        shown = [
            word for path in (self.slot, shared, *_programs(self.settings)) for word in ("--bind", str(path), str(path))
        ]
        return [*_bwrap(), *masks, *shown, "--chdir", str(self.slot), "--"]

    def _environment(self) -> dict[str, str]:
        """Nothing of the driver's own: it holds credentials."""
        kept = {name: os.environ[name] for name in (*_KEPT, *_PROXIES) if name in os.environ}
        return kept | {
            "PATH": f"{self.work}/bin:{os.environ.get('PATH') or _PATH}",
            "HOME": str(self.work / "home"),
            "TMPDIR": str(self.work / "tmp"),
            "HPCBRIDGE_SHIM": str(self.work),
            "HPCBRIDGE_RUNNER": runner_program(self.settings),
        }

    async def _answer(self, ask: Path) -> None:
        """Bring what an uploader asks for, then let it go on."""
        directory, *words = _taken(ask).split(b"\0")[:-1]
        verdict = "stop"
        try:
            await sources.pull(self.settings, self.job, self.attempt, self.slot, directory, words)
            verdict = "go"
        except Stop as stop:
            for line in stop.lines():
                say(line)
        finally:
            write_text(self.work / f"answer{ask.suffix}", verdict + "\n")

    async def _kill(self, process: asyncio.subprocess.Process) -> None:
        for number, patience in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(process.wait()), patience)
                return


def _taken(path: Path) -> bytes:
    content = path.read_bytes()
    path.unlink()
    return content


def _configuration(settings: Settings) -> list[Path]:
    from hpcbridge.sites import config_file

    return [path.absolute() for path in (settings.path, config_file()) if path.exists()]


def _programs(settings: Settings) -> list[Path]:
    """A gitlab-runner below a hidden directory stays visible."""
    program = Path(runner_program(settings))
    return [program] if program.is_absolute() else []
