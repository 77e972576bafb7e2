"""Commands that move files between this machine and the cluster: put, get, sync."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hpcbridge.cli.context import (
    AccountOption,
    DryRunOption,
    JsonOption,
    QuietOption,
    SiteOption,
    SystemOption,
    run,
    state_of,
    usage_error,
)
from hpcbridge.cli.remote import is_remote, parse_remote, parse_remotes
from hpcbridge.cli.sizes import parse_size

ROUTES = ("direct", "chunked", "s3", "streamer")
CHECKS = {"auto": "auto", "size": "size", "sha256": "sha256", "none": None}

RouteOption = Annotated[
    str | None, typer.Option("--route", metavar="|".join(ROUTES), help="How to move it; default: what is quickest.")
]
VerifyOption = Annotated[
    str, typer.Option("--verify", metavar="|".join(CHECKS), help="What to compare when it has arrived.")
]
IncludeOption = Annotated[
    list[str] | None,
    typer.Option("--include", metavar="PATTERN", help="Of a directory, only files that match. Repeatable."),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="PATTERN", help="Not these, nor what is below: *.tmp, /build/. Repeatable."),
]
ExcludeFromOption = Annotated[
    Path | None,
    typer.Option("--exclude-from", metavar="FILE", help="More --exclude patterns, one per line; # begins a comment."),
]
MaxFileSizeOption = Annotated[
    str | None, typer.Option("--max-file-size", metavar="SIZE", help="Leave larger files out: 10M, 2G.")
]
MaxSizeOption = Annotated[
    str | None, typer.Option("--max-size", metavar="SIZE", help="Refuse more than this as a whole: 10M, 2G.")
]
RecursiveOption = Annotated[bool, typer.Option("-r", "-R", "--recursive", hidden=True)]
"""Taken for the sake of habit: directories need no option."""


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("put")(put)
    app.command("get")(get)
    app.command("sync")(sync)


@dataclass(frozen=True)
class Choice:
    """Which parts of a directory are meant; sizes in bytes."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_file_size: int | None = None

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude or self.max_file_size is not None)

    def options(self) -> dict[str, Any]:
        """As arguments of `System.put`, `get` and `sync`."""
        return dict(vars(self))


def choice_of(
    include: list[str] | None, exclude: list[str] | None, exclude_from: Path | None, max_file_size: str | None
) -> Choice:
    """What the options choose, patterns of a file included."""
    excluded = list(exclude or [])
    if exclude_from is not None:
        try:
            lines = exclude_from.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not UTF-8"
            raise usage_error(f"{str(exclude_from)!r} cannot be read: {why}", "--exclude-from") from None
        excluded += [line for line in lines if line.strip() and not line.startswith("#")]
    return Choice(tuple(include or ()), tuple(excluded), parse_size(max_file_size, "--max-file-size"))


def _checked(route: str | None, verify: str) -> dict[str, Any]:
    if route not in (None, *ROUTES):
        raise usage_error(f"{route!r} is not one of {', '.join(ROUTES)}", "--route")
    if verify not in CHECKS:
        raise usage_error(f"{verify!r} is not one of {', '.join(CHECKS)}", "--verify")
    return {"route": route, "verify": CHECKS[verify]}


def put(
    ctx: typer.Context,
    local: Annotated[
        list[str], typer.Argument(metavar="LOCAL...", help="A directory, or one or more files, on this machine.")
    ],
    remote: Annotated[
        str,
        typer.Argument(
            metavar="REMOTE",
            help="/abs/path or system:/abs/path. The content of a directory becomes that of REMOTE (never "
            "REMOTE/NAME); files go into REMOTE where it is a directory.",
        ),
    ],
    route: RouteOption = None,
    verify: VerifyOption = "auto",
    atomic: Annotated[
        bool,
        typer.Option("--atomic", help="Let a small file appear whole, by one rename (a small job); others always do."),
    ] = False,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    exclude_from: ExcludeFromOption = None,
    max_file_size: MaxFileSizeOption = None,
    max_size: MaxSizeOption = None,
    recursive: RecursiveOption = False,  # noqa: ARG001
    dry_run: DryRunOption = False,
    account: AccountOption = None,
    quiet: QuietOption = False,
    json: JsonOption = False,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """Copy a directory or files to the cluster.

    hpcbridge put inputs /scratch/me/run1    hpcbridge put *.dat daint:/scratch/me/run1
    """
    from hpcbridge.cli.moving import Moving, local_sources

    state = state_of(ctx, site, system)
    target = parse_remote(remote, "REMOTE")
    for text in local:
        if is_remote(text):
            raise usage_error(f"{text!r} is a remote path; to fetch it: hpcbridge get {text} LOCAL", "LOCAL")
    sources = local_sources(local)
    options = _checked(route, verify) | {"account": account, "max_size": parse_size(max_size, "--max-size")}
    chosen = choice_of(include, exclude, exclude_from, max_file_size)
    state.interrupt_note = "It is incomplete there. Repeat the command: it goes on where it stopped."
    moving = Moving(state, chosen, options, quiet=quiet, as_json=json, dry_run=dry_run)
    run(moving.put(sources, target, atomic=atomic))


def get(
    ctx: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="REMOTE... [LOCAL]",
            help="/abs/path or system:/abs/path of a directory, or of one or more files, or a pattern in quotes; then "
            "a path on this machine, by default here. The content of a directory becomes that of LOCAL.",
        ),
    ],
    route: RouteOption = None,
    verify: VerifyOption = "auto",
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on where an interrupted download stopped.")
    ] = True,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    exclude_from: ExcludeFromOption = None,
    max_file_size: MaxFileSizeOption = None,
    max_size: MaxSizeOption = None,
    recursive: RecursiveOption = False,  # noqa: ARG001
    dry_run: DryRunOption = False,
    account: AccountOption = None,
    quiet: QuietOption = False,
    json: JsonOption = False,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """Copy a directory or files from the cluster.

    hpcbridge get /scratch/me/run1/out results    hpcbridge get 'daint:/scratch/me/*.out' results
    """
    from hpcbridge.cli.moving import Moving

    state = state_of(ctx, site, system)
    *remote, local = paths if len(paths) > 1 else [*paths, "."]
    if is_remote(local):
        raise usage_error(f"{local!r} is a remote path: the last one must be on this machine, as . is", "LOCAL")
    named, patterns = parse_remotes(remote, "REMOTE")
    options = _checked(route, verify) | {"account": account, "max_size": parse_size(max_size, "--max-size")}
    chosen = choice_of(include, exclude, exclude_from, max_file_size)
    state.interrupt_note = "Repeat the command: it goes on where it stopped."
    moving = Moving(state, chosen, options | {"resume": resume}, quiet=quiet, as_json=json, dry_run=dry_run)
    if local.endswith("/") and Path(local).exists() and not Path(local).is_dir():
        raise usage_error(f"{local!r} is a file", "LOCAL")
    run(moving.get(named, patterns, Path(local), default=len(paths) == 1, inside=local.endswith("/")))


def sync(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A directory here, or system:/abs/path; the other one becomes like it."),
    ],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="system:/abs/path (or /abs/path), or a directory here.")
    ],
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove what only TARGET has, except what the patterns leave out.")
    ] = False,
    route: RouteOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    exclude_from: ExcludeFromOption = None,
    max_file_size: MaxFileSizeOption = None,
    max_size: MaxSizeOption = None,
    recursive: RecursiveOption = False,  # noqa: ARG001
    dry_run: DryRunOption = False,
    account: AccountOption = None,
    quiet: QuietOption = False,
    json: JsonOption = False,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """Make a directory like another one, here or on the cluster: only what differs is sent.

    hpcbridge sync inputs daint:/scratch/me/run1    hpcbridge sync daint:/scratch/me/run1/out results
    """
    from hpcbridge.cli.moving import Moving

    state = state_of(ctx, site, system)
    direction = direction_of(source, target)
    options = {
        "route": _checked(route, "auto")["route"],
        "account": account,
        "delete": delete,
        "max_size": parse_size(max_size, "--max-size"),
    }
    chosen = choice_of(include, exclude, exclude_from, max_file_size)
    state.interrupt_note = "Repeat the command: what has arrived is not sent again."
    moving = Moving(state, chosen, options, quiet=quiet, as_json=json, dry_run=dry_run)
    local, remote = (source, target) if direction == "up" else (target, source)
    if direction == "up" and not Path(local).is_dir():
        what = "is a file: hpcbridge put copies it" if Path(local).exists() else "does not exist on this machine"
        raise usage_error(f"{local!r} {what}", "SOURCE")
    if direction == "down" and Path(local).exists() and not Path(local).is_dir():
        raise usage_error(f"{local!r} is a file", "TARGET")
    run(moving.sync(Path(local), parse_remote(remote, "TARGET" if direction == "up" else "SOURCE"), direction))


def direction_of(source: str, target: str) -> str:
    """Which way: "up" or "down", by the side written as `system:/path`, else by what can only be on this machine."""
    if is_remote(source) and is_remote(target):
        raise usage_error(
            "both are on the cluster; one must be a directory on this machine (hpcbridge cp copies there)"
        )
    if is_remote(target) or is_remote(source):
        return "up" if is_remote(target) else "down"
    could_be = [text.startswith("/") for text in (source, target)]
    here = [Path(text).exists() for text in (source, target)]
    if not any(could_be):
        raise usage_error("neither is a remote path: write the one on the cluster as system:/absolute/path")
    if could_be[1] and (not could_be[0] or (here[0] and not here[1])):
        return "up"
    if could_be[0] and not could_be[1] and not here[0]:
        return "down"
    ways = " or ".join(
        f"SYSTEM:{text}" for text, could in zip((target, source), reversed(could_be), strict=True) if could
    )
    raise usage_error(
        f"which one is on the cluster? Write it with its system, {ways}; `hpcbridge systems` has the names"
    )
