"""What copying or synchronizing a tree hands back."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from hpcbridge.staging.trees.entries import Kind, Skipped


class Action(StrEnum):
    """What happens to one entry of the target."""

    COPY = "copy"
    """It is brought there, new or in place of what is there."""
    MOVE = "move"
    """Its content is there already, at another path."""
    CHANGE = "change"
    """Its mode or time is set; the content stays."""
    DELETE = "delete"
    """It is removed."""


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the target that is changed, or (with `dry_run`) would be; `size` is in bytes."""

    path: bytes
    action: Action
    kind: Kind
    size: int = 0


@dataclass(frozen=True, slots=True)
class TreeResult:
    """What was done to a tree.

    Attributes:
        route: how the archive travelled; None when nothing had to.
        bytes: of the archive that was sent or received (compressed, where it was); with `dry_run`, of the content that
            would be.
        files, directories, links: entries brought to the target.
        seconds: it took.
        skipped: what was left out, or did not hold still, and why; paths are relative to the tree.
        deleted: entries removed from the target.
        unchanged: entries that were the same on both sides.
        changes: what was (or would be) done to each entry; filled by `dry_run` and by synchronizing.
        sha256: hex digest of the archive that both sides agree on, None when only the size was compared.
    """

    route: str | None
    bytes: int
    files: int
    directories: int
    links: int
    seconds: float
    skipped: list[Skipped] = field(default_factory=list)
    deleted: int = 0
    unchanged: int = 0
    changes: list[Change] = field(default_factory=list)
    sha256: str | None = None
