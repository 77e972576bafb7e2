"""get, getfile, gettree: one contract for aiida-core's own transport and for ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.aiida_sides import Side, tree


def test_a_file_to_a_new_path(side: Side) -> None:
    side.transport.get(side.write("a", "text"), str(side.local / "b"))
    assert tree(side.local) == {"b": "text"}


def test_a_file_into_a_directory(side: Side) -> None:
    side.fill_local("in/")
    side.transport.get(side.write("a", "text"), str(side.local / "in"))
    assert tree(side.local) == {"in": "/", "in/a": "text"}


def test_a_file_over_a_file(side: Side) -> None:
    side.fill_local("old and longer")
    side.transport.getfile(side.write("a", "new"), str(side.local / "old and longer"))
    assert tree(side.local) == {"old and longer": "new"}


@pytest.mark.parametrize("method", ["getfile", "gettree"])
def test_what_is_here_is_kept_on_request(side: Side, method: str) -> None:
    side.fill("d/a")
    side.fill_local("old")
    with pytest.raises(OSError):
        remote = side.path("d/a" if method == "getfile" else "d")
        getattr(side.transport, method)(remote, str(side.local / "old"), overwrite=False)
    assert tree(side.local) == {"old": "old"}


@pytest.mark.parametrize("size", [0, 1, 70_000])
def test_bytes_arrive_as_they_are(side: Side, size: int) -> None:
    content = os.urandom(size)
    side.write("data")
    side.there("data").write_bytes(content)
    side.transport.getfile(side.path("data"), str(side.local / "data"))
    assert (side.local / "data").read_bytes() == content


def test_a_directory_to_a_new_path_gets_its_name(side: Side) -> None:
    side.fill("d/a", "d/e/b", "d/f/")
    side.transport.get(side.path("d"), str(side.local / "new"))
    assert tree(side.local / "new") == {"a": "d/a", "e": "/", "e/b": "d/e/b", "f": "/"}


@pytest.mark.parametrize("method", ["get", "gettree"])
def test_a_directory_into_an_existing_one_nests(side: Side, method: str) -> None:
    side.fill("d/a")
    side.fill_local("old/x")
    getattr(side.transport, method)(side.path("d"), str(side.local / "old"))
    assert tree(side.local / "old") == {"x": "old/x", "d": "/", "d/a": "d/a"}


def test_missing_parents_of_a_directory_are_made(side: Side) -> None:
    side.fill("d/a")
    side.transport.gettree(side.path("d"), str(side.local / "x/y/z"))
    assert (side.local / "x/y/z/a").read_text() == "d/a"


def test_links_are_followed_unless_told_otherwise(side: Side) -> None:
    side.fill("d/a")
    side.there("d/link").symlink_to("a")
    side.give()
    side.transport.gettree(side.path("d"), str(side.local / "followed"))
    side.transport.gettree(side.path("d"), str(side.local / "kept"), dereference=False)
    assert tree(side.local / "followed") == {"a": "d/a", "link": "d/a"}
    assert tree(side.local / "kept") == {"a": "d/a", "link": "-> a"}


def test_several_matches_go_into_a_directory(side: Side) -> None:
    side.fill("a.txt", "b.txt", "c.dat", ".hidden.txt")
    side.transport.get(side.path("*.txt"), str(side.local))
    assert tree(side.local) == {"a.txt": "a.txt", "b.txt": "b.txt"}


def test_matches_in_several_directories(side: Side) -> None:
    side.fill("r1/out", "r2/out", "r2/other", "x/out")
    side.transport.get(side.path("r[12]/o?t"), str(side.local))
    assert list(tree(side.local)) == ["out"]


def test_one_match_may_get_a_name(side: Side) -> None:
    side.fill("a.txt", "c.dat")
    side.transport.get(side.path("*.txt"), str(side.local / "new"))
    assert tree(side.local) == {"new": "a.txt"}


@pytest.mark.parametrize("here", ["file", "missing"])
def test_several_matches_need_a_directory(side: Side, here: str) -> None:
    side.fill("a.txt", "b.txt")
    side.fill_local("file")
    with pytest.raises(OSError):
        side.transport.get(side.path("*.txt"), str(side.local / here))
    assert tree(side.local) == {"file": "file"}


def test_directories_match_too(side: Side) -> None:
    side.fill("d1/a", "d2/b", "other")
    side.transport.get(side.path("d*"), str(side.local))
    assert tree(side.local) == {"d1": "/", "d1/a": "d1/a", "d2": "/", "d2/b": "d2/b"}


def test_no_match_gets_nothing(side: Side) -> None:
    side.fill("a")
    side.transport.get(side.path("*.txt"), str(side.local), ignore_nonexisting=True)
    assert tree(side.local) == {}


def test_no_pattern_in_the_destination(side: Side) -> None:
    side.fill("a.txt")
    with pytest.raises(ValueError):
        side.transport.get(side.path("*.txt"), str(side.local / "*"))


def test_nothing_there_may_be_ignored(side: Side) -> None:
    """As the engine gets everything: what a calculation did not write is the parser's business."""
    side.transport.get(side.path("missing"), str(side.local / "b"), ignore_nonexisting=True)
    assert tree(side.local) == {}


@pytest.mark.parametrize("method", ["get", "getfile", "gettree"])
class TestRefusals:
    def test_a_relative_local_path(self, side: Side, method: str) -> None:
        side.fill("d/a")
        with pytest.raises(ValueError):
            getattr(side.transport, method)(side.path("d/a" if method == "getfile" else "d"), "relative")
        assert not Path("relative").exists()

    def test_no_local_path(self, side: Side, method: str) -> None:
        side.fill("d/a")
        with pytest.raises(ValueError):
            getattr(side.transport, method)(side.path("d/a" if method == "getfile" else "d"), "")

    def test_no_remote_path(self, side: Side, method: str) -> None:
        with pytest.raises(OSError):
            getattr(side.transport, method)("", str(side.local / "b"))

    def test_nothing_there(self, side: Side, method: str) -> None:
        with pytest.raises(OSError):
            getattr(side.transport, method)(side.path("missing"), str(side.local / "b"))
        assert tree(side.local) == {}


def test_a_file_is_no_tree(side: Side) -> None:
    with pytest.raises(OSError):
        side.transport.gettree(side.write("a", "x"), str(side.local / "b"))


def test_a_directory_over_a_file_is_refused(side: Side) -> None:
    side.fill("d/a")
    side.fill_local("file")
    with pytest.raises(OSError):
        side.transport.gettree(side.path("d"), str(side.local / "file"))
    assert tree(side.local) == {"file": "file"}
