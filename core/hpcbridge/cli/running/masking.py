"""Secrets in a stream of bytes: replaced by stars, also where a secret comes in two pieces."""

from __future__ import annotations

import re
from collections.abc import Iterable

STARS = b"***"
SHORTEST = 4
"""Characters: hiding every "1" would destroy a log and hide nothing."""


def lines_of(value: str) -> list[str]:
    """The parts of a secret that are looked for: each of its lines that is long enough, as CI services do it."""
    return [line for line in (part.strip() for part in value.splitlines()) if len(line) >= SHORTEST]


class Masker:
    """Replaces secrets in a stream that comes in pieces; without secrets it changes and delays nothing."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        values = {line.encode("utf-8", "surrogateescape") for secret in secrets for line in lines_of(secret)}
        self._values = sorted(values, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._values))) if values else None
        self._kept = b""

    def fresh(self) -> Masker:
        """One for another stream, which hides the same."""
        made = Masker()
        made._values, made._pattern = self._values, self._pattern
        return made

    def feed(self, data: bytes) -> bytes:
        """What can be shown now; an end that may begin a secret is kept back."""
        if self._pattern is None:
            return data
        data = self._kept + data
        cut = self._possible_start(data)
        for match in self._pattern.finditer(data):
            if match.start() < cut < match.end():
                cut = match.end()
        self._kept = data[cut:]
        return self._pattern.sub(STARS, data[:cut])

    def end(self) -> bytes:
        """What was kept back and is no secret."""
        data, self._kept = self._kept, b""
        return self._pattern.sub(STARS, data) if self._pattern is not None else data

    def _possible_start(self, data: bytes) -> int:
        """The first index from which on the rest of `data` is the beginning of a secret, or the end of `data`."""
        longest = len(self._values[0]) - 1
        for index in range(max(0, len(data) - longest), len(data)):
            rest = data[index:]
            if any(len(rest) < len(value) and value.startswith(rest) for value in self._values):
                return index
        return len(data)

    def text(self, text: str) -> str:
        """A whole text."""
        if self._pattern is None:
            return text
        data = self._pattern.sub(STARS, text.encode("utf-8", "surrogateescape"))
        return data.decode("utf-8", "surrogateescape")
