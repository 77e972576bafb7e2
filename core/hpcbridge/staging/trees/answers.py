"""What the jobs of a sync say: one line, whose first word is the verdict."""

from __future__ import annotations

import gzip
from base64 import b64decode
from dataclasses import dataclass
from enum import StrEnum

from hpcbridge.staging.trees.listing import records


class Verdict(StrEnum):
    """The first word of the job's answer."""

    APPLIED = "applied"
    """The tree is as wanted."""
    DRY = "dry"
    """What would change; nothing has."""
    PACKED = "packed"
    """What the client lacks is in an archive."""
    LARGE = "large"
    """More bytes than allowed; `reason` says how many."""
    WANT = "want"
    """Content is missing; nothing has changed."""
    BASE = "base"
    """The manifest that the edits are for is not the one that is kept there: the whole is needed."""
    LATE = "late"
    """A job that was made later, when `reason` says (ns since 1970), has changed the tree; this one has not."""
    DAMAGED = "damaged"
    """The archive is not the one that was sent."""
    BUSY = "busy"
    """Another job works on the tree."""
    CONFLICT = "conflict"
    """Something that nobody may delete is where a file shall be."""
    TARGET = "target"
    """The target is no directory."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Archived:
    """An archive of `size` bytes: `data` itself, or a file called `name` in the state directory.

    `unsteady` are files that changed while they were packed; None when there are too many to tell.
    """

    size: int
    sha256: str
    name: str
    unsteady: tuple[bytes, ...] | None
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the job says: `paths` are those it lacks (or that are in the way), None when there are too many to tell.

    `added`, `changed`, `touched` (mode or time) and `deleted` are paths, empty where there are too many to tell and
    `paths` is None; `deletions` is how many were, or would be, deleted.
    """

    verdict: Verdict
    reason: str = ""
    paths: tuple[bytes, ...] | None = ()
    added: tuple[bytes, ...] = ()
    changed: tuple[bytes, ...] = ()
    touched: tuple[bytes, ...] = ()
    deleted: tuple[bytes, ...] = ()
    deletions: int = 0
    archive: Archived | None = None


def parse_answer(text: str) -> Answer:
    """Read the answer file. Raises ValueError for anything the script does not write."""
    word, _, rest = text.strip().partition(" ")
    verdict = Verdict(word)
    if verdict in (Verdict.WANT, Verdict.CONFLICT):
        return Answer(verdict, paths=_list(rest))
    if verdict in (Verdict.APPLIED, Verdict.DRY):
        deletions, lists = rest.split()
        return _changes(verdict, int(deletions), None if lists == "-" else _opened(lists))
    if verdict is Verdict.PACKED:
        size, digest, name, unsteady, data = rest.split()
        content = None if data == "-" else b64decode(data, validate=True)
        return Answer(verdict, archive=Archived(int(size), digest, name, _list(unsteady), content))
    return Answer(verdict, rest.strip())


def _list(text: str) -> tuple[bytes, ...] | None:
    return None if text == "-" else tuple(records(_opened(text)))


def _opened(text: str) -> bytes:
    return gzip.decompress(b64decode(text, validate=True))


def _changes(verdict: Verdict, deletions: int, data: bytes | None) -> Answer:
    if data is None:
        return Answer(verdict, paths=None, deletions=deletions)
    found: list[list[bytes]] = [[]]
    for record in records(data):
        if record:
            found[-1].append(record)
        else:
            found.append([])
    added, changed, touched, deleted, rest = map(tuple, found)
    if rest:
        raise ValueError("the answer does not end with its fourth list")
    return Answer(verdict, added=added, changed=changed, touched=touched, deleted=deleted, deletions=deletions)
