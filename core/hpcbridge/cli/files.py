"""Commands about files: put, get, ls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpcbridge.cli import output
from hpcbridge.cli.context import (
    JsonOption,
    SiteOption,
    State,
    SystemOption,
    choose_system,
    connect,
    run,
    state_of,
    usage_error,
)
from hpcbridge.cli.remote import Remote, is_remote, parse_remote

if TYPE_CHECKING:
    from hpcbridge.firecrest import FileEntry
    from hpcbridge.hpc import System
    from hpcbridge.staging import TransferResult

RouteOption = Annotated[
    str | None, typer.Option("--route", metavar="direct|chunked|s3", help="How to move it; default: what is quickest.")
]
AccountOption = Annotated[
    str | None, typer.Option("--account", metavar="NAME", help="Account for transfer jobs, where one is required.")
]
VerifyOption = Annotated[
    str, typer.Option("--verify", metavar="auto|size|sha256|none", help="What to compare when it has arrived.")
]

ROUTES = (None, "direct", "chunked", "s3")
CHECKS = {"auto": "auto", "size": "size", "sha256": "sha256", "none": None}


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("put")(put)
    app.command("get")(get)
    app.command("ls")(ls)
    app.command("home")(home)


def put(
    ctx: typer.Context,
    local: Annotated[str, typer.Argument(metavar="LOCAL", help="A file on this machine.")],
    remote: Annotated[
        str, typer.Argument(metavar="REMOTE", help="/abs/path or system:/abs/path; a directory is fine.")
    ],
    route: RouteOption = None,
    verify: VerifyOption = "auto",
    atomic: Annotated[
        bool, typer.Option("--atomic", help="Let the file appear whole, by one rename (costs one small job).")
    ] = False,
    account: AccountOption = None,
    json: JsonOption = False,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """Copy a file to the cluster."""
    state = state_of(ctx, site, system)
    target = parse_remote(remote, "REMOTE")
    source = Path(local)
    if is_remote(local):
        raise usage_error(f"{local!r} is a remote path; to fetch it: hpcbridge get {local} LOCAL", "LOCAL")
    if source.is_dir():
        raise usage_error(f"{local!r} is a directory; pack it first: tar -czf {source.name}.tar.gz {local}", "LOCAL")
    if not source.exists():
        raise usage_error(f"{local!r} does not exist on this machine", "LOCAL")
    _check(route, verify)
    state.interrupt_note = "The file is incomplete there. Repeat the command to finish it."
    run(_put(state, source, target, route, CHECKS[verify], account, atomic=atomic, as_json=json))


def _check(route: str | None, verify: str) -> None:
    if route not in ROUTES:
        raise usage_error(f"{route!r} is not one of direct, chunked, s3", "--route")
    if verify not in CHECKS:
        raise usage_error(f"{verify!r} is not one of auto, size, sha256, none", "--verify")


async def _put(
    state: State,
    source: Path,
    target: Remote,
    route: str | None,
    verify: str | None,
    account: str | None,
    *,
    atomic: bool,
    as_json: bool,
) -> None:
    async with connect(state) as hpc:
        system = choose_system(hpc, state, target.system)
        if target.is_directory or await _is_directory(system, target.path):
            target = target / source.name
        with output.transfer_bar(source.name, quiet=as_json) as progress:
            result = await system.put(
                source, target.path, route=route, verify=verify, atomic=atomic, account=account, progress=progress
            )
        _print_result(result, str(source), f"{system.name}:{target.path}", as_json=as_json)


async def _is_directory(system: System, path: str) -> bool:
    import stat

    from hpcbridge.errors import NotFound

    try:
        return stat.S_ISDIR((await system.stat(path)).mode)
    except NotFound:
        return False


def _print_result(result: TransferResult, source: str, target: str, *, as_json: bool) -> None:
    if as_json:
        output.print_json(
            {
                "source": source,
                "target": target,
                "bytes": result.bytes,
                "seconds": round(result.seconds, 3),
                "route": result.route,
                "sha256": result.sha256,
            }
        )
        return
    rate = f", {output.size(int(result.bytes / result.seconds))}/s" if result.seconds > 0 else ""
    output.note(f"{source} -> {target}: {output.size(result.bytes)} in {result.seconds:.1f} s{rate} ({result.route})")


def get(
    ctx: typer.Context,
    remote: Annotated[str, typer.Argument(metavar="REMOTE", help="/abs/path or system:/abs/path.")],
    local: Annotated[Path, typer.Argument(metavar="LOCAL", help="A file or directory on this machine.")] = Path(),
    route: RouteOption = None,
    verify: VerifyOption = "auto",
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on where an interrupted download stopped.")
    ] = True,
    account: AccountOption = None,
    json: JsonOption = False,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """Copy a file from the cluster."""
    state = state_of(ctx, site, system)
    source = parse_remote(remote, "REMOTE")
    _check(route, verify)
    target = local / source.name if local.is_dir() else local
    if not target.parent.is_dir():
        raise usage_error(f"the directory {str(target.parent)!r} does not exist on this machine", "LOCAL")
    state.interrupt_note = "Repeat the command: it goes on where it stopped."
    run(_get(state, source, target, route, CHECKS[verify], account, resume=resume, as_json=json))


async def _get(
    state: State,
    source: Remote,
    target: Path,
    route: str | None,
    verify: str | None,
    account: str | None,
    *,
    resume: bool,
    as_json: bool,
) -> None:
    async with connect(state) as hpc:
        system = choose_system(hpc, state, source.system)
        with output.transfer_bar(source.name, quiet=as_json) as progress:
            result = await system.get(
                source.path, target, route=route, verify=verify, resume=resume, account=account, progress=progress
            )
        _print_result(result, f"{system.name}:{source.path}", str(target), as_json=as_json)


def ls(
    ctx: typer.Context,
    remote: Annotated[
        str | None,
        typer.Argument(metavar="REMOTE", help="/abs/path or system:/abs/path; default: your own directory."),
    ] = None,
    hidden: Annotated[bool, typer.Option("--all", "-a", help="Names that start with a dot, too.")] = False,
    json: JsonOption = False,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """List a directory on the cluster."""
    state = state_of(ctx, site, system)
    source = parse_remote(remote, "REMOTE") if remote else None
    run(_ls(state, source, hidden=hidden, as_json=json))


async def _ls(state: State, source: Remote | None, *, hidden: bool, as_json: bool) -> None:
    async with connect(state) as hpc:
        chosen = choose_system(hpc, state, source.system if source else None)
        path = source.path if source else await chosen.home()
        entries = await chosen.ls(path, hidden=hidden)
    entries = [entry for entry in entries if entry.name not in (".", "..")]
    if as_json:
        output.print_json([_entry(entry) for entry in entries])
    elif output.stdout_is_terminal():
        rows = [(e.kind + e.permissions, e.user, e.group, e.size, e.modified, _shown(e)) for e in entries]
        output.print_table(("mode", "user", "group", "size", "modified", "name"), rows, empty=f"{path} is empty.")
    else:
        for entry in entries:
            print(entry.name)  # noqa: T201


def _shown(entry: FileEntry) -> str:
    if entry.is_link:
        return f"{entry.name} -> {entry.link_target}"
    return f"{entry.name}/" if entry.is_dir else entry.name


def _entry(entry: FileEntry) -> dict[str, object]:
    return {
        "name": entry.name,
        "kind": {"-": "file", "d": "directory", "l": "link"}.get(entry.kind, entry.kind),
        "size": entry.size,
        "permissions": entry.permissions,
        "user": entry.user,
        "group": entry.group,
        "modified": entry.modified,
        "link_target": entry.link_target,
    }


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
