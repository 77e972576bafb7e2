"""How waiting and moving bytes are shown: bars in a terminal, lines in a pipe, nothing on request.

Everything goes to standard error. A wait in the scheduler's queue is told as such, with the job's id and the reason.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from hpcbridge.cli.output import note, printable, size, stderr_console, stderr_is_terminal

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from hpcbridge.cli.context import State
    from hpcbridge.staging import Progress

LINE_EVERY = 10.0
"""Seconds between two lines about the same phase in a pipe."""
_MOVING = ("uploading", "downloading")
_WAITING = ("queued", "joining", "staging")
_NUMBERS = 64
"""Columns of a terminal that spinner, bar, bytes, rate and times take at most."""
_JOB = re.compile(r"\bjob (\d+)\b")


class Display:
    """One transfer, or one command's jobs, shown from the first report on; use as `with`."""

    def __init__(self, label: str, *, quiet: bool = False, state: State | None = None) -> None:
        """`state` learns the id of a job of ours that is waited for, for what to say after an interrupt."""
        self._label = label
        self._state = state
        self._bars: Bars | None = None
        self._task: Any = None
        self._phase = ""
        self._lines = None if quiet or stderr_is_terminal() else _Lines(label)
        self._over = quiet

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def show(self, report: Progress) -> None:
        """The progress callback."""
        if self._state is not None and (job := _JOB.search(report.detail)):
            self._state.job_id = job[1]
        if self._over:
            return
        if self._lines is not None:
            self._lines.show(report)
            return
        if self._bars is None:
            self._bars = _bars()
            self._task = self._bars.add_task("", total=None, text="", moving=False)
            self._bars.start()
        fields = _fields(self._label, report, self._bars.console.width)
        # A phase is drawn when it begins: one shorter than the time between two refreshes would never be seen.
        fresh, self._phase = report.phase != self._phase, report.phase
        self._bars.update(self._task, completed=report.done, total=report.total, refresh=fresh, **fields)

    def close(self) -> None:
        """Take the bar away; later reports are not shown."""
        self._over = True
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def _fields(label: str, report: Progress, width: int) -> dict[str, Any]:
    """What a bar shows of a report, on a line of `width` columns: where numbers move, words give way."""
    moving = bool(report.total) and report.phase in _MOVING
    name = _short(printable(label), 40)
    texts = [f"{name} {report.phase}", name]
    if report.detail:
        texts.insert(0, f"{name} {report.phase} ({printable(report.detail)})")
    room = max(width - _NUMBERS, 10)
    if moving:
        return {"text": next((text for text in texts if len(text) <= room), _short(name, room)), "moving": True}
    return {"text": texts[0], "moving": False}


def _short(text: str, most: int) -> str:
    """At most `most` characters, both ends kept."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def _bars() -> Bars:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.table import Column
    from rich.text import Text

    class WhenMoving(ProgressColumn):
        """A column that is empty while nothing moves: a bar that stands still says less than none."""

        def __init__(self, column: ProgressColumn) -> None:
            super().__init__()
            self.column = column

        def render(self, task: Any) -> Any:
            return self.column.render(task) if task.fields.get("moving") else Text("")

    return Progress(
        SpinnerColumn(),
        TextColumn(
            "{task.fields[text]}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis"),
        ),
        WhenMoving(BarColumn(bar_width=20)),
        WhenMoving(DownloadColumn()),
        WhenMoving(TransferSpeedColumn()),
        WhenMoving(TimeRemainingColumn(compact=True)),
        TimeElapsedColumn(),
        console=stderr_console(),
        transient=True,
    )


class _Lines:
    """One line per change of phase or of what is waited for, and one every ten seconds while bytes move."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._said = ("", "")
        self._next = 0.0

    def show(self, report: Progress) -> None:
        if report.phase == "done" or (report.phase == "queued" and not _JOB.search(report.detail)):
            return  # the summary follows, or the job's id
        waiting = report.phase in _WAITING
        what = (report.phase, report.detail if waiting else "")
        now = time.monotonic()
        if what != self._said:
            self._said, self._next = what, now + LINE_EVERY
            detail = f" ({report.detail})" if report.detail else ""
            note(f"{self._label}: {report.phase}{detail}")
        elif now >= self._next and not waiting:
            self._next = now + LINE_EVERY
            share = f", {100 * report.done // report.total} % of {size(report.total)}" if report.total else ""
            detail = f" ({report.detail})" if report.detail else ""
            note(f"{self._label}: {report.phase}{share}{detail}")


class Several:
    """Many transfers as one: bytes and totals add up, and files that are done are counted."""

    def __init__(self, count: int, phase: str, show: Callable[[Progress], None]) -> None:
        """`count` transfers that are "uploading" or "downloading" (`phase`), told to `show` as one."""
        self._count = count
        self._phase = phase
        self._show = show
        self._latest: dict[int, Progress] = {}
        self._finished: set[int] = set()

    def part(self, index: int) -> Callable[[Progress], None]:
        """The callback of transfer `index`."""

        def told(report: Progress) -> None:
            self._latest[index] = report
            self._tell()

        return told

    def finished(self, index: int) -> None:
        """Transfer `index` has ended, well or not."""
        self._finished.add(index)
        self._tell()

    def _tell(self) -> None:
        from hpcbridge.staging import Progress

        reports = self._latest.values()
        active = [each for index, each in self._latest.items() if index not in self._finished]
        waiting = [each for each in active if each.phase in _WAITING and _JOB.search(each.detail)]
        phase, detail = self._phase, f"{len(self._finished)} of {self._count} files"
        if waiting and len(waiting) == len(active):  # else something moves meanwhile
            phase, detail = waiting[0].phase, f"{detail}, {waiting[0].detail}"
        total = sum(each.total or 0 for each in reports) or None
        self._show(Progress(phase, sum(each.done for each in reports), total, detail))
