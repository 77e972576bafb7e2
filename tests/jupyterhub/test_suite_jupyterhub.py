"""JupyterHub's own tests pass with our class as the spawner (see `support.jupyterhub_suite` for the shims)."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from support.jupyterhub_hub import PROXY
from support.sandbox import SandboxProcess
from support.scale import PROVE

MODULES = ("test_named_servers", "test_user", "test_api", "test_pages")
FULL = ""
"""All of them, also those that never start a server: what touches a spawner cannot be missed by a word."""
QUICK = (
    "(test_create_or_start_named_server and trevor) or test_named_server_stop_server or test_bad_spawn"
    " or test_progress_ready or test_start_stop_race or test_spawn_pending"
    " or (test_spawn_fails_custom_message and unhandled)"
)

INI = """\
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = module
asyncio_default_test_loop_scope = module
timeout = 300
markers =
    user
    role
    group
    services
    slow
    selenium
    browser
    subdomain
"""


@pytest.mark.timeout(2400)
def test_the_hubs_own_tests(cluster: SandboxProcess, tmp_path: Path) -> None:
    run(cluster, tmp_path, MODULES, FULL if PROVE else QUICK, least=330 if PROVE else 13)


if PROVE:

    @pytest.mark.timeout(600)
    def test_with_internal_ssl(cluster: SandboxProcess, tmp_path: Path) -> None:
        """Keys and certificates reach the node, and hub, proxy and server trust each other only."""
        about = "test_create_or_start_named_server and trevor"
        run(cluster, tmp_path, ("test_named_servers",), about, least=2, SSL_ENABLED="1")


def run(
    cluster: SandboxProcess, tmp_path: Path, modules: tuple[str, ...], about: str, *, least: int, **more: str
) -> None:
    ini, report, log = tmp_path / "pytest.ini", tmp_path / "report.xml", tmp_path / "output.log"
    ini.write_text(INI)
    path = os.pathsep.join([str(PROXY.parent), os.environ["PATH"]])
    tests = Path(__file__).parents[1]
    environment = {**os.environ, **cluster.client_env("alice"), "PATH": path, "PYTHONPATH": str(tests), **more}
    command = [sys.executable, "-m", "pytest", "-c", str(ini), "-p", "support.jupyterhub_suite", "-v", "-rs"]
    command += ["-p", "no:cacheprovider", "-p", "no:warnings", "--durations=15", f"--junit-xml={report}"]
    command += ["-k", about] if about else []
    command += ["--pyargs", *(f"jupyterhub.tests.{module}" for module in modules)]
    with log.open("w") as output:
        done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=output, stderr=output, check=False)
    text = log.read_text(errors="replace")
    assert report.exists(), text[-4000:]
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    counts = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    print(f"JupyterHub's own tests: {counts}")
    assert counts["failures"] == counts["errors"] == done.returncode == 0, text[-12000:]
    assert counts["tests"] - counts["skipped"] >= least, text
