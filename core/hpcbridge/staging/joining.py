"""The job that turns staged pieces into the file: its script, and what it answers.

The script is plain bash and coreutils. Paths travel as base64, so no character of a name is ever seen by a shell. It
answers in a one-line file beside the pieces, because a job's state cannot say *why* the file was not published, and
because the file can be read seconds before the accounting knows of the job's end.
"""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass
from enum import StrEnum

from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.plan import PIECE_NAME_DIGITS

STAGE_PREFIX = ".hpcbridge-put-"
STALE_MINUTES = 7 * 24 * 60
"""Age after which the next joining job beside it removes the staging directory of an upload that nobody resumed."""

OVERTAKE = r"""overtake() {   # uploads to this target that have rested since before "$1": their jobs come too late
  local other
  [[ $stage =~ ^(.*/@PREFIX@[a-z2-7]{16})-[a-z2-7]{16}$ ]] || return 0
  for other in "${BASH_REMATCH[1]}"-????????????????; do
    [ "$other" = "$stage" ] || [ ! -d "$other" ] || [ ! "$other" -ot "$1" ] || rm -rf -- "$other"
  done
}"""
"""Part of a publishing job: a job that waited in the queue must not put an old state over a newer one.

Its directory goes, and without that it does nothing. `$1` is the first piece.
"""

_SCRIPT = r"""#!/bin/bash
# hpcbridge: joins @COUNT@ pieces into one file, checks it and publishes it by rename.
set -u -o pipefail
export LC_ALL=C
unpack() { printf %s "$1" | base64 -d; }
stage=$(unpack @STAGE@)
directory=$(unpack @DIRECTORY@)
name=$(unpack @NAME@; printf x); name=${name%x}
count=@COUNT@ size=@SIZE@ want=@SHA256@
pieces=@SESSION@. answer=@ANSWER@ joined=@SESSION@.joined errors=@SESSION@.errors

answer() { printf '%s\n' "$*" >"$answer.new" && mv -f -- "$answer.new" "$answer"; }
# The pieces stay until the client removes them: should it be killed before, the next one need not send them again.
finish() {   # the answer comes last: whoever reads it may remove this directory
  find "$directory/" -maxdepth 1 -type d -name '@PREFIX@*' -user "$(id -u)" -mmin +@STALE@ -exec rm -rf {} + 2>/dev/null
  mv -f -- "$answer.done" "$answer"; exit 0
}
fail() { answer "failed $1 $(head -c 300 -- "$errors" 2>/dev/null | tr '\n' ' ')"; exit 1; }
list() { seq -f "$pieces%0@DIGITS@.0f" 0 $((count - 1)); }
@OVERTAKE@

cd -- "$stage" || exit 1
# Requeued after it had published: the pieces may be gone, the outcome stands.
grep -qs '^published ' -- "$answer" && exit 0
[ ! -s "$answer.done" ] || finish
overtake "$(list | head -n 1)"

if [ "$count" -eq 1 ]; then
  only=$(list)
  [ -e "$only" ] && { mv -f -- "$only" "$joined" 2>"$errors" || fail moving; }
  sum=; [ -z "$want" ] || sum=$( { sha256sum <"$joined"; } 2>"$errors") || fail reading
elif [ -n "$want" ]; then
  sum=$( { list | xargs cat -- | tee -- "$joined" | sha256sum; } 2>"$errors") || fail joining
else
  sum=; { list | xargs cat -- >"$joined"; } 2>"$errors" || fail joining
fi
sum=${sum%% *}
found=$(stat -c %s -- "$joined" 2>"$errors") || fail joining
if [ "$found" != "$size" ] || [ "$sum" != "$want" ]; then
  # One piece alone was renamed: give it back its name, so that it can be told from a missing one.
  [ "$count" -ne 1 ] || mv -f -- "$joined" "$only"
  list | xargs sha256sum -- >"$pieces"sums 2>/dev/null
  answer "mismatch $found ${sum:--}"; exit 1
fi

target=$directory/$name
if [ -L "$target" ]; then   # write where the link points, as cp does
  real=$(readlink -fn -- "$target"; printf x); real=${real%x}
  [ -n "$real" ] && target=$real
fi
[ -d "$target" ] && fail directory
[ ! -e "$target" ] || chmod --reference="$target" -- "$joined" 2>/dev/null
hidden=${target%/*}/.hpcbridge-@SESSION@.part
if ! { mv -f -- "$joined" "$hidden" && mv -fT -- "$hidden" "$target"; } 2>"$errors"; then
  rm -f -- "$hidden"; fail publishing
fi
printf 'published %s %s\n' "$size" "${sum:--}" >"$answer.done"
finish
"""


@dataclass(frozen=True, slots=True)
class Join:
    """One joining job: `count` pieces named `<session>.<index>` in `stage` become `target` of `size` bytes.

    `sha256` is the hex digest the whole must have, None when only the size counts. `attempt` tells repeated jobs of one
    session apart, after pieces were sent again.
    """

    stage: str
    session: str
    target: RemotePath
    count: int
    size: int
    sha256: str | None
    attempt: int = 1

    @property
    def answer_name(self) -> str:
        """Name of the file in `stage` that holds the job's answer."""
        return f"{self.session}.answer-{self.attempt}"

    @property
    def sums_name(self) -> str:
        """Name of the file in `stage` with the SHA-256 of every piece; written on a mismatch only."""
        return f"{self.session}.sums"

    def script(self) -> str:
        """The batch script."""
        values = {
            "STAGE": packed(self.stage.encode()),
            "DIRECTORY": packed(self.target.directory.rstrip("/").encode()),
            "NAME": packed(self.target.encoded.rpartition(b"/")[2]),
            "COUNT": str(self.count),
            "SIZE": str(self.size),
            "SHA256": self.sha256 or "",
            "SESSION": self.session,
            "ANSWER": self.answer_name,
            "DIGITS": str(PIECE_NAME_DIGITS),
            "PREFIX": STAGE_PREFIX,
            "STALE": str(STALE_MINUTES),
        }
        return re.sub("@([A-Z0-9]+)@", lambda match: values[match[1]], _SCRIPT.replace("@OVERTAKE@", OVERTAKE))


def packed(value: bytes) -> str:
    """Bytes as a base64 word for a script."""
    # Quoted, so that an empty value stays a word.
    return f"'{b64encode(value).decode()}'"


def piece_name(session: str, index: int) -> str:
    """The name of piece `index` of an upload session."""
    return f"{session}.{index:0{PIECE_NAME_DIGITS}d}"


class Verdict(StrEnum):
    """The first word of the job's answer."""

    PUBLISHED = "published"
    MISMATCH = "mismatch"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the joining job found: bytes and SHA-256 of the whole (None when not computed), or why it failed."""

    verdict: Verdict
    size: int | None = None
    sha256: str | None = None
    reason: str = ""


def parse_answer(text: str) -> Answer:
    """Read the answer file. Raises ValueError for anything the script does not write."""
    word, _, rest = text.strip().partition(" ")
    verdict = Verdict(word)
    if verdict is Verdict.FAILED:
        return Answer(verdict, reason=rest.strip())
    size, digest = rest.split()
    return Answer(verdict, int(size), None if digest == "-" else digest)


def parse_sums(text: str) -> dict[str, str]:
    """Piece name -> SHA-256, from the output of sha256sum over the pieces (whose names are ours, and plain)."""
    rows = (line.split() for line in text.splitlines())
    return {row[1].lstrip("*"): row[0] for row in rows if len(row) == 2}
