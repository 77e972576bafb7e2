"""FirecREST's version as it announces itself."""

from __future__ import annotations

import re

NEWEST = (9999,)


def parse_version(text: str | None) -> tuple[int, ...]:
    """`2.5.7` to (2, 5, 7). Source builds (`2.x.x`) and what has not been heard yet count as the newest."""
    if text is None or not (found := re.match(r"v?(\d+(?:\.\d+)*)", text)) or "x" in text:
        return NEWEST
    return tuple(int(part) for part in found.group(1).split("."))
