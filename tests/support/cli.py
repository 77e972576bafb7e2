"""Runs the command line as a user does, with an environment of its own."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

COMMAND = (sys.executable, "-m", "hpcbridge")

_OURS = ("FIRECREST_", "AUTH_TOKEN_URL", "HPCBRIDGE_", "XDG_")


def clean_environment(extra: Mapping[str, str] | None = None, *, home: Path) -> dict[str, str]:
    """This process's environment without any deployment in it, with `home` as home directory, and `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return kept | {"HOME": str(home), "COLUMNS": "200"} | dict(extra or {})


def run_cli(
    *arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """`hpcbridge ARGUMENTS` in the folder `cwd`, its home, too; what comes of it is the caller's to check.

    Runs in this process, which saves the second that a start costs; for signals and terminals see `start_cli`.
    """
    from hpcbridge.cli.app import app

    words = [str(argument) for argument in arguments]
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with (
        mock.patch.dict(os.environ, clean_environment(env, home=cwd), clear=True),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _standard_input(stdin or ""),
    ):
        try:
            app(words, prog_name="hpcbridge")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    stdout, stderr = (stream.buffer.getvalue().decode("utf-8", "surrogateescape") for stream in (out, err))  # type: ignore[attr-defined]
    print(f"$ hpcbridge {' '.join(words)}\n{stdout}{stderr}=> {code}".encode("utf-8", "replace").decode())
    return subprocess.CompletedProcess(words, code, stdout, stderr)


@contextlib.contextmanager
def _standard_input(text: str) -> Iterator[None]:
    with mock.patch.object(sys, "stdin", io.StringIO(text)):
        yield


def start_cli(*arguments: str | Path, env: Mapping[str, str], cwd: Path) -> subprocess.Popen[str]:
    """`hpcbridge ARGUMENTS` as a process of its own, with pipes for its output."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=clean_environment(env, home=cwd) | {"PYTHONUNBUFFERED": "1"},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
