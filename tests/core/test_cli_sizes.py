"""Sizes as they are typed and shown, and which side of `sync` is the remote one."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer import BadParameter

from hpcbridge.cli.sizes import human, parse_size
from hpcbridge.cli.transfers import choice_of, direction_of


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("1500", 1500), ("10M", 10 << 20), ("10MiB", 10 << 20), ("10MB", 10**7), ("2g", 2 << 30), ("1.5k", 1536),
     ("7b", 7)],
)  # fmt: skip
def test_sizes_are_read_as_coreutils_do(text: str, count: int) -> None:
    assert parse_size(text, "--max-size") == count


@pytest.mark.parametrize("text", ["", "big", "-1", "10X", "1e3", "M", "10 MM", "0x10"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BadParameter, match="is not a size"):
        parse_size(text, "--max-size")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (1023, "1023"), (1024, "1.0K"), (1025, "1.1K"), (10_239, "10K"), (10_240, "10K"), (10_241, "11K"),
     (1 << 20, "1.0M"), ((1 << 20) - 1, "1.0M"), (5 << 40, "5.0T"), (1 << 62, "4096P")],
)  # fmt: skip
def test_sizes_are_shown_as_du_h_does(count: int, text: str) -> None:
    assert human(count) == text


@pytest.mark.parametrize(
    ("source", "target", "way"),
    [
        ("here", "daint:/x", "up"),
        ("/anything", "daint:/x", "up"),
        ("daint:/x", "here", "down"),
        ("daint:/x", "/anything", "down"),
        ("here", "/x", "up"),
        ("new", "/x", "up"),
        ("/x", "new", "down"),
        ("{}/here", "/x", "up"),
        ("/x", "/y", "which one"),
        ("/x", "{}/here", "which one"),
        ("{}/here", "{}/here", "which one"),
        ("/x", "here", "down"),
        ("{}/here", "here", "which one"),
        ("here", "there", "neither"),
        ("daint:/x", "daint:/y", "both"),
    ],
)
def test_the_side_that_is_written_as_remote_decides(
    source: str, target: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    source, target = source.replace("{}", str(tmp_path)), target.replace("{}", str(tmp_path))
    if way in ("up", "down"):
        assert direction_of(source, target) == way
    else:
        with pytest.raises(BadParameter, match=way):
            direction_of(source, target)


def test_patterns_come_from_options_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "patterns").write_text("# comment\n*.tmp\n\n/build/\n")
    choice = choice_of(["*.dat"], ["a"], tmp_path / "patterns", "1k")
    assert choice.options() == {"include": ("*.dat",), "exclude": ("a", "*.tmp", "/build/"), "max_file_size": 1024}
    assert choice
    assert not choice_of(None, None, None, None)
