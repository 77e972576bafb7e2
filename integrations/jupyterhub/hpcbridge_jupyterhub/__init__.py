"""JupyterHub spawner of hpcbridge: single-user servers as batch jobs on clusters behind FirecREST.

c.JupyterHub.spawner_class = "firecrest"
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcbridge_jupyterhub.spawner import FirecRESTSpawner

__all__ = ["TEMPLATES", "FirecRESTSpawner"]

TEMPLATES = str(Path(__file__).parent / "templates")
"""For `c.JupyterHub.template_paths`: the home page then says where each server runs and when its time is over."""


def __getattr__(name: str) -> Any:
    # The node's side is imported where there is no JupyterHub.
    if name == "FirecRESTSpawner":
        return import_module("hpcbridge_jupyterhub.spawner").FirecRESTSpawner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
