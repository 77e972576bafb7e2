"""Answers recorded from a real FirecREST v2 server, and what it means to answer like it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "sandbox" / "data"
ANSWERS: dict[str, dict[str, Any]] = json.loads((DATA / "answers.json").read_text())

USER, OTHER = "fireuser", "firesrv"
_BASE = re.compile(r"/home/fireuser/rec2?-\d+")
_ELIDED = re.compile(r"\.\.\. \d+ more")
_MAPS = {".healthcheckRuns"}
"""Objects whose keys are names of systems, not fields."""
_HEADERS = {"content-type", "f7t-appversion", "f7t-authusername", "www-authenticate", "auth-token", "allow", "location"}


def at(value: Any, base: str) -> Any:
    """Return *value* with the recorded working directory replaced by *base*, in every string inside."""
    if isinstance(value, str):
        return _BASE.sub(base, value).replace("<outside>", "/tmp")
    if isinstance(value, list):
        return [at(item, base) for item in value]
    if isinstance(value, dict):
        return {key: at(item, base) for key, item in value.items()}
    return value


def differences(recorded: Any, ours: Any, path: str = "") -> list[str]:
    """Say how the shapes of two JSON values differ: keys, types, and the first element of lists.

    Null may stand for a value on either side. The recorder cut long lists short with a note in words.
    """
    if recorded is None or ours is None:
        return []
    if path in _MAPS:
        recorded, ours = list(recorded.values()), list(ours.values())
    if isinstance(recorded, dict) and isinstance(ours, dict):
        found = [f"{path}.{key} is missing" for key in recorded if key not in ours]
        found += [f"{path}.{key} was never recorded" for key in ours if key not in recorded]
        return found + [
            line for key in recorded.keys() & ours for line in differences(recorded[key], ours[key], f"{path}.{key}")
        ]
    if isinstance(recorded, list) and isinstance(ours, list):
        kept = [item for item in recorded if not (isinstance(item, str) and _ELIDED.fullmatch(item))]
        if kept and not ours:
            return [f"{path} is empty"]
        return differences(kept[0], ours[0], f"{path}[0]") if kept else []
    if _kind(recorded) is not _kind(ours):
        return [f"{path} is {ours!r}, recorded {recorded!r}"]
    return []


def _kind(value: Any) -> type:
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def header_differences(recorded: dict[str, str], ours: dict[str, str]) -> list[str]:
    """Say which of the server's own headers are missing or were never recorded."""
    theirs, have = recorded.keys() & _HEADERS, {name.lower() for name in ours} & _HEADERS
    return [f"header {name}: recorded {name in theirs}, ours {name in have}" for name in sorted(theirs ^ have)]


def message_of(body: Any) -> str | None:
    """Return the words of an error, without the place in the server's source code."""
    if not isinstance(body, dict) or "message" not in body:
        return None
    return str(body["message"]).split("\n\n  file ")[0]
