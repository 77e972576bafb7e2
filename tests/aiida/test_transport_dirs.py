"""Directories, attributes and the rest: one contract for aiida-core's own transport and for ours."""

from __future__ import annotations

import os
import pwd
import stat

import pytest

from support.aiida_sides import Side, tree


def test_mkdir(side: Side) -> None:
    side.transport.mkdir(side.path("new"))
    assert side.transport.isdir(side.path("new"))
    assert tree(side.there()) == {"new": "/"}


@pytest.mark.parametrize("name", ["d", "file"])
def test_mkdir_of_what_exists(side: Side, name: str) -> None:
    """The engine relies on it: an old work directory is moved to lost+found."""
    side.fill("d/x", "file")
    with pytest.raises(OSError):
        side.transport.mkdir(side.path(name))
    assert tree(side.there()) == {"d": "/", "d/x": "d/x", "file": "file"}


def test_mkdir_of_what_was_just_made(side: Side) -> None:
    side.transport.mkdir(side.path("d"))
    with pytest.raises(OSError):
        side.transport.mkdir(side.path("d"))


def test_mkdir_ignores_what_exists_on_request(side: Side) -> None:
    side.fill("d/x")
    side.transport.mkdir(side.path("d"), ignore_existing=True)
    assert tree(side.there()) == {"d": "/", "d/x": "d/x"}


def test_mkdir_below_nothing(side: Side) -> None:
    with pytest.raises(OSError):
        side.transport.mkdir(side.path("missing", "new"))
        side.there()


def test_makedirs(side: Side) -> None:
    side.transport.makedirs(side.path("a", "b", "c"))
    with pytest.raises(OSError):
        side.transport.makedirs(side.path("a", "b", "c"))
    side.transport.makedirs(side.path("a", "b", "c"), ignore_existing=True)
    assert tree(side.there()) == {"a": "/", "a/b": "/", "a/b/c": "/"}


def test_rmdir(side: Side) -> None:
    side.fill("empty/", "full/x")
    side.transport.rmdir(side.path("empty"))
    with pytest.raises(OSError):
        side.transport.rmdir(side.path("full"))
    with pytest.raises(OSError):
        side.transport.rmdir(side.path("missing"))
    assert tree(side.there()) == {"full": "/", "full/x": "full/x"}


def test_rmtree(side: Side) -> None:
    side.fill("d/a", "d/e/b", "file", "other")
    side.transport.rmtree(side.path("d"))
    side.transport.rmtree(side.path("file"))
    side.transport.rmtree(side.path("missing"))
    assert tree(side.there()) == {"other": "other"}


def test_rmtree_follows_no_link(side: Side) -> None:
    side.fill("d/", "keep/x")
    side.there("d/link").symlink_to(side.path("keep"))
    side.give()
    side.transport.rmtree(side.path("d"))
    assert tree(side.there()) == {"keep": "/", "keep/x": "keep/x"}


def test_remove(side: Side) -> None:
    side.fill("a", "d/x")
    side.transport.remove(side.path("a"))
    with pytest.raises(OSError):
        side.transport.remove(side.path("d"))
    with pytest.raises(OSError):
        side.transport.remove(side.path("missing"))
    assert tree(side.there()) == {"d": "/", "d/x": "d/x"}


def test_what_exists(side: Side) -> None:
    side.fill("a", "d/")
    side.there("to-a").symlink_to("a")
    side.there("to-d").symlink_to("d")
    side.there("dangling").symlink_to("nowhere")
    side.give()
    seen = {
        name: (
            side.transport.isfile(side.path(name)),
            side.transport.isdir(side.path(name)),
            side.transport.path_exists(side.path(name)),
        )
        for name in ("a", "d", "to-a", "to-d", "dangling", "missing", "missing/below", "a/below")
    }
    nothing = (False, False, False)
    assert seen == {
        "a": (True, False, True),
        "to-a": (True, False, True),
        "d": (False, True, True),
        "to-d": (False, True, True),
        **dict.fromkeys(("dangling", "missing", "missing/below", "a/below"), nothing),
    }


def test_the_empty_path_is_nothing(side: Side) -> None:
    assert not side.transport.isfile("")
    assert not side.transport.isdir("")


def test_listdir(side: Side) -> None:
    side.fill("a.txt", "b.dat", ".hidden", "d/x")
    assert sorted(side.transport.listdir(side.remote)) == [".hidden", "a.txt", "b.dat", "d"]
    assert side.transport.listdir(side.remote, "*.txt") == ["a.txt"]
    with pytest.raises(OSError):
        side.transport.listdir(side.path("missing"))


def test_listdir_of_an_empty_directory(side: Side) -> None:
    assert side.transport.listdir(side.remote) == []


def test_listdir_withattributes(side: Side) -> None:
    side.write("a", "12345", mode=0o640)
    side.fill("d/x")
    rows = {row["name"]: row for row in side.transport.listdir_withattributes(side.remote)}
    assert set(rows) == {"a", "d"}
    assert (rows["a"]["isdir"], rows["d"]["isdir"]) == (False, True)
    assert rows["a"]["attributes"].st_size == 5
    assert stat.S_IMODE(rows["a"]["attributes"].st_mode) == 0o640


def test_get_attribute(side: Side) -> None:
    side.write("a", "12345", mode=0o640)
    expected = side.there("a").stat()
    found = side.transport.get_attribute(side.path("a"))
    for name in ("st_size", "st_uid", "st_gid", "st_mode"):
        assert getattr(found, name) == getattr(expected, name), name
    assert abs(found.st_mtime - expected.st_mtime) <= 1
    with pytest.raises(OSError):
        side.transport.get_attribute(side.path("missing"))


def test_get_attribute_of_a_directory(side: Side) -> None:
    side.fill("d/")
    assert stat.S_ISDIR(side.transport.get_attribute(side.path("d")).st_mode)


def test_chmod(side: Side) -> None:
    side.write("a", "x", mode=0o600)
    side.transport.chmod(side.path("a"), 0o751)
    assert stat.S_IMODE(side.there("a").stat().st_mode) == 0o751
    assert side.transport.get_mode(side.path("a")) == 0o751


@pytest.mark.parametrize("name", ["", "missing"])
def test_chmod_of_nothing(side: Side, name: str) -> None:
    with pytest.raises(OSError):
        side.transport.chmod(side.path(name) if name else "", 0o700)
        side.there()


def test_normalize(side: Side) -> None:
    side.fill("d/e/")
    assert side.transport.normalize(f"{side.remote}//d/./e/../e") == side.path("d/e")


def test_whoami(side: Side) -> None:
    user = pwd.getpwuid(os.getuid()).pw_name if side.owner is None else "alice"
    assert side.transport.whoami() == user


def test_opened_and_closed(side: Side) -> None:
    from aiida.common.exceptions import InvalidOperation

    transport = side.another()
    with transport:
        assert side.transport.is_open
        with pytest.raises(InvalidOperation):
            transport.open()
        with transport:
            assert transport.isdir(side.remote)
        assert transport.isdir(side.remote)
        assert "open" in str(transport).lower()
    assert not transport.is_open
    with pytest.raises(InvalidOperation):
        transport.close()
    assert "closed" in str(transport).lower()
    transport.open()
    assert transport.isdir(side.remote)
    transport.close()
