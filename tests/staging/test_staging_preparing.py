"""The preparing script, run by a real bash; and what a listing of a staging directory tells."""

import hashlib
import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcbridge.staging.joining import piece_name
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.pieces import stage_directory, survey
from hpcbridge.staging.plan import piece_count, piece_size
from hpcbridge.staging.preparing import Prepare, parse_prepared


def run(tmp_path, plan: Prepare):
    stage = tmp_path / "stage"
    stage.mkdir(exist_ok=True)
    subprocess.run(["bash", "-s"], input=plan.script().encode(), capture_output=True, check=False)
    return parse_prepared((stage / plan.answer_name).read_text())


@pytest.mark.parametrize("name", ["plain", 'it\'s a "file"', "new\nline\n", "-n", "\udcff"])
@pytest.mark.parametrize("size", [0, 1, 1000, 1001, 12345])
def test_a_file_is_measured_hashed_and_cut(tmp_path, name, size):
    data = os.urandom(size)
    (tmp_path / name).write_bytes(data)
    plan = Prepare(str(tmp_path / "stage"), "0badcafe", RemotePath(str(tmp_path), name), 1000, True)
    prepared = run(tmp_path, plan)
    assert (prepared.size, prepared.sha256, prepared.reason) == (size, hashlib.sha256(data).hexdigest(), "")
    assert prepared.mtime == int((tmp_path / name).stat().st_mtime)
    pieces = [(tmp_path / "stage" / plan.piece_name(i)).read_bytes() for i in range(piece_count(size, 1000))]
    assert b"".join(pieces) == data


def test_only_hashing_leaves_no_pieces(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    plan = Prepare(str(tmp_path / "stage"), "0badcafe", RemotePath(str(tmp_path), "x"), None, True)
    assert run(tmp_path, plan).sha256 == hashlib.sha256(b"abc").hexdigest()
    assert [p.name for p in (tmp_path / "stage").iterdir() if p.stat().st_size] == [plan.answer_name]


@pytest.mark.parametrize(("make", "words"), [(lambda p: None, "No such file"), (lambda p: p.mkdir(), "Is a directory")])
def test_what_cannot_be_prepared_is_said(tmp_path, make, words):
    make(tmp_path / "x")
    plan = Prepare(str(tmp_path / "stage"), "0badcafe", RemotePath(str(tmp_path), "x"), 10, True)
    assert words in run(tmp_path, plan).reason


def test_an_answer_that_is_none_is_an_error():
    with pytest.raises(ValueError, match="not an answer"):
        parse_prepared("Segmentation fault")


@given(
    size=st.integers(1, 10_000),
    piece=st.integers(100, 3_000),
    data=st.data(),
)
def test_only_whole_pieces_of_one_session_count(size, piece, data):
    count = piece_count(size, piece)
    mine = data.draw(st.sets(st.integers(0, count - 1)))
    other = data.draw(st.sets(st.integers(0, count - 1), max_size=max(0, len(mine) - 1)))
    listing = {piece_name("aaaaaaaa", i): piece_size(size, piece, i) for i in mine}
    listing |= {piece_name("bbbbbbbb", i): piece_size(size, piece, i) for i in other}
    listing |= {piece_name("aaaaaaaa", i): piece_size(size, piece, i) - 1 for i in range(count) if i not in mine}
    listing |= {"aaaaaaaa.answer-2": 10, "aaaaaaaa.log": 3, piece_name("aaaaaaaa", count): piece, "junk": 1}
    session, present, attempts = survey(listing, size, piece)
    if mine:
        assert (session, present, attempts) == ("aaaaaaaa", mine, 2)
    else:
        assert (session, present, attempts) == (None, set(), 0)


def test_another_file_target_or_piece_has_another_staging_directory():
    target = RemotePath("/home/alice", "x")
    names = {
        stage_directory(target, "10 5", 4),
        stage_directory(target, "11 5", 4),
        stage_directory(target, "10 6", 4),
        stage_directory(target, "10 5", 5),
        stage_directory(RemotePath("/home/alice", "y"), "10 5", 4),
    }
    assert len(names) == 5
    assert stage_directory(target, "10 5", 4) in names
    assert all(name.startswith("/home/alice/.hpcbridge-put-") for name in names)
