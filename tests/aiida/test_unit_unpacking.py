"""Archives from the system are unpacked here, in the directory that is meant and nowhere else."""

from __future__ import annotations

import io
import stat
import tarfile
from pathlib import Path

import pytest

from hpcbridge_aiida.unpacking import unpack


def packed(*members: tuple[str, bytes, str | bytes, int]) -> bytes:
    """An archive of (name, type, content or target, mode)."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, kind, what, mode in members:
            member = tarfile.TarInfo(name)
            member.type, member.mode = kind, mode
            if isinstance(what, str):
                member.linkname = what
                archive.addfile(member)
            else:
                member.size = len(what)
                archive.addfile(member, io.BytesIO(what))
    return data.getvalue()


def test_files_directories_and_links(tmp_path: Path) -> None:
    data = packed(
        ("d", tarfile.DIRTYPE, "", 0o755),
        ("d/in", tarfile.DIRTYPE, "", 0o500),
        ("d/in/file", tarfile.REGTYPE, b"text", 0o4666),
        ("d/hard", tarfile.LNKTYPE, "d/in/file", 0o644),
        ("d/soft", tarfile.SYMTYPE, "/anywhere", 0o777),
        ("d/pipe", tarfile.FIFOTYPE, "", 0o644),
    )
    unpack(data, tmp_path, "d")
    assert (tmp_path / "in/file").read_bytes() == (tmp_path / "hard").read_bytes() == b"text"
    assert stat.S_IMODE((tmp_path / "in/file").stat().st_mode) == 0o644  # no setuid, nobody else writes
    assert stat.S_IMODE((tmp_path / "in").stat().st_mode) == 0o700  # it can be removed
    assert (tmp_path / "soft").readlink() == Path("/anywhere")
    assert not (tmp_path / "pipe").exists()


@pytest.mark.parametrize(
    "members",
    [
        [("other/file", tarfile.REGTYPE, b"x", 0o644)],
        [("d/../../file", tarfile.REGTYPE, b"x", 0o644)],
        [("d//tmp/file", tarfile.REGTYPE, b"x", 0o644)],
        [("d/soft", tarfile.SYMTYPE, "..", 0o777), ("d/soft/file", tarfile.REGTYPE, b"x", 0o644)],
        [("d/soft", tarfile.SYMTYPE, "..", 0o777), ("d/soft/file", tarfile.SYMTYPE, "x", 0o777)],
        [("d/hard", tarfile.LNKTYPE, "../secret", 0o644)],
        [("d/hard", tarfile.LNKTYPE, "d/../../secret", 0o644)],
        [("d/soft", tarfile.SYMTYPE, "..", 0o777), ("d/hard", tarfile.LNKTYPE, "d/soft/secret", 0o644)],
    ],
    ids=["elsewhere", "up", "absolute", "through a link", "link through a link", "hard", "hard and up", "hard through"],
)
def test_what_would_lead_out_is_refused(tmp_path: Path, members: list[tuple[str, bytes, str | bytes, int]]) -> None:
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "here").mkdir()
    with pytest.raises(OSError, match="the archive"):
        unpack(packed(*members), tmp_path / "here", "d")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "secret"]
    assert not any(path.is_file() for path in (tmp_path / "here").iterdir() if not path.is_symlink())
