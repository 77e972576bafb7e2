"""A file or a directory: what `System.put`, `get` and `sync` do with either.

Routes, trees and their jobs are imported when they are needed.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hpcbridge.errors import InvalidRequest, IsDirectory, TooLarge
from hpcbridge.staging.context import TransferSystem
from hpcbridge.staging.files import check_put, get_file, put_file
from hpcbridge.staging.progress import TransferResult

if TYPE_CHECKING:
    from hpcbridge.staging.trees.patterns import Filter
    from hpcbridge.staging.trees.results import TreeResult


@dataclass(frozen=True, slots=True)
class Choice:
    """What of a directory is meant, how many bytes at most (`max_size`), and whether anything is to be done at all."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_file_size: int | None = None
    max_size: int | None = None
    dry_run: bool = False

    @property
    def filter(self) -> Filter | None:
        """The patterns and the size of a file; None where everything is meant. Raises InvalidRequest."""
        if not self.include and not self.exclude and self.max_file_size is None:
            return None
        from hpcbridge.staging.trees.patterns import Filter

        return Filter(self.include, self.exclude, self.max_file_size)

    @property
    def looks_first(self) -> bool:
        """Whether it has to be known what the source is before anything moves."""
        return self.dry_run or self.max_size is not None or self.filter is not None

    def check_file(self, size: int, path: str) -> None:
        """Raise InvalidRequest where a file cannot be meant, TooLarge for one of more than `max_size`."""
        if self.filter is not None:
            hint = "Leave them out, or name a directory"
            raise InvalidRequest(f"{path} is a file: patterns and max_file_size are for directories", hint=hint)
        if self.max_size is not None and size > self.max_size:
            raise TooLarge(f"{path} has {size} bytes, more than {self.max_size}", path=path)


async def put(
    system: TransferSystem, local: Path, remote: str, chosen: Choice, *, atomic: bool, **options: Any
) -> TransferResult | TreeResult:
    """See `hpcbridge.System.put`."""
    if _is_directory(local):
        from hpcbridge.staging.trees.upload import put_tree

        return await put_tree(
            system,
            local,
            remote,
            filter=chosen.filter,
            max_size=chosen.max_size,
            dry_run=chosen.dry_run,
            **options,
        )
    size = local.stat().st_size  # noqa: ASYNC240 (one look)
    chosen.check_file(size, str(local))
    if chosen.dry_run:
        await check_put(system, local, remote)
        return TransferResult(None, size, 0.0)
    return await put_file(system, local, remote, atomic=atomic, **options)


def _is_directory(path: Path) -> bool:
    return path.is_dir()


async def get(
    system: TransferSystem, remote: str, local: Path, chosen: Choice, **options: Any
) -> TransferResult | TreeResult:
    """See `hpcbridge.System.get`."""
    is_file = not remote.endswith("/")
    if is_file and chosen.looks_first:
        found = await system.client.stat(system.name, remote, dereference=True)
        is_file = not stat.S_ISDIR(found.mode)
        if is_file:
            chosen.check_file(found.size, remote)
            if chosen.dry_run:
                return TransferResult(None, found.size, 0.0)
    if is_file:
        try:
            return await get_file(system, remote, local, **options)
        except IsDirectory:
            pass
    from hpcbridge.staging.trees.download import get_tree

    return await get_tree(
        system, remote, local, filter=chosen.filter, max_size=chosen.max_size, dry_run=chosen.dry_run, **options
    )


async def sync(
    system: TransferSystem,
    local: Path,
    remote: str,
    chosen: Choice,
    *,
    direction: Literal["up", "down"],
    **options: Any,
) -> TreeResult:
    """See `hpcbridge.System.sync`. Raises ValueError for another direction."""
    options |= {"filter": chosen.filter, "max_size": chosen.max_size, "dry_run": chosen.dry_run}
    if direction == "up":
        from hpcbridge.staging.trees.sync_up import sync_up

        return await sync_up(system, local, remote, **options)
    if direction == "down":
        from hpcbridge.staging.trees.sync_down import sync_down

        return await sync_down(system, remote, local, **options)
    raise ValueError(f'direction is "up" or "down", not {direction!r}')
