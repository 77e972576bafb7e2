"""Commands about files that stay on the cluster: ls, cat, cp, mv, rm, mkdir, du, home."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from hpcbridge.cli import output
from hpcbridge.cli.calls import Call, call_on, goes_on, print_changes
from hpcbridge.cli.context import (
    AccountOption,
    DryRunOption,
    JsonOption,
    QuietOption,
    SiteOption,
    State,
    SystemOption,
    choose_system,
    connect,
    run,
    state_of,
)
from hpcbridge.cli.remote import parse_remotes
from hpcbridge.cli.sizes import human

if TYPE_CHECKING:
    from hpcbridge.errors import HpcBridgeError
    from hpcbridge.staging.context import Transfer
    from hpcbridge.staging.remote.operations import Failures, Usage

PathsArgument = Annotated[
    list[str], typer.Argument(metavar="PATH...", help="/abs/path or system:/abs/path, or a pattern of such in quotes.")
]
SourcesArgument = Annotated[
    list[str], typer.Argument(metavar="SOURCE...", help="/abs/path or system:/abs/path, or a pattern in quotes.")
]
DestinationArgument = Annotated[
    str, typer.Argument(metavar="DESTINATION", help="The new path; a directory that exists means inside it.")
]
MEASURED_AT_ONCE = 4
"""Trees that `du` measures side by side: each may cost a job."""
OWN_H = {"help_option_names": ["--help"]}
"""For commands whose -h is coreutils' own."""


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("ls", context_settings=OWN_H)(ls)
    app.command("cat")(cat)
    app.command("cp")(cp)
    app.command("mv")(mv)
    app.command("rm")(rm)
    app.command("mkdir")(mkdir)
    app.command("du", context_settings=OWN_H)(du)
    app.command("home")(home)


# --- ls, cat ----------------------------------------------------------------------------------------------------------


def ls(
    ctx: typer.Context,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH...",
            help="/abs/path or system:/abs/path, or a pattern in quotes; default: your own directory.",
        ),
    ] = None,
    long: Annotated[bool, typer.Option("-l", "--long", help="Mode, owner, size and time, too.")] = False,
    hidden: Annotated[bool, typer.Option("--all", "-a", help="Names that start with a dot, too.")] = False,
    directory: Annotated[
        bool, typer.Option("-d", "--directory", help="Directories themselves, not what is in them.")
    ] = False,
    recursive: Annotated[
        bool, typer.Option("-R", "--recursive", help="The whole tree, with names relative to it.")
    ] = False,
    readable: Annotated[bool, typer.Option("-h", "--human-readable", help="With -l: sizes like 5.2K, 12M.")] = False,
    json: JsonOption = False,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """List directories and files on the cluster."""
    state = state_of(ctx, site, system)
    named, patterns = parse_remotes(paths or [], "PATH")
    wanted = _Wanted(hidden=hidden, recursive=recursive, directory=directory, long=long)
    run(_ls(state, named, patterns, wanted, readable=readable, as_json=json))


@dataclass(frozen=True)
class _Wanted:
    """What `ls` is to show."""

    hidden: bool = False
    recursive: bool = False
    directory: bool = False
    long: bool = False


async def _ls(
    state: State, system: str | None, patterns: list[str], wanted: _Wanted, *, readable: bool, as_json: bool
) -> None:
    from hpcbridge.cli.listings import look, print_listings, records

    async with call_on(state, system, "ls", quiet=as_json) as call:
        patterns = patterns or [await call.t.system.home()]
        found = await call.expand(patterns)
        operands = {each.path: each for each in found}
        looked = await call.each(list(operands), lambda path: look(call.t, operands[path], **vars(wanted)))
        call.display.close()
        if as_json:
            output.print_json([record for listing in looked.values() for record in records(listing)])
        else:
            several = len(patterns) > 1 or len(found) > 1
            print_listings(list(looked.values()), long=wanted.long, readable=readable, several=several)
        call.raise_failures()


def cat(
    ctx: typer.Context,
    paths: PathsArgument,
    account: AccountOption = None,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """Print files of the cluster, byte for byte, of any size.

    More than one direct download (3.9 MB by default) costs a small job.
    """
    state = state_of(ctx, site, system)
    named, patterns = parse_remotes(paths, "PATH")
    run(_cat(state, named, patterns, account))


async def _cat(state: State, system: str | None, patterns: list[str], account: str | None) -> None:
    from hpcbridge.staging.remote import reading
    from hpcbridge.staging.remote.operations import ABOUT_PATHS

    async with call_on(state, system, "cat", account=account) as call:
        for path in await call.paths(patterns):
            try:
                async with aclosing(reading.read(call.t, path)) as blocks:
                    async for block in blocks:
                        call.display.close()  # what is read and a progress bar would share a terminal
                        await asyncio.to_thread(output.print_bytes, block)
            except ABOUT_PATHS as error:
                call.failures[path] = error
        call.raise_failures()


# --- cp, mv, rm, mkdir ------------------------------------------------------------------------------------------------


def cp(
    ctx: typer.Context,
    sources: SourcesArgument,
    destination: DestinationArgument,
    recursive: Annotated[bool, typer.Option("-r", "-R", "--recursive", help="Directories with all they hold.")] = False,
    dry_run: DryRunOption = False,
    account: AccountOption = None,
    quiet: QuietOption = False,
    json: JsonOption = False,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """Copy files on the cluster, all in one job.

    Each new file or tree appears whole, by one rename.
    """
    from hpcbridge.staging.remote import operations

    state = state_of(ctx, site, system)
    run(
        _carry(
            state,
            "cp",
            [*sources, destination],
            lambda t, paths, target: operations.copy(t, paths, target, recursive=recursive),
            account,
            recursive=recursive,
            quiet=quiet,
            as_json=json,
            dry_run=dry_run,
        )
    )


def mv(
    ctx: typer.Context,
    sources: SourcesArgument,
    destination: DestinationArgument,
    dry_run: DryRunOption = False,
    account: AccountOption = None,
    quiet: QuietOption = False,
    json: JsonOption = False,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """Move or rename files on the cluster, all in one job."""
    from hpcbridge.staging.remote import operations

    state = state_of(ctx, site, system)
    run(
        _carry(
            state,
            "mv",
            [*sources, destination],
            operations.move,
            account,
            recursive=True,
            quiet=quiet,
            as_json=json,
            dry_run=dry_run,
        )
    )


async def _carry(
    state: State,
    verb: str,
    texts: list[str],
    work: Callable[[Transfer, list[str], str], Awaitable[Failures]],
    account: str | None,
    *,
    recursive: bool,
    quiet: bool,
    as_json: bool,
    dry_run: bool,
) -> None:
    from hpcbridge.staging.remote import operations

    system, (*patterns, destination) = parse_remotes(texts, "SOURCE")
    async with call_on(state, system, verb, account=account, quiet=quiet or as_json) as call:
        found = await call.paths(patterns)
        if len(patterns) > 1 or found != patterns:
            destination = f"{destination.rstrip('/')}/"  # several, or a pattern that may have matched only one
        goes_on(state, "It may be half done.")
        if found and dry_run:
            failures = await operations.check(call.t, found, destination, recursive=recursive)
            call.failures.update(failures)
        elif found:
            call.failures.update(await work(call.t, found, destination))
        call.display.close()
        shown = output.printable(destination) if not as_json else destination
        print_changes(call, verb, found, as_json=as_json, dry_run=dry_run, destination=shown)
        call.raise_failures()


def rm(
    ctx: typer.Context,
    paths: PathsArgument,
    recursive: Annotated[bool, typer.Option("-r", "-R", "--recursive", help="Directories with all they hold.")] = False,
    force: Annotated[bool, typer.Option("-f", "--force", help="What is not there is no failure.")] = False,
    no_preserve_root: Annotated[
        bool,
        typer.Option("--no-preserve-root", help="Also the root of a file system, or your own directory itself."),
    ] = False,
    dry_run: DryRunOption = False,
    account: AccountOption = None,
    quiet: QuietOption = False,
    json: JsonOption = False,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """Remove files of the cluster, without asking."""
    state = state_of(ctx, site, system)
    named, patterns = parse_remotes(paths, "PATH")

    async def work() -> None:
        from hpcbridge.staging.remote import operations

        async with call_on(state, named, "rm", account=account, quiet=quiet or json) as call:
            found = await call.paths(patterns, missing_ok=force)
            goes_on(state, "Some of it may be removed.")
            failures = await operations.remove(
                call.t,
                found,
                recursive=recursive,
                missing_ok=force,
                preserve_root=not no_preserve_root,
                dry_run=dry_run,
            )
            call.failures.update(failures)
            call.display.close()
            print_changes(call, "rm", found, as_json=json, dry_run=dry_run)
            call.raise_failures()

    run(work())


def mkdir(
    ctx: typer.Context,
    paths: PathsArgument,
    parents: Annotated[
        bool, typer.Option("-p", "--parents", help="Those above, too; one that exists is no failure.")
    ] = False,
    dry_run: DryRunOption = False,
    account: AccountOption = None,
    quiet: QuietOption = False,
    json: JsonOption = False,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """Make directories on the cluster."""
    state = state_of(ctx, site, system)
    named, wanted = parse_remotes(paths, "PATH")

    async def work() -> None:
        from hpcbridge.staging.remote import operations

        async with call_on(state, named, "mkdir", account=account, quiet=quiet or json) as call:
            call.failures.update(await operations.make(call.t, wanted, parents=parents, dry_run=dry_run))
            call.display.close()
            print_changes(call, "mkdir", wanted, as_json=json, dry_run=dry_run)
            call.raise_failures()

    run(work())


# --- du, home ---------------------------------------------------------------------------------------------------------


def du(
    ctx: typer.Context,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH...",
            help="/abs/path or system:/abs/path, or a pattern in quotes; default: your own directory.",
        ),
    ] = None,
    summary: Annotated[bool, typer.Option("-s", "--summarize", help="One line for each PATH.")] = False,
    readable: Annotated[bool, typer.Option("-h", "--human-readable", help="Sizes like 5.2K, 12M.")] = False,
    account: AccountOption = None,
    quiet: QuietOption = False,
    json: JsonOption = False,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """Add up the bytes in files of the cluster, directory by directory.

    What is counted is the size of files, not the blocks they take. A tree that is too large for one listing costs a
    small job.
    """
    state = state_of(ctx, site, system)
    named, patterns = parse_remotes(paths or [], "PATH")
    run(_du(state, named, patterns, account, summary=summary, readable=readable, quiet=quiet, as_json=json))


async def _du(
    state: State,
    system: str | None,
    patterns: list[str],
    account: str | None,
    *,
    summary: bool,
    readable: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    from hpcbridge.staging.remote import operations

    few = asyncio.Semaphore(MEASURED_AT_ONCE)
    async with call_on(state, system, "du", account=account, quiet=quiet or as_json) as call:

        async def measure(path: str) -> Usage:
            async with few:
                return await operations.usage(call.t, path)

        found = await call.paths(patterns or [await call.t.system.home()])
        measured: dict[str, Usage] = await call.each(found, measure)
        call.display.close()
        lines = [line for usage in measured.values() for line in (*(() if summary else usage.below), usage)]
        if as_json:
            names = ("path", "bytes", "files", "directories", "links")
            output.print_json([{name: getattr(line, name) for name in names} for line in lines])
        for line in () if as_json else lines:
            output.print_line(f"{human(line.bytes) if readable else line.bytes}\t{line.path}")
        for path, usage in measured.items():
            if usage.unread:
                call.failures[path] = _unread(call, path, usage.unread)
        call.raise_failures()


def _unread(call: Call, path: str, words: str) -> HpcBridgeError:
    from hpcbridge.staging.remote.paths import failure

    return failure(words, path, site=call.t.site, system=call.system)


def home(ctx: typer.Context, json: JsonOption = False, site: SiteOption = None, system: SystemOption = None) -> None:
    """Print the path of your own directory on the cluster."""
    name, path = run(_home(state_of(ctx, site, system)))
    if json:
        output.print_json({"system": name, "path": path})
    else:
        print(path)  # noqa: T201


async def _home(state: State) -> tuple[str, str]:
    """The system's name and the path."""
    async with connect(state) as hpc:
        system = choose_system(hpc, state)
        return (await system.info()).name, await system.home()
