"""A tree goes through our archive or GNU tar's, into GNU tar's hands or ours, and is the same afterwards."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcbridge.staging.trees.archive import Archive
from hpcbridge.staging.trees.entries import Manifest
from hpcbridge.staging.trees.extract import extract
from hpcbridge.staging.trees.scan import scan
from support.scale import PROVE
from support.trees import ODD_NAMES, ODD_TARGETS, QUICK, Directory, File, Link, blocks, make, snapshot, tar, trees

thorough = settings(
    max_examples=1000 if PROVE else 100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
UNPACK = ("--no-same-owner", "-p", "-x", "-f", "-", "-C")
"""As the node's script unpacks."""


@contextmanager
def places(*names: str) -> Iterator[list[Path]]:
    """Empty directories, made anew for every example."""
    root = Path(tempfile.mkdtemp(dir=QUICK))
    try:
        for name in names:
            (root / name).mkdir()
        yield [root / name for name in names]
    finally:
        shutil.rmtree(root)


def archived(root: Path, *, hashing: bool = True) -> bytes:
    archive = Archive(scan(root, hashing=hashing).members)
    return archive.read(0, archive.size)


@given(trees)
@thorough
def test_gnu_tar_restores_our_archive(tree):
    with places("from", "to") as (source, there):
        make(source, tree)
        data = archived(source)
        tar(*UNPACK, there, stdin=data)
        assert snapshot(there) == snapshot(source)


@given(trees)
@thorough
def test_our_archive_comes_back(tree):
    with places("from", "to") as (source, there):
        make(source, tree)
        found = scan(source)
        archive = Archive(found.members)
        entries = extract(io.BytesIO(archive.read(0, archive.size)), there)
        assert snapshot(there) == snapshot(source)
        assert Manifest(entries) == scan(source, hashing=False).manifest
        assert scan(there).manifest == found.manifest


@given(trees, st.sampled_from(["gnu", "pax"]), st.booleans())
@thorough
def test_an_archive_of_gnu_tar_comes_back(tree, form, zipped):
    with places("from", "to") as (source, there):
        make(source, tree)
        options = [f"--format={form}", "--sparse", "--hard-dereference", *(["--gzip"] if zipped else [])]
        data = tar(*options, "-c", "-f", "-", "-C", source, ".")
        extract(io.BytesIO(data), there)
        assert snapshot(there) == snapshot(source)


def everything(holes: int = 3) -> Directory:
    """One of each that can go wrong."""
    odd = {name: File((name * 3,), mode=0o640) for name in ODD_NAMES}
    linked = {b"to-%d" % i: Link(target) for i, target in enumerate(ODD_TARGETS)}
    deep = Directory({b"bottom": File((b"deep",))})
    for _ in range(15):
        deep = Directory({b"d" * 250: deep})
    return Directory(
        {
            b"odd": Directory(odd),
            b"links": Directory(linked),
            b"deep": deep,
            b"empty": Directory(),
            b"locked": Directory({b"inside": File((b"x",), mode=0o000)}, mode=0o000),
            b"read-only": Directory({b"inside": File((b"x",), mode=0o444)}, mode=0o555),
            b"old": File((b"x",), mtime=-86400),
            b"new": File((b"x",), mtime=2**33),
            b"nothing": File(),
            b"hole": File((None,) * holes),
            b"hole-first": File((None, b"x" * 5000)),
            b"hole-last": File((b"x" * 4096, None)),
            b"many-holes": File((b"x" * 4096, None) * 30),
            b"long" * 40 + b"-hole": File((b"x", None, b"y")),
        }
    )


def test_whatever_is_odd_comes_back_and_holes_stay_holes(tmp_path):
    source, tars, ours = (tmp_path / name for name in ("from", "tar", "ours"))
    for each in (source, tars, ours):
        each.mkdir()
    make(source, everything())
    data = archived(source)
    tar(*UNPACK, tars, stdin=data)
    extract(io.BytesIO(data), ours)
    assert snapshot(source) == snapshot(tars) == snapshot(ours)
    assert blocks(tars) == blocks(source) == blocks(ours)
    assert len(data) < 400_000
    listed = tar("-t", "--quoting-style=literal", "--null", "-f", "-", stdin=data)
    assert listed.count(b"\n") >= len(snapshot(source))


@pytest.mark.parametrize("form", ["gnu", "pax"])
@pytest.mark.parametrize("version", ["0.0", "0.1", "1.0"])
def test_holes_in_an_archive_of_gnu_tar_stay_holes(tmp_path, form, version):
    source, there = tmp_path / "from", tmp_path / "to"
    source.mkdir()
    there.mkdir()
    make(source, everything())
    options = [f"--format={form}", "--sparse", *([f"--sparse-version={version}"] if form == "pax" else [])]
    data = tar(*options, "-c", "-f", "-", "-C", source, ".")
    extract(io.BytesIO(data), there)
    assert snapshot(source) == snapshot(there)
    assert blocks(source) == blocks(there)


def test_a_file_of_a_terabyte_is_a_few_blocks_of_archive(tmp_path):
    source, tars, ours = (tmp_path / name for name in ("from", "tar", "ours"))
    for each in (source, tars, ours):
        each.mkdir()
    with (source / "huge").open("wb") as out:
        for at in (0, 9 << 30, 1 << 40):
            out.seek(at)
            out.write(b"here")
    data = archived(source, hashing=False)
    assert len(data) < 20_000
    extract(io.BytesIO(data), ours)
    tar(*UNPACK, tars, stdin=data)
    for there in (tars / "huge", ours / "huge"):
        assert there.stat().st_size == (1 << 40) + 4
        assert there.stat().st_blocks == (source / "huge").stat().st_blocks
        with there.open("rb") as file:
            assert [os.pread(file.fileno(), 4, at) for at in (0, 9 << 30, 1 << 40, 1 << 20)] == [b"here"] * 3 + [
                bytes(4)
            ]
