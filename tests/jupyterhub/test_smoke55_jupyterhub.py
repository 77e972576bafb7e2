"""JupyterHub 5.5, in an environment of its own: a server starts, its failure is told, it stops."""

from __future__ import annotations

from pathlib import Path

from support.jupyterhub_hub import LIGHT, ROOT, Hub, job_state
from support.programs import give_up
from support.sandbox import SandboxProcess

PYTHON = ROOT / ".env/jupyterhub55/bin/python"


def test_jupyterhub_5_5(cluster: SandboxProcess, tmp_path: Path) -> None:
    if not (PYTHON.parents[1] / ".ready").exists():
        give_up("JupyterHub 5.5 is not installed: make env-jupyterhub55")
    systems = {
        "now": {"command": ["python3", "-c", LIGHT]},
        "broken": {"command": ["sh", "-c", "echo no such module; exit 3"]},
    }
    with Hub(tmp_path, cluster, systems=systems, python=str(PYTHON)) as hub:
        assert hub.api("GET", "")["version"].startswith("5.5")
        dave = hub.login("dave")
        hub.start_server("dave", system="now")
        hub.wait_ready("dave")
        job = hub.state("dave")["job_id"]
        hub.restart()
        hub.wait_ready("dave")
        assert hub.state("dave")["job_id"] == job
        hub.stop_server("dave")
        hub.wait_gone("dave")
        assert job_state(cluster, job) == "CANCELLED"
        hub.start_server("dave", "two", system="broken")
        hub.wait_gone("dave", "two")
        page = dave.get("hub/spawn-pending/dave/two").text
        assert "no such module" in page
        assert "exit code 3" in page
