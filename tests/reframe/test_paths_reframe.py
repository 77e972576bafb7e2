"""Texts and directories on their way there and back."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcbridge.staging.trees.patterns import Filter
from hpcbridge_reframe.paths import PathMap, stage_directories_in
from hpcbridge_reframe.restage import Layout
from hpcbridge_reframe.session import _tops
from hpcbridge_reframe.staging import needed_in_store
from hpcbridge_reframe.tree import Kind, Scanner, blob_path

MAP = PathMap.of("/here/stage", "/scratch/me/stage-x", {"/data/in": "/cluster/in"})


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("cd /here/stage/a/b", "cd /scratch/me/stage-x/a/b"),
        ("-I/here/stage:/here/stage", "-I/scratch/me/stage-x:/scratch/me/stage-x"),
        ("It is in /here/stage.", "It is in /scratch/me/stage-x."),
        ("/here/stage2 /here/stage-old /here/stage.d", "/here/stage2 /here/stage-old /here/stage.d"),
        ("'/data/in/x'", "'/cluster/in/x'"),
    ],
)
def test_texts_are_rewritten_and_back(here: str, there: str) -> None:
    assert MAP.forward(here.encode()) == there.encode()
    assert MAP.backward(there.encode()) == here.encode()


def test_what_is_no_text_is_not_touched() -> None:
    data = b"\x7fELF\0/here/stage/lib\0"
    assert MAP.forward(data) is data


@given(st.text(), st.text())
def test_what_comes_back_is_what_went(before: str, after: str) -> None:
    text = f"{before}/here/stage/x{after}".encode("utf-8", "replace")
    assert MAP.backward(MAP.forward(text)) == text


def test_stage_directories_that_a_text_names(tmp_path: Path) -> None:
    (tmp_path / "s/p/e/Test").mkdir(parents=True)
    text = f"cp {tmp_path}/s/p/e/Test/x . && cat {tmp_path}/s/p/e/Gone/y '{tmp_path}/s/p'".encode()
    assert stage_directories_in(text, str(tmp_path)) == {"s/p/e/Test"}


ODD = st.lists(
    st.text(st.characters(blacklist_characters="/\0", codec="utf-8"), min_size=1, max_size=20).filter(
        lambda name: name not in (".", "..") and not name.startswith(".hpcbridge") and len(name.encode()) < 200
    ),
    min_size=1,
    max_size=6,
    unique=True,
)


@settings(max_examples=25, deadline=None)
@given(names=ODD, content=st.binary(max_size=50), mode=st.sampled_from([0o644, 0o755, 0o600, 0o444]))
def test_a_directory_is_laid_out_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], content: bytes, mode: int
) -> None:
    """With the real script, by a real bash: every name that Linux allows, links, modes and times."""
    base = tmp_path_factory.mktemp("odd")
    local, remote = base / "local", base / "cluster/stage"
    local.mkdir()
    (remote / ".hpcbridge").mkdir(parents=True)
    (remote / "old").write_text("of an earlier run")
    for index, name in enumerate(names):
        if index % 3 == 2:
            (local / name).symlink_to(names[0])
        elif index % 3 == 1:
            (local / name).mkdir()
            (local / name / "in it").write_bytes(content)
        else:
            (local / name).write_bytes(content)
            (local / name).chmod(mode)
            os.utime(local / name, (1_000_000_000, 1_000_000_000 + index))
    tree = Scanner(str(local.parent), str(base / "cluster/store"), Filter()).scan(local, MAP, {})
    for key, each in tree.contents.items():
        blob = base / "cluster/store" / blob_path(key)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(each.read())
    sources = {key: f"store/{blob_path(key)}" for key in tree.contents}
    layout = Layout("x", str(remote), str(base / "cluster"), tree.entries, sources, (), True, ("out", "err"))
    script = base / "layout.sh"
    script.write_bytes(layout.script())
    for _ in range(2):  # a requeue finds it done
        done = subprocess.run(["bash", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    again = Scanner(str(local.parent), "/store", Filter(exclude=(".hpcbridge",))).scan(remote, MAP, {})
    assert again.entries.keys() == tree.entries.keys()
    for path, entry in tree.entries.items():
        assert again.entries[path].is_like(entry), path
        assert entry.kind is not Kind.FILE or again.entries[path].mtime == entry.mtime


def test_a_content_that_is_missing_ends_the_job(tmp_path: Path) -> None:
    (tmp_path / "stage/.hpcbridge").mkdir(parents=True)
    (tmp_path / "local").mkdir()
    (tmp_path / "local/file").write_text("text")
    tree = Scanner(str(tmp_path), "/store", Filter()).scan(tmp_path / "local", MAP, {})
    sources = {key: f"store/{blob_path(key)}" for key in tree.contents}
    layout = Layout("x", str(tmp_path / "stage"), str(tmp_path), tree.entries, sources)
    done = subprocess.run(["bash"], input=layout.script(), capture_output=True)
    assert done.returncode == 73
    assert b"file cannot be copied" in done.stderr
    assert not (tmp_path / "stage/.hpcbridge/x.staged").exists()


def test_what_links_point_to_is_in_the_store_whatever_else_has_it(tmp_path: Path) -> None:
    """Contents that a job has left elsewhere are copied from there, but no link can wait for them."""
    local = tmp_path / "stage/local"
    local.mkdir(parents=True)
    for name in ("linked", "lent", "new"):
        (tmp_path / name).write_text(name)
        (local / name).write_text(name)
    (local / "link").symlink_to(tmp_path / "linked")
    tree = Scanner(str(tmp_path / "stage"), "/store", Filter()).scan(local, MAP, {})
    keys = {name: tree.entries[name].key for name in ("linked", "lent", "new")}
    sources = {
        keys["linked"]: "run/a/linked",
        keys["lent"]: "run/a/lent",
        keys["new"]: f"store/{blob_path(keys['new'])}",
    }
    layout = Layout("x", "/r/run/local", "/r", tree.entries, sources)
    assert needed_in_store(tree, layout).keys() == {keys["linked"], keys["new"]}


def test_another_task_tries_where_one_has_failed(tmp_path: Path) -> None:
    """Nobody waits for a task that failed, or was ended; what tasks that wait have said meanwhile is kept."""
    stage, local = tmp_path / "stage", tmp_path / "local"
    (stage / ".hpcbridge").mkdir(parents=True)
    (stage / "left").write_text("of an earlier run")
    (stage / "out_1").write_text("")
    os.utime(stage / "out_1", (time.time() - 120,) * 2)
    local.mkdir()
    (local / "file").write_text("text")
    os.mkfifo(tmp_path / "blob")
    tree = Scanner(str(tmp_path), "/store", Filter()).scan(local, MAP, {})
    sources = dict.fromkeys(tree.contents, "blob")
    layout = Layout("x", str(stage), str(tmp_path), tree.entries, sources, (), True, ("out", "err"))
    Path(layout.path).write_bytes(layout.script())

    def task(number: int) -> subprocess.Popen[str]:
        env = os.environ | {"SLURM_JOB_ID": str(number)}
        return subprocess.Popen(
            ["bash", layout.path], env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    first = task(1)
    lock = stage / ".hpcbridge/x.staging"
    until(lambda: lock.is_symlink() and not (stage / "left").exists())  # and copies from what never ends
    (stage / "out_1").write_text("of a task that waits")
    os.utime(stage / "out_1", (time.time() - 120,) * 2)
    others = [task(number) for number in (2, 3)]
    (tmp_path / "blob").rename(tmp_path / "held")
    (tmp_path / "blob").write_text("text")
    os.killpg(first.pid, signal.SIGTERM)
    assert [other.wait(30) for other in others] == [0, 0]
    assert first.wait(30) != 0
    assert (stage / "file").read_text() == "text"
    assert (stage / "out_1").read_text() == "of a task that waits"


def until(test: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not test():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_fewest_directories_are_removed() -> None:
    root = "/r"
    passed = {"/r/s/p/e/a", "/r/s/p/e/b", "/r/s/q/e/c"}
    assert _tops(root, passed, set(), passed) == {"/r/s"}
    assert _tops(root, passed, {"/r/s/p/e/d"}, passed | {"/r/s/p/e/d"}) == {"/r/s/p/e/a", "/r/s/p/e/b", "/r/s/q"}
    assert _tops(root, passed, set(), passed | {"/r/s/q/e/kept"}) == {"/r/s/p", "/r/s/q/e/c"}
