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

ABOUT = "spawn or server or progress or stop or cull"
"""Of the API and the pages: what is about servers."""

QUICK = {
    "test_named_servers": "test_create_named_server or test_delete_named_server or test_named_server_stop_server",
    "test_user": "",
    "test_api": "test_spawn or test_slow_spawn or test_bad_spawn or test_progress_ready or test_start_stop_race",
    "test_pages": "test_spawn_pending or test_spawn_fails_custom_message or test_spawn_handler_access",
}
FULL = {"test_named_servers": "", "test_user": "", "test_api": ABOUT, "test_pages": ABOUT}

INI = """\
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = module
asyncio_default_test_loop_scope = module
timeout = 120
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


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("module", list(FULL))
def test_the_hubs_own_tests(cluster: SandboxProcess, tmp_path: Path, module: str) -> None:
    (tmp_path / "pytest.ini").write_text(INI)
    report = tmp_path / "report.xml"
    path = os.pathsep.join([str(PROXY.parent), os.environ["PATH"]])
    tests = Path(__file__).parents[1]
    environment = {**os.environ, **cluster.client_env("alice"), "PATH": path, "PYTHONPATH": str(tests)}
    command = [sys.executable, "-m", "pytest", "-c", str(tmp_path / "pytest.ini"), "-p", "support.jupyterhub_suite"]
    command += [
        "-q",
        "-rs",
        "--pyargs",
        f"jupyterhub.tests.{module}",
        f"--junit-xml={report}",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:warnings",
    ]
    if about := (FULL if PROVE else QUICK)[module]:
        command += ["-k", about]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    counts = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    print(f"{module}: {counts}")
    (tmp_path / "output.log").write_text(done.stdout + done.stderr)
    assert counts["failures"] == counts["errors"] == done.returncode == 0, done.stdout[-12000:]
    assert counts["tests"] - counts["skipped"] >= 3, done.stdout
