"""What the controls take as faults: names with numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def as_numbers(rules: Mapping[str, Any], known: Collection[str], what: str) -> dict[str, float]:
    """Return *rules* as they are when all is well; *what* is the kind of fault, for the message.

    Raises:
        ValueError: a name that is not *known*, or a value that is not a number of zero or more.
    """
    unknown = sorted(set(rules) - set(known))
    if unknown:
        raise ValueError(f"unknown {what} {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    for name, value in rules.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ValueError(f"{what} {name} wants a number of zero or more")
    return dict(rules)
