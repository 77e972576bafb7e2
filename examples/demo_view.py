"""What `make demo` shows: a live table in a terminal, one line per event in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

COLOURS = {"success": "green", "failed": "red", "deferred": "magenta", "running": "cyan", "up_for_retry": "yellow"}
OUTPUT_SHOWN = 6
"""Lines of the job's output kept under the live table."""


def make_view(steps: Sequence[str]) -> View:
    """The one that suits standard output."""
    return LiveView(steps) if sys.stdout.isatty() else PlainView(steps)


class View:
    """What the demonstration tells its viewer."""

    def __init__(self, steps: Sequence[str]) -> None:
        """`steps` are the tasks in the order of the table."""
        self.names = list(steps)
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def clock(self) -> str:
        """Seconds since the beginning."""
        return f"{time.monotonic() - self._began:5.1f}s"

    def say(self, text: str) -> None:
        """Something happened."""
        raise NotImplementedError

    def output(self, line: str) -> None:
        """The job wrote a line."""
        raise NotImplementedError

    def steps(self, tasks: Sequence[Mapping[str, Any]], jobs: Mapping[str, str]) -> None:
        """The tasks as Airflow has them now, and the job ids of those that have one."""
        raise NotImplementedError

    def result(self, values: Mapping[str, float], job: Mapping[str, Any]) -> None:
        """The numbers, beside those they were checked against."""
        table = Table(title=f"Result of job {job['job_id']} ({job['state']}, exit code {job['exit_code']})")
        for heading in ("", "from the cluster", "found independently"):
            table.add_column(heading, justify="left" if not heading else "right")
        for name, unit in (("lattice_constant", "angstrom"), ("energy", "eV per formula unit")):
            table.add_row(f"{name} ({unit})", f"{values[name]:.6f}", f"{values[f'expected_{name}']:.6f}")
        Console().print(table)

    def failure(self, reason: str, evidence: str) -> None:
        """Why, and what to look at."""
        print(f"{evidence}\n\nFAILED: {reason}", file=sys.stderr)


class PlainView(View):
    """One line per event."""

    def __init__(self, steps: Sequence[str]) -> None:
        """See View."""
        super().__init__(steps)
        self._last: dict[str, tuple[Any, ...]] = {}

    def say(self, text: str) -> None:
        """See View."""
        print(f"{self.clock()}  {text}", flush=True)

    def output(self, line: str) -> None:
        """See View."""
        print(f"{self.clock()}  {'':18}  | {line}", flush=True)

    def steps(self, tasks: Sequence[Mapping[str, Any]], jobs: Mapping[str, str]) -> None:
        """See View: one line for each change."""
        for task in tasks:
            name, state, job = task["task_id"], task["state"], jobs.get(task["task_id"])
            if state is None or self._last.get(name) == (state, job):
                continue
            self._last[name] = (state, job)
            facts = [f"job {job}"] if job else []
            facts += [f"took {_seconds(task)}"] if task["end_date"] else []
            print(f"{self.clock()}  {name:18}  {state:9}  {'  '.join(facts)}".rstrip(), flush=True)


class LiveView(View):
    """A table that changes in place, and the end of the job's output under it."""

    def __init__(self, steps: Sequence[str]) -> None:
        """See View."""
        super().__init__(steps)
        self._tasks: Sequence[Mapping[str, Any]] = []
        self._jobs: Mapping[str, str] = {}
        self._lines: list[str] = []
        self._live = Live(console=Console(), get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        """See View: above the table."""
        self._live.console.print(Text(f"{self.clock()}  {text}", style="dim"))

    def output(self, line: str) -> None:
        """See View."""
        self._lines = [*self._lines, line][-OUTPUT_SHOWN:]

    def steps(self, tasks: Sequence[Mapping[str, Any]], jobs: Mapping[str, str]) -> None:
        """See View."""
        self._tasks, self._jobs = tasks, jobs

    def result(self, values: Mapping[str, float], job: Mapping[str, Any]) -> None:
        """See View: after the table."""
        self._live.stop()
        super().result(values, job)

    def failure(self, reason: str, evidence: str) -> None:
        """See View: after the table."""
        self._live.stop()
        super().failure(reason, evidence)

    def _render(self) -> Group:
        table = Table(expand=False)
        for heading in ("step", "state", "job", "started", "time"):
            table.add_column(heading, min_width=10 if heading == "state" else None)
        known = {task["task_id"]: task for task in self._tasks}
        for name in self.names:
            task = known.get(name, {"state": None, "start_date": None, "end_date": None})
            state = task["state"] or "-"
            started = _moment(task["start_date"])
            shown = started.astimezone().strftime("%H:%M:%S") if started else ""
            styled = Text(state, style=COLOURS.get(state, "dim"))
            table.add_row(name, styled, self._jobs.get(name, ""), shown, _seconds(task))
        return Group(table, *(Text(f"  | {line}", style="dim") for line in self._lines))


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _seconds(task: Mapping[str, Any]) -> str:
    start = _moment(task["start_date"])
    if start is None:
        return ""
    return f"{((_moment(task['end_date']) or datetime.now(UTC)) - start).total_seconds():.1f} s"
