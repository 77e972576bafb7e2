"""The same with a real gitlab-runner, where one is installed: it asks the coordinator stub for jobs, and calls us."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from support.gitlab_bench import Bench
from support.gitlab_coordinator import Coordinator, Job, wait_for
from support.gitlab_scripts import Recipe

RUNNER = shutil.which("gitlab-runner")
pytestmark = pytest.mark.skipif(
    RUNNER is None, reason="gitlab-runner is not installed (it is in no Debian repository): the harness stands for it"
)

_CONFIG = """\
concurrent = 4
check_interval = 1
[[runners]]
  name = "test"
  url = "{url}"
  token = "{token}"
  executor = "custom"
  builds_dir = "/builds"
  cache_dir = "/cache"
  [runners.custom]
    config_exec = "{program}"
    config_args = ["--config", "{config}", "config"]
    prepare_exec = "{program}"
    prepare_args = ["--config", "{config}", "prepare"]
    run_exec = "{program}"
    run_args = ["--config", "{config}", "run"]
    cleanup_exec = "{program}"
    cleanup_args = ["--config", "{config}", "cleanup"]
"""


@contextlib.contextmanager
def real_runner(bench: Bench, rule: str = "") -> Iterator[None]:
    assert RUNNER is not None
    spec = bench.spec(Recipe(["true"]), rule=rule, driver={"runner": RUNNER})
    bench.gitlab.jobs[spec.wanted].state = "done"  # type: ignore[index]
    config = bench.root / "config.toml"
    program, _, path = spec.program[:3]
    config.write_text(
        _CONFIG.format(url=bench.gitlab.url, token=Coordinator.RUNNER_TOKEN, program=program, config=path)
    )
    process = subprocess.Popen([RUNNER, "run", "--config", str(config)], env=bench.env, cwd=bench.root)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def queued(bench: Bench, recipe: Recipe) -> Job:
    recipe.sha = bench.gitlab.heads[recipe.project]
    return bench.gitlab.queue(recipe.response)


@pytest.mark.timeout(1200)
def test_real_jobs_end_as_in_the_harness(host):
    artifacts = [{"paths": ["out"], "when": "always", "artifact_type": "archive", "artifact_format": "zip"}]
    with real_runner(host):
        good = queued(
            host, Recipe(["bash src/hello.sh; mkdir out; echo x > out/y"], ["echo after"], artifacts=artifacts)
        )
        bad = queued(host, Recipe(["exit 42"], variables={"FF_USE_NEW_BASH_EVAL_STRATEGY": "true"}))
        held = queued(host, Recipe(["echo started; sleep 300"], ["echo after"], artifacts=artifacts))
        wait_for(lambda: b"started\n" in held.trace, 200)
        held.cancelling = True
        for job in (good, bad, held):
            assert job.done.wait(200), job.log
    assert (good.state, bad.state, bad.exit_code) == ("success", "failed", 42)
    assert "hello from the sources" in good.log
    assert good.artifact() is not None
    assert "after" in held.log
