"""What every command shares: the global options, the connection, and what to say when the user interrupts."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from hpcbridge.hpc import Hpc, System

T = TypeVar("T")

SiteOption = Annotated[
    str | None,
    typer.Option("--site", metavar="NAME", help="Section of the configuration file to use instead of the environment."),
]
SystemOption = Annotated[
    str | None, typer.Option("--system", metavar="NAME", help="The cluster; default FIRECREST_SYSTEM or the only one.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to standard output and nothing else.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary; errors only.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would be done, and do nothing.")]
AccountOption = Annotated[
    str | None, typer.Option("--account", metavar="NAME", help="Account for the jobs of it, where one is required.")
]


@dataclass
class State:
    """The global options of one call, in the order: on the command, before the command, configuration."""

    site: str | None = None
    system: str | None = None
    debug: bool = False
    interrupt_note: str | None = None
    """What to say after an interrupt: what goes on without us, and how to get back to it."""
    job_id: str | None = None
    """The job of ours that a command waits for."""


def state_of(ctx: typer.Context, site: str | None = None, system: str | None = None) -> State:
    """The call's State, with the command's own `--site` and `--system` on top."""
    state = ctx.ensure_object(State)
    state.site = site or state.site
    state.system = system or state.system
    return state


def connect(state: State) -> Hpc:
    """The deployment that the options and the configuration name. Raises ConfigurationError, LoginRequired."""
    import hpcbridge

    return hpcbridge.connect(state.site, adapter="cli")


def choose_system(hpc: Hpc, state: State, named: str | None = None) -> System:
    """The system of a remote path (`named`), else of `--system`, else the configured one."""
    return hpc.system(named or state.system)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run one command's coroutine; Ctrl-C cancels it and raises KeyboardInterrupt when its clean-up is done."""
    import asyncio

    return asyncio.run(work)


def usage_error(message: str, param_hint: str | None = None) -> Exception:
    """An error of the command line: told with the command's usage, exit code 2."""
    return typer.BadParameter(message, param_hint=param_hint)
