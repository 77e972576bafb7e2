"""`doctor`: this host, the file, every rule's site; and the config.toml that makes gitlab-runner call us."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from hpcbridge.errors import HpcBridgeError
from hpcbridge_gitlab import hosting
from hpcbridge_gitlab.configuring import FOLDER
from hpcbridge_gitlab.records import Records
from hpcbridge_gitlab.site import opened
from hpcbridge_gitlab.verdicts import Stop

if TYPE_CHECKING:
    from hpcbridge_gitlab.settings import Rule, Settings

_TOML = """\
[[runners]]
  name = "hpcbridge"
  url = "https://gitlab.example.org/"
  token = "…"
  executor = "custom"
  builds_dir = "/builds"  # config_exec says where they really are
  cache_dir = "/cache"
  environment = ["GIT_DEPTH=20"]
  [runners.custom]
    config_exec = "{program}"
    config_args = ["--config", "{config}", "config"]
    prepare_exec = "{program}"
    prepare_args = ["--config", "{config}", "prepare"]
    prepare_exec_timeout = 86400  # above what a job waits in the queue
    run_exec = "{program}"
    run_args = ["--config", "{config}", "run"]
    cleanup_exec = "{program}"
    cleanup_args = ["--config", "{config}", "cleanup"]
"""


async def doctor(settings: Settings) -> int:
    """Check and say what is wrong; 0 when nothing is."""
    checks = _Checks()
    checks.note("configuration", str(settings.path))
    checks.run("records", lambda: str(Records(settings.state).root))
    checks.run("gitlab-runner", lambda: hosting.runner_program(settings))
    checks.run("host stages", lambda: "isolated by bubblewrap" if hosting.isolated(settings) else "NOT isolated")
    for program in ("bash", "git", "tar", "gzip"):
        checks.run(program, lambda program=program: _found(program))  # type: ignore[misc]
    if settings.id_token is not None:
        from hpcbridge_gitlab.identity import keys

        try:
            count = len((await keys(settings.id_token)).keys)
            checks.note("id_token", f"{settings.id_token.issuer} serves {count} keys, for {settings.id_token.audience}")
        except Stop as stop:
            checks.fail("id_token", str(stop))
    if not settings.rules:
        checks.fail("rules", "there is no [[rule]]: every project is refused")
    for number, rule in enumerate(settings.rules, 1):
        try:
            checks.note(f"rule {number}", await _site(settings, rule))
        except (HpcBridgeError, Stop) as error:
            checks.fail(f"rule {number}", str(error))
    program = shutil.which("hpcbridge-gitlab") or sys.argv[0]
    print("\n" + _TOML.format(program=program, config=settings.path.absolute()))  # noqa: T201
    return 1 if checks.failed else 0


async def _site(settings: Settings, rule: Rule) -> str:
    async with opened(settings, rule.site, rule.system) as system:
        info = await system.info(fresh=True)
        user = await system.user()
        root = rule.root.replace("{user}", user) if rule.root else f"{await system.home()}/{FOLDER}"
        await system.mkdir(root)
        health = "" if info.healthy else ", UNHEALTHY"
        mode = info.scheduler.mode
        lost = "; this mode carries no time limit and no other option" if mode == "rest" else ""
        scheduler = f"{info.scheduler.kind} ({mode}{lost})"
        return f"{system.hpc.site.name}, {info.name} as {user}, {root}, scheduler {scheduler}{health}"


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise OSError("not in PATH")
    return path


class _Checks:
    """Prints as it goes."""

    def __init__(self) -> None:
        self.failed = False

    def run(self, name: str, check: Callable[[], str]) -> None:
        try:
            self.note(name, check())
        except (OSError, Stop) as error:
            self.fail(name, str(error))

    def note(self, name: str, text: str) -> None:
        print(f"ok    {name}: {text}")  # noqa: T201

    def fail(self, name: str, text: str) -> None:
        self.failed = True
        print(f"FAIL  {name}: {text}")  # noqa: T201
