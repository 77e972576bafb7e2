"""Patterns: what they mean, that Python and grep agree on it, and that those which mean nothing are refused."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import warnings

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hpcbridge.errors import InvalidRequest
from hpcbridge.staging.trees.entries import Kind
from hpcbridge.staging.trees.patterns import Filter, expression
from support.scale import PROVE

MEANING = [
    # pattern, what matches (a directory ends with /), what does not
    ("*.o", "a.o b/a.o .o a.o/ a.o/x", "a.oo a.o.c"),
    ("data", "data data/ data/x b/data b/data/x", "data2 xdata"),
    ("data/", "data/ data/x b/data/ b/data/x", "data b/data"),
    ("/data", "data data/ data/x", "b/data b/data/x"),
    ("/data/", "data/ data/x", "data b/data/"),
    ("a/b", "a/b a/b/ a/b/c", "x/a/b a/bb a"),
    ("a/*", "a/b a/b/ a/b/c a/.x", "a a/ b/a/b"),
    ("a/***", "a/b a/b/ a/b/c", "a a/"),
    ("a/*/c", "a/b/c", "a/c a//c"),
    ("*", "a a/ a/b", ""),
    ("*/", "a/ a/b", "a"),
    ("a/?", "a/b a/b/c", "a/bb a/"),
    ("a/**", "a/b a/b/c a/b/", "a a/"),
    ("a/**/", "a/b/ a/b/c", "a/ a/b"),
    ("a/**/b", "a/b a/x/b a/x/y/b a/b/c", "ab a/xb b"),
    ("**/b", "b a/b a/c/b/ b/x", "ab bc"),
    ("**", "a a/ a/b", ""),
    ("**/", "a/ a/b", "a"),
    ("/**", "a a/b", ""),
    ("a**z", "az abz a/b/z x/az", "a z za"),
    ("[abc]", "a x/b c/ c/x", "d ab A"),
    ("[!abc]", "d A \n \xff", "a b/c"),
    ("[^abc]", "d", "a"),
    ("[a-c]x", "ax bx", "dx a-x -x"),
    ("[]x]", "] x", "y [ ]x"),
    ("[a-]", "a -", "b"),
    ("[!]]", "a", "]"),
    ("[\\]\\\\]", "] \\", "x"),
    ("\\*", "* a/*", "a"),
    ("\\[a]", "[a]", "a"),
    ("a.b", "a.b", "aXb"),
    ("a+b(c){2}|^$", "a+b(c){2}|^$", "aab"),
    ("#x", "#x", "x"),
    ("-rf", "-rf x/-rf", "rf"),
    ("Zürich*", "Zürich Zürich-Nord", "Zurich"),
    ("???", "abc \n\n\n", "ab ü☃"),
]


def encoded(text: str) -> list[bytes]:
    return [each.encode("utf-8") if max(each) != "\xff" else each.encode("latin-1") for each in text.split(" ") if each]


def grep(patterns: bytes, paths: list[bytes]) -> list[bytes]:
    """The paths that match, found as a node finds them."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(patterns)
        file.flush()
        found = subprocess.run(
            ["grep", "-zxaE", "-f", file.name],
            input=b"".join(path + b"\0" for path in paths),
            capture_output=True,
            env=os.environ | {"LC_ALL": "C"},
            check=False,
        )
    assert found.returncode in (0, 1), found.stderr
    assert not found.stderr
    return found.stdout.split(b"\0")[:-1]


@pytest.mark.parametrize(("pattern", "matching", "other"), MEANING, ids=[row[0] for row in MEANING])
def test_a_pattern_means(pattern, matching, other):
    wanted, unwanted = encoded(matching), encoded(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        left = Filter(exclude=(pattern,))
    assert [path for path in wanted if left.selects(path)] == []
    assert [path for path in unwanted if not left.selects(path)] == []
    assert grep(left.expressions().exclude, wanted + unwanted) == wanted
    only = Filter(include=(pattern,))
    assert [path for path in wanted + unwanted if only.selects(path)] == wanted


BAD = ["", "/", "//", "!a", "a//b", "./a", "a/../b", "..", "[", "[a", "[]", "[z-a]", "[!]", "[/]", "[[:alpha:]]", "a\\",
       "a\nb", "a\tb", "a\0b", "[\\", "[a-\\"]  # fmt: skip


@pytest.mark.parametrize("pattern", BAD)
def test_a_pattern_that_means_nothing_is_refused_by_name(pattern):
    with pytest.raises(InvalidRequest) as refused:
        Filter(exclude=(pattern,))
    assert repr(pattern) in str(refused.value)
    assert "gitignore" in str(refused.value)


def test_a_larger_file_is_not_kept():
    limited = Filter(max_file_size=10)
    assert limited.keeps(b"a", Kind.FILE, 10)
    assert not limited.keeps(b"a", Kind.FILE, 11)
    assert limited.keeps(b"a", Kind.DIRECTORY, 4096)


def test_what_is_excluded_is_not_entered_and_wins_over_what_is_included():
    both = Filter(include=("*.dat",), exclude=("tmp/", "x.dat"))
    assert not both.enters(b"a/tmp")
    assert both.enters(b"a/temp")
    assert both.keeps(b"a/y.dat", Kind.FILE)
    assert not both.keeps(b"a/x.dat", Kind.FILE)
    assert not both.keeps(b"tmp/y.dat", Kind.FILE)
    assert both.keeps(b"tmp", Kind.FILE) is False
    assert not both.keeps(b"a", Kind.DIRECTORY)


pieces = st.sampled_from(
    ["a", "b", "-", "]", "[", "^", "!", "\\", ".", "*", "**", "?", "/", "/", "[a-c]", "[!a]", "[+--]", "[[-a]", "[]-]",
     "[^-]", "(", ")", "{", "}", "|", "+", "$", "&&", "~~", "--", "||", " ", "é", "\udcff", "[é]",
     "[\udc80-\udcff]", "[!\udcff]", "~"]
)  # fmt: skip
patterns = st.lists(pieces, min_size=1, max_size=7).map("".join)
letters = st.one_of(
    st.sampled_from(b"ab-][^\\.*?\n\xff\x80\x01|").map(lambda byte: bytes([byte])), st.just(b"\xc3\xa9")
)
names = st.lists(letters, min_size=1, max_size=4).map(b"".join).filter(lambda each: each not in (b".", b".."))
paths = st.builds(
    lambda each, end: b"/".join(each) + end, st.lists(names, min_size=1, max_size=4), st.sampled_from([b"", b"/"])
)


@given(st.lists(patterns, min_size=1, max_size=3), st.lists(paths, min_size=1, max_size=30, unique=True))
@example(["a"], [b"a\n", b"a", b"\na", b"b\na", b"a\nb"])
@settings(max_examples=3000 if PROVE else 300, deadline=None)
def test_python_and_grep_agree(texts, found):
    usable = []
    for text in texts:
        try:
            expression(text)
        except InvalidRequest:
            continue
        usable.append(text)
    if not usable:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        each = Filter(exclude=tuple(usable))
        kept = [path for path in found if each.selects(path)]
    taken = grep(each.expressions().exclude, found)
    assert sorted(kept + taken) == sorted(found)
    assert not re.search(rb"[\n\0]", each.expressions().exclude.replace(b"\n", b"", len(usable) - 1))


@given(st.lists(st.integers(1, 255), min_size=1, max_size=20), st.booleans())
@settings(max_examples=1000 if PROVE else 100, deadline=None)
def test_brackets_of_any_bytes_mean_these_bytes(members, inverted):
    """Python's fnmatch is not the judge here: each of the 255 bytes is asked for by itself."""
    usable = [byte for byte in members if byte >= 0x20 and byte not in b"/\x7f"]
    if not usable:
        return
    inside = b"".join(b"\\%c" % byte for byte in usable)
    pattern = os.fsdecode(b"[%s%s]" % (b"!" * inverted, inside))
    every = [bytes([byte]) for byte in range(1, 256) if byte != ord("/")]
    wanted = [one for one in every if (one[0] in usable) is not inverted]
    each = Filter(include=(pattern,))
    assert [one for one in every if each.selects(one)] == wanted
    assert grep(each.expressions().include, every) == wanted
