"""compress and extract: one contract for aiida-core's own transport and for ours."""

from __future__ import annotations

import shutil
import tarfile

import pytest

from support.aiida_sides import Side, tree

FORMATS = ("tar", "tar.gz", "tar.bz2", "tar.xz")


def members(side: Side, name: str) -> list[str]:
    """What an archive holds."""
    with tarfile.open(side.there(name)) as archive:
        return sorted(archive.getnames())


@pytest.mark.parametrize("format", FORMATS)
def test_a_directory_there_and_back(side: Side, format: str) -> None:
    side.fill("d/a", "d/e/b")
    archive = side.path(f"out.{format}")
    side.transport.compress(format, side.path("d"), archive, root_dir=side.remote)
    with tarfile.open(side.there(f"out.{format}"), f"r:{format.partition('.')[2]}") as opened:
        assert sorted(opened.getnames()) == ["d", "d/a", "d/e", "d/e/b"]
    side.transport.extract(archive, side.path("back"))
    assert tree(side.there("back")) == {"d": "/", "d/a": "d/a", "d/e": "/", "d/e/b": "d/e/b"}


def test_several_sources(side: Side) -> None:
    side.fill("d/a", "d/e/b", "d/c")
    sources = [side.path("d/a"), side.path("d/e")]
    side.transport.compress("tar.gz", sources, side.path("out"), root_dir=side.path("d"))
    assert members(side, "out") == ["a", "e", "e/b"]


def test_patterns(side: Side) -> None:
    side.fill("d/a.txt", "d/b.txt", "d/c.dat")
    side.transport.compress("tar", side.path("d/*.txt"), side.path("out"), root_dir=side.path("d"))
    assert members(side, "out") == ["a.txt", "b.txt"]


def test_the_root_may_be_further_up(side: Side) -> None:
    side.fill("x/y/a")
    side.transport.compress("tar", side.path("x/y/a"), side.path("out"), root_dir=side.remote)
    assert members(side, "out") == ["x/y/a"]


def test_parents_of_the_archive_are_made(side: Side) -> None:
    side.fill("a")
    side.transport.compress("tar", side.path("a"), side.path("p/q/out.tar"), root_dir=side.remote)
    assert members(side, "p/q/out.tar") == ["a"]


def test_links_are_kept_unless_told_otherwise(side: Side) -> None:
    side.fill("d/a")
    side.there("d/link").symlink_to("a")
    side.give()
    side.transport.compress("tar", side.path("d"), side.path("kept"), root_dir=side.remote)
    side.transport.compress("tar", side.path("d"), side.path("followed"), root_dir=side.remote, dereference=True)
    with tarfile.open(side.there("kept")) as archive:
        assert archive.getmember("d/link").issym()
    with tarfile.open(side.there("followed")) as archive:
        assert archive.getmember("d/link").isfile()


def test_an_existing_archive_is_kept_on_request(side: Side) -> None:
    side.fill("a", "old")
    with pytest.raises(OSError):
        side.transport.compress("tar", side.path("a"), side.path("old"), root_dir=side.remote, overwrite=False)
    assert side.there("old").read_text() == "old"
    side.transport.compress("tar", side.path("a"), side.path("old"), root_dir=side.remote)
    assert members(side, "old") == ["a"]


@pytest.mark.parametrize("source", ["missing", "*.none"])
def test_nothing_to_compress(side: Side, source: str) -> None:
    with pytest.raises(OSError):
        side.transport.compress("tar", side.path(source), side.path("out"), root_dir=side.remote)
    assert tree(side.there()) == {}


def test_refusals_of_compress(side: Side) -> None:
    side.fill("a", "d/")
    with pytest.raises(OSError):
        side.transport.compress("tar", side.path("a"), side.path("d"), root_dir=side.remote)
    with pytest.raises(OSError):
        side.transport.compress("tar", side.path("a"), side.path("out"), root_dir=side.path("missing"))
    with pytest.raises(OSError):
        side.transport.compress("tar", side.path("a"), side.path("out"), root_dir=side.path("a"))
    with pytest.raises(ValueError):
        side.transport.compress("zip", side.path("a"), side.path("out"), root_dir=side.remote)
    assert tree(side.there()) == {"a": "a", "d": "/"}


@pytest.mark.parametrize("strip", [0, 1, 2])
def test_strip_components(side: Side, strip: int) -> None:
    side.fill("x/y/a")
    side.transport.compress("tar.gz", side.path("x"), side.path("out"), root_dir=side.remote)
    side.transport.extract(side.path("out"), side.path("back"), strip_components=strip)
    assert [name for name, text in tree(side.there("back")).items() if text != "/"] == ["/".join("xya"[strip:])]


def test_extract_over_what_is_there(side: Side) -> None:
    side.fill("d/a")
    side.transport.compress("tar", side.path("d"), side.path("out"), root_dir=side.remote)
    side.there("d/a").write_text("changed")
    shutil.copy(side.there("d/a"), side.there("d/other"))
    side.give()
    side.transport.extract(side.path("out"), side.remote)
    assert tree(side.there("d")) == {"a": "d/a", "other": "changed"}


def test_extract_of_nothing(side: Side) -> None:
    with pytest.raises(OSError):
        side.transport.extract(side.path("missing"), side.path("back"))


def test_extract_of_what_is_no_archive(side: Side) -> None:
    side.write("junk", "not an archive")
    with pytest.raises(OSError):
        side.transport.extract(side.path("junk"), side.path("back"))
