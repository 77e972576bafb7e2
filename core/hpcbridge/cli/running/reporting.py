"""How a run is told: to people as plain lines, to each CI service in the form that it knows.

Everything goes to standard error, so that standard output is what the job has written, and nothing else. GitHub's
runner reads its commands from both streams, GitLab's joins them.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpcbridge.cli import output
from hpcbridge.cli.running.ci import Service
from hpcbridge.cli.running.masking import Masker, lines_of


class Reporter:
    """Plain lines: a terminal, a pipe, Jenkins."""

    def __init__(self, *, quiet: bool = False, hidden: list[str] | None = None) -> None:
        """`hidden` are the values that no line of ours may show."""
        self.quiet = quiet
        self.masker = Masker(hidden or ())
        self.line_is_open = False
        """Whether the job's output stands in the middle of a line."""

    def note(self, text: str) -> None:
        """One line, or several, for people."""
        if not self.quiet:
            self.say(text)

    def say(self, text: str) -> None:
        """Like `note`, also when quiet."""
        self._write(output.printable(self.masker.text(text), keep="\n\t") + "\n")

    def warning(self, text: str) -> None:
        """Something that may cost the user later."""
        self.note(f"Warning: {text}")

    def failure(self, title: str, text: str) -> None:
        """Why the run did not go well."""
        self.say(f"{title}: {text}")

    @contextlib.contextmanager
    def section(self, name: str, title: str, *, collapsed: bool = True) -> Iterator[None]:
        """Lines that belong together; `name` is `[a-z_]+`."""
        del name, collapsed
        self.note(title)
        yield

    def hide(self, value: str) -> None:
        """Have the service itself hide a secret, wherever it appears in its log."""

    def outputs(self, values: Mapping[str, Any]) -> None:
        """What later steps of the CI job may ask for."""

    def summary(self, title: str, rows: Mapping[str, str]) -> None:
        """The page that people see first."""

    def _write(self, text: str) -> None:
        if self.line_is_open:
            self.line_is_open = False
            text = "\n" + text
        sys.stderr.write(text)
        sys.stderr.flush()


class GitLab(Reporter):
    """Collapsible sections."""

    @contextlib.contextmanager
    def section(self, name: str, title: str, *, collapsed: bool = True) -> Iterator[None]:
        """See `Reporter`."""
        if self.quiet:
            yield
            return
        unique = f"hpcbridge_{name}_{secrets.token_hex(3)}"
        option = "[collapsed=true]" if collapsed else ""
        header = output.printable(self.masker.text(title))
        self._write(f"\x1b[0Ksection_start:{int(time.time())}:{unique}{option}\r\x1b[0K{header}\n")
        try:
            yield
        finally:
            self._write(f"\x1b[0Ksection_end:{int(time.time())}:{unique}\r\x1b[0K\n")


class GitHub(Reporter):
    """Workflow commands, GITHUB_OUTPUT and GITHUB_STEP_SUMMARY."""

    @contextlib.contextmanager
    def section(self, name: str, title: str, *, collapsed: bool = True) -> Iterator[None]:
        """See `Reporter`. Groups are closed when they have ended: what people look for first is in none."""
        if self.quiet or not collapsed:
            with super().section(name, title):
                yield
            return
        self._command("group", title)
        try:
            yield
        finally:
            self._command("endgroup", "")

    def warning(self, text: str) -> None:
        """See `Reporter`."""
        if not self.quiet:
            self._command("warning title=hpcbridge", text)

    def failure(self, title: str, text: str) -> None:
        """See `Reporter`."""
        self._command(f"error title={_property(title)}", text)

    def hide(self, value: str) -> None:
        """See `Reporter`. The runner takes these lines out of the log."""
        for line in lines_of(value):
            self._write(f"::add-mask::{_data(line)}\n")

    def outputs(self, values: Mapping[str, Any]) -> None:
        """See `Reporter`."""
        lines = []
        for name, value in values.items():
            text = "" if value is None else str(value)
            if len(text.splitlines()) > 1:
                # A delimiter that nobody can guess: a value with line breaks cannot add outputs of its own.
                end = f"hpcbridge_{secrets.token_hex(8)}"
                lines.append(f"{name}<<{end}\n{text}\n{end}\n")
            else:
                lines.append(f"{name}={text.strip()}\n")
        self._append("GITHUB_OUTPUT", "".join(lines))

    def summary(self, title: str, rows: Mapping[str, str]) -> None:
        """See `Reporter`."""
        table = "".join(f"| {_cell(name)} | {_cell(self.masker.text(value))} |\n" for name, value in rows.items())
        self._append("GITHUB_STEP_SUMMARY", f"### {_cell(title)}\n\n| | |\n|---|---|\n{table}\n")

    def _command(self, command: str, text: str) -> None:
        self._write(f"::{command}::{_data(output.printable(self.masker.text(text), keep=chr(10)))}\n")

    def _append(self, variable: str, text: str) -> None:
        if not (path := os.environ.get(variable)):
            return
        try:
            with Path(path).open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError as error:
            self.warning(f"{variable} cannot be written: {error.strerror}")


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _cell(text: str) -> str:
    """Text in a table of Markdown, where no name can make markup, a link or another row."""
    plain = output.printable(text)
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&@])", r"\\\1", plain)


def reporter(service: Service, *, quiet: bool, hidden: list[str]) -> Reporter:
    """The one for a service."""
    kind = {Service.GITHUB: GitHub, Service.GITLAB: GitLab}.get(service, Reporter)
    made = kind(quiet=quiet, hidden=hidden)
    for value in hidden:
        made.hide(value)
    return made
