"""The job that gets a file ready to be fetched: it measures, hashes and cuts it. Its script, and what it answers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hpcbridge.staging.joining import STALE_MINUTES, packed, piece_name
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.plan import PIECE_NAME_DIGITS

PRIVATE_PREFIX = ".hpcbridge-get-"
"""How the directories begin in which files are cut; the next job removes those that nobody came back to."""

_SCRIPT = r"""#!/bin/bash
# hpcbridge: measures, hashes and cuts one file so that it can be fetched in pieces.
set -u -o pipefail
export LC_ALL=C
unpack() { printf %s "$1" | base64 -d; }
stage=$(unpack @STAGE@)
source=$(unpack @SOURCE@; printf x); source=${source%x}
piece=@PIECE@ hash=@HASH@ answer=@ANSWER@ errors=@SESSION@.errors

answer() { printf '%s\n' "$*" >"$answer.new" && mv -f -- "$answer.new" "$answer"; }
fail() { answer "failed $(head -c 300 -- "$errors" 2>/dev/null | tr '\n' ' ')"; exit 1; }

umask 077
cd -- "$stage" || exit 1
measure() { stat -Lc '%s %Y' -- "$source" 2>"$errors"; }
[ ! -d "$source" ] || { echo 'Is a directory' >"$errors"; fail; }
before=$(measure) || fail
sum=-
[ "$hash" -eq 0 ] || { sum=$( { sha256sum <"$source"; } 2>"$errors") || fail; sum=${sum%% *}; }
[ "$piece" -eq 0 ] || split -b "$piece" -d -a @DIGITS@ -- "$source" @SESSION@. 2>"$errors" || fail
after=$(measure) || fail
[ "$before" = "$after" ] || { echo 'the file changed meanwhile' >"$errors"; fail; }
find "${stage%/*}/" -maxdepth 1 -type d -name '@PREFIX@*' -user "$(id -u)" -mmin +@STALE@ -exec rm -rf {} + 2>/dev/null
answer "prepared $after $sum"
"""


@dataclass(frozen=True, slots=True)
class Prepare:
    """One preparing job: `source` is cut into pieces of `piece` bytes in `stage` (None: not cut), and hashed."""

    stage: str
    session: str
    source: RemotePath
    piece: int | None
    sha256: bool

    @property
    def answer_name(self) -> str:
        """Name of the file in `stage` that holds the job's answer."""
        return f"{self.session}.answer"

    def piece_name(self, index: int) -> str:
        """Name of a piece in `stage`."""
        return piece_name(self.session, index)

    def script(self) -> str:
        """The batch script."""
        values = {
            "STAGE": packed(self.stage.encode()),
            "SOURCE": packed(self.source.encoded),
            "PIECE": str(self.piece or 0),
            "HASH": str(int(self.sha256)),
            "ANSWER": self.answer_name,
            "SESSION": self.session,
            "DIGITS": str(PIECE_NAME_DIGITS),
            "PREFIX": PRIVATE_PREFIX,
            "STALE": str(STALE_MINUTES),
        }
        return re.sub("@([A-Z0-9]+)@", lambda match: values[match[1]], _SCRIPT)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the job found: bytes, modification time (s since 1970), SHA-256; or `reason` when it failed."""

    size: int = 0
    mtime: int = 0
    sha256: str | None = None
    reason: str = ""


def parse_prepared(text: str) -> Prepared:
    """Read the answer file. Raises ValueError for anything the script does not write."""
    word, _, rest = text.strip().partition(" ")
    if word == "failed":
        return Prepared(reason=rest.strip() or "no reason given")
    if word != "prepared":
        raise ValueError(f"not an answer: {text[:80]!r}")
    size, mtime, digest = rest.split()
    return Prepared(int(size), int(mtime), None if digest == "-" else digest)
