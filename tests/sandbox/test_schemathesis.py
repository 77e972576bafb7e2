"""Whatever a client sends, the answers have the shapes of the OpenAPI document, and nothing breaks inside."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi import checks

from hpcbridge_sandbox import compute, filesystem, status, transfer
from hpcbridge_sandbox.interface import document
from hpcbridge_sandbox.settings import Settings
from support.sandbox import SandboxProcess, start_sandbox, with_streamer
from support.scale import PROVE

EXAMPLES = 200 if PROVE else 12
PATHS = [
    "/home/alice",
    "/home/alice/a.txt",
    "/home/alice/none",
    "/home/bob",
    "/scratch",
    "/etc/passwd",
    "relative",
    "/home/alice/it's",
]
SHAPES = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[SandboxProcess]:
    """A sandbox of its own, as its users are about to be abused; commands that hang end after a second."""
    with start_sandbox("--accounting-lag", "0.2", "--command-timeout", "1", "--token-lifetime", "86400") as started:
        with started.client() as client:
            url = f"/filesystem/{started.system}/ops/upload"
            client.post(url, params={"path": "/home/alice"}, files={"file": ("a.txt", b"hello\n")}).raise_for_status()
            job = {"workingDirectory": "/home/alice", "script": "#!/bin/bash\nsleep 600\n"}
            client.post(f"/compute/{started.system}/jobs", json={"job": job}).raise_for_status()
        yield started


def served_document(sandbox: SandboxProcess) -> dict[str, Any]:
    document: dict[str, Any] = httpx.get(f"{sandbox.url}/openapi.json").json()
    return document


INTERFACE = schemathesis.openapi.from_dict(
    document(Settings(state=Path("unused")), "http://127.0.0.1", "http://127.0.0.1/token")
)


def make_plausible(case: schemathesis.Case, system: str) -> None:
    """Three cases in four name the system, and paths, jobs and scripts that exist: else every answer is 404."""
    dice = zlib.crc32(repr((case.path_parameters, case.query, case.body)).encode(errors="replace"))
    if dice % 4 and "system_name" in (case.path_parameters or {}):
        case.path_parameters["system_name"] = system
    if dice % 3 and "job_id" in (case.path_parameters or {}):
        case.path_parameters["job_id"] = "1"
    for place in (case.query, case.body):
        if not isinstance(place, dict):
            continue
        for number, name in enumerate(("path", "sourcePath", "targetPath", "linkPath")):
            if name in place and dice % 5:
                place[name] = PATHS[(dice + number) % len(PATHS)]
    job = case.body.get("job") if isinstance(case.body, dict) else None
    if isinstance(job, dict) and dice % 3:
        job["script"] = "#!/bin/bash\ntrue\n"


@pytest.fixture(scope="module")
def token(fuzzed: SandboxProcess) -> str:
    return fuzzed.token()


@INTERFACE.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not PROVE,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_answers_have_the_documented_shapes(case: schemathesis.Case, fuzzed: SandboxProcess, token: str) -> None:
    make_plausible(case, fuzzed.system)
    headers = {"Authorization": f"Bearer {token}"}
    answer = case.call_and_validate(base_url=fuzzed.url, headers=headers, checks=SHAPES)
    assert "Traceback" not in answer.text


@pytest.fixture(scope="module", params=["streamer", "none"])
def other(request: pytest.FixtureRequest) -> Iterator[SandboxProcess]:
    """A sandbox without an object store."""
    flags = (*with_streamer(), "--transfer", request.param, "--streamer-wait", "1")
    with start_sandbox("--accounting-lag", "0.2", "--token-lifetime", "86400", *flags) as started:
        with started.client() as client:
            url = f"/filesystem/{started.system}/ops/upload"
            client.post(url, params={"path": "/home/alice"}, files={"file": ("a.txt", b"hello\n")}).raise_for_status()
        yield started


@INTERFACE.include(path_regex="/transfer/(up|down)load|/status/systems").parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not PROVE,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_answers_of_other_transfer_methods_have_them_too(case: schemathesis.Case, other: SandboxProcess) -> None:
    make_plausible(case, other.system)
    if isinstance(case.body, dict) and zlib.crc32(repr(case.body).encode(errors="replace")) % 3:
        case.body["transferDirectives"] = {"transferMethod": "streamer"}
    headers = {"Authorization": f"Bearer {other.token()}"}
    answer = case.call_and_validate(base_url=other.url, headers=headers, checks=SHAPES)
    assert "Traceback" not in answer.text
    assert "Traceback" not in other.log.read_text(errors="replace")


def test_nothing_broke_inside(fuzzed: SandboxProcess) -> None:
    """Runs after the cases above: an exception that nobody meant is logged with a traceback."""
    assert "Traceback" not in fuzzed.log.read_text(errors="replace")


def test_the_document_names_every_route_and_nothing_else(fuzzed: SandboxProcess) -> None:
    document = served_document(fuzzed)
    named = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    parts = (status, compute, filesystem, transfer)
    routes = {
        (method, route.path)
        for part in parts
        for route in part.router.routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in route.methods
    }
    assert named == routes
    assert document["info"]["version"] == "2.5.7"
    assert document["servers"][0]["url"] == fuzzed.url


def test_an_older_server_documents_no_filters() -> None:
    with start_sandbox("--server-version", "2.5.6") as older:
        document = served_document(older)
    names = {entry["name"] for entry in document["paths"]["/compute/{system_name}/jobs"]["get"]["parameters"]}
    assert names == {"system_name", "allusers", "account"}
