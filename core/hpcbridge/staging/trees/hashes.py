"""SHA-256 of local files that need not be read again: one small file per tree in the state directory.

A digest is believed while size, modification time, change time and inode are the same. A file that was written to
within the clock's granularity of its hashing could change again without showing it; git calls such entries racy. They
are not kept, so that the next scan reads the file again. The cache is safe to delete.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

CACHE_FORMAT = 1
"""Version of the file; another one is ignored, and every file is read again."""
RACY_NS = 2_000_000_000
"""Age that a file's times must have: two seconds, the coarsest clock of a file system (FAT)."""
_HEAD = b"hpcbridge hashes %d\n"


class HashCache:
    """Digests of the files of one tree, as far as they are known; use it from one thread."""

    def __init__(self, file: Path) -> None:
        """Load `file`; one that is missing, unreadable, of another format or damaged counts as empty."""
        self.file = file
        self._known: dict[bytes, bytes] = {}
        self._seen: dict[bytes, bytes] = {}
        with suppress(OSError, ValueError):
            self._known = _load(file.read_bytes())

    @classmethod
    def of(cls, root: Path, directory: Path | None = None) -> HashCache:
        """The cache of the tree at `root`; `directory` defaults to `hashes` in the state directory."""
        if directory is None:
            from hpcbridge.jobs.intents import state_directory  # loaded when first used

            directory = state_directory() / "hashes"
        return cls(directory / hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32])

    def get(self, path: bytes, found: os.stat_result) -> str | None:
        """The digest of the file at `path` (relative to the root), None when it must be read."""
        known = self._known.get(path)
        if known is None or not known.startswith(_look(found)):
            return None
        self._seen[path] = known
        return known[-64:].decode("ascii")

    def put(self, path: bytes, found: os.stat_result, sha256: str, now_ns: int) -> None:
        """Keep a digest; `found` is how the file looked before and after it was read, `now_ns` when reading began."""
        if max(found.st_mtime_ns, found.st_ctime_ns) < now_ns - RACY_NS:
            self._seen[path] = _look(found) + sha256.encode()

    def save(self) -> None:
        """Write down what was seen since loading, and forget the rest. A cache that cannot be written is no error."""
        if self._seen == self._known:
            return
        with suppress(OSError):
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd, new = tempfile.mkstemp(prefix=".new-", dir=self.file.parent)
            try:
                with os.fdopen(fd, "wb") as out:
                    out.write(_HEAD % CACHE_FORMAT)
                    out.writelines(b"%s %s\0" % (look, path) for path, look in self._seen.items())
                Path(new).replace(self.file)
            except BaseException:
                Path(new).unlink(missing_ok=True)
                raise


def now_ns() -> int:
    """The time that a file's own times are compared with, in nanoseconds since 1970."""
    return time.time_ns()


def _look(found: os.stat_result) -> bytes:
    return b"%d %d %d %d " % (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def _load(data: bytes) -> dict[bytes, bytes]:
    head, _, records = data.partition(b"\n")
    if head + b"\n" != _HEAD % CACHE_FORMAT:
        raise ValueError("another format")
    known = {}
    for record in records.split(b"\0")[:-1]:
        size, mtime, ctime, inode, digest, path = record.split(b" ", 5)
        if len(bytes.fromhex(digest.decode("ascii"))) != 32:
            raise ValueError("not a SHA-256")
        known[path] = b" ".join((size, mtime, ctime, inode, digest))
    return known
