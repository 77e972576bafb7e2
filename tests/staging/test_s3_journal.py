"""The journal of a transfer: what another process finds, and what it must not be misled by."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcbridge.errors import Conflict
from hpcbridge.firecrest.models import S3Download, S3Upload
from hpcbridge.staging.journal import RETENTION, Journal, load

YESTERDAY = (
    b'{"format":1,"source":"26000000 1795166090000000000","target":["/home/alice","x"]}\n'
    b'{"asked":1795166091}\n'
    b'{"answer":{"transferJob":{"jobId":"129","system":"lab","workingDirectory":"/home/alice","logs":'
    b'{"outputLog":"/home/alice/.o.log","errorLog":"/home/alice/.e.log"}},"transferDirectives":'
    b'{"partsUploadUrls":["http://s3/1?X-Amz-Signature=a","http://s3/2?X-Amz-Signature=b"],'
    b'"completeUploadUrl":"http://s3/c","maxPartSize":20000000}}}\n'
    b'{"part":0,"etag":"\\"0f\\""}\n'
    b'{"completing":true}\n'
    b'{"checked":true}\n'
)


def test_yesterdays_upload_loads(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(YESTERDAY)
    with Journal.open(path, "x") as journal:
        assert journal.about == {"source": "26000000 1795166090000000000", "target": ["/home/alice", "x"]}
        assert journal.noted("part") == [{"part": 0, "etag": '"0f"'}]
        assert journal.noted("completing")
        assert journal.noted("checked")
        upload = S3Upload.from_json(journal.noted("answer")[-1]["answer"])
    assert upload.job.logs == ("/home/alice/.o.log", "/home/alice/.e.log")
    assert (upload.job_id, upload.part_size, len(upload.part_urls)) == ("129", 20_000_000, 2)
    assert upload.part_urls[1].reveal().endswith("Signature=b")


def test_yesterdays_download_loads() -> None:
    text = (
        b'{"format":1,"site":"s","system":"c","path":"/home/alice/x","size":9,"mtime":1795166090}\n'
        b'{"asked":1795166091}\n{"answer":{"transferJob":{"jobId":"7","system":"c","workingDirectory":"/home/alice",'
        b'"logs":{"outputLog":"/o","errorLog":"/e"}},"transferDirectives":{"downloadUrl":"http://s3/g"}}}\n'
    )
    entries, length = load(text)
    assert length == len(text)
    download = S3Download.from_json(entries[2]["answer"])
    assert (download.job_id, download.url.reveal()) == ("7", "http://s3/g")


def test_yesterdays_pieces_load() -> None:
    text = (
        b'{"format":1,"piece":3932157,"hashing":true,"account":null,"stage":"/home/alice/.hpcbridge-get-0a",'
        b'"session":"0a1b2c3d"}\n{"prepared":[26000000,1795166090,"ab"]}\n'
    )
    (about, prepared), _ = load(text)
    assert about["stage"] == "/home/alice/.hpcbridge-get-0a"
    assert prepared["prepared"] == [26_000_000, 1_795_166_090, "ab"]


@pytest.mark.parametrize("text", [b"", b"{", b"[]\n", b'{"format":2}\n', b"\xff\n", b"{}\n", b'{"format":1}'])
def test_what_is_no_journal_of_ours_is_ignored(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(text)
    with Journal.open(path, "x") as journal:
        assert (journal.about, journal.entries) == ({}, [])
    assert not path.exists()


@given(cut=st.integers(0, len(YESTERDAY)))
def test_a_torn_line_ends_the_list(cut: int) -> None:
    entries, length = load(YESTERDAY[:cut])
    assert YESTERDAY[:length].count(b"\n") == len(entries)
    assert entries == load(YESTERDAY)[0][: len(entries)]


def test_what_follows_a_torn_line_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(YESTERDAY + b'{"part":1,"et')
    with Journal.open(path, "x") as journal:
        journal.add(part=1, etag='"1f"')
    with Journal.open(path, "x") as journal:
        assert [entry["part"] for entry in journal.noted("part")] == [0, 1]


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with Journal.open(tmp_path / "new" / "j.jsonl", "x") as journal:
            journal.start(source="1")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new" / "j.jsonl").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_two_transfers_do_not_share_one(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal.open(path, "x") as journal:
        journal.start(source="1")
        with pytest.raises(Conflict, match="another transfer of /x"):
            Journal.open(path, "/x")
        code = (
            f"from pathlib import Path; from hpcbridge.staging.journal import *; Journal.open(Path({str(path)!r}), '')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "Conflict" in done.stderr
        journal.remove()
    with Journal.open(path, "x") as journal:
        assert journal.about == {}


def test_a_removed_one_is_not_held_on_to(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal.open(path, "x") as first:
        first.start(source="1")
        path.unlink()
        with Journal.open(path, "x") as second:
            second.start(source="2")
            first.add(part=0)
            first.remove()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"format": 1, "source": "2"}]


def test_one_that_was_removed_can_be_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal.open(path, "x") as journal:
        journal.start(source="1")
        journal.remove()
        assert not path.exists()
        journal.start(source="2")
        journal.add(part=0)
        with pytest.raises(Conflict):
            Journal.open(path, "x")
    with Journal.open(path, "x") as journal:
        assert (journal.about, journal.entries) == ({"source": "2"}, [{"part": 0}])


def test_old_ones_go_unless_they_are_held(tmp_path: Path) -> None:
    for name in ("old", "held", "new"):
        (tmp_path / f"{name}.jsonl").write_bytes(YESTERDAY)
    with Journal.open(tmp_path / "held.jsonl", "x"):
        past = time.time() - RETENTION - 60
        os.utime(tmp_path / "old.jsonl", (past, past))
        os.utime(tmp_path / "held.jsonl", (past, past))
        Journal.open(tmp_path / "other.jsonl", "x").close()
        assert sorted(path.stem for path in tmp_path.iterdir()) == ["held", "new"]


def test_without_a_place_for_it_the_transfer_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with Journal.open(tmp_path / "file" / "j.jsonl", "/home/alice/x") as journal:
        journal.start(source="1")
        journal.add(part=0)
        assert journal.noted("part") == [{"part": 0}]
    assert "cannot be resumed" in caplog.text


def test_a_full_disk_only_costs_the_resumption(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Journal.open(tmp_path / "j.jsonl", "x") as journal:
        os.dup2(os.open("/dev/full", os.O_WRONLY), journal._fd)
        journal.add(part=0)
        assert journal.noted("part") == [{"part": 0}]
    assert "given up" in caplog.text
    assert not (tmp_path / "j.jsonl").exists()
