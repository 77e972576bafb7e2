"""The spool: what is on disk is the archive that will be sent, also after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hpcbridge_aiida.spool import END, LEFT_BEHIND, Notes, Operation, Record, SpoolFile, spool_path

ROOT = "/scratch/me/aiida/ab/cd"


@pytest.fixture
def spool(tmp_path: Path) -> SpoolFile:
    return SpoolFile(tmp_path / "spool" / "x.tar", Record(ROOT, "/scratch/me"))


def _unpacked(tmp_path: Path, *spools: SpoolFile) -> Path:
    """What the system's tar makes of the members of several spools together."""
    archive, target = tmp_path / "all.tar", tmp_path / "target"
    archive.write_bytes(b"".join(block for spool in spools for block in spool.blocks()) + END)
    target.mkdir()
    subprocess.run(["tar", "-xf", str(archive), "-C", str(target)], check=True)
    return target


def test_several_are_one_archive(spool: SpoolFile, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 1500)
    odd = f'{ROOT}/it\'s a\n"näme"' + "y" * 120
    spool.directory(ROOT, 0o755)
    spool.file(odd, source, 0o640)
    spool.link(f"{ROOT}/link", "/elsewhere/with blank")
    other = SpoolFile(tmp_path / "spool" / "y.tar", Record("/scratch/me/aiida/ef", "/scratch/me"))
    other.directory("/scratch/me/aiida/ef", 0o700)
    there = _unpacked(tmp_path, spool, other) / "aiida"
    assert (there / "ab/cd" / odd.rpartition("/")[2]).read_bytes() == b"x" * 1500
    assert str((there / "ab/cd/link").readlink()) == "/elsewhere/with blank"
    assert (there / "ef").stat().st_mode & 0o777 == 0o700


def test_a_mode_changes_before_it_is_sent(spool: SpoolFile, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("#!/bin/sh\n")
    spool.directory(ROOT, 0o755)
    spool.file(f"{ROOT}/run", source, 0o644)
    assert spool.change_mode(f"{ROOT}/run", 0o755)
    assert not spool.change_mode(f"{ROOT}/other", 0o755)
    run = _unpacked(tmp_path, spool) / "aiida/ab/cd/run"
    assert run.stat().st_mode & 0o777 == 0o755
    assert run.read_text() == "#!/bin/sh\n"


_KILLED = """
import os, sys
from pathlib import Path
from hpcbridge_aiida.spool import Operation, Record, SpoolFile
spool = SpoolFile(Path(sys.argv[1]), Record({root!r}, "/scratch/me"))
spool.directory({root!r}, 0o755)
spool.file({root!r} + "/in", Path(__file__), 0o644)
spool.operation(Operation("cp", "-RH", "/scratch/me/old", {root!r} + "/old"))
if sys.argv[2] == "killed":
    os.kill(os.getpid(), 9)
print("here", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "worker.py"
    path.write_text(textwrap.dedent(_KILLED.format(root=ROOT)))
    return path


def test_a_killed_worker_leaves_what_it_had_collected(script: Path, tmp_path: Path) -> None:
    path = tmp_path / "spool" / "x.tar"
    assert subprocess.run([sys.executable, str(script), str(path), "killed"], check=False).returncode == -9
    spool = SpoolFile.reopen(path)
    assert spool is not None
    assert spool.record.root == ROOT
    assert spool.record.operations == [Operation("cp", "-RH", "/scratch/me/old", f"{ROOT}/old")]
    assert (_unpacked(tmp_path, spool) / "aiida/ab/cd/in").read_bytes() == script.read_bytes()
    spool.sent()
    assert not spool.pending
    spool.discard()
    assert SpoolFile.reopen(path) is None
    assert list(path.parent.iterdir()) == []


def test_a_worker_that_lives_keeps_it(script: Path, tmp_path: Path) -> None:
    path = tmp_path / "spool" / "x.tar"
    worker = subprocess.Popen(
        [sys.executable, str(script), str(path), "lives"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"here\n"
        with pytest.raises(BlockingIOError):
            SpoolFile.reopen(path)
    assert SpoolFile.reopen(path) is not None


def test_a_record_of_a_later_version_is_left_alone(spool: SpoolFile) -> None:
    record = spool.path.with_suffix(".json")
    spool._file.close()
    record.write_text(json.dumps(json.loads(record.read_text()) | {"format": 2}))
    with pytest.raises(OSError, match="newer hpcbridge"):
        SpoolFile.reopen(spool.path)
    assert record.exists()


def test_yesterday_s_record_loads() -> None:
    old = {
        "format": 1,
        "root": ROOT,
        "base": "/scratch/me",
        "operations": [{"verb": "ln", "options": "", "source": "/a", "target": f"{ROOT}/b"}],
    }
    assert Record.from_json(old) == Record(ROOT, "/scratch/me", [Operation("ln", "", "/a", f"{ROOT}/b")])


def test_identities_do_not_share_a_file(tmp_path: Path) -> None:
    names = {spool_path(tmp_path, identity, ROOT) for identity in (("u", "a", "s"), ("u", "b", "s"), ("ua", "", "s"))}
    assert len(names) == 3


def test_archives_that_nobody_removed_are_remembered(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "archives")
    assert notes.left_behind() == []
    for name in ("a", "b", "c"):
        notes.add(f"/scratch/me/{name}.tgz")
    notes.remove("/scratch/me/a.tgz")
    old = (tmp_path / "archives" / "b.tgz").stat().st_mtime - LEFT_BEHIND - 1
    os.utime(tmp_path / "archives" / "b.tgz", (old, old))
    assert notes.left_behind() == ["/scratch/me/b.tgz"]
