"""Runs the cases of the contract side by side, for the test modules that look at what came of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from support.gitlab_bench import Bench
from support.gitlab_cases import Case
from support.gitlab_runner import Runner

SIDE_BY_SIDE = 3

Ran = dict[tuple[str, str], "Future[Runner]"]
Note = Callable[[str, object], None]


def run_all(bench: Bench, request: Any) -> Iterator[Ran]:
    """All that this run asks for, side by side: most of their time is waiting."""
    asked = [item.callspec.params for item in request.session.items if request.fixturename in item.fixturenames]
    cases: list[tuple[Case, str]] = [(params["case"], params["form"]) for params in asked]
    bench.gitlab.repository("group/late", {"README": "late\n"})
    bench.gitlab.hidden.add("group/late")
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        yield {(case.name, form): pool.submit(case.run, bench, form) for case, form in cases}


def check(bench: Bench, ran: Ran, case: Case, form: str, note: Note) -> None:
    """What came of a case, and its line of the table."""
    runner = ran[case.name, form].result(timeout=1200)
    note("contract", row(case.name, runner, bench.scheduler))
    print(runner.log)
    print("\n".join(map(str, runner.stages)))
    case.check(bench, runner)


def row(name: str, runner: Runner, scheduler: str = "local") -> str:
    """A line of the table: case, form of the scripts, scheduler, outcome, and all calls."""
    return f"{name:45} {runner.spec.form:6} {scheduler:6} {runner.outcome:24} {' '.join(runner.order)}"


def ids(cases: list[tuple[Case, str]]) -> list[str]:
    """Names of tests."""
    return [f"{case.name}-{form}" for case, form in cases]
