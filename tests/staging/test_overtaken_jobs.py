"""A publishing job that waited in the queue while a newer upload to the same target was published comes too late."""

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from hpcbridge.staging.joining import Join, piece_name
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.pieces import stage_directory
from hpcbridge.staging.trees.unpacking import Unpack

SESSION = "0badcafe"


class Cluster:
    """One directory in which uploads rest, and their jobs run when the test says so."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root, self.kind = root, kind

    def staged(self, content: str, age: float = 0.0, name: str = "out") -> Join | Unpack:
        """An upload of which everything has arrived, `age` seconds ago; the job is not begun."""
        target = RemotePath(str(self.root), name)
        stage = Path(stage_directory(target, content, 100))
        stage.mkdir()
        piece = stage / piece_name(SESSION, 0)
        if self.kind == "file":
            piece.write_text(content)
        else:
            (self.root / "data").write_text(content)
            with tarfile.open(piece, "w") as archive:
                archive.add(self.root / "data", "data")
        size = piece.stat().st_size
        for path in (piece, stage):
            os.utime(path, (path.stat().st_mtime - age,) * 2)
        if self.kind == "file":
            return Join(str(stage), SESSION, target, 1, size, None)
        return Unpack(str(stage), SESSION, target, 1, size, None)

    def run(self, job: Join | Unpack) -> int:
        return subprocess.run(["bash", "-s"], input=job.script().encode(), cwd=self.root, check=False).returncode

    @property
    def content(self) -> str:
        return (self.root / "out" if self.kind == "file" else self.root / "out" / "data").read_text()


@pytest.fixture(params=["file", "tree"])
def cluster(request, tmp_path) -> Cluster:
    return Cluster(tmp_path, request.param)


def test_a_job_of_an_older_upload_does_nothing(cluster):
    old, new = cluster.staged("old", age=60), cluster.staged("new")
    assert cluster.run(new) == 0
    assert cluster.run(old) != 0
    assert cluster.content == "new"


def test_a_requeued_job_of_the_newer_upload_is_not_disturbed(cluster):
    old, new = cluster.staged("old", age=60), cluster.staged("new")
    assert [cluster.run(new), cluster.run(new), cluster.run(old) != 0] == [0, 0, True]
    assert cluster.content == "new"


def test_uploads_in_their_order_replace_each_other(cluster):
    assert cluster.run(cluster.staged("old", age=60)) == 0
    assert cluster.run(cluster.staged("new")) == 0
    assert cluster.content == "new"


def test_uploads_to_other_targets_and_newer_ones_stay(cluster):
    other, newer = cluster.staged("else", age=60, name="other"), cluster.staged("newer")
    assert cluster.run(cluster.staged("middle", age=30)) == 0
    assert cluster.content == "middle"
    assert [cluster.run(newer), cluster.run(other)] == [0, 0]
    assert cluster.content == "newer"
