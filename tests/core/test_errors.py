"""Every error says what it is about, survives a process boundary, and costs no HTTP client."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from hpcbridge import errors

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.HpcBridgeError)]


def test_the_message_says_all_it_knows() -> None:
    error = errors.PathNotFound(
        "no such file",
        site="cscs",
        system="daint",
        path="/scratch/x",
        job_id="17",
        request_id="r-1",
        status=404,
        hint="Look elsewhere",
    )
    assert str(error) == (
        "no such file (site cscs, system daint, path /scratch/x, job 17, HTTP 404, request id r-1). Look elsewhere"
    )


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_errors_pickle(kind: type[errors.HpcBridgeError]) -> None:
    error = kind("it failed", site="s", system="d", status=500, hint="do this")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert again.__dict__ == error.__dict__


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_the_tree_in_the_docstring_has_every_error(kind: type[errors.HpcBridgeError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "")
    assert kind.__doc__


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_is_documented(kind: type[errors.HpcBridgeError]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
    assert f"`{kind.__name__}`" in page


def test_families() -> None:
    assert issubclass(errors.LoginRequired, errors.AuthenticationError)
    assert issubclass(errors.NotSent, errors.Unavailable)
    assert issubclass(errors.CommandTimeout, errors.ServerError)
    assert not issubclass(errors.AmbiguousOutcome, errors.Unavailable)


def test_importing_errors_imports_nothing_heavy() -> None:
    heavy = ("httpx", "pydantic", "authlib", "firecrest")
    code = f"import sys, hpcbridge.errors; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
