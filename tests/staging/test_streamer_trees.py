"""Trees over the streamer: one archive each way, whole in spite of its faults."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import hpcbridge
from hpcbridge.staging.streamer_link import CHUNK
from hpcbridge.staging.trees.download import get_tree
from hpcbridge.staging.trees.upload import put_tree
from support.sandbox import SandboxProcess, start_sandbox, with_streamer
from support.staging import connected, leftovers, random_file

FAULTS = [{}, {"drop_after": CHUNK, "count": 1}, {"corruption": 1, "count": 1}, {"wrong_hash": 1, "count": 1}]
NAMES = ["sound", "broken-off", "damaged", "another-hash"]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with start_sandbox("--accounting-lag", "0.3", *with_streamer()) as started:
        yield started


@pytest.fixture
async def system(sandbox: SandboxProcess) -> AsyncIterator[hpcbridge.System]:
    async with connected(sandbox) as system:
        yield system


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Large enough for several messages; random, so that it is not compressed."""
    root = tmp_path / "tree"
    (root / "inner" / "empty").mkdir(parents=True)
    random_file(root / "inner" / "large", 2 * CHUNK)
    (root / "a name with spaces").write_text("x")
    (root / "link").symlink_to("inner/large")
    return root


def content(root: Path) -> dict[str, object]:
    """Every path below `root`, with what is there."""
    found: dict[str, object] = {}
    for path in root.rglob("*"):
        what = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(root))] = what
    return found


@pytest.mark.parametrize("faults", FAULTS, ids=NAMES)
async def test_up_and_down_is_the_identity(
    system: hpcbridge.System,
    sandbox: SandboxProcess,
    tmp_path: Path,
    tree: Path,
    faults: dict[str, float],
    request: pytest.FixtureRequest,
) -> None:
    remote = f"/home/alice/{request.node.callspec.id}"
    sandbox.post("/streamer-faults", faults)
    sent = await put_tree(system, tree, remote, route="streamer")
    assert (sent.route, sent.files, sent.directories, sent.links) == ("streamer", 2, 2, 1)
    assert content(sandbox.host_path(remote)) == content(tree)
    sandbox.post("/streamer-faults", faults)
    got = await get_tree(system, remote, tmp_path / "back", route="streamer")
    assert (got.route, got.files, got.directories, got.links) == ("streamer", 2, 2, 1)
    assert content(tmp_path / "back") == content(tree)
    assert leftovers(sandbox) == []
