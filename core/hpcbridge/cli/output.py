"""How the command line shows things: tables in a terminal, tab-separated lines in a pipe, one JSON value on request.

Data goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from hpcbridge.jobs.state import JobInfo

_COLOURS = {"COMPLETED": "green", "RUNNING": "cyan", "PENDING": "yellow", "COMPLETING": "cyan", "CONFIGURING": "yellow"}


def printable(text: str, keep: str = "") -> str:
    """`text` with control characters shown as escapes, so that no remote name or message can drive the terminal."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def prepare_streams() -> None:
    """Make the standard streams take any text: none is closed, and what their encoding lacks becomes an escape."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller: `>&-`
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 (it stays open)
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_stdout() -> None:
    """Send what is still to be written to standard output nowhere."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def stdout_is_terminal() -> bool:
    """Whether people read standard output."""
    return sys.stdout.isatty()


def stderr_is_terminal() -> bool:
    """Whether people see messages and progress."""
    return sys.stderr.isatty()


def stderr_console() -> Console:
    """The console for messages and progress."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def note(message: str) -> None:
    """Tell people something that is not data."""
    print(printable(message, keep="\n"), file=sys.stderr, flush=True)  # noqa: T201


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    indent = 2 if stdout_is_terminal() else None
    escaped = (sys.stdout.encoding or "").lower() not in ("utf-8", "utf8")
    print(json.dumps(value, indent=indent, ensure_ascii=escaped, default=_plain), flush=True)  # noqa: T201


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def cell(value: Any) -> str:
    """A value as a person reads it: times in local time, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, (list, tuple)):
        return ", ".join(map(cell, value))
    return str(value)


def print_line(text: str) -> None:
    """One line of data; in a terminal with control characters shown as escapes."""
    print(printable(text, keep="\t") if stdout_is_terminal() else text)  # noqa: T201


def print_columns(names: Sequence[str], empty: str = "") -> None:
    """Names side by side, as `ls` shows them in a terminal."""
    if not names:
        note(empty)
        return
    from rich.columns import Columns
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False).print(
        Columns([Text(printable(name)) for name in names], column_first=True, padding=(0, 2))
    )


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], empty: str = "Nothing to show.") -> None:
    """A table with a header in a terminal; tab-separated lines without a header in a pipe."""
    if not stdout_is_terminal():
        for row in rows:
            print("\t".join(cell(value).replace("\t", " ").replace("\n", " ") for value in row))  # noqa: T201
        return
    if not rows:
        note(empty)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell(value)), style=_style(value)) for value in row))
    Console(highlight=False).print(table)


def print_fields(fields: dict[str, Any]) -> None:
    """Names and values, one pair per line."""
    if not stdout_is_terminal():
        for name, value in fields.items():
            print(f"{name}\t{cell(value)}")  # noqa: T201
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in fields.items():
        table.add_row(Text(name, style="bold"), Text(printable(cell(value)), style=_style(value)))
    Console(highlight=False).print(table)


def _style(value: Any) -> str:
    text = str(value)
    if text in _COLOURS:
        return _COLOURS[text]
    return "red" if text in ("FAILED", "TIMEOUT", "CANCELLED", "OUT_OF_MEMORY", "NODE_FAIL", "unhealthy") else ""


def print_bytes(data: bytes) -> None:
    """Bytes as they are on standard output."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def size(count: int) -> str:
    """A number of bytes for people: `5.2 MB`."""
    from rich.filesize import decimal

    return decimal(count)


@contextmanager
def job_progress(quiet: bool = False) -> Iterator[Callable[[JobInfo], None] | None]:
    """The job's state while one waits, the wait in the queue visible; in a pipe one line per change."""
    if quiet:
        yield None
        return
    if not stderr_is_terminal():
        yield _state_lines()
        return
    from rich.markup import escape
    from rich.progress import Progress as Bars
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    with Bars(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=stderr_console(), transient=True
    ) as bars:
        task = bars.add_task("waiting for the scheduler")
        states: list[str] = []

        def show(info: JobInfo) -> None:
            if states[-1:] != [info.state]:
                states.append(info.state)
                bars.reset(task)
            bars.update(task, description=escape(describe(info)))

        yield show


def _state_lines() -> Callable[[JobInfo], None]:
    seen: list[str] = []

    def show(info: JobInfo) -> None:
        if seen[-1:] != [line := describe(info)]:
            seen.append(line)
            note(line)

    return show


def describe(info: JobInfo) -> str:
    """One line about a job: `job 12 PENDING, waiting in the queue (Resources)`."""
    line = f"job {info.job_id} {info.state}"
    if info.state.is_queued:
        line += ", waiting in the queue"
    if info.tasks:
        line += f", {sum(task.is_terminal for task in info.tasks)} of {len(info.tasks)} tasks ended"
    if info.reason and info.reason != "None":
        line += f" ({info.reason})"
    return line
