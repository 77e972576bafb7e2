"""Check a JupyterHub that uses hpcbridge: `hpcbridge jupyterhub doctor`."""

from __future__ import annotations

import typer

app = typer.Typer(help="Check a JupyterHub that uses hpcbridge.", no_args_is_help=True)


@app.callback()
def jupyterhub() -> None:
    """Check a JupyterHub that uses hpcbridge."""
