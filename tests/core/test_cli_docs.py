"""The shell and Python snippets of README and quickstart work as they stand, against the sandbox."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from hpcbridge._site_file import _SiteTable, read_site_file
from support.docs import ROOT, environment, first_terminal, run_snippet, snippets


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
