"""The contract with gitlab-runner, case by case, in both forms of its scripts; conftest prints the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from support.gitlab_bench import Bench
from support.gitlab_cases import CASES, Case
from support.gitlab_runner import Runner
from support.gitlab_scripts import FORMS
from support.scale import PROVE

SIDE_BY_SIDE = 4

# The quick run has each case in one form; on real Slurm those in which the scheduler has a part.
LOCAL = [(case, form) for number, case in enumerate(CASES) for form in (FORMS if PROVE else (FORMS[(number + 1) % 2],))]
IN_SLURM = ("success", "exit 42", "cancel in queue", "cancel in script", "job time-out in script")
ON_SLURM = [(case, FORMS[1]) for case in CASES if PROVE or case.name in IN_SLURM]

Ran = dict[tuple[str, str], "Future[Runner]"]
Note = Callable[[str, object], None]


def _run_all(bench: Bench, request: pytest.FixtureRequest) -> Iterator[Ran]:
    """All that this run asks for, side by side: most of their time is waiting."""
    asked = [item.callspec.params for item in request.session.items if request.fixturename in item.fixturenames]
    cases: list[tuple[Case, str]] = [(params["case"], params["form"]) for params in asked]
    bench.gitlab.repository("group/late", {"README": "late\n"})
    bench.gitlab.hidden.add("group/late")
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        yield {(case.name, form): pool.submit(case.run, bench, form) for case, form in cases}


@pytest.fixture(scope="module")
def ran(local_bench: Bench, request: pytest.FixtureRequest) -> Iterator[Ran]:
    yield from _run_all(local_bench, request)


@pytest.fixture(scope="module")
def ran_on_slurm(slurm_bench: Bench, request: pytest.FixtureRequest) -> Iterator[Ran]:
    yield from _run_all(slurm_bench, request)


def _check(bench: Bench, ran: Ran, case: Case, form: str, scheduler: str, note: Note) -> None:
    runner = ran[case.name, form].result(timeout=600)
    note("contract", f"{case.name:45} {form:6} {scheduler:6} {runner.outcome:24} {' '.join(runner.order)}")
    print(runner.log)
    print("\n".join(map(str, runner.stages)))
    case.check(bench, runner)


def _ids(cases: list[tuple[Case, str]]) -> list[str]:
    return [f"{case.name}-{form}" for case, form in cases]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("case", "form"), LOCAL, ids=_ids(LOCAL))
def test_a_case_of_the_contract(local_bench, ran, case, form, record_property):
    _check(local_bench, ran, case, form, "local", record_property)


@pytest.mark.slurm
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("case", "form"), ON_SLURM, ids=_ids(ON_SLURM))
def test_a_case_of_the_contract_on_real_slurm(slurm_bench, ran_on_slurm, case, form, record_property):
    _check(slurm_bench, ran_on_slurm, case, form, "slurm", record_property)
