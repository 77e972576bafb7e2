"""The shell and Python snippets of README and quickstart work as they stand, against the sandbox."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcbridge._site_file import _SiteTable, read_site_file
from support.cli import clean_environment

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def snippets(page: str) -> list[tuple[str, str, str]]:
    """(language, rest of the fence's line, text) of each fenced block."""
    return [match.groups() for match in _FENCE.finditer((ROOT / page).read_text())]  # type: ignore[misc]


def environment(folder: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return clean_environment({"PATH": path}, home=folder)


@contextmanager
def first_terminal(command: str, folder: Path) -> Iterator[None]:
    """The long-running command of the page's first terminal, from its line "ready" to Ctrl-C."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command.strip()} --accounting-lag 1"],  # nothing else differs, but for the wait
        env=environment(folder),
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready, f"{command!r} ended with {process.wait()} before it was ready"
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


def run_snippet(language: str, text: str, folder: Path) -> str:
    if language == "python":
        (folder / "snippet.py").write_text(text)
        text = f"{sys.executable} snippet.py"
    command = f"set -eu -o pipefail\n[ -e sandbox.env ] && source ./sandbox.env\n{text}"
    done = subprocess.run(
        ["bash", "-c", command],
        env=environment(folder),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    print(f"{text}\n--- prints\n{done.stdout}{done.stderr}")
    assert done.returncode == 0, f"a snippet of the documentation fails: {text}"
    return done.stdout


def test_the_quickstart_works_as_it_stands(tmp_path: Path) -> None:
    blocks = [each for each in snippets("docs/quickstart.md") if each[0] in ("sh", "python")]
    (server,) = [text for _, label, text in blocks if "terminal=1" in label]
    with first_terminal(server, tmp_path):
        printed = [run_snippet(language, text, tmp_path) for language, label, text in blocks if not label]
    everything = "".join(printed)
    assert "168" in everything, "primes up to 1000"
    assert "counted up to 1000" in everything
    assert "141" in everything
    assert "hello from" in everything


def test_the_readme_works_as_it_stands(tmp_path: Path) -> None:
    blocks = [each for each in snippets("README.md") if each[0] in ("sh", "python")]
    with first_terminal("hpcbridge sandbox --env-file sandbox.env", tmp_path):
        printed = [run_snippet(language, text, tmp_path) for language, _, text in blocks]
    assert "6" in printed[0]
    assert "COMPLETED b'6\\n'" in printed[1]


def test_every_page_that_is_linked_exists() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_can_be_found_from_the_index() -> None:
    index = (ROOT / "docs/index.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert {page for page in pages if f"]({page})" not in index} == set()


def test_every_command_is_documented() -> None:
    env = environment(ROOT)
    code = (
        "import typer.main; from hpcbridge.cli.app import app; print(*typer.main.get_command(app).list_commands(None))"
    )
    commands = subprocess.check_output([sys.executable, "-c", code], env=env, text=True).split()
    page = (ROOT / "docs/cli.md").read_text()
    assert {name for name in commands if f"| `{name}" not in page} == set()


def test_the_configuration_of_the_documentation_is_valid(tmp_path: Path) -> None:
    ((_, _, text),) = [each for each in snippets("docs/configuration.md") if each[0] == "toml"]
    (tmp_path / "sites.toml").write_text(text)
    content = read_site_file(tmp_path / "sites.toml")
    assert set(content.sites) == {"cscs", "campus"}


def test_every_key_of_the_configuration_file_is_documented() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    assert {key for key in _SiteTable.model_fields if f"`{key}`" not in page} == set()
