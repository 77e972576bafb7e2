"""A runner's host for tests: coordinator, project, the driver's configuration, and what is behind the sandbox."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.gitlab_coordinator import Coordinator, Job, coordinator
from support.gitlab_runner import Runner, Spec
from support.gitlab_scripts import PROJECT, Recipe
from support.sandbox import SandboxProcess

FILES = {"README": "a project\n", "src/hello.sh": "echo hello from the sources\n"}

QUICK = {
    "lease": 120,
    "tick": 0.3,
    "agent_tick": 0.1,
    "queue_tick": 1,
    "stale": 6,
    "patience": 30,
    "kill_after": 2,
    "cleanup": 40,
}

# Whatever this machine's user has set up is none of these tests' business.
_OURS = ("FIRECREST_", "AUTH_TOKEN_URL", "HPCBRIDGE_", "XDG_", "CUSTOM_ENV_", "CI_")


@dataclass
class Bench:
    """One runner's host beside one sandbox."""

    sandbox: SandboxProcess
    gitlab: Coordinator
    root: Path
    scheduler: str = "local"
    configs: int = 0
    driver: dict[str, Any] = field(default_factory=lambda: dict(QUICK))

    @property
    def env(self) -> dict[str, str]:
        """The runner's own environment."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        return kept | {"HOME": str(self.root / "home"), "HPCBRIDGE_STATE_DIR": str(self.root / "hpcbridge")}

    def config(self, rule: str = "", driver: dict[str, Any] | None = None, tables: str = "") -> Path:
        """A configuration of the driver: one rule for every project, with `rule` as further lines."""
        self.configs += 1
        path = self.root / f"gitlab-{self.configs}.toml"
        values = {"state": str(self.root / "state"), "sites": "sites.toml", "runner": str(self.root / "gitlab-runner")}
        lines = [f"{name} = {_toml(value)}" for name, value in {**values, **self.driver, **(driver or {})}.items()]
        path.write_text(
            "\n".join(["[driver]", *lines, tables, "[[rule]]", 'projects = ["*"]', 'site = "box"', rule, ""])
        )
        return path

    def runner(self, recipe: Recipe, *, rule: str = "", driver: dict[str, Any] | None = None, **options: Any) -> Runner:
        """A harness that will run one job of this recipe."""
        return Runner(self.spec(recipe, rule=rule, driver=driver, **options))

    def spec(
        self,
        recipe: Recipe,
        *,
        rule: str = "",
        driver: dict[str, Any] | None = None,
        config: Path | None = None,
        **options: Any,
    ) -> Spec:
        """The same for a harness in a process of its own."""
        recipe.sha = recipe.sha or self.gitlab.heads[recipe.project]
        job = self.gitlab.queue(recipe.response)
        for name, audience in recipe.id_tokens.items():
            token = self.gitlab.id_token(job, audience)
            job.response["variables"].append({"key": name, "value": token, "public": False, "masked": True})
        config = config or self.config(rule, driver)
        program = [str(Path(sys.prefix) / "bin" / "hpcbridge-gitlab"), "--config", str(config)]
        return Spec(self.gitlab.url, program, str(self.root / "work"), self.env, wanted=job.id, **options)

    def job(self, runner: Runner) -> Job:
        """What the coordinator knows of a harness's job."""
        assert runner.spec.wanted is not None
        return self.gitlab.jobs[runner.spec.wanted]

    # -- behind the sandbox ------------------------------------------------------------------------------------------

    @property
    def places(self) -> list[Path]:
        """Directories of attempts that there are on the cluster."""
        root = self.sandbox.host_path("/home/alice/hpcbridge-ci")
        return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []

    def place(self, runner: Runner) -> Path:
        """The directory of a harness's job on the cluster, as this machine sees it."""
        return self.sandbox.host_path(runner.told["builds_dir"].removesuffix("/builds"))

    def rows(self, runner: Runner) -> list[dict[str, Any]]:
        """The scheduler's jobs of a harness's job, all attempts: those that are listed, and those on our record.

        A listing may leave out a job that ended before its start.
        """
        wanted, path = runner.spec.wanted, f"/compute/{self.sandbox.system}/jobs"
        records = (self.root / "state" / "jobs").glob(f"*-{wanted}/attempt-*.json")
        ids = {json.loads(record.read_bytes())["job_id"] for record in records} - {""}
        with self.sandbox.client("alice") as client:
            rows = client.get(path).json()["jobs"] or []
            mine = {row["jobId"]: row for row in rows if f"/hpcbridge-ci/{wanted}-" in (row["workingDirectory"] or "")}
            for number in ids - mine.keys():
                answer = client.get(f"{path}/{number}")
                mine |= {row["jobId"]: row for row in (answer.json()["jobs"] if answer.is_success else [])}
        return list(mine.values())

    def states(self, runner: Runner) -> list[str]:
        """Their states."""
        return [row["status"]["state"].split()[0] for row in self.rows(runner)]


def _toml(value: Any) -> str:
    return json.dumps(value)  # TOML's own notation for all that these tests write


@contextlib.contextmanager
def bench(sandbox: SandboxProcess, scheduler: str = "local") -> Iterator[Bench]:
    """A host for the length of the block."""
    root = Path(tempfile.mkdtemp(prefix="hpcbridge-gitlab-"))
    try:
        for name in ("home", "work", "repositories"):
            (root / name).mkdir()
        (root / "state").mkdir(mode=0o700)
        env = sandbox.client_env("alice")
        secret = root / "secrets"
        secret.mkdir(mode=0o700)
        (secret / "alice").write_text(env["FIRECREST_CLIENT_SECRET"])
        (root / "sites.toml").write_text(
            f'[sites.box]\nurl = "{env["FIRECREST_URL"]}"\ntoken_url = "{env["AUTH_TOKEN_URL"]}"\nclient_id = "alice"\n'
            f'client_secret_file = "{secret}/alice"\nsystem = "{env["FIRECREST_SYSTEM"]}"\n'
        )
        program = root / "gitlab-runner"
        helper = Path(__file__).with_name("gitlab_helper.py")
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {helper} "$@"\n')
        program.chmod(0o755)
        with coordinator(root / "repositories") as gitlab:
            gitlab.repository(PROJECT, FILES)
            yield Bench(sandbox, gitlab, root, scheduler)
    finally:
        shutil.rmtree(root, ignore_errors=True)
