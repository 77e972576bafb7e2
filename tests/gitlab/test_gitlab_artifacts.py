"""Artifacts, reports and caches with no git and no gitlab-runner on the node; as root with no network there either."""

from __future__ import annotations

import gzip
import io
import os
import re
import zipfile
from collections.abc import Iterator

import pytest

from support.gitlab_bench import Bench, bench
from support.gitlab_runner import Runner
from support.gitlab_scripts import Recipe
from support.programs import give_up
from support.sandbox import start_sandbox

pytestmark = pytest.mark.timeout(1200)

JUNIT = "<testsuite name='s'><testcase name='t'/></testsuite>"
ARTIFACTS = [
    {"paths": ["out/**/*.txt", "{a,b}.log"], "exclude": ["out/secret.txt"], "untracked": False},
    {"paths": ["junit.xml"], "artifact_type": "junit", "artifact_format": "gzip", "when": "always"},
    {"paths": ["build.env"], "artifact_type": "dotenv", "artifact_format": "gzip", "when": "always"},
]
CACHE = [{"key": "deps", "paths": ["deps"], "policy": "pull-push"}]


def names(data: bytes) -> set[str]:
    return {name for name in zipfile.ZipFile(io.BytesIO(data)).namelist() if not name.endswith("/")}


@pytest.fixture(scope="module")
def local_bench() -> Iterator[Bench]:
    """A runner's host whose cluster's nodes have no network."""
    flags = ("--accounting-lag", "1", "--user", "alice", *(["--offline-jobs"] if os.geteuid() == 0 else []))
    with start_sandbox(*flags) as sandbox, bench(sandbox) as opened:
        yield opened


@pytest.fixture(scope="module")
def producer(local_bench: Bench) -> Runner:
    """A job that makes artifacts, reports and a cache."""
    script = [
        "PATH=/nowhere; type git gitlab-runner 2>/dev/null || echo neither here; PATH=/usr/bin:/bin",
        "cat /proc/net/dev | sed '1,2d;s/:.*//;s/^ */device /'",
        "mkdir -p out/deep deps; echo 1 > out/deep/x.txt; echo 2 > out/y.txt; echo no | tee out/secret.txt > out/z.dat",
        "echo a > a.log; echo c > c.log; printf 'odd\\n' > 'out/a name\twith ü.txt'",
        f'printf %s "{JUNIT}" > junit.xml; echo VERSION=1.2 > build.env; echo cached > deps/lib',
        "rm README",
    ]
    recipe = Recipe(script, artifacts=ARTIFACTS, cache=CACHE)
    return local_bench.runner(recipe).run()


def test_artifacts_and_reports_arrive(local_bench, producer):
    job = local_bench.job(producer)
    assert job.state == "success", producer.log
    archive = job.artifact()
    assert archive is not None
    assert names(archive.data) == {"out/deep/x.txt", "out/y.txt", "a.log", "out/a name\twith ü.txt"}
    assert gzip.decompress(job.artifact("junit").data).decode() == JUNIT  # type: ignore[union-attr]
    assert gzip.decompress(job.artifact("dotenv").data) == b"VERSION=1.2\n"  # type: ignore[union-attr]
    assert "Missing gitlab-runner" not in producer.log


def test_the_node_has_no_network_git_or_runner(producer):
    if os.geteuid() != 0:
        give_up("only root can take the network away from jobs")
    assert re.findall("^device (.*)", producer.log, re.MULTILINE) == ["lo"], producer.log
    assert "neither here" in producer.log


def test_artifacts_and_cache_of_an_earlier_job_are_there(local_bench, producer):
    first = local_bench.job(producer)
    needs = [{"id": first.id, "token": first.token, "name": "producer"}]
    script = ["cat out/deep/x.txt deps/lib README; cat 'out/a name\twith ü.txt'", "echo more >> deps/lib"]
    runner = local_bench.runner(Recipe(script, dependencies=needs, cache=CACHE)).run()
    assert runner.outcome == "success", runner.log
    assert "1\ncached\na project\nodd\n" in runner.log
    again = local_bench.runner(Recipe(["cat deps/lib"], cache=CACHE)).run()
    assert "cached\nmore\n" in again.log, again.log


def test_untracked_files_are_those_of_the_node(local_bench):
    script = ["echo new > fresh.txt; echo changed >> README; mkdir d; echo x > d/deep"]
    runner = local_bench.runner(Recipe(script, artifacts=[{"untracked": True}])).run()
    archive = local_bench.job(runner).artifact()
    assert archive is not None, runner.log
    assert names(archive.data) == {"fresh.txt", "d/deep"}


@pytest.mark.parametrize("strict", [True, False])
def test_a_missing_artifact_fails_the_job_when_asked_to(local_bench, strict):
    variables = {"HPCBRIDGE_ARTIFACTS_MUST_EXIST": "true"} if strict else {}
    recipe = Recipe(["echo x > there"], variables=variables, artifacts=[{"paths": ["there", "not-there/*.h5"]}])
    runner = local_bench.runner(recipe).run()
    assert runner.outcome == ("script_failure" if strict else "success"), runner.log
    assert ("ARTIFACTS (the job): no file matches not-there/*.h5" in runner.log) is strict
