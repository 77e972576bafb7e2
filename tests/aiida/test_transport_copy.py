"""copy, copyfile, copytree on the other side: one contract for aiida-core's own transport and for ours."""

from __future__ import annotations

import pytest

from support.aiida_sides import Side, tree


def test_a_file_to_a_new_path(side: Side) -> None:
    side.fill("a")
    side.transport.copy(side.path("a"), side.path("b"))
    assert tree(side.there()) == {"a": "a", "b": "a"}


def test_a_file_into_a_directory(side: Side) -> None:
    side.fill("a", "in/")
    side.transport.copy(side.path("a"), side.path("in"))
    assert tree(side.there("in")) == {"a": "a"}


def test_a_file_over_a_file(side: Side) -> None:
    side.fill("a", "old and longer")
    side.transport.copy(side.path("a"), side.path("old and longer"))
    assert side.there("old and longer").read_text() == "a"


def test_a_directory_to_a_new_path_gets_its_name(side: Side) -> None:
    """As the engine copies restart data: nothing may be missing, and nothing may be one directory too deep."""
    side.fill("d/a", "d/e/b", "d/f/")
    side.transport.copy(side.path("d"), side.path("new"))
    assert tree(side.there("new")) == {"a": "d/a", "e": "/", "e/b": "d/e/b", "f": "/"}


def test_a_directory_into_an_existing_one_nests(side: Side) -> None:
    side.fill("d/a", "old/x")
    side.transport.copy(side.path("d"), side.path("old"))
    assert tree(side.there("old")) == {"x": "old/x", "d": "/", "d/a": "d/a"}


def test_several_matches_go_into_a_directory(side: Side) -> None:
    side.fill("a.wfc", "b.wfc", "c.dat", "in/", "d.wfc/x")
    side.transport.copy(side.path("*.wfc"), side.path("in"))
    assert tree(side.there("in")) == {"a.wfc": "a.wfc", "b.wfc": "b.wfc", "d.wfc": "/", "d.wfc/x": "d.wfc/x"}


@pytest.mark.parametrize("destination", ["file", "missing"])
def test_several_matches_need_a_directory(side: Side, destination: str) -> None:
    side.fill("a.wfc", "b.wfc", "file")
    with pytest.raises(OSError) as caught:
        side.transport.copy(side.path("*.wfc"), side.path(destination))
    # The engine ignores this one: restart data would be missing without a word.
    assert not isinstance(caught.value, FileNotFoundError)


def test_a_missing_source_is_what_the_engine_may_ignore(side: Side) -> None:
    with pytest.raises(FileNotFoundError):
        side.transport.copy(side.path("missing"), side.path("b"))
    assert tree(side.there()) == {}


def test_a_missing_destination_directory_is_not_a_missing_source(side: Side) -> None:
    side.fill("a")
    with pytest.raises(OSError):
        side.transport.copy(side.path("a"), side.path("missing", "b"))
    assert tree(side.there()) == {"a": "a"}


@pytest.mark.parametrize("method", ["copy", "copyfile", "copytree"])
def test_empty_paths(side: Side, method: str) -> None:
    side.fill("a")
    with pytest.raises(ValueError):
        getattr(side.transport, method)("", side.path("b"))
    with pytest.raises(ValueError):
        getattr(side.transport, method)(side.path("a"), "")


def test_onto_itself(side: Side) -> None:
    side.fill("a")
    with pytest.raises(ValueError):
        side.transport.copy(side.path("a"), side.path("a"))
    assert tree(side.there()) == {"a": "a"}


def test_no_pattern_in_the_destination(side: Side) -> None:
    side.fill("a")
    with pytest.raises(ValueError):
        side.transport.copy(side.path("a*"), side.path("*"))


@pytest.mark.parametrize("method", ["copyfile", "copytree"])
def test_the_others_refuse_a_missing_source(side: Side, method: str) -> None:
    with pytest.raises(OSError):
        getattr(side.transport, method)(side.path("missing"), side.path("b"))


def test_copyfile(side: Side) -> None:
    side.fill("a")
    side.transport.copyfile(side.path("a"), side.path("b"))
    assert tree(side.there()) == {"a": "a", "b": "a"}


def test_copytree(side: Side) -> None:
    side.fill("d/a", "d/e/b", "old/")
    side.transport.copytree(side.path("d"), side.path("new"))
    side.transport.copytree(side.path("d"), side.path("old"))
    assert tree(side.there("new")) == {"a": "d/a", "e": "/", "e/b": "d/e/b"}
    assert tree(side.there("old")) == {"d": "/", "d/a": "d/a", "d/e": "/", "d/e/b": "d/e/b"}


@pytest.mark.parametrize("method", ["copy", "copytree"])
def test_links_in_a_tree_stay_links_unless_told_otherwise(side: Side, method: str) -> None:
    side.fill("d/a")
    side.there("d/link").symlink_to("a")
    side.give()
    getattr(side.transport, method)(side.path("d"), side.path("kept"))
    getattr(side.transport, method)(side.path("d"), side.path("followed"), dereference=True)
    assert tree(side.there("kept")) == {"a": "d/a", "link": "-> a"}
    assert tree(side.there("followed")) == {"a": "d/a", "link": "d/a"}


def test_modes_survive(side: Side) -> None:
    side.write("run.sh", "#!/bin/sh\n", mode=0o755)
    side.transport.copy(side.path("run.sh"), side.path("b.sh"))
    assert side.there("b.sh").stat().st_mode & 0o777 == 0o755


def test_what_was_just_put_can_be_copied(side: Side) -> None:
    side.transport.put(str(side.fill_local("a") / "a"), side.path("a"))
    side.transport.copy(side.path("a"), side.path("b"))
    assert tree(side.there()) == {"a": "a", "b": "a"}


def test_from_one_computer_to_another(side: Side) -> None:
    """Through this machine, as between two centres."""
    from aiida.plugins import TransportFactory

    side.fill("a", "d/b")
    other = side.local / "other"
    other.mkdir()
    with TransportFactory("core.local")(machine="localhost", safe_interval=0) as destination:
        side.transport.copy_from_remote_to_remote(destination, side.path("a"), str(other))
        side.transport.copy_from_remote_to_remote(destination, side.path("d"), str(other))
    assert tree(other) == {"a": "a", "d": "/", "d/b": "d/b"}
