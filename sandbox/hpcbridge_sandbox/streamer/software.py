"""The Python that the cluster has for the streamer, made of this sandbox's own interpreter and three packages.

A real server's job makes a virtual environment and installs `firecrest-streamer` from a package index. Here the same
package, as it is installed beside the sandbox, is copied with what it needs into the state directory, and shown to the
cluster read-only; nothing is fetched, and nothing else of the client's environment is seen.
"""

from __future__ import annotations

import shutil
import sys
from importlib import metadata
from pathlib import Path

from hpcbridge_sandbox.settings import Exposed

PLACE = "/opt/firecrest-streamer"
"""Where the cluster sees it."""
LIBRARY = f"{PLACE}/lib"
"""What goes into PYTHONPATH there."""
PACKAGES = ("firecrest-streamer", "click", "websockets")
FAULTY = "faulty.py"
"""The file of this package that runs in the cluster too."""


def interpreter(place: str = f"{PLACE}/python") -> tuple[str, Exposed | None]:
    """Return the path inside the cluster of the interpreter that runs this, and what has to be shown for it at *place*.

    None where it is a part of the machine's software already.
    """
    real = Path(sys.executable).resolve()
    if real.is_relative_to("/usr"):
        return str(real), None
    base = Path(sys.base_prefix).resolve()
    return f"{place}/{real.relative_to(base)}", Exposed(host=base, target=place, read_only=True)


def software(state: Path) -> list[Exposed]:
    """Copy the packages below *state* and return what is to be shown.

    Raises:
        RuntimeError: a package is not installed, or not in the usual way.
    """
    library = state / "streamer"
    shutil.rmtree(library, ignore_errors=True)
    for name in PACKAGES:
        _copy(name, library)
    shutil.copyfile(Path(__file__).with_name(FAULTY), library / FAULTY)
    python = interpreter()[1]
    return [*([python] if python else []), Exposed(host=library, target=LIBRARY, read_only=True)]


def _copy(name: str, library: Path) -> None:
    try:
        files = metadata.distribution(name).files
    except metadata.PackageNotFoundError:
        files = None
    if not files:
        raise RuntimeError(f"--transfer streamer needs the package {name}: pip install 'hpcbridge[sandbox]'")
    for file in files:
        # Scripts lie outside; byte code belongs to whoever runs it.
        if ".." not in file.parts and file.suffix != ".pyc":
            target = library / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(str(file.locate())), target)
