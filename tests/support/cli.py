"""Runs the command line as a user does: its own process, its own environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

COMMAND = (sys.executable, "-m", "hpcbridge")

_OURS = ("FIRECREST_", "AUTH_TOKEN_URL", "HPCBRIDGE_", "XDG_")


def clean_environment(extra: Mapping[str, str] | None = None, *, home: Path) -> dict[str, str]:
    """This process's environment without any deployment in it, with `home` as home directory, and `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return kept | {"HOME": str(home), "COLUMNS": "200"} | dict(extra or {})


def run_cli(
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path,
    stdin: str | None = None,
    timeout: float = 90,
) -> subprocess.CompletedProcess[str]:
    """`hpcbridge ARGUMENTS` in the folder `cwd`, its home, too; what comes of it is the caller's to check."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=clean_environment(env, home=cwd),
        cwd=cwd,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    print(f"$ hpcbridge {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}=> {done.returncode}")
    return done
