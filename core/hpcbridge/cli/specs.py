"""What `submit` and `run` share: the options that describe a job, and the script it runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hpcbridge.cli.context import usage_error
from hpcbridge.cli.remote import is_remote, parse_remote

LABEL_MAX = 40
"""Characters of a job's name, as `JobSpec.name` takes it."""

NameOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Job name; default: the key, or the script's file name.")
]
ChargedOption = Annotated[str | None, typer.Option(metavar="NAME", help="Account to charge.")]
PartitionOption = Annotated[str | None, typer.Option(metavar="NAME", help="Partition (queue).")]
ReservationOption = Annotated[str | None, typer.Option(metavar="NAME", help="Reservation.")]
ConstraintOption = Annotated[str | None, typer.Option(metavar="LIST", help="Node features asked for.")]
TimeOption = Annotated[str | None, typer.Option(metavar="TIME", help="Time limit, as sbatch takes it: 30, 1:30:00.")]
NodesOption = Annotated[int | None, typer.Option(metavar="N", min=1, help="Number of nodes.")]
TasksOption = Annotated[int | None, typer.Option(metavar="N", min=1, help="Number of tasks.")]
ArrayOption = Annotated[str | None, typer.Option(metavar="RANGE", help="Job array, as sbatch takes it: 0-9, 1,3,5.")]
OutputOption = Annotated[str | None, typer.Option("--output", metavar="FILE", help="File for standard output.")]
ErrorOption = Annotated[str | None, typer.Option("--error", metavar="FILE", help="File for standard error.")]
DirectiveOption = Annotated[
    list[str] | None,
    typer.Option(metavar="OPTION", help="Any other sbatch option: --directive=--gpus=1. Repeatable."),
]
EnvOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME[=VALUE]", help="Environment variable; without a value, this shell's. Repeatable."),
]


def spec_fields(**fields: Any) -> dict[str, Any]:
    """Fields of a JobSpec, without those that nobody has given."""
    return {name: value for name, value in fields.items() if value not in (None, {}, ())}


def check_key(key: str | None) -> None:
    """Refuse an empty key: an unset shell variable must not mean "without a key"."""
    if key is not None and not key.strip():
        raise usage_error("a key must not be empty; leave --key out to submit a new job each time", "--key")


def read_script(script: str) -> tuple[str | None, dict[str, str]]:
    """(system named by the path, field of JobSpec)."""
    if is_remote(script):
        remote = parse_remote(script, "SCRIPT")
        return remote.system, {"script_path": remote.path}
    if script == "-":
        return None, {"script": sys.stdin.read()}
    path = Path(script)
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist on this machine"
        raise usage_error(f"{script!r} {what}; a script on the cluster is written system:/path", "SCRIPT")
    try:
        return None, {"script": path.read_text(encoding="utf-8")}
    except UnicodeDecodeError:
        raise usage_error(f"{script!r} is not a text file", "SCRIPT") from None


def label(text: str) -> str:
    """The nearest job name to any text: the same text gives the same name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).lstrip("_.-0123456789")[:LABEL_MAX] or "job"


def environment(pairs: list[str], option: str = "--env") -> dict[str, str]:
    """NAME=VALUE, or NAME for this process's own value."""
    import os

    variables: dict[str, str] = {}
    for pair in pairs:
        name, given, value = pair.partition("=")
        if not given and name not in os.environ:
            raise usage_error(f"{name!r} has no value here: write {option} {name}=VALUE or export it", option)
        variables[name] = value if given else os.environ[name]
    return variables
