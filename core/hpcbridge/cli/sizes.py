"""Sizes as coreutils read and write them: `10M` and `10MiB` are powers of 1024, `10MB` of 1000."""

from __future__ import annotations

import math
import re

from hpcbridge.cli.context import usage_error

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgtp])(ib|b)?|b)?", re.IGNORECASE)
_UNITS = " KMGTP"


def parse_size(text: str | None, argument: str) -> int | None:
    """Bytes; None stays None. What is no size is an error of usage."""
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise usage_error(f"{text!r} is not a size: write 1500, 10M, 2GB or 512MiB", argument)
    if match[2] is None:
        return int(float(match[1]))
    step = 1000 if (match[3] or "").lower() == "b" else 1024
    return int(float(match[1]) * step ** _UNITS.index(match[2].upper()))


def human(count: int) -> str:
    """Bytes as `du -h` writes them, rounded up: `0`, `512`, `5.2K`, `12M`."""
    value, power = float(count), 0
    while math.ceil(value) >= 1024 and power < len(_UNITS) - 1:
        value /= 1024
        power += 1
    if power == 0:
        return str(count)
    tenths = math.ceil(value * 10)
    return f"{tenths / 10:.1f}{_UNITS[power]}" if tenths < 100 else f"{math.ceil(value)}{_UNITS[power]}"
