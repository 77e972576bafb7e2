"""The cases of the contract: what the CI job is, what happens to it meanwhile, and what must have come of it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from support.gitlab_bench import Bench
from support.gitlab_coordinator import wait_for
from support.gitlab_runner import Runner, wait_for_log
from support.gitlab_scripts import Recipe

NEVER_STARTS = 'options = ["--begin=now+3600"]'
ALWAYS = [{"paths": ["out"], "artifact_type": "archive", "when": "always"}]
# Other cases sleep on the same node: each has a sleep of its own.
SLEEPERS = 'grep -slxz "[0]$CI_JOB_ID" /proc/[0-9]*/cmdline | wc -l'
_SLEEP = f'set -m; sleep 300 0$CI_JOB_ID & until [ "$({SLEEPERS})" = 1 ]; do sleep 0.1; done; echo started; wait'
LONG = ["mkdir -p out; echo partial > out/r.txt", f"bash -c '{_SLEEP}'", "echo never"]

HOSTILE = (
    bytes(range(1, 256))
    + "zwei Bytes: ä, drei: €, vier: 𝄞\n".encode()
    + b"progress 10%\rprogress 100%\r\n\x1b[31mred\x1b[0m\xff\xfe\x80 section_start:1:x\r\x1b[0K"
    + b"\xe2\x82"
)
"""Ends in the middle of a character."""
REST = b"\xac no newline at the end"


@dataclass
class Case:
    """One line of the table. `rule` and `driver` are of the host's configuration; `options` of the harness."""

    name: str
    recipe: Callable[[], Recipe]
    check: Callable[[Bench, Runner], None]
    meanwhile: Callable[[Bench, Runner], None] = lambda bench, runner: None
    rule: str = ""
    driver: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, bench: Bench, form: str) -> Runner:
        """Run it; the check is the caller's."""
        runner = bench.runner(self.recipe(), rule=self.rule, driver=self.driver, form=form, **self.options)
        runner.start()
        self.meanwhile(bench, runner)
        return runner.join(900)


def order(runner: Runner, *stages: str) -> None:
    """The calls were exactly these."""
    assert [name.replace("build_script", "step_script") for name in runner.order] == list(stages)


def over(bench: Bench, runner: Runner, jobs: int = 1) -> None:
    """So many allocations were made, all have ended, and nothing is left of them."""
    ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}

    def all_ended() -> bool:
        states = bench.states(runner)
        return len(states) == jobs and set(states) <= ended

    wait_for(all_ended, 180, f"{jobs} ended jobs")
    wait_for(lambda: not any(p.name.startswith(f"{runner.spec.wanted}-") for p in bench.places), 180, "removal")


def told(bench: Bench, runner: Runner, state: str, reason: str, code: int | None = None) -> None:
    """What the coordinator was told."""
    job = bench.job(runner)
    assert (job.state, job.failure_reason, job.exit_code) == (state, reason, code), runner.log


ALL_OF_A_FAILURE = (
    *("config", "prepare", "prepare_script", "get_sources", "step_script", "after_script"),
    *("upload_artifacts_on_failure", "cleanup_file_variables", "cleanup"),
)


def _exit(code: int) -> Case:
    def check(bench: Bench, runner: Runner) -> None:
        # `: | eval` itself loses the code, in every executor; later runners put the eval into a subshell.
        told(bench, runner, "failed", "script_failure", code if runner.spec.form != "17.9" else 1)
        order(runner, *ALL_OF_A_FAILURE)
        assert "after all" in runner.log
        assert bench.job(runner).artifact() is not None
        over(bench, runner)

    script = ["mkdir -p out; echo x > out/r.txt", f"bash -c 'exit {code}'", "echo never"]
    return Case(f"exit {code}", lambda: Recipe(script, ["echo after all"], artifacts=ALWAYS), check)


def _success() -> Case:
    def check(bench: Bench, runner: Runner) -> None:
        told(bench, runner, "success", "success")
        assert "hello from the sources" in runner.log
        over(bench, runner)
        assert bench.states(runner) == ["COMPLETED"]

    return Case("success", lambda: Recipe(["bash src/hello.sh"], ["echo after"]), check)


def _system_failure() -> Case:
    def check(bench: Bench, runner: Runner) -> None:
        told(bench, runner, "failed", "runner_system_failure")
        order(runner, *("config", "prepare", "cleanup") * 3)
        assert runner.log.count("QUEUE_TIMEOUT (the site or the runner): as before") == 2
        assert "BeginTime" in runner.log
        over(bench, runner)  # it has waited in the queue once

    rule = NEVER_STARTS + "\nmax_queue = 2"
    return Case("prepare system failure x3 (queue time-out)", lambda: Recipe(["echo never"]), check, rule=rule)


def _build_failure() -> Case:
    def check(bench: Bench, runner: Runner) -> None:
        told(bench, runner, "failed", "script_failure", 1)
        order(runner, "config", "prepare", "cleanup")
        assert "SERVICES (the job): `services:` (postgres:16)" in runner.log
        over(bench, runner, jobs=0)

    return Case("prepare build failure x1 (services)", lambda: Recipe(["true"], services=["postgres:16"]), check)


def _get_sources() -> Case:
    project = "group/late"

    def recipe() -> Recipe:
        return Recipe(["cat README"], variables={"GET_SOURCES_ATTEMPTS": "2"}, project=project, project_id=8)

    def meanwhile(bench: Bench, runner: Runner) -> None:
        wait_for(lambda: "clear_worktree" in runner.order or runner.outcome, 600)
        bench.gitlab.admitted.add(bench.job(runner).id)

    def check(bench: Bench, runner: Runner) -> None:
        told(bench, runner, "success", "success")
        assert runner.order.index("clear_worktree") == runner.order.index("get_sources") + 1
        assert [stage.code for stage in runner.named("get_sources")] == [1, 0]
        over(bench, runner)

    return Case("get_sources fails, clear_worktree, again", recipe, check, meanwhile)


def _when(text: str, act: Callable[[Bench, Runner], None]) -> Callable[[Bench, Runner], None]:
    def meanwhile(bench: Bench, runner: Runner) -> None:
        wait_for_log(runner, text, 600)
        act(bench, runner)

    return meanwhile


def _cancel(bench: Bench, runner: Runner) -> None:
    bench.job(runner).cancelling = True


def _stopped_in_queue(name: str, act: Callable[[Bench, Runner], None], outcome: str) -> Case:
    def check(bench: Bench, runner: Runner) -> None:
        told(bench, runner, "failed", outcome)
        order(runner, "config", "prepare", "cleanup")
        over(bench, runner)
        assert bench.states(runner) == ["CANCELLED"]

    return Case(name, lambda: Recipe(["true"]), check, _when("PENDING", act), NEVER_STARTS)


def _kept(name: str, act: Callable[[Bench, Runner], None], outcome: str, **options: Any) -> Case:
    """The script is stopped; after_script and artifacts come all the same, from the same allocation."""

    def check(bench: Bench, runner: Runner) -> None:
        told(bench, runner, "failed", outcome)
        order(runner, *ALL_OF_A_FAILURE)
        assert "never" not in runner.log.replace("echo never", "")
        assert "after on the same node, 0 sleeping" in runner.log
        found = bench.job(runner).artifact()
        assert found is not None
        over(bench, runner)
        assert bench.states(runner) == ["COMPLETED"]

    def recipe() -> Recipe:
        return Recipe(LONG, [f'echo "after on the same node, $({SLEEPERS}) sleeping"'], artifacts=ALWAYS)

    return Case(name, recipe, check, _when("started\n", act), options=options)


def _stopped(name: str, act: Callable[[Bench, Runner], None], state: tuple[str, str]) -> Case:
    """Everything ends, and only cleanup comes after it."""

    def check(bench: Bench, runner: Runner) -> None:
        job = bench.job(runner)
        assert job.state == state[0]
        assert runner.outcome == state[1]
        order(runner, "config", "prepare", "prepare_script", "get_sources", "step_script", "cleanup")
        over(bench, runner)

    return Case(name, lambda: Recipe(LONG, ["echo after"], artifacts=ALWAYS), check, _when("started\n", act))


def _time_limit() -> Case:
    def check(bench: Bench, runner: Runner) -> None:
        told(bench, runner, "failed", "script_failure", 124)
        order(runner, *ALL_OF_A_FAILURE)
        assert "TIMEOUT (the job): the allocation's limit of 2 min is near" in runner.log
        assert "after all" in runner.log
        assert bench.job(runner).artifact() is not None
        over(bench, runner)

    recipe = lambda: Recipe(LONG, ["echo after all"], variables={"SLURM_TIMELIMIT": "00:02:00"}, artifacts=ALWAYS)  # noqa: E731
    return Case("Slurm time-out, with artifacts", recipe, check, driver={"grace": 80})


def _hostile() -> Case:
    first, rest = (base64.b64encode(part).decode() for part in (HOSTILE, REST))

    def check(bench: Bench, runner: Runner) -> None:
        told(bench, runner, "success", "success")
        assert HOSTILE + REST in runner.output
        assert HOSTILE + REST in bytes(bench.job(runner).trace)
        over(bench, runner)

    def recipe() -> Recipe:
        return Recipe([f"echo {first} | base64 -d; sleep 1; echo {rest} | base64 -d"])

    return Case("non-UTF-8, split multi-byte, \\r, no newline", recipe, check)


CASES = [
    _success(),
    _exit(1),
    _exit(42),
    _system_failure(),
    _build_failure(),
    _get_sources(),
    _stopped_in_queue("cancel in queue", _cancel, "canceled"),
    _kept("cancel in script", _cancel, "canceled"),
    _kept("cancel twice", _cancel, "canceled", terms=2),
    _stopped("abort", lambda bench, runner: setattr(bench.job(runner), "aborted", True), ("running", "canceled")),
    _stopped_in_queue("job time-out in queue", lambda b, runner: runner.expire(), "job_execution_timeout"),
    _stopped("job time-out in script", lambda b, runner: runner.expire(), ("failed", "job_execution_timeout")),
    _kept("script time-out", lambda b, runner: runner.stop("script_timeout"), "job_execution_timeout"),
    _time_limit(),
    _hostile(),
]
BY_NAME = {case.name: case for case in CASES}
