"""Opens the site of a rule or of an attempt, with the connections of this one call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import hpcbridge

if TYPE_CHECKING:
    from hpcbridge import System


@asynccontextmanager
async def opened(site: str, system: str) -> AsyncIterator[System]:
    """The system `system` (empty: the site's own) of the site `site` (empty: the environment, or the default)."""
    async with hpcbridge.connect(site or None, adapter="gitlab") as hpc:
        yield hpc.system(system or None)
