"""Archives that the system has packed, unpacked here: nothing is written outside of the directory that is meant."""

from __future__ import annotations

import logging
import posixpath
import tarfile
from io import BytesIO
from pathlib import Path, PurePosixPath

log = logging.getLogger(__name__)


def contents(data: bytes) -> dict[str, bytes]:
    """What the files in an archive hold, by name."""
    found = {}
    with tarfile.open(fileobj=BytesIO(data), mode="r:gz") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            if file is not None:
                found[posixpath.normpath(member.name)] = file.read()
    return found


def unpack(data: bytes, local: Path, name: str) -> None:
    """What is in the archive's only directory `name` into `local`. Raises OSError for what would lead out of it."""
    with tarfile.open(fileobj=BytesIO(data), mode="r:gz") as archive:
        _extract(archive, local, name)


def unpack_file(path: Path, local: Path, name: str) -> None:
    """The same, of an archive that is a file."""
    with tarfile.open(path, mode="r:gz") as archive:
        _extract(archive, local, name)


def _extract(archive: tarfile.TarFile, local: Path, name: str) -> None:
    # Python's own filters came with 3.11.4, which Debian 12 is older than; the checks are ours.
    archive.extraction_filter = _unfiltered
    for member in archive:
        if member.name == name:
            continue
        member.name = _within(member.name, name)
        _refuse_through_links(local, member.name)
        if member.issym():
            _link(local / member.name, member.linkname)
            continue
        if member.islnk():
            member.linkname = _within(member.linkname, name)
            _refuse_through_links(local, member.linkname)
        elif not (member.isreg() or member.isdir()):
            log.warning("%s is neither a file nor a directory nor a link, and is left out", local / member.name)
            continue
        # Neither setuid nor others' writing comes along; what is retrieved can be read and removed.
        member.mode = member.mode & 0o755 | (0o700 if member.isdir() else 0o600)
        archive.extract(member, local)


def _unfiltered(member: tarfile.TarInfo, _path: str) -> tarfile.TarInfo:
    return member


def _within(member: str, name: str) -> str:
    """The path below the directory `name`; raises OSError for what is not below it."""
    below = member.removeprefix(f"{name}/")
    if below == member or below.startswith("/") or ".." in PurePosixPath(below).parts:
        raise OSError(f"the archive holds {member!r}, which is not in {name!r}")
    return below


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _refuse_through_links(local: Path, name: str) -> None:
    for parent in list(Path(name).parents)[:-1]:
        if (local / parent).is_symlink():
            raise OSError(f"the archive would write through the link {parent}")
