"""Commands of other packages: seen without being imported, loaded when called, clear when something is missing."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support.cli import COMMAND, clean_environment

WORKING = '''"""Waters the plants.

More about plants.
"""
import typer
app = typer.Typer()

@app.command()
def water(litres: int) -> None:
    print(f"{litres} litres")

@app.command()
def fail() -> None:
    from hpcbridge.errors import Unavailable
    raise Unavailable("no water", hint="Wait for rain")
'''
BROKEN = '"""Needs something."""\nimport a_package_that_is_not_there\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a package `plants` that announces the commands `garden` and `desert`."""
    package, metadata = tmp_path / "plants", tmp_path / "plants-1.0.dist-info"
    package.mkdir()
    metadata.mkdir()
    (package / "__init__.py").write_text("")
    (package / "garden.py").write_text(WORKING)
    (package / "desert.py").write_text(BROKEN)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plants\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[hpcbridge.commands]\ngarden = plants.garden:app\ndesert = plants.desert:app\ngone = no_such_package.cli:app\n"
    )
    return tmp_path


def hpcbridge(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = clean_environment({"PYTHONPATH": str(folder)}, home=folder)
    return subprocess.run([*COMMAND, *arguments], env=env, capture_output=True, text=True, check=False, timeout=60)


def test_they_are_listed_with_the_first_line_of_their_docstring(folder: Path) -> None:
    done = hpcbridge(folder, "--help")
    assert done.returncode == 0
    assert "garden" in done.stdout
    assert "Waters the plants." in done.stdout
    assert "Needs something." in done.stdout
    assert "gone" not in done.stdout.split("Commands:")[1].split("A remote path")[0]


def test_they_are_loaded_when_called(folder: Path) -> None:
    assert hpcbridge(folder, "garden", "water", "3").stdout == "3 litres\n"
    assert "LITRES" in hpcbridge(folder, "garden", "water", "--help").stdout.upper()
    assert hpcbridge(folder, "garden", "water", "much").returncode == 2


def test_their_errors_end_like_ours(folder: Path) -> None:
    done = hpcbridge(folder, "garden", "fail")
    assert done.returncode == 69
    assert done.stderr == "Error: no water\nNext: Wait for rain\n"


def test_a_missing_dependency_is_named(folder: Path) -> None:
    done = hpcbridge(folder, "desert")
    assert done.returncode == 78
    assert "a_package_that_is_not_there" in done.stderr
    assert "pip install '.[desert]'" in done.stderr
    assert "Traceback" not in done.stderr
