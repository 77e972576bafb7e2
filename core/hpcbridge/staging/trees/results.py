"""What the transfer of a tree hands back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hpcbridge.staging.progress import TransferResult
from hpcbridge.staging.trees.entries import Skipped


class Action(StrEnum):
    """What happens to one path of the target."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Change:
    """One path (bytes, relative to the tree's root) that is, or in a dry run would be, written or removed.

    `kind` is "file", "directory" or "link"; `size` is that of a file, in bytes.
    """

    action: Action
    path: bytes
    kind: str = "file"
    size: int = 0


NOTHING_SENT = "none"
"""The route of a tree that needed no transfer."""


@dataclass(frozen=True, slots=True)
class TreeResult(TransferResult):
    """What the transfer of a tree did: `bytes` is what travelled (the archive), `route` is "none" where nothing had to.

    `files`, `directories` and `links` were written, `unchanged` paths were left alone, and `deleted` ones removed.
    `skipped` paths were left out, each with the reason. `changes` lists them path by path after a dry run (nothing was
    sent), and where a sync knows them.
    """

    files: int = 0
    directories: int = 0
    links: int = 0
    skipped: tuple[Skipped, ...] = ()
    deleted: int = 0
    unchanged: int = 0
    changes: tuple[Change, ...] = ()
