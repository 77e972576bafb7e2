"""The root command: global options, commands, sub-commands of other packages, and how errors end.

Nothing heavy is imported here: `hpcbridge --help` must be quick. Commands import what they need when they are called.
"""

from __future__ import annotations

import errno
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from hpcbridge.cli import account, batch, context, files, plugins, run, site, transfers
from hpcbridge.cli.exits import ExitCode, for_error, next_step
from hpcbridge.cli.usage import Command

EPILOG = "\n\n".join(
    (
        "A remote path is /absolute/path on the default system or system:/absolute/path.",
        "The deployment comes from FIRECREST_URL, AUTH_TOKEN_URL, FIRECREST_CLIENT_ID, FIRECREST_CLIENT_SECRET and "
        "FIRECREST_SYSTEM, or from a section of the configuration file named with --site.",
        "Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 69 unavailable, 70 a defect, 74 transfer failed, "
        "75 try again, 77 login or permission, 78 configuration, 124 time limit, 130 cancelled or interrupted; with "
        "run and submit --wait the job's own.",
    )
)


class RootGroup(TyperGroup):
    """The commands of this package and those that others announce as entry points; errors become one clear message."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands; no package is imported for it."""
        return [*super().list_commands(ctx), *(n for n in plugins.names() if n not in self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command, as a light stand-in while only its name and help are needed."""
        return super().get_command(ctx, cmd_name) or plugins.stand_in(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command to be called, really loaded now."""
        if args and args[0] not in self.commands and (loaded := plugins.load(args[0])) is not None:
            self.add_command(loaded, args[0])
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Call the command; what goes wrong is told in one message, without a traceback unless `--debug`."""
        state = ctx.ensure_object(context.State)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _say("Interrupted.", _after_interrupt(state))
            raise typer.Exit(ExitCode.CANCELLED) from None
        except BrokenPipeError:
            raise
        except Exception as error:
            if _is_for_typer(error):
                raise
            if state.debug:
                traceback.print_exc()
            raise typer.Exit(_report(error)) from None


def _after_interrupt(state: context.State) -> str | None:
    """The command's own note; a line about {job} only where there is one."""
    lines = (state.interrupt_note or "").splitlines()
    told = [line.replace("{job}", state.job_id or "") for line in lines if state.job_id or "{job}" not in line]
    return "\n".join(told) or None


def _is_for_typer(error: Exception) -> bool:
    # click's own errors (usage, exit, abort); typer carries its own copy of click in newer versions.
    return any(kind.__name__ in ("ClickException", "Exit", "Abort") for kind in type(error).__mro__)


def _report(error: Exception) -> ExitCode:
    from hpcbridge.cli import output
    from hpcbridge.errors import HpcBridgeError, SomeFailed

    if isinstance(error, SomeFailed):
        code = for_error(error)
        for failure in error.failures.values():
            _report(failure)
        if error.message:
            _say(f"Error: {error.message}.")
        return code
    if isinstance(error, HpcBridgeError):
        hint, error.hint = next_step(error), None
        _say(f"Error: {error}", f"Next: {hint}" if hint else None)
        return for_error(error)
    if isinstance(error, OSError) and error.filename is not None:
        _say(f"Error: {error.filename}: {error.strerror}.")
        return ExitCode.FAILURE
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        output.drop_stdout()  # or Python tries once more at the end, and says so
        _say("Error: the output cannot be written: no space left on its device.")
        return ExitCode.TRANSFER
    _say(
        f"Error: unexpected {type(error).__name__}: {error}",
        "This is a defect of hpcbridge. `hpcbridge --debug …` shows where; please report it.",
    )
    return ExitCode.INTERNAL


def _say(*lines: str | None) -> None:
    from hpcbridge.cli.output import printable

    for line in lines:
        if line:
            print(printable(line, keep="\n\t"), file=sys.stderr)  # noqa: T201


app = typer.Typer(
    name="hpcbridge",
    cls=RootGroup,
    help="Run work on any HPC centre that speaks FirecREST v2.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from hpcbridge import __version__

        typer.echo(f"hpcbridge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    site: context.SiteOption = None,
    system: context.SystemOption = None,
    debug: Annotated[
        bool, typer.Option("--debug", help="Log every request to stderr and show tracebacks (never secrets).")
    ] = False,
    version: Annotated[  # noqa: ARG001 (its callback acts)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    state = ctx.ensure_object(context.State)
    state.site, state.system, state.debug = site, system, debug
    if debug:
        _log_to_stderr()


def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("hpcbridge").setLevel(logging.DEBUG)


for _module in (account, site, batch, run, transfers, files):
    _module.add_to(app)
for _command in app.registered_commands:
    _command.cls = _command.cls if _command.cls not in (None, TyperCommand) else Command
