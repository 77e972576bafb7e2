"""The part file and its journal: what an interrupted download leaves, and what the next one makes of it."""

import hashlib
import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcbridge.errors import AlreadyExists, Conflict, InvalidPath, TransferError
from hpcbridge.staging.fetching import runs
from hpcbridge.staging.partfile import (
    PartFile,
    PrefixSha256,
    Source,
    dump_journal,
    journal_path,
    load_journal,
    part_path,
)
from hpcbridge.staging.plan import RANGE, READERS, SPAN, longest_run

SOURCE = Source("site", "cluster", "/home/alice/x", 1000, 1_795_166_090)


def fill(part: PartFile, data: bytes, indices) -> None:
    for i in indices:
        part.write(i * part.step, data[i * part.step : (i + 1) * part.step])
        part.mark(i)


async def test_an_interrupted_download_is_taken_up_where_it_was(tmp_path):
    data, target = os.urandom(1000), tmp_path / "x"
    first = PartFile.open(target, SOURCE, 300)
    fill(first, data, [0, 2])
    first.save()
    first.close()
    assert not target.exists()
    second = PartFile.open(target, SOURCE, 300)
    assert list(second.missing()) == [1, 3]
    assert (second.received(), second.complete_up_to()) == (600, 300)
    fill(second, data, [1, 3])
    prefix = PrefixSha256(second)
    await prefix.follow()
    assert prefix.digest == hashlib.sha256(data).hexdigest()
    second.publish()
    second.close()
    assert target.read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("change", [{"size": 1001}, {"mtime": 5}, {"path": "/other"}, {"system": "b"}, {"site": "c"}])
def test_another_file_starts_again(tmp_path, change):
    from dataclasses import replace

    part = PartFile.open(tmp_path / "x", SOURCE, 300)
    fill(part, bytes(1000), [0])
    part.save()
    part.close()
    again = PartFile.open(tmp_path / "x", replace(SOURCE, **change), 300)
    assert again.done == 0
    again.close()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 1}', "\xff"])
def test_a_damaged_or_newer_journal_starts_again(tmp_path, text):
    part = PartFile.open(tmp_path / "x", SOURCE, 300)
    fill(part, bytes(1000), [0])
    part.save()
    part.close()
    journal_path(tmp_path / "x").write_text(text)
    again = PartFile.open(tmp_path / "x", SOURCE, 300)
    assert again.done == 0
    again.close()
    journal_path(tmp_path / "x").unlink()
    again = PartFile.open(tmp_path / "x", SOURCE, 300, resume=False)
    again.close()


def test_yesterdays_journal_loads():
    text = (
        '{"format": 1, "source": {"site": "site", "system": "cluster", "path": "/home/alice/x", "size": 1000,'
        ' "mtime": 1795166090}, "range": 300, "done": "5"}'
    )
    assert load_journal(text, SOURCE, 300) == 0b101


@given(synced=st.integers(0, 15), written=st.integers(0, 15))
def test_the_journal_comes_back(synced, written):
    text = dump_journal(SOURCE, 300, synced, written)
    journal = json.loads(text)
    assert journal["format"] == 1
    assert load_journal(text, SOURCE, 300) == synced | written
    assert load_journal(text, SOURCE, 301) == 0
    # After a crash of the machine only what was on the disk is there.
    assert load_journal(json.dumps(journal | {"boot": "another"}), SOURCE, 300) == synced
    assert load_journal(json.dumps(journal | {"boot": ""}), SOURCE, 300) == synced


def test_each_range_is_journalled_when_it_is_written(tmp_path):
    part = PartFile.open(tmp_path / "x", SOURCE, 300)
    fill(part, bytes(1000), [0, 1])
    part.note()
    part.close()
    again = PartFile.open(tmp_path / "x", SOURCE, 300)
    assert again.done == 0b11
    again.close()


@given(done=st.sets(st.integers(0, 40)))
def test_the_prefix_ends_at_the_first_gap(done):
    part = PartFile(None, Source("", "", "", 41 * 10 - 3, 0), 10, -1)
    for i in done:
        part.mark(i)
    first_gap = next((i for i in range(41) if i not in done), 41)
    assert part.complete_up_to() == min(first_gap * 10, part.source.size)
    assert part.received() == sum(min(10, 407 - 10 * i) for i in done)
    assert list(part.missing()) == [i for i in range(41) if i not in done]


def test_two_processes_do_not_write_into_one_part_file(tmp_path):
    part = PartFile.open(tmp_path / "x", SOURCE, 300)
    code = (
        "from pathlib import Path; from hpcbridge.staging.partfile import *; import sys\n"
        f"PartFile.open(Path({str(tmp_path / 'x')!r}), Source('', '', '', 1000, 0), 300)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Conflict" in done.stderr
    part.close()
    holder = PartFile.open(tmp_path / "x", SOURCE, 300)
    with pytest.raises(Conflict):
        PartFile.open(tmp_path / "x", SOURCE, 300)
    holder.close()


def test_what_cannot_be_received_is_said_at_once(tmp_path):
    (tmp_path / "d").mkdir()
    with pytest.raises(AlreadyExists):
        PartFile.open(tmp_path / "d", SOURCE, 300)
    with pytest.raises(InvalidPath):
        PartFile.open(tmp_path / "no" / "x", SOURCE, 300)
    with pytest.raises(TransferError, match="the disk has"):
        PartFile.open(tmp_path / "big", Source("", "", "", 1 << 60, 0), 1 << 30)


def test_long_names_have_a_part_file_too(tmp_path):
    target = tmp_path / ("n" * 255)
    part = PartFile.open(target, SOURCE, 300)
    assert len(part_path(target).name) < 255
    part.publish()
    part.close()
    assert [p.name for p in tmp_path.iterdir()] == ["n" * 255]


def test_publishing_keeps_the_mode_of_the_file_it_replaces(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "x").chmod(0o600)
    part = PartFile.open(tmp_path / "x", SOURCE, 300)
    part.publish()
    part.close()
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600


@given(missing=st.sets(st.integers(0, 60)), longest=st.integers(1, 20))
def test_runs_are_the_missing_ranges_in_order(missing, longest):
    found = runs(sorted(missing), longest)
    assert [index for run in found for index in run] == sorted(missing)
    assert all(1 <= len(run) <= longest for run in found)
    assert all(a.stop < b.start or len(a) == longest for a, b in pairwise(found))


@given(count=st.integers(0, 10**6))
def test_all_readers_have_a_share(count):
    length = longest_run(count)
    assert 1 <= length * RANGE <= SPAN
    assert length * READERS >= count or length * RANGE == SPAN
