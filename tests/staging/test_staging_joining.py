"""The joining script, run by a real bash on real pieces."""

import hashlib
import os
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcbridge.staging.joining import Join, Verdict, parse_answer, parse_sums, piece_name
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.plan import piece_size

SESSION = "0badcafe"


def stage(directory, data: bytes, piece: int) -> list[str]:
    directory.mkdir(parents=True, exist_ok=True)
    count = -(-len(data) // piece)
    for i in range(count):
        (directory / piece_name(SESSION, i)).write_bytes(data[i * piece : (i + 1) * piece])
    return [piece_name(SESSION, i) for i in range(count)]


def join(tmp_path, data: bytes, piece: int, name="out.bin", sha256: str | None = "", attempt=1) -> Join:
    where = tmp_path / ".hpcbridge-put-x"
    digest = hashlib.sha256(data).hexdigest() if sha256 == "" else sha256
    target = RemotePath(str(tmp_path), name)
    return Join(str(where), SESSION, target, -(-len(data) // piece), len(data), digest, attempt)


def run(tmp_path, one: Join):
    done = subprocess.run(["bash", "-s"], input=one.script().encode(), capture_output=True, cwd=tmp_path, check=False)
    return done.returncode, parse_answer((tmp_path / ".hpcbridge-put-x" / one.answer_name).read_text())


@pytest.mark.parametrize("digest", ["", None])
@pytest.mark.parametrize("pieces", [1, 2, 17])
def test_pieces_become_the_file(tmp_path, pieces, digest):
    data = os.urandom(1000 * pieces - 17)
    stage(tmp_path / ".hpcbridge-put-x", data, 1000)
    code, answer = run(tmp_path, join(tmp_path, data, 1000, sha256=digest))
    assert (code, answer.verdict, answer.size) == (0, Verdict.PUBLISHED, len(data))
    assert answer.sha256 == (hashlib.sha256(data).hexdigest() if digest == "" else None)
    assert (tmp_path / "out.bin").read_bytes() == data
    kept = [p for p in (tmp_path / ".hpcbridge-put-x").iterdir() if p.name.startswith(SESSION + ".0")]
    # They are the client's to remove; one alone has become the file.
    assert len(kept) == (0 if pieces == 1 else pieces)


def test_a_second_run_after_publishing_changes_nothing(tmp_path):
    stage(tmp_path / ".hpcbridge-put-x", b"abc", 2)
    one = join(tmp_path, b"abc", 2)
    run(tmp_path, one)
    (tmp_path / "out.bin").write_bytes(b"changed since")
    assert run(tmp_path, one)[0] == 0
    assert (tmp_path / "out.bin").read_bytes() == b"changed since"


@pytest.mark.parametrize("count", [1, 3])
def test_a_corrupted_piece_is_named_and_the_target_is_left_alone(tmp_path, count):
    data = os.urandom(100 * count)
    names = stage(tmp_path / ".hpcbridge-put-x", data, 100)
    (tmp_path / "out.bin").write_bytes(b"old")
    bad = tmp_path / ".hpcbridge-put-x" / names[-1]
    bad.write_bytes(bytes(100))
    one = join(tmp_path, data, 100)
    code, answer = run(tmp_path, one)
    assert (code, answer.verdict) == (1, Verdict.MISMATCH)
    assert (tmp_path / "out.bin").read_bytes() == b"old"
    sums = parse_sums((tmp_path / ".hpcbridge-put-x" / one.sums_name).read_text())
    wrong = [n for i, n in enumerate(names) if sums[n] != hashlib.sha256(data[i * 100 : i * 100 + 100]).hexdigest()]
    assert wrong == [names[-1]]
    bad.write_bytes(data[-100:])
    code, answer = run(tmp_path, join(tmp_path, data, 100, attempt=2))
    assert (code, (tmp_path / "out.bin").read_bytes()) == (0, data)


def test_a_missing_or_short_piece_is_noticed_without_a_checksum(tmp_path):
    names = stage(tmp_path / ".hpcbridge-put-x", b"0123456789", 4)
    (tmp_path / ".hpcbridge-put-x" / names[1]).write_bytes(b"45")
    assert run(tmp_path, join(tmp_path, b"0123456789", 4, sha256=None))[1].verdict is Verdict.MISMATCH
    (tmp_path / ".hpcbridge-put-x" / names[1]).unlink()
    code, answer = run(tmp_path, join(tmp_path, b"0123456789", 4, sha256=None, attempt=2))
    assert (code, answer.verdict) == (1, Verdict.FAILED)
    assert "No such file" in answer.reason


def test_a_directory_in_the_way_is_said(tmp_path):
    (tmp_path / "out.bin").mkdir()
    stage(tmp_path / ".hpcbridge-put-x", b"abc", 2)
    code, answer = run(tmp_path, join(tmp_path, b"abc", 2))
    assert (code, answer.verdict, answer.reason) == (1, Verdict.FAILED, "directory")


def test_mode_and_links_of_an_existing_target_survive(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (real / "data").write_bytes(b"old")
    (real / "data").chmod(0o640)
    (tmp_path / "out.bin").symlink_to("real/data")
    stage(tmp_path / ".hpcbridge-put-x", b"abc", 2)
    assert run(tmp_path, join(tmp_path, b"abc", 2))[0] == 0
    assert (tmp_path / "out.bin").is_symlink()
    assert (real / "data").read_bytes() == b"abc"
    assert (real / "data").stat().st_mode & 0o777 == 0o640
    assert [p.name for p in real.iterdir()] == ["data"]


def test_only_stale_staging_directories_are_cleaned(tmp_path):
    stale, fresh = tmp_path / ".hpcbridge-put-stale", tmp_path / ".hpcbridge-put-fresh"
    stage(tmp_path / ".hpcbridge-put-x", b"abc", 2)
    for directory in (stale, fresh):
        directory.mkdir()
    (stale / "piece").write_bytes(b"x")
    os.utime(stale, (0, 0))
    run(tmp_path, join(tmp_path, b"abc", 2))
    assert not stale.exists()
    assert fresh.exists()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.binary(min_size=1, max_size=40).filter(lambda b: not {0, 47} & set(b) and b not in (b".", b"..")))
def test_any_legal_name_arrives_as_it_is(tmp_path, name):
    stage(tmp_path / ".hpcbridge-put-x", b"abc", 2)
    (tmp_path / ".hpcbridge-put-x" / f"{SESSION}.answer-1").unlink(missing_ok=True)
    code, _ = run(tmp_path, join(tmp_path, b"abc", 2, name=os.fsdecode(name)))
    assert code == 0
    target = tmp_path / os.fsdecode(name)
    assert target.read_bytes() == b"abc"
    target.unlink()


@given(size=st.integers(1, 10**6), piece=st.integers(10**3, 10**6))
def test_the_script_is_small_and_holds_no_path(size, piece):
    count = -(-size // piece)
    one = Join("/scratch/s p", SESSION, RemotePath("/scratch", "it's; rm -rf $HOME"), count, size, None)
    script = one.script()
    assert "rm -rf $HOME" not in script
    assert "/scratch" not in script
    assert "@" not in script
    assert len(script) < 5000
    assert piece_size(size, piece, count - 1) > 0
