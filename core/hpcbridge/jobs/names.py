"""Job names that make a submit findable: `<label>.hb1<16 base32 characters>`.

The second part is a digest of (site, system, user, work directory, key), so the same submit has the same name from any
process. The mark `hb1` lets operators find our jobs. Limits: Slurm keeps 255 characters, FirecREST's name filter takes
235 and splits at commas, and a `|` breaks every listing of the user.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re

from hpcbridge.errors import InvalidName

MARK = "hb1"
"""Mark and version of the naming scheme."""

LABEL_MAX = 40
"""Characters of a label."""

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*", re.ASCII)
_OURS = re.compile(rf"(?P<label>[A-Za-z][A-Za-z0-9_.-]*)\.{MARK}(?P<digest>[a-z2-7]{{16}})", re.ASCII)


def check_label(label: str) -> str:
    """The label itself, or InvalidName that states the rule."""
    if len(label) > LABEL_MAX or not _LABEL.fullmatch(label):
        shown = label if len(label) <= 2 * LABEL_MAX else label[: 2 * LABEL_MAX] + "…"
        raise InvalidName(
            f"A job name must match [A-Za-z][A-Za-z0-9_.-]* and have at most {LABEL_MAX} characters, not {shown!r}",
            hint="Commas, spaces, quotes and | would break the scheduler's listings",
        )
    return label


def digest(site: str, system: str, user: str, workdir: str, key: str) -> str:
    """16 lower-case base32 characters of SHA-256 over the five, as unambiguous JSON.

    The server takes the names of systems in any case: `Daint` is `daint`.
    """
    parts = [site, system.lower(), user, normal_directory(workdir), key]
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return base64.b32encode(hashlib.sha256(text.encode()).digest()[:10]).decode().lower()


def job_name(label: str, *, site: str, system: str, user: str, workdir: str, key: str) -> str:
    """The name of the job that `key` stands for. Raises InvalidName."""
    return f"{check_label(label)}.{MARK}{digest(site, system, user, workdir, key)}"


def label_of(name: str) -> str | None:
    """The label in a name that we gave, None for any other name."""
    match = _OURS.fullmatch(name)
    return match["label"] if match else None


def is_ours(name: str) -> bool:
    """Whether the name is one of `job_name`'s."""
    return _OURS.fullmatch(name) is not None


def normal_directory(path: str) -> str:
    """A path without `.` and trailing or doubled slashes, for comparison; symbolic links are not looked at."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "/" + "/".join(parts)
