"""put, putfile, puttree: one contract for aiida-core's own transport and for ours."""

from __future__ import annotations

import os

import pytest

from support.aiida_sides import Side, fill, tree


def test_a_file_to_a_new_path(side: Side) -> None:
    side.transport.put(str(side.fill_local("a.txt") / "a.txt"), side.path("b.txt"))
    assert tree(side.there()) == {"b.txt": "a.txt"}


def test_a_file_into_a_directory(side: Side) -> None:
    side.fill("in/")
    side.transport.put(str(side.fill_local("a.txt") / "a.txt"), side.path("in"))
    assert tree(side.there()) == {"in": "/", "in/a.txt": "a.txt"}


def test_a_file_over_a_file(side: Side) -> None:
    side.write("old.txt", "old and longer than the new one")
    side.transport.put(str(side.fill_local("a.txt") / "a.txt"), side.path("old.txt"))
    assert tree(side.there()) == {"old.txt": "a.txt"}


def test_an_existing_file_is_kept_on_request(side: Side) -> None:
    side.write("old.txt", "old")
    with pytest.raises(OSError):
        side.transport.putfile(str(side.fill_local("a.txt") / "a.txt"), side.path("old.txt"), overwrite=False)
    assert tree(side.there()) == {"old.txt": "old"}


@pytest.mark.parametrize("size", [0, 1, 70_000])
def test_bytes_arrive_as_they_are(side: Side, size: int) -> None:
    content = os.urandom(size)
    (side.local / "data").write_bytes(content)
    side.transport.putfile(str(side.local / "data"), side.path("data"))
    assert side.there("data").read_bytes() == content


def test_a_directory_to_a_new_path_gets_its_name(side: Side) -> None:
    root = side.fill_local("d/a", "d/e/b", "d/f/")
    side.transport.put(str(root / "d"), side.path("new"))
    assert tree(side.there()) == {"new": "/", "new/a": "d/a", "new/e": "/", "new/e/b": "d/e/b", "new/f": "/"}


def test_a_directory_into_an_existing_one_nests(side: Side) -> None:
    side.fill("old/x")
    side.transport.put(str(side.fill_local("d/a") / "d"), side.path("old"))
    assert tree(side.there()) == {"old": "/", "old/x": "old/x", "old/d": "/", "old/d/a": "d/a"}


def test_a_trailing_slash_means_the_contents(side: Side) -> None:
    """As the engine puts FolderData: into the work directory itself."""
    side.fill("old/x")
    side.transport.put(f"{side.fill_local('d/a', 'd/e/b') / 'd'}/", side.path("old"), overwrite=True)
    assert tree(side.there()) == {
        "old": "/",
        "old/x": "old/x",
        "old/a": "d/a",
        "old/e": "/",
        "old/e/b": "d/e/b",
    }


def test_the_engine_puts_a_folder_into_dot(side: Side) -> None:
    side.fill("old/")
    side.transport.put(f"{side.fill_local('d/a') / 'd'}/", side.path("old", "."), overwrite=True)
    assert tree(side.there()) == {"old": "/", "old/a": "d/a"}


@pytest.mark.parametrize("method", ["put", "puttree"])
def test_missing_parents_of_a_directory_are_made(side: Side, method: str) -> None:
    getattr(side.transport, method)(str(side.fill_local("d/a") / "d"), side.path("x", "y", "z"))
    assert side.there("x/y/z/a").read_text() == "d/a"


def test_a_directory_over_a_file_is_refused(side: Side) -> None:
    side.write("file", "old")
    with pytest.raises(OSError):
        side.transport.puttree(str(side.fill_local("d/a") / "d"), side.path("file"))
    assert tree(side.there()) == {"file": "old"}


def test_an_existing_directory_is_kept_on_request(side: Side) -> None:
    side.fill("old/x")
    with pytest.raises(OSError):
        side.transport.puttree(str(side.fill_local("d/a") / "d"), side.path("old"), overwrite=False)
    assert tree(side.there()) == {"old": "/", "old/x": "old/x"}


def test_a_tree_is_merged_into_what_is_there(side: Side) -> None:
    side.fill("old/d/x", "old/d/a")
    side.transport.puttree(str(side.fill_local("d/a") / "d"), side.path("old"))
    assert tree(side.there("old/d")) == {"a": "d/a", "x": "old/d/x"}


def test_links_are_followed_unless_told_otherwise(side: Side) -> None:
    root = side.fill_local("d/a")
    (root / "d/link").symlink_to("a")
    side.transport.puttree(str(root / "d"), side.path("followed"))
    side.transport.puttree(str(root / "d"), side.path("kept"), dereference=False)
    assert tree(side.there("followed")) == {"a": "d/a", "link": "d/a"}
    assert tree(side.there("kept")) == {"a": "d/a", "link": "-> a"}


def test_several_matches_go_into_a_directory(side: Side) -> None:
    side.fill("in/")
    side.transport.put(str(side.fill_local("a.txt", "b.txt", "c.dat") / "*.txt"), side.path("in"))
    assert tree(side.there("in")) == {"a.txt": "a.txt", "b.txt": "b.txt"}


def test_one_match_may_get_a_name(side: Side) -> None:
    side.transport.put(str(side.fill_local("a.txt", "c.dat") / "*.txt"), side.path("new"))
    assert tree(side.there()) == {"new": "a.txt"}


@pytest.mark.parametrize("there", ["file", "missing"])
def test_several_matches_need_a_directory(side: Side, there: str) -> None:
    side.write("file", "old")
    with pytest.raises(OSError):
        side.transport.put(str(side.fill_local("a.txt", "b.txt") / "*.txt"), side.path(there))
    assert tree(side.there()) == {"file": "old"}


def test_directories_match_too(side: Side) -> None:
    side.fill("in/")
    side.transport.put(str(side.fill_local("d1/a", "d2/b", "other") / "d*"), side.path("in"))
    assert tree(side.there("in")) == {"d1": "/", "d1/a": "d1/a", "d2": "/", "d2/b": "d2/b"}


def test_no_pattern_in_the_destination(side: Side) -> None:
    with pytest.raises(ValueError):
        side.transport.put(str(side.fill_local("a.txt") / "*.txt"), side.path("*"))


@pytest.mark.parametrize("method", ["put", "putfile", "puttree"])
class TestRefusals:
    def test_a_relative_local_path(self, side: Side, method: str) -> None:
        with pytest.raises(ValueError):
            getattr(side.transport, method)("a.txt", side.path("b"))

    def test_no_local_path(self, side: Side, method: str) -> None:
        with pytest.raises(ValueError):
            getattr(side.transport, method)("", side.path("b"))

    def test_no_remote_path(self, side: Side, method: str) -> None:
        root = side.fill_local("d/a")
        with pytest.raises(OSError):
            getattr(side.transport, method)(str(root / ("d/a" if method == "putfile" else "d")), "")

    def test_nothing_to_put(self, side: Side, method: str) -> None:
        with pytest.raises(OSError):
            getattr(side.transport, method)(str(side.local / "missing"), side.path("b"))
        assert tree(side.there()) == {}


def test_nothing_to_put_may_be_ignored(side: Side) -> None:
    side.transport.put(str(side.local / "missing"), side.path("b"), ignore_nonexisting=True)
    assert tree(side.there()) == {}


def test_a_file_into_a_missing_directory_is_refused(side: Side) -> None:
    with pytest.raises(OSError):
        side.transport.putfile(str(side.fill_local("a") / "a"), side.path("missing", "a"))
        # A transport that collects writes may find out later, but before anybody can think that the file is there.
        side.transport.isfile(side.path("missing", "a"))
        side.there()
    side.transport = side.another()
    side.transport.open()
    assert tree(side.there()) == {}


def test_what_was_put_is_read_back_at_once(side: Side) -> None:
    """Writes may be collected; nobody who asks may notice."""
    fill(side.local, "a", "d/b")
    side.transport.mkdir(side.path("new"))
    side.transport.put(str(side.local / "a"), side.path("new", "a"))
    assert side.transport.isfile(side.path("new", "a"))
    assert side.transport.get_attribute(side.path("new", "a")).st_size == 1
    side.transport.put(str(side.local / "d"), side.path("new", "d"))
    assert sorted(side.transport.listdir(side.path("new"))) == ["a", "d"]
    side.transport.put(f"{side.local / 'd'}/", side.path("new"))
    assert side.transport.glob(side.path("new", "b")) == [side.path("new", "b")]
    side.transport.put(str(side.local / "a"), side.path("new", "b"))
    side.transport.getfile(side.path("new", "b"), str(side.local / "back"))
    assert (side.local / "back").read_text() == "a"
