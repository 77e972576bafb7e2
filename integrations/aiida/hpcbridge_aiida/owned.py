"""What is in a directory that we have made ourselves: known without asking, because nobody else writes there yet."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """What a path is. LINK is a link that was not followed, OPAQUE a directory whose content was not looked at."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    OPAQUE = "opaque"
    ABSENT = "absent"
    UNKNOWN = "unknown"

    @property
    def is_directory(self) -> bool:
        """Whether it certainly is a directory."""
        return self in (Kind.DIRECTORY, Kind.OPAQUE)


@dataclass(slots=True)
class OwnedTree:
    """The tree below `root`, by absolute path."""

    root: str
    kinds: dict[str, Kind] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """The root is there."""
        self.kinds.setdefault(self.root, Kind.DIRECTORY)

    def kind(self, path: str) -> Kind:
        """What `path` (within the root) is; UNKNOWN below links and directories that were not looked at."""
        found = self.kinds.get(path)
        if found is not None:
            return found
        above = posixpath.dirname(path)
        while above not in self.kinds:
            above = posixpath.dirname(above)
        return Kind.UNKNOWN if self.kinds[above] in (Kind.LINK, Kind.OPAQUE) else Kind.ABSENT

    def add(self, path: str, kind: Kind) -> None:
        """Something has been made (or planned) at `path`."""
        self.kinds[path] = kind

    def missing_above(self, path: str) -> list[str]:
        """Directories that have to be made before `path` can be, outermost first."""
        missing: list[str] = []
        if path == self.root:
            return missing
        above = posixpath.dirname(path)
        while above not in self.kinds:
            missing.append(above)
            above = posixpath.dirname(above)
        return missing[::-1]
