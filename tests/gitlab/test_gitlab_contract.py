"""The contract with gitlab-runner, case by case, in both forms of its scripts; conftest prints the table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.gitlab_bench import Bench
from support.gitlab_cases import CASES
from support.gitlab_scripts import FORMS
from support.gitlab_table import Ran, check, ids, run_all
from support.scale import PROVE

# The quick run has each case in one form.
LOCAL = [(case, form) for number, case in enumerate(CASES) for form in (FORMS if PROVE else (FORMS[(number + 1) % 2],))]


@pytest.fixture(scope="module")
def ran(local_bench: Bench, request: pytest.FixtureRequest) -> Iterator[Ran]:
    yield from run_all(local_bench, request)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("case", "form"), LOCAL, ids=ids(LOCAL))
def test_a_case_of_the_contract(local_bench, ran, case, form, record_property):
    check(local_bench, ran, case, form, record_property)
