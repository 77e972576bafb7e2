"""GitLab custom executor: CI jobs in one allocation each, with nothing installed at the site.

Called by gitlab-runner (config, prepare, run, cleanup) and by its administrator (doctor, explain, gc). Little is
imported before it is known what is wanted: the runner starts this anew for each stage.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from hpcbridge_gitlab import contract, settings, verdicts
from hpcbridge_gitlab.verdicts import Cause, Stop

if TYPE_CHECKING:
    from hpcbridge_gitlab.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """`hpcbridge-gitlab`; returns the exit code for the runner."""
    # httpx imports its own command line, with rich and pygments behind it: most of the time that a start takes.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    options = _parser().parse_args(arguments)
    try:
        return asyncio.run(_command(options))
    except Stop as stop:
        return _report(stop)
    except BrokenPipeError:
        # The runner is gone, and with it whoever would read why. The lease ends what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except Exception as error:
        from hpcbridge.errors import HpcBridgeError

        if isinstance(error, HpcBridgeError):
            return _report(verdicts.of_error(error))
        traceback.print_exc()
        return _report(Stop(Cause.INTERNAL, f"{type(error).__name__}: {error}"))


def _report(stop: Stop) -> int:
    """The reason on standard error, which the runner shows in the job's log, and the exit code."""
    with contextlib.suppress(BrokenPipeError):
        for line in stop.lines():
            print(f"hpcbridge: {line}", file=sys.stderr, flush=True)  # noqa: T201
    return verdicts.leave(stop)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hpcbridge-gitlab", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", metavar="FILE", help=f"default: ${settings.VARIABLE}, else {settings.DEFAULT}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("config", "config_exec: where builds are"),
        ("prepare", "prepare_exec: obtain the allocation"),
        ("cleanup", "cleanup_exec: end it"),
        ("doctor", "check this host and every rule; print config.toml"),
    ):
        commands.add_parser(name, help=text)
    run = commands.add_parser("run", help="run_exec: run one stage")
    run.add_argument("script", help="file with the stage's script")
    run.add_argument("stage", help="name of the stage")
    explain = commands.add_parser("explain", help="what a CI job may do here, or what became of one")
    explain.add_argument("job", nargs="?", help="id of a CI job that was here")
    explain.add_argument("--job-response", metavar="FILE", help="a JOB_RESPONSE_FILE to judge by the rules")
    explain.add_argument("--variable", action="append", default=[], metavar="NAME=VALUE", help="a variable of the job")
    gc = commands.add_parser("gc", help="end and remove what lost runners have left")
    gc.add_argument("--all", action="store_true", help="also what is in use")
    return parser


async def _command(options: argparse.Namespace) -> int:
    loaded = settings.load(options.config)
    cancelled = asyncio.Event()
    task = asyncio.ensure_future(_COMMANDS[options.command](loaded, options, cancelled))

    def on_signal() -> None:
        # A running stage ends itself (see running); everything else just ends: cleanup comes after it.
        cancelled.set()
        if options.command in ("config", "prepare"):
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        return await task
    except asyncio.CancelledError:
        raise Stop(Cause.CANCELLED, "cancelled", hint="") from None


async def _config(loaded: Settings, options: argparse.Namespace, cancelled: asyncio.Event) -> int:  # noqa: ARG001
    from hpcbridge_gitlab.configuring import config

    return await config(loaded, contract.read_job())


async def _prepare(loaded: Settings, options: argparse.Namespace, cancelled: asyncio.Event) -> int:  # noqa: ARG001
    from hpcbridge_gitlab.preparing import prepare

    return await prepare(loaded, contract.read_job())


async def _run(loaded: Settings, options: argparse.Namespace, cancelled: asyncio.Event) -> int:
    from hpcbridge_gitlab.running import run

    return await run(loaded, contract.read_job(), options.script, options.stage, cancelled)


async def _cleanup(loaded: Settings, options: argparse.Namespace, cancelled: asyncio.Event) -> int:  # noqa: ARG001
    from hpcbridge_gitlab.cleaning import cleanup

    return await cleanup(loaded, contract.read_job())


async def _doctor(loaded: Settings, options: argparse.Namespace, cancelled: asyncio.Event) -> int:  # noqa: ARG001
    from hpcbridge_gitlab.doctoring import doctor

    return await doctor(loaded)


async def _explain(loaded: Settings, options: argparse.Namespace, cancelled: asyncio.Event) -> int:  # noqa: ARG001
    from hpcbridge_gitlab.explaining import explain

    return await explain(
        loaded, options.job, options.job_response or os.environ.get("JOB_RESPONSE_FILE"), options.variable
    )


async def _gc(loaded: Settings, options: argparse.Namespace, cancelled: asyncio.Event) -> int:  # noqa: ARG001
    from hpcbridge_gitlab.cleaning import gc

    return await gc(loaded, everything=options.all)


_COMMANDS: dict[str, Callable[[Settings, argparse.Namespace, asyncio.Event], Awaitable[int]]] = {
    "config": _config,
    "prepare": _prepare,
    "run": _run,
    "cleanup": _cleanup,
    "doctor": _doctor,
    "explain": _explain,
    "gc": _gc,
}


if __name__ == "__main__":
    sys.exit(main())
