"""Patterns of remote paths mean what bash means by them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcbridge.errors import InvalidPath, PathNotFound, PermissionDenied
from hpcbridge.staging.remote import globs, listing
from support.sandbox import SandboxProcess
from support.staging import connected, leftovers

letters = st.sampled_from("abc.-_ é[]*?\\!^'\n")
names = st.text(letters, min_size=1, max_size=5).filter(lambda n: n not in (".", ".."))
patterns = st.text(st.sampled_from("abc.*?[]!^-é"), min_size=1, max_size=6).filter(globs.has_magic)


def bash(folder: Path, pattern: str) -> list[str]:
    """What bash makes of an unquoted pattern in `folder`."""
    script = f'shopt -s nullglob globstar; export LC_ALL=C.UTF-8; printf "%s\\0" {pattern}'
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, check=True)
    return sorted(os.fsdecode(name).rstrip("/") for name in set(done.stdout.split(b"\0")) if name)


@settings(max_examples=60, deadline=None)
@given(st.sets(names, min_size=1, max_size=12), st.lists(patterns, min_size=1, max_size=8))
def test_a_component_matches_what_bash_matches(there: set[str], many: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in there:
            Path(folder, name).touch()
        for pattern in many:
            if re.search(r"\[[^\]]*-", pattern):
                continue  # ranges follow the locale's order in bash
            if not re.search(r"[*?]|\[.+\]", pattern):
                continue  # no pattern to bash, which prints it as it is
            expression = re.compile(globs._component(pattern), re.DOTALL)
            assert sorted(name for name in there if expression.fullmatch(name)) == bash(Path(folder), pattern), pattern


def test_escapes_take_characters_literally() -> None:
    assert not globs.has_magic(r"/a/b\*")
    assert re.fullmatch(globs._component(r"a\**"), "a*b")
    assert not re.fullmatch(globs._component(r"a\**"), "ab")
    assert re.fullmatch(globs._component("a[^x]"), "ab")
    assert re.fullmatch(globs._component("a[]]"), "a]")


@pytest.mark.parametrize(
    ("listed", "read"),
    [
        ("plain", "plain"),
        (r"gr\303\266\303\237e", "größe"),
        (r"\346\227\245", "日"),
        (r"bad\377", r"bad\377"),
        (r"a\101b", r"a\101b"),
        (r"line\n", r"line\n"),
    ],
)
def test_names_of_a_c_locale_are_read(listed: str, read: str) -> None:
    assert listing.readable(listed) == read


# --- On the sandbox ---------------------------------------------------------------------------------------------------

TREE = [
    "a.txt",
    "b.dat",
    "d/a.txt",
    "d/e/a.txt",
    "d/e/f/b.txt",
    "d/.hidden/a.txt",
    ".top/a.txt",
    "x y/größe.txt",
    "x y/a[1].txt",
    "x y/back\\slash.txt",
    "x y/back\\303\\251.txt",
    "x y/it's.txt",
    "x y/new\nline.txt",
    "-dash/a.txt",
]


@pytest.fixture
def tree(sandbox: SandboxProcess, tmp_path: Path) -> Iterator[tuple[SandboxProcess, str, Path]]:
    """A tree of alice's: the sandbox, its path there, and where this machine finds it."""
    path = f"/home/alice/{tmp_path.name}"
    here = sandbox.host_path(path)
    owner = sandbox.host_path("/home/alice").stat()
    for name in TREE:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    (here / "link").symlink_to("d")
    for entry in (here, *here.rglob("*")):
        os.chown(entry, owner.st_uid, owner.st_gid, follow_symlinks=False)
    yield sandbox, path, here
    shutil.rmtree(here)
    assert leftovers(sandbox) == []


async def test_patterns_find_on_the_system_what_bash_finds_there(tree: tuple[SandboxProcess, str, Path]) -> None:
    sandbox, path, here = tree
    async with connected(sandbox) as system:
        for pattern in [
            "*",
            "*.txt",
            "?.dat",
            "[!a]*",
            ".*/a.txt",
            "*/a.txt",
            "**/*.txt",
            "d/**",
            "d/**/a.txt",
            "**/e/*",
            "d/*/f/**",
            "link/*.txt",
            "d/.h*/a*",
            "*/e/f/b.txt",
            r"x\ y/*.txt",
            "-*/*",
        ]:
            # bash counts `d` itself among `d/**`; here `**` is what is below.
            itself = bash(here, pattern.removesuffix("/**")) if pattern.endswith("/**") else []
            expected = [f"{path}/{name}" for name in bash(here, pattern) if name not in itself]
            found = await system.glob(f"{path}/{pattern.replace(chr(92) + ' ', ' ')}")
            assert found == sorted(expected), pattern


async def test_doubtful_names_cost_a_job_only_where_they_have_to(tree: tuple[SandboxProcess, str, Path]) -> None:
    sandbox, path, _ = tree
    async with connected(sandbox) as system:
        sandbox.delete("/requests")
        await system.glob(f"{path}/*")
        counts = sandbox.get("/requests")["counts"]
        assert not any("POST" in each and "jobs" in each for each in counts)
        await system.glob(f"{path}/x y/*")  # holds names that no listing tells apart
        counts = sandbox.get("/requests")["counts"]
        assert sum(count for each, count in counts.items() if each.startswith("POST") and each.endswith("/jobs")) == 1


async def test_names_that_a_listing_shows_alike_are_told_apart(tree: tuple[SandboxProcess, str, Path]) -> None:
    sandbox, path, here = tree
    twins = {"é.txt", "\\303\\251.txt"}
    (here / "twins").mkdir()
    for name in twins:
        (here / "twins" / name).touch()
    async with connected(sandbox) as system:
        assert await system.glob(f"{path}/twins/*") == sorted(f"{path}/twins/{name}" for name in twins)


async def test_nothing_matched_is_an_error_and_an_exact_name_is_that_file(
    tree: tuple[SandboxProcess, str, Path],
) -> None:
    sandbox, path, _ = tree
    async with connected(sandbox) as system:
        for pattern in ("*.nope", "nope/*", "a.txt/*", "**/nope"):
            with pytest.raises(PathNotFound, match="nothing matches"):
                await system.glob(f"{path}/{pattern}")
        assert await system.glob(f"{path}/x y/a[1].txt") == [f"{path}/x y/a[1].txt"]
        assert await system.glob(f"{path}/not/looked/at") == [f"{path}/not/looked/at"]


@pytest.mark.parametrize("pattern", ["relative/*", "/etc/*", "/*", "/home/../etc/*", "/home/alice/a\0*"])
async def test_patterns_stay_inside_the_file_systems(sandbox: SandboxProcess, pattern: str) -> None:
    async with connected(sandbox) as system:
        sandbox.delete("/requests")
        with pytest.raises(InvalidPath):
            await system.glob(pattern)
        assert not any("filesystem" in each for each in sandbox.get("/requests")["counts"])


async def test_what_may_not_be_read_matches_nothing_unless_it_is_all_there_is(sandbox: SandboxProcess) -> None:
    async with connected(sandbox) as system:
        with pytest.raises(PermissionDenied):
            await system.glob("/home/bob/*")
        await system.mkdir("/home/alice/readable")
        assert await system.glob("/home/*/readable") == ["/home/alice/readable"]
        await system.rm("/home/alice/readable")


async def test_a_listing_over_the_limit_is_made_by_a_job(sandbox: SandboxProcess) -> None:
    async with connected(sandbox) as system:
        await system.mkdir("/home/alice/many/sub")
        sandbox.post(
            "/faults",
            [
                {
                    "method": "GET",
                    "path": "*/ops/ls",
                    "kind": "status",
                    "status": 500,
                    "message": "Command output exceeded buffer limit",
                }
            ],
        )
        entries = await system.ls("/home/alice/many")
        assert [(entry.name, entry.kind) for entry in entries] == [("sub", "d")]
        assert await system.glob("/home/alice/many/**") == ["/home/alice/many/sub"]
        assert (await system.du("/home/alice/many")).directories == 1
        sandbox.reset()
        await system.rm("/home/alice/many")
    assert leftovers(sandbox) == []
