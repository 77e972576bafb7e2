"""GitLab custom executor: doctor, explain and gc, and what gitlab-runner calls."""

from __future__ import annotations

import typer

app = typer.Typer(add_completion=False)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def gitlab(context: typer.Context) -> None:
    """GitLab custom executor: the same as `hpcbridge-gitlab`, which starts faster."""
    from hpcbridge_gitlab.cli import main

    raise typer.Exit(main(context.args))
