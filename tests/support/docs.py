"""Runs what the documentation shows, as a reader would: in a folder of its own, against the sandbox."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.cli import clean_environment

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def snippets(page: str) -> list[tuple[str, str, str]]:
    """(language, rest of the fence's line, text) of each fenced block."""
    return [match.groups() for match in _FENCE.finditer((ROOT / page).read_text())]  # type: ignore[misc]


def environment(folder: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return clean_environment({"PATH": path}, home=folder)


@contextmanager
def first_terminal(command: str, folder: Path) -> Iterator[None]:
    """The long-running command of the page's first terminal, from its line "ready" to Ctrl-C."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command.strip()} --accounting-lag 1"],  # nothing else differs, but for the wait
        env=environment(folder),
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready, f"{command!r} ended with {process.wait()} before it was ready"
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


def run_snippet(language: str, text: str, folder: Path) -> str:
    if language == "python":
        (folder / "snippet.py").write_text(text)
        text = f"{sys.executable} snippet.py"
    command = f"set -eu -o pipefail\n[ -e sandbox.env ] && source ./sandbox.env\n{text}"
    done = subprocess.run(
        ["bash", "-c", command],
        env=environment(folder),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    print(f"{text}\n--- prints\n{done.stdout}{done.stderr}")
    assert done.returncode == 0, f"a snippet of the documentation fails: {text}"
    return done.stdout
