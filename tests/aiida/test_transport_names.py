"""symlink, rename, glob and odd names: one contract for aiida-core's own transport and for ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.aiida_sides import Side, tree


def test_a_link(side: Side) -> None:
    side.fill("d/a")
    side.transport.symlink(side.path("d/a"), side.path("link"))
    assert str(side.there("link").readlink()) == side.path("d/a")


def test_links_to_every_match(side: Side) -> None:
    """As Quantum ESPRESSO restarts do: `out/*` into a directory."""
    side.fill("old/out/a.save/x", "old/out/b.wfc", "new/out/")
    side.transport.symlink(side.path("old/out/*"), side.path("new/out"))
    links = {path.name: str(path.readlink()) for path in side.there("new/out").iterdir()}
    assert links == {"a.save": side.path("old/out/a.save"), "b.wfc": side.path("old/out/b.wfc")}


def test_a_pattern_without_matches_makes_no_links(side: Side) -> None:
    side.fill("old/", "new/")
    side.transport.symlink(side.path("old/*"), side.path("new"))
    assert tree(side.there("new")) == {}


def test_no_pattern_in_the_name_of_a_link(side: Side) -> None:
    side.fill("a")
    with pytest.raises(ValueError):
        side.transport.symlink(side.path("a*"), side.path("*"))


def test_a_link_over_something_is_refused(side: Side) -> None:
    side.fill("a", "old")
    with pytest.raises(OSError):
        side.transport.symlink(side.path("a"), side.path("old"))
    assert side.there("old").read_text() == "old"


@pytest.mark.parametrize("name", ["file", "d"])
def test_rename(side: Side, name: str) -> None:
    side.fill("file", "d/x")
    before = tree(side.there())
    side.transport.rename(side.path(name), side.path("new"))
    after = tree(side.there())
    assert after == {("new" + key[len(name) :] if key.split("/")[0] == name else key): before[key] for key in before}


@pytest.mark.parametrize("target", ["old", "old-d"])
def test_rename_onto_something_is_refused(side: Side, target: str) -> None:
    side.fill("a", "old", "old-d/x")
    before = tree(side.there())
    with pytest.raises(OSError, match=r"already exist|destination exists"):
        side.transport.rename(side.path("a"), side.path(target))
    assert tree(side.there()) == before


def test_rename_of_nothing(side: Side) -> None:
    with pytest.raises(OSError):
        side.transport.rename(side.path("missing"), side.path("b"))


def test_rename_with_empty_names(side: Side) -> None:
    side.fill("a")
    with pytest.raises(ValueError):
        side.transport.rename("", side.path("b"))
    with pytest.raises(ValueError):
        side.transport.rename(side.path("a"), "")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.txt", ["a.txt", "b.txt"]),
        ("?.txt", ["a.txt", "b.txt"]),
        ("[ab].txt", ["a.txt", "b.txt"]),
        ("[!a].txt", ["b.txt"]),
        ("a.txt", ["a.txt"]),
        ("*/x", ["d/x", "e/x"]),
        ("d/*", ["d/x", "d/y"]),
        ("*/[xy]", ["d/x", "d/y", "e/x"]),
        ("*", ["a.txt", "b.txt", "c.dat", "d", "e"]),
        (".*", [".hidden"]),
        ("missing", []),
        ("missing/*", []),
        ("*.none", []),
    ],
)
def test_glob(side: Side, pattern: str, found: list[str]) -> None:
    side.fill("a.txt", "b.txt", "c.dat", ".hidden", "d/x", "d/y", "e/x")
    assert sorted(side.transport.glob(side.path(pattern))) == [side.path(name) for name in found]


# Whatever a name holds, the bytes get there and back, or nothing is sent and the error says what is wrong.
ODD = {
    "space": "with space",
    "leading dash": "-rf",
    "single quote": "it's",
    "double quote": 'a"b',
    "newline": "a\nb",
    "tab": "a\tb",
    "backslash": "a\\nb",
    "dollar": "$HOME",
    "backtick": "`id`",
    "semicolon": "a;touch pwned",
    "unicode": "Größe-λ-文",
    "combining": "e\u0301",
    "percent": "a%22b",
    "hash": "#1",
    "tilde": "~",
}


def _is_clear(error: BaseException, name: str) -> bool:
    """An error that names the path, as it is or quoted."""
    text = str(error)
    return any(form in text for form in (name, repr(name), repr(name)[1:-1]))


@pytest.mark.parametrize("name", ODD.values(), ids=ODD.keys())
class TestOddNames:
    def test_a_file_there_and_back(self, side: Side, name: str) -> None:
        (side.local / name).write_text("text")
        try:
            side.transport.putfile(str(side.local / name), side.path(name))
            there = tree(side.there())
        except OSError as error:
            assert _is_clear(error, name), error
            return
        assert there == {name: "text"}
        try:
            # An archive may have brought what no single call can name.
            assert side.transport.isfile(side.path(name))
            assert side.transport.get_attribute(side.path(name)).st_size == 4
            side.transport.getfile(side.path(name), str(side.local / "back"))
            side.transport.remove(side.path(name))
        except OSError as error:
            assert _is_clear(error, name), error
            assert not isinstance(error, FileNotFoundError)
            assert tree(side.there()) == {name: "text"}
            return
        assert (side.local / "back").read_text() == "text"
        assert tree(side.there()) == {}

    def test_a_tree_there_and_back(self, side: Side, name: str) -> None:
        """In an archive any name can travel."""
        source = side.local / "d" / name
        source.mkdir(parents=True)
        (source / name).write_text("text")
        try:
            side.transport.puttree(str(side.local / "d"), side.path("d"))
            there = tree(side.there("d"))
        except OSError as error:
            assert _is_clear(error, name), error
            return
        assert there == {name: "/", f"{name}/{name}": "text"}
        side.transport.gettree(side.path("d"), str(side.local / "back"))
        assert tree(side.local / "back") == there

    def test_operations(self, side: Side, name: str) -> None:
        """Made from behind: nothing but the named thing is touched."""
        side.fill(f"d/{name}", "witness", "in/")
        try:
            side.transport.copy(side.path("d"), side.path("in/d"))
            side.transport.rename(side.path("in/d", name), side.path("in/d", f"{name}2"))
            side.transport.symlink(side.path("d", name), side.path("in", name))
            side.transport.mkdir(side.path("in", f"{name}3"))
            side.transport.copyfile(side.path("d", name), side.path("in", f"{name}3", name))
            after = tree(side.there())
        except OSError as error:
            assert _is_clear(error, name), error
            after = tree(side.there())
            assert after["witness"] == "witness"
            assert after[f"d/{name}"] == f"d/{name}"
            assert not [path for path in after if path.endswith("pwned")] or "pwned" in name
            return
        assert after == {
            "d": "/",
            f"d/{name}": f"d/{name}",
            "in": "/",
            "in/d": "/",
            f"in/d/{name}2": f"d/{name}",
            f"in/{name}": f"-> {side.path('d', name)}",
            f"in/{name}3": "/",
            f"in/{name}3/{name}": f"d/{name}",
            "witness": "witness",
        }


def test_names_that_patterns_find(side: Side) -> None:
    side.fill("run 1/out file", "run 1/x y", "run 2/out file")
    found = sorted(side.transport.glob(side.path("run */out*")))
    assert found == [side.path("run 1/out file"), side.path("run 2/out file")]
    target: Path = side.local / "got"
    target.mkdir()
    side.transport.get(side.path("run 1/*"), str(target))
    assert tree(target) == {"out file": "run 1/out file", "x y": "run 1/x y"}
