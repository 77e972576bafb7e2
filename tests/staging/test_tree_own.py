"""What is ours is no part of a tree: locks of jobs, staging and state directories, part files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcbridge.staging.trees.download import get_tree
from hpcbridge.staging.trees.entries import Entry, Kind, Member
from hpcbridge.staging.trees.sync_down import sync_down
from hpcbridge.staging.trees.sync_up import sync_up
from hpcbridge.staging.trees.upload import put_tree
from support.sandbox import SandboxProcess
from support.staging import connected

OURS = (
    ".hpcbridge/run.hb1abc.lock",
    "sub/.hpcbridge/secret",
    ".hpcbridge-sync-abc/manifest",
    "sub/.hpcbridge-get-1/archive",
    "sub/.big.dat.hpcbridge-part",
    ".sub.hpcbridge-tree/a",
)
THEIRS = ("a", "sub/b", ".hpcbridgerc", "hpcbridge/c", "sub/big.dat.hpcbridge-part")
"""Names that only look like ours."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for path in (*OURS, *THEIRS):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    return root


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def on_cluster(sandbox: SandboxProcess, path: str, tree: Path) -> Path:
    """The same tree in alice's directory there."""
    root = sandbox.host_path(path)
    home = sandbox.host_path("/home/alice").stat()
    root.mkdir()
    os.chown(root, home.st_uid, home.st_gid)
    for each in sorted(tree.rglob("*")):
        copy = root / each.relative_to(tree)
        copy.mkdir() if each.is_dir() else copy.write_bytes(each.read_bytes())
        os.chown(copy, home.st_uid, home.st_gid)
    return root


@pytest.mark.parametrize("send", [put_tree, sync_up])
async def test_it_is_not_sent(sandbox: SandboxProcess, tree: Path, send: object) -> None:
    remote = f"/home/alice/{tree.parent.name}"
    async with connected(sandbox) as system:
        told = await send(system, tree, remote, dry_run=True)  # type: ignore[operator]
        result = await send(system, tree, remote)  # type: ignore[operator]
    assert files(sandbox.host_path(remote)) == set(THEIRS)
    assert result.files == told.files == len(THEIRS)
    assert result.skipped == []


@pytest.mark.parametrize("receive", [get_tree, sync_down])
async def test_it_is_not_received(sandbox: SandboxProcess, tree: Path, tmp_path: Path, receive: object) -> None:
    remote = f"/home/alice/{tmp_path.name}"
    on_cluster(sandbox, remote, tree)
    async with connected(sandbox) as system:
        told = await receive(system, remote, tmp_path / "back", dry_run=True)  # type: ignore[operator]
        result = await receive(system, remote, tmp_path / "back")  # type: ignore[operator]
    assert files(tmp_path / "back") == set(THEIRS)
    assert result.files == told.files == len(THEIRS)
    assert result.skipped == []


async def test_nor_does_it_count_for_the_size(sandbox: SandboxProcess, tree: Path, tmp_path: Path) -> None:
    remote = f"/home/alice/{tmp_path.name}"
    on_cluster(sandbox, remote, tree)
    size = sum(len(path) for path in THEIRS)
    async with connected(sandbox) as system:
        await get_tree(system, remote, tmp_path / "back", max_size=size)
        await put_tree(system, tree, f"{remote}-2", max_size=size)


async def test_nor_is_it_taken_among_members(sandbox: SandboxProcess, tmp_path: Path) -> None:
    remote = f"/home/alice/{tmp_path.name}"
    names = (b".hpcbridge-put-1", b"kept")
    members = [Member(Entry(name, Kind.FILE, 0o644, 1), data=b"x") for name in names]
    async with connected(sandbox) as system:
        await put_tree(system, members, remote)
    assert files(sandbox.host_path(remote)) == {"kept"}


@pytest.mark.parametrize("send", [put_tree, sync_up])
async def test_logins_state_and_configuration_are_not_sent(
    sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, send: object
) -> None:
    """As when somebody sends a home directory; other programs' files beside them are sent."""
    home = tmp_path / "home"
    for name, value in {"XDG_STATE_HOME": "state", "XDG_CONFIG_HOME": "config"}.items():
        monkeypatch.setenv(name, str(home / value))
    monkeypatch.setenv("HPCBRIDGE_STATE_DIR", str(home / "elsewhere"))
    monkeypatch.setenv("HPCBRIDGE_CONFIG", str(home / "project" / "sites.toml"))
    (home / "project").mkdir(parents=True)
    (home / "project" / "sites.toml").touch()
    ours = (
        "state/hpcbridge/logins/a.json",
        "elsewhere/intents/b.json",
        "config/hpcbridge/site.secret",
        "project/sites.toml",
    )
    theirs = ("state/other/a", "config/other/b", "project/notes.txt", "hpcbridge/logins/x")
    remote = f"/home/alice/{tmp_path.name}-home"
    async with connected(sandbox) as system:
        for path in (*ours, *theirs):
            (home / path).parent.mkdir(parents=True, exist_ok=True)
            (home / path).write_text(path)
        told = await send(system, home, remote)  # type: ignore[operator]
    assert files(sandbox.host_path(remote)) == set(theirs)
    left_out = {os.fsdecode(each.path) for each in told.skipped}
    assert left_out == {"state/hpcbridge/logins", "elsewhere", "config/hpcbridge", "project/sites.toml"}
