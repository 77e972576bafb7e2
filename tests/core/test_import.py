"""Importing hpcbridge costs next to nothing, and what it exports is there."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import hpcbridge

ROUNDS = 7


def _milliseconds(statement: str) -> float:
    """What a fresh interpreter spends in `statement`, in ms: the best of `ROUNDS`, as other work only adds to it."""
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    times = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(ROUNDS)]
    return min(times) * 1000


def test_import_costs_at_most_60_ms_more_than_httpx() -> None:
    assert _milliseconds("import hpcbridge") <= _milliseconds("import httpx") + 60


def test_importing_the_facade_costs_at_most_60_ms_more_than_httpx() -> None:
    """Not only the empty package: what one uses first is light, too."""
    assert _milliseconds("import hpcbridge; hpcbridge.connect; hpcbridge.errors") <= _milliseconds("import httpx") + 60


def test_import_loads_nothing_heavy() -> None:
    heavy = {"httpx", "pydantic", "authlib", "firecrest", "rich", "typer", "tenacity", "anyio", "asyncio"}
    code = f"import sys, hpcbridge; print(*({heavy!r} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []


@pytest.mark.parametrize(
    ("room", "heavy"),
    [("firecrest.rest", "firecrest.v2"), ("credentials.issuer", "authlib.integrations.httpx_client")],
)
def test_what_is_heavy_can_be_loaded_beforehand(room: str, heavy: str) -> None:
    code = f"import sys; from hpcbridge.{room} import preload; preload(); print({heavy!r} in sys.modules)"
    assert subprocess.check_output([sys.executable, "-W", "error", "-c", code], text=True).split() == ["True"]


@pytest.mark.parametrize("name", hpcbridge.__all__)
def test_every_exported_name_is_there(name: str) -> None:
    assert getattr(hpcbridge, name) is not None
    assert name in dir(hpcbridge)


def test_star_import_and_unknown_names() -> None:
    assert (
        subprocess.run([sys.executable, "-c", "from hpcbridge import *; connect, JobSpec"], check=False).returncode == 0
    )
    with pytest.raises(AttributeError, match="no attribute 'nothing_like_it'"):
        hpcbridge.nothing_like_it  # noqa: B018


def test_help_costs_no_more_than_an_http_library() -> None:
    """As a ratio, so that a slow machine does not matter."""
    command = [str(Path(sys.executable).parent / "hpcbridge"), "--help"]
    assert "submit" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert _fastest(command) < 1.5 * _fastest([sys.executable, "-c", "import httpx"])


def _fastest(command: list[str]) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    return min(times)


def test_help_shows_the_sandbox_without_importing_it() -> None:
    code = "import sys\nfrom hpcbridge.cli import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert " sandbox " in done.stdout
    loaded = set(done.stderr.split())
    assert not {name for name in loaded if name.startswith("hpcbridge_sandbox")}
    assert not loaded & {"httpx", "pydantic", "fastapi", "authlib"}


def test_preload_leaves_nothing_heavy_for_later() -> None:
    code = (
        "import sys, hpcbridge._preload as p; p.preload(); before = set(sys.modules)\n"
        "from authlib.integrations.httpx_client import AsyncOAuth2Client\n"
        "from firecrest.v2 import AsyncFirecrest\n"
        "import hpcbridge.jobs.submit, hpcbridge.http.session, asyncio, httpx\n"
        "async def ask():\n"
        "    async with httpx.AsyncClient(timeout=1) as client:\n"
        "        try: await client.get('http://127.0.0.1:9/')\n"
        "        except httpx.HTTPError: pass\n"
        "asyncio.run(ask())\n"
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", code], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")
