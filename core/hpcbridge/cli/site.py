"""Commands about a deployment: systems, doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpcbridge.cli import output
from hpcbridge.cli.context import JsonOption, SiteOption, State, SystemOption, connect, run, state_of, usage_error

if TYPE_CHECKING:
    from hpcbridge.firecrest import SystemInfo


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("systems")(systems)
    app.command("doctor")(doctor)


def systems(ctx: typer.Context, json: JsonOption = False, site: SiteOption = None) -> None:
    """List the systems of a site.

    With their health, scheduler, file systems and limits.
    """
    run(_systems(state_of(ctx, site), as_json=json))


async def _systems(state: State, *, as_json: bool) -> None:
    async with connect(state) as hpc:
        found = await hpc.systems()
    if as_json:
        output.print_json([summary(each) for each in found])
        return
    rows = [
        (
            each.name,
            "healthy" if each.healthy else "unhealthy",
            f"{each.scheduler.kind} {each.scheduler.version} ({each.scheduler.mode})",
            [file_system.path for file_system in each.file_systems],
            output.size(each.max_ops_file_size),
            each.transfer or "none",
        )
        for each in found
    ]
    columns = ("name", "health", "scheduler", "file systems", "direct limit", "large files")
    output.print_table(columns, rows, empty="This site has no systems.")


def summary(info: SystemInfo) -> dict[str, Any]:
    """What `systems --json` prints for one system; sizes in bytes."""
    return {
        "name": info.name,
        "healthy": info.healthy,
        "scheduler": {"kind": info.scheduler.kind, "version": info.scheduler.version, "mode": info.scheduler.mode},
        "file_systems": [
            {"path": each.path, "default_work_dir": each.default_work_dir, "data_type": each.data_type}
            for each in info.file_systems
        ],
        "transfer": info.transfer,
        "max_ops_file_size": info.max_ops_file_size,
        "services": [
            {"service": each.service, "healthy": each.healthy, "path": each.path, "message": each.message}
            for each in info.services
        ],
    }


def doctor(
    ctx: typer.Context,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="SIZE", help="Say only how so much would move: 512M, 20GB, 1.5T."),
    ] = None,
    up: Annotated[bool, typer.Option("--up", help="With --size: to the system only.")] = False,
    down: Annotated[bool, typer.Option("--down", help="With --size: from the system only.")] = False,
    json: JsonOption = False,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """Check that everything works, and say what to do next.

    Goes from the configuration over token, server, system and limits to a file written and read back, and ends with the
    routes that files would take: the estimate of each comes from what earlier transfers have shown of the site.
    """
    from hpcbridge.cli.checkup import Checkup
    from hpcbridge.cli.sizes import parse_size
    from hpcbridge.staging.plan import Direction

    if (up or down) and size is None:
        raise usage_error("--up and --down go with --size", "--size")
    directions = [way for way, asked in ((Direction.UP, up), (Direction.DOWN, down)) if asked]
    checkup = Checkup(state_of(ctx, site, system), size=parse_size(size, "--size"), directions=directions, quiet=json)
    run(checkup.run())
    if json:
        output.print_json(checkup.summary)
    raise typer.Exit(checkup.exit_code)
