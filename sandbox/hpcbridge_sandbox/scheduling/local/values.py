"""The values inside Slurm's options: times, array indices, signals, node counts, file name patterns; no I/O."""

from __future__ import annotations

import re
import signal as signals
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

MAX_ARRAY_SIZE = 1001
"""Slurm's default MaxArraySize: the highest index is one less."""

_SHOWN_INDICES = 64
"""Characters of pending indices that Slurm shows before it cuts the list."""


@dataclass(frozen=True)
class ArraySpec:
    """``--array``: the indices in order, and how many may run at once (0: any)."""

    indices: tuple[int, ...]
    limit: int = 0


@dataclass(frozen=True)
class SignalSpec:
    """``--signal``: the number, the seconds before the limit, and whether the batch shell gets it (``B:``)."""

    number: int
    seconds: int = 60
    batch: bool = False


_TIME = (
    (re.compile(r"(?P<m>\d+)"), "m"),
    (re.compile(r"(?P<m>\d+):(?P<s>\d+)"), "ms"),
    (re.compile(r"(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)"), "hms"),
    (re.compile(r"(?P<d>\d+)-(?P<h>\d+)"), "dh"),
    (re.compile(r"(?P<d>\d+)-(?P<h>\d+):(?P<m>\d+)"), "dhm"),
    (re.compile(r"(?P<d>\d+)-(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)"), "dhms"),
)
_UNIT = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse_time(text: str) -> int | None:
    """Return the seconds of a Slurm time (``5``, ``5:30``, ``1-02:00:00``); None for no limit. Raises ValueError."""
    if text.upper() in ("INFINITE", "UNLIMITED", "-1", "0"):
        return None
    for pattern, units in _TIME:
        match = pattern.fullmatch(text)
        if match:
            return sum(int(match[unit]) * _UNIT[unit] for unit in units)
    raise ValueError("Invalid --time specification")


def parse_array(text: str) -> ArraySpec:
    """Return the indices of ``0-2``, ``1,3,5-9:2%4``. Raises ValueError."""
    body, percent, limit = text.partition("%")
    if percent and not re.fullmatch(r"\d+", limit):
        raise ValueError(text)
    indices: set[int] = set()
    for part in body.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if not match:
            raise ValueError(text)
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        if last < first or step < 1 or last >= MAX_ARRAY_SIZE:
            raise ValueError(text)
        indices.update(range(first, last + 1, step))
    return ArraySpec(tuple(sorted(indices)), int(limit) if percent else 0)


def array_label(array_job_id: int, pending: Sequence[int], limit: int) -> str:
    """Return the id under which Slurm shows tasks that wait: ``144_[2-4%2]``."""
    runs: list[str] = []
    start = previous = None
    for index in [*pending, None]:
        if previous is not None and index == previous + 1:
            previous = index
            continue
        if previous is not None:
            runs.append(str(start) if start == previous else f"{start}-{previous}")
        start = previous = index
    text = ",".join(runs)
    if len(text) > _SHOWN_INDICES:
        text = f"{text[:_SHOWN_INDICES].rsplit(',', 1)[0]},..."
    return f"{array_job_id}_[{text}%{limit}]" if limit else f"{array_job_id}_[{text}]"


def signal_number(text: str) -> int:
    """Return the number of ``USR1``, ``SIGUSR1`` or ``10``. Raises ValueError."""
    if re.fullmatch(r"\d+", text):
        return int(text)
    name = text.upper()
    try:
        return int(signals.Signals[name if name.startswith("SIG") else f"SIG{name}"])
    except KeyError as error:
        raise ValueError("Invalid --signal specification") from error


def parse_signal(text: str) -> SignalSpec:
    """Return what ``B:USR1@30`` asks for; the default is 60 s before the limit. Raises ValueError."""
    match = re.fullmatch(r"(?:([RB]+):)?([A-Za-z0-9]+)(?:@(\d+))?", text)
    if not match:
        raise ValueError("Invalid --signal specification")
    return SignalSpec(signal_number(match[2]), int(match[3] or 60), "B" in (match[1] or ""))


def parse_nodes(text: str) -> int:
    """Return the least number of nodes of ``2`` or ``2-4``. Raises ValueError."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if not match or int(match[1]) < 1 or (match[2] and int(match[2]) < int(match[1])):
        raise ValueError(f'"{text}" is not a valid node count')
    return int(match[1])


_BEGIN_UNIT = {"": 1, "second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}


def parse_begin(text: str, now: float) -> float:
    """Return the Unix time of ``now+60``, ``now+1hour`` or an ISO time. Raises ValueError."""
    match = re.fullmatch(r"now(?:\+(\d+)([a-z]*?)s?)?", text)
    if match:
        if match[2] is not None and match[2] not in _BEGIN_UNIT:
            raise ValueError("Invalid --begin specification")
        return now + int(match[1] or 0) * _BEGIN_UNIT[match[2] or ""]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise ValueError("Invalid --begin specification") from error


def expand_pattern(pattern: str, values: Mapping[str, str]) -> str:
    """Return a file name with sbatch's ``%`` patterns replaced.

    `values` maps a letter to its text; ``%4j`` pads a number with zeros, ``%%`` is a percent sign, an unknown letter
    stays as it is, and a backslash anywhere switches every replacement off.
    """
    if "\\" in pattern:
        return pattern.replace("\\", "")

    def replace(match: re.Match[str]) -> str:
        width, letter = match[1], match[2]
        if letter == "%":
            return "%"
        value = values.get(letter)
        if value is None:
            return match[0]
        return value.zfill(min(int(width), 10)) if width and value.isdigit() else value

    return re.sub(r"%(\d*)([A-Za-z%])", replace, pattern)


def export_values(assignments: Sequence[str]) -> dict[str, str]:
    """Return the environment of ``--export=ALL,K=V,…``: commas cut values, and a bare name exports what is there.

    A cut-off piece ``y=z`` becomes a variable of its own, as on a real server (``E=x,y=z`` -> ``E=x`` and ``y=z``).
    """
    values = {}
    for piece in ",".join(assignments).split(","):
        name, equals, value = piece.partition("=")
        if equals and name:
            values[name] = value
    return values


def unix_now() -> float:
    """Return the Unix time in seconds."""
    return time.time()
