"""Sub-commands of other packages, found by the entry-point group `hpcbridge.commands`.

Name and help are known without importing the package: the help is the first line of the module's docstring, read from
its source. The module is imported when its command is called.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

GROUP = "hpcbridge.commands"


@cache
def _found() -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=GROUP)) if _source(point.module)}


def names() -> list[str]:
    """The announced commands whose package is installed."""
    return list(_found())


def stand_in(name: str) -> Any:
    """A command that carries only the name and the help of `name`; None when there is no such command."""
    point = _found().get(name)
    if point is None:
        return None
    app = typer.Typer(name=name, help=_first_line(point.module))
    app.callback(invoke_without_command=True)(_nothing)
    return typer.main.get_command(app)


def _nothing() -> None:
    """Stand in for a command that is loaded only when called."""


def load(name: str) -> Any:
    """Import the command `name`; None when there is no such command.

    A package whose dependencies (an extra) are missing says so instead of showing a traceback.
    """
    point = _found().get(name)
    if point is None:
        return None
    try:
        app = point.load()
    except ModuleNotFoundError as missing:
        from hpcbridge.errors import ConfigurationError

        raise ConfigurationError(
            f"the command {name!r} needs the Python package {missing.name!r}, which is not installed",
            hint=f"Install hpcbridge with the extra {name!r}: in its clone, pip install '.[{name}]'",
        ) from missing
    return typer.main.get_command(app) if isinstance(app, typer.Typer) else app


def _source(module: str) -> Path | None:
    """Where the source of `module` is, found without importing it or its packages."""
    package, *rest = module.split(".")
    spec = find_spec(package)
    if spec is None:
        return None
    for folder in map(Path, spec.submodule_search_locations or ()):
        for path in (folder.joinpath(*rest).with_suffix(".py"), folder.joinpath(*rest, "__init__.py")):
            if path.is_file():
                return path
    return None


def _first_line(module: str) -> str:
    path = _source(module)
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path else None
    return (text or "").partition("\n")[0]
