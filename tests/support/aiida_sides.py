"""One transport of AiiDA, open, with a directory of its own on the other side and a look at it from behind."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_numbers = itertools.count()


@dataclass
class Side:
    """A transport and the two names of its remote directory.

    A transport may hold back what it was told to write until it is read, used or closed: whoever looks from behind
    does it by `there`.

    Attributes:
        plugin: the entry point's name.
        remote: the directory as the transport calls it.
        local: a directory of the test's own on this machine.
        owner: uid of the remote user; None where that is the user who runs the tests.
    """

    plugin: str
    options: Mapping[str, Any]
    remote: str
    local: Path
    _host: Path
    owner: int | None = None
    transport: Any = field(default=None, repr=False)

    def path(self, *parts: str) -> str:
        """A remote path below the test's directory."""
        return "/".join([self.remote, *parts])

    def there(self, *parts: str) -> Path:
        """The same path from behind, after everything was really written."""
        self.transport.close()
        self.transport.open()
        return self._host.joinpath(*parts)

    def another(self) -> Any:
        """A new transport with the same parameters, closed."""
        from aiida.plugins import TransportFactory

        return TransportFactory(self.plugin)(**self.options)

    def write(self, relative: str, text: str = "", *, mode: int = 0o644) -> str:
        """Put a file there from behind; returns its remote path."""
        path = self._host / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        self.give()
        return self.path(relative)

    def give(self) -> None:
        """Everything that was made from behind belongs to the remote user."""
        if self.owner is None:
            return
        for root, directories, files in os.walk(self._host):
            for name in (".", *directories, *files):
                os.chown(Path(root, name), self.owner, self.owner, follow_symlinks=False)

    def fill(self, *files: str) -> None:
        """Files that contain their own names, there; a name that ends with a slash is a directory."""
        fill(self._host, *files)
        self.give()

    def fill_local(self, *files: str) -> Path:
        """The same on this machine; returns the directory."""
        fill(self.local, *files)
        return self.local


def fill(root: Path, *files: str) -> None:
    """Make files that contain their own names below `root`; a name that ends with a slash is a directory."""
    for name in files:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)


def tree(root: Path) -> dict[str, str]:
    """Every entry below `root`: a file's text, "/" for a directory, "-> target" for a link."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = "/" if path.is_dir() else path.read_text()
    return found


@contextmanager
def open_side(
    plugin: str, options: Mapping[str, Any], remote: str, host: Path, local: Path, owner: int | None = None
) -> Iterator[Side]:
    """Open a transport of `plugin` on a new directory below `remote`, which this machine sees as `host`."""
    name = f"side-{os.getpid()}-{next(_numbers)}"
    side = Side(plugin, options, f"{remote}/{name}", local, host / name, owner)
    side._host.mkdir()
    side.give()
    side.transport = side.another()
    side.transport.open()
    try:
        yield side
    finally:
        if side.transport.is_open:
            side.transport.close()
