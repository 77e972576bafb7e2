"""Records parse from recorded answers of a real server (2.5.7 in front of Slurm 22.05)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hpcbridge.firecrest.models import (
    FileContent,
    FileEntry,
    FileStat,
    JobMetadata,
    JobRow,
    S3Download,
    S3Upload,
    SystemInfo,
    UserInfo,
)

ANSWERS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "answers.json").read_text())


def body(name: str) -> Any:
    return ANSWERS[name]["body"]


def rows(name: str) -> list[JobRow]:
    return [JobRow.from_json(row) for row in body(name)["jobs"] if isinstance(row, dict)]


def test_system() -> None:
    system = SystemInfo.from_json(body("status_systems_200")["systems"][0])
    assert system.name == "lab-s3"
    assert (system.scheduler.kind, system.scheduler.version, system.scheduler.mode) == ("slurm", "22.05.8", "ssh")
    assert system.transfer == "s3"
    assert system.max_ops_file_size == 5_242_880
    assert system.max_part_size == 67_108_864
    assert system.ssh.total == 15
    assert system.healthy
    assert system.default_work_dir == "/home"
    assert system.file_system_of("/home/fireuser/x") == system.file_systems[0]
    assert system.file_system_of("/homes/x") is None


def test_a_running_job() -> None:
    (row,) = rows("job_running_200")
    assert (row.job_id, row.name, row.state, row.reason) == ("112", "rec", "RUNNING", None)
    assert row.started == datetime.fromtimestamp(1795166101, UTC)
    assert row.ended is None
    assert (row.nodes, row.partition, row.account, row.user) == ("localhost", "normal", "staff", "fireuser")
    assert not row.is_placeholder


def test_a_held_job_has_neither_code_nor_nodes() -> None:
    (row,) = rows("job_held_200")
    assert (row.state, row.reason) == ("PENDING", "JobHeldUser")
    assert (row.exit_code, row.signal, row.nodes, row.started) == (None, None, None, None)


def test_death_by_signal_and_cancellation_keep_the_schedulers_words() -> None:
    assert (rows("job_signal_200")[0].exit_code, rows("job_signal_200")[0].signal) == (0, 11)
    assert rows("job_cancelled_200")[0].state == "CANCELLED by 2001"


def test_array_rows_name_their_array() -> None:
    found = rows("job_array_mixed_2s_200")
    assert [row.job_id for row in found[:3]] == ["144_0", "144_1", "144_[2-4%2]"]
    assert {row.array_job_id for row in found[:3]} == {"144"}
    assert found[2].nodes is None  # "None assigned"


def test_accountings_placeholder_is_not_the_truth() -> None:
    row = JobRow.from_json({"jobId": "7", "name": "allocation", "partition": "", "workingDirectory": "", "status": {}})
    assert row.is_placeholder


@pytest.mark.parametrize("data", [{"jobId": 5}, {"jobId": "5", "status": None, "time": None, "nodes": None}])
def test_a_row_needs_nothing_but_an_id(data: dict[str, Any]) -> None:
    assert JobRow.from_json(data).job_id == "5"


def test_unset_numbers_of_slurmrestd_are_none() -> None:
    row = JobRow.from_json({"jobId": "1", "status": {"exitCode": 4294967294}, "time": {"limit": 4294967295, "end": 0}})
    assert (row.exit_code, row.limit, row.ended) == (None, None, None)


def test_metadata() -> None:
    metadata = JobMetadata.from_json(body("job_metadata_200")["jobs"][0])
    assert metadata.standard_output == "/home/fireuser/rec-1795166088/o.txt"
    assert "sleep" in (metadata.script or "")
    assert "sleep" not in repr(metadata)


def test_files() -> None:
    entries = [FileEntry.from_json(entry) for entry in body("ops_ls_200")["output"] if isinstance(entry, dict)]
    assert [(entry.name, entry.kind, entry.size) for entry in entries] == [
        ("a", "d", 4096),
        ("bin", "-", 1024),
        ("empty", "-", 0),
    ]
    assert entries[0].is_dir
    assert entries[1].modified == datetime(2026, 11, 20, 9, 14, 55, tzinfo=UTC)
    link = FileEntry.from_json(body("ops_symlink_201")["output"])
    assert link.is_link
    assert (link.link_target or "").endswith("s.txt")
    stat = FileStat.from_json(body("ops_stat_200")["output"])
    assert (stat.size, stat.uid, stat.mtime) == (1200, 2001, 1795166090)
    assert FileContent.from_json(body("ops_head_bytes_200")["output"]) == FileContent("hello", "bytes", 0, 5)


def test_a_device_has_no_size() -> None:
    assert FileEntry.from_json({"name": "null", "type": "c", "size": "1, 3"}).size == 0


def test_presigned_urls_do_not_show() -> None:
    upload = S3Upload.from_json(body("xfer_upload_s3_201"))
    assert len(upload.part_urls) == 3
    assert upload.part_size == 67_108_864
    assert (upload.job_id, len(upload.logs)) == ("129", 2)
    assert "X-Amz" not in repr(upload)
    assert "partNumber=2" in upload.part_urls[1].reveal()
    download = S3Download.from_json(body("xfer_download_s3_201"))
    assert download.url.reveal().startswith("http://")
    assert "X-Amz" not in f"{download!r} {download.url}"


def test_userinfo() -> None:
    user = UserInfo.from_json(body("status_userinfo_200"))
    assert (user.name, user.uid, user.groups, user.default_account) == ("fireuser", 2001, ("users",), "staff")
    assert UserInfo.from_json({"user": {"id": "7", "name": "u"}, "groups": []}).accounts == ()
