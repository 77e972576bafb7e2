"""ReFrame as its users run it: the command, a site configuration, and the report that it writes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

SUITE = Path(__file__).parents[1] / "reframe" / "suite"
SCALE = Path(__file__).parents[1] / "reframe" / "scale"

FAILURES = {
    "BuildFails": ("fail", "compile_wait"),
    "TooSlow": ("fail", "performance"),
    "Wrong": ("fail", "sanity"),
    "Fails": ("fail", "sanity"),
    "Refused": ("fail", "run"),
    "AfterAFailure": ("fail_deps", None),
    "Skipped": ("skip", None),
    "FlexibleNowhere": ("skip", None),
}
"""What does not pass of the suite, by intention: result, and the stage that fails."""

CONFIGURATION = """\
{imports}
site_configuration = {{
    "systems": [
        {{
            "name": "cluster",
            "hostnames": [".*"],
            "partitions": [
                {{
                    "name": "normal",
                    "scheduler": {scheduler!r},
                    "sched_options": {options!r},
                    "launcher": "local",
                    "environs": ["gnu"],
                    "max_jobs": {max_jobs},
                    "access": {access!r},
                }}
            ],
        }}
    ],
    "environments": [{{"name": "gnu", "cc": "gcc", "cxx": "", "ftn": ""}}],
    "general": [{general!r}],
    "logging": [
        {{
            "handlers": [
                {{
                    "type": "file",
                    "name": "reframe.log",
                    "level": {level!r},
                    "format": "[%(asctime)s] %(levelname)s: %(check_info)s: %(message)s",
                    "append": False,
                }}
            ]
        }}
    ],
}}
"""


def configuration(
    *,
    scheduler: str = "firecrest",
    options: Mapping[str, Any] | None = None,
    max_jobs: int = 100,
    access: Sequence[str] = (),
    general: Mapping[str, Any] | None = None,
    imports: str = "import hpcbridge_reframe",
    level: str = "debug",
) -> str:
    """The text of a site configuration with one partition."""
    return CONFIGURATION.format(
        scheduler=scheduler,
        options=dict(options or {}),
        max_jobs=max_jobs,
        access=list(access),
        general={"resolve_module_conflicts": False, **(general or {})},
        imports=imports,
        level=level,
    )


@dataclass(frozen=True)
class Outcome:
    """What a run of ReFrame ended with."""

    code: int
    output: str
    report: dict[str, Any]
    folder: Path

    @property
    def cases(self) -> list[dict[str, Any]]:
        """Test cases of the last run."""
        return list(self.report["runs"][-1]["testcases"]) if self.report else []

    def results(self) -> dict[str, tuple[str, str | None]]:
        """Result, and the stage that failed, by unique name."""
        return {case["unique_name"]: (case["result"], case["fail_phase"]) for case in self.cases}

    def case(self, name: str) -> dict[str, Any]:
        """The test case whose display name begins so."""
        return next(case for case in self.cases if case["display_name"].split(" ")[0] == name)

    @property
    def log(self) -> str:
        """ReFrame's own log."""
        return (self.folder / "reframe.log").read_text(errors="replace")

    def shipped(self) -> tuple[int, int]:
        """File contents and bytes that were shipped."""
        found = re.findall(r"shipped (\d+) file contents in \d+ archives, (\d+) bytes", self.log)
        return int(found[-1][0]), int(found[-1][1])


def command(folder: Path, suite: Path, *arguments: str, policy: str = "async") -> list[str]:
    """The words of a run in `folder`, whose `settings.py` is there."""
    return [
        str(Path(sys.executable).with_name("reframe")),
        *("-C", str(folder / "settings.py"), "--system=cluster", "--prefix", str(folder / "rfm")),
        *("-c", str(suite), "-R", "--exec-policy", policy, "--report-file", str(folder / "report.json")),
        *("--nocolor", "--flex-alloc-nodes=all", "-r", *arguments),
    ]


def environment(client: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The environment of a run: the site's variables, and state of its own."""
    # Under `make test` a suite's own make would speak of directories that it enters.
    foreign = ("FIRECREST", "SLURM", "MAKE", "MFLAGS", "PYTHONDONTWRITEBYTECODE")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    # ReFrame leaves the log of its start among the temporary files.
    own = {"HPCBRIDGE_STATE_DIR": str(folder / "state"), "RFM_SAVE_LOG_FILES": "n", "TMPDIR": str(folder)}
    return env | dict(client) | own


class Running:
    """A run in the background; a test that fails leaves none behind (`end_all`)."""

    all: ClassVar[list[Running]] = []

    def __init__(
        self, folder: Path, suite: Path, client: Mapping[str, str], *arguments: str, policy: str = "async"
    ) -> None:
        self.folder = folder
        self._report = folder / "report.json"
        self._report.unlink(missing_ok=True)
        self._output = folder / "output.txt"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                command(folder, suite, *arguments, policy=policy),
                cwd=folder,
                env=environment(client, folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

        self.all.append(self)

    @classmethod
    def end_all(cls) -> None:
        """End those that still run."""
        for each in cls.all:
            if each.process.poll() is None:
                each.process.kill()
                each.process.wait()
        cls.all.clear()

    @property
    def output(self) -> str:
        """What it has said so far."""
        return self._output.read_text(errors="replace")

    def end(self, timeout: float = 900) -> Outcome:
        """Wait for it and read its report."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"ReFrame did not end in {timeout:.0f} s:\n{self.output[-3000:]}") from None
        data = json.loads(self._report.read_text()) if self._report.exists() else {}
        return Outcome(code, self.output, data, self.folder)


def run(
    folder: Path, suite: Path, client: Mapping[str, str], *arguments: str, policy: str = "async", timeout: float = 900
) -> Outcome:
    """Run a suite and read its report."""
    return Running(folder, suite, client, *arguments, policy=policy).end(timeout)


def check(outcome: Outcome) -> None:
    """What is meant to pass passes, and the rest fails where it is meant to."""
    assert outcome.cases, outcome.output[-4000:]
    for name, result in outcome.results().items():
        assert result == FAILURES.get(name, ("pass", None)), f"{name}:\n{outcome.output[-6000:]}"
