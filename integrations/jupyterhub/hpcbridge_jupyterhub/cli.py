"""Check a JupyterHub that uses hpcbridge: `hpcbridge jupyterhub doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Check a JupyterHub that uses hpcbridge.", no_args_is_help=True)


@app.callback()
def jupyterhub() -> None:
    """Check a JupyterHub that uses hpcbridge."""


@app.command()
def doctor(
    config: Annotated[Path, typer.Option("-f", "--config", help="The hub's configuration file.")] = Path(
        "jupyterhub_config.py"
    ),
) -> None:
    """Check the hub's configuration, and every system in it as the service that watches.

    Run it where the hub runs, with the hub's environment. It submits nothing. Exit code 1: something must be changed.
    """
    import asyncio

    from hpcbridge_jupyterhub.doctor import MARKS, checkup, load

    findings = asyncio.run(checkup(load(config)))
    for finding in findings:
        typer.echo(f"{MARKS[finding.level]} {finding.text}")
    if any(finding.level == "wrong" for finding in findings):
        raise typer.Exit(1)
