"""A pytest plugin: JupyterHub's own tests with FirecRESTSpawner in place of the local process spawner.

The tests' own spawners (MockSpawner, SlowSpawner, BadSpawner …) derive from SimpleLocalProcessSpawner; here they derive
from ours instead, and everything that they start is a batch job. The shims, and why each is needed:

- `get_state` says `{"pid": …}` and nothing else: tests compare the whole of what a local process spawner remembers;
- `wanted` takes any `user_options`: the tests start servers with options of their own, such as {"i": 5};
- there is no form unless a test brings its own: they check the pages of spawners without one;
- `user_env`: MockSpawner extends a hook that only local process spawners have;
- `progress_of_the_base_class`, for two tests that compare every event with those of a spawner that tells none itself;
- `patience`: the API answers 201 for a start within 10 s; on a busy machine a job takes longer than a local process;
- the server's command is run by the cluster's Python: the hub's interpreter is not there.
"""

from __future__ import annotations

import sys
from typing import Any

import jupyterhub.spawner
import pytest
from traitlets import default

from hpcbridge_jupyterhub import FirecRESTSpawner, options


class BatchSpawner(FirecRESTSpawner):
    """Everybody's servers are jobs of the site's own account, whose secret is in the environment."""

    @default("systems")
    def _systems(self) -> dict[str, Any]:
        cluster = {
            "credential": "site",
            "prologue": "export PATH=/opt/software/bin:$PATH",
        }
        return {"cluster": cluster}

    async def start(self) -> tuple[str, int] | str:
        self.cmd = ["python3" if word == sys.executable else word for word in self.cmd]
        return await super().start()

    @default("options_form")
    def _no_form(self) -> str:
        return ""

    @default("start_timeout")
    def _start_timeout(self) -> int:
        return 240

    def wanted(self) -> options.ServerOptions:
        return options.ServerOptions(system="cluster")

    def get_state(self) -> dict[str, Any]:
        return {"pid": int(self.job_id)} if self.job_id else {}

    def user_env(self, env: dict[str, Any]) -> dict[str, Any]:
        return env

    def get_env(self) -> dict[str, Any]:
        return self.user_env(super().get_env())


jupyterhub.spawner.SimpleLocalProcessSpawner = BatchSpawner


@pytest.fixture(autouse=True)
def patience(request: pytest.FixtureRequest) -> None:
    if "app" in request.fixturenames:
        for name in ("slow_spawn_timeout", "slow_stop_timeout"):
            request.getfixturevalue("app").tornado_settings.setdefault(name, 240)


@pytest.fixture(autouse=True)
def progress_of_the_base_class(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.name in ("test_progress", "test_progress_bad_slow"):
        monkeypatch.setattr(BatchSpawner, "progress", jupyterhub.spawner.Spawner.progress)
