"""The job that gets a tree ready to be fetched: it lists, packs, hashes and cuts it. Its script, and what it answers.

What is packed is decided on records `kind bytes blocks path`, each ended by NUL, directories with a slash at their end;
`tar` is given the paths that are left. A tree that changes meanwhile is packed all the same, and what changed is named.
"""

from __future__ import annotations

import re
from base64 import b64decode
from dataclasses import dataclass

from hpcbridge.staging.joining import STALE_MINUTES, packed, piece_name
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.plan import PIECE_NAME_DIGITS
from hpcbridge.staging.trees.entries import Entry, Kind, Skipped
from hpcbridge.staging.trees.patterns import Filter

STAGE_PREFIX = ".hpcbridge-get-"
NOTES = 64 << 10
"""Bytes of the names of what was left out that an answer holds; the rest is counted."""
_RECORD = b"[a-zA-Z] [0-9]+ [0-9]+ "

_SCRIPT = r"""#!/bin/bash
# hpcbridge: packs a directory into an archive that can be fetched, whole or in pieces.
set -u -o pipefail
export LC_ALL=C
unpack() { printf %s "$1" | base64 -d; }
stage=$(unpack @STAGE@)
source=$(unpack @SOURCE@; printf x); source=${source%x}
piece=@PIECE@ most=@MOST@ limit=@LIMIT@ largest=@LARGEST@ listing=@LISTING@
own=@SESSION@. answer=@ANSWER@ errors=@SESSION@.errors

answer() { printf '%s\n' "$*" >"$answer.new" && mv -f -- "$answer.new" "$answer"; }
why() { head -c 300 -- "$errors" 2>/dev/null | tr '\n' ' '; }
fail() { rm -f -- "$own"[0-9]* "$own"archive; answer "failed $1 $(why)"; exit 1; }
unwritten() { echo 'the list of files could not be written' >"$errors"; fail storing; }
sum() { echo $(($(grep -za '^f ' -- "$own"kept | cut -z -d ' ' -f "$1" | tr '\0' '+')0)); }
count() { grep -zc "^$1" -- "$own"kept; }

umask 077
cd -- "$stage" || exit 1
stage=$PWD
grep -qs '^packed ' -- "$answer" && exit 0
rm -f -- "$own"[0-9]* "$own"archive
find "${stage%/*}/" -maxdepth 1 -type d -name '@PREFIX@*' -user "$(id -u)" -mmin +@STALE@ -exec rm -rf {} + 2>/dev/null
unpack @EXCLUDE@ >"$own"exclude
unpack @INCLUDE@ >"$own"include

[ -d "$source" ] || { stat -L -- "$source" >/dev/null 2>"$errors" && echo 'Not a directory' >"$errors"; fail listing; }
cd -- "$source" 2>"$stage/$errors" || { cd -- "$stage"; fail listing; }
find . -mindepth 1 \( -name .hpcbridge -o -name '.hpcbridge-*' -o -name '.*.hpcbridge-*' \) -prune -o \
  -type d -printf 'd 0 0 %P/\0' -o ${largest:+-type f -size +"$largest"c -printf 'L 0 0 %P\0' -o} \
  -printf '%y %s %b %P\0' 2>"$stage/$errors" >"$stage/$own"all
found=$?
cd -- "$stage" || exit 1
# On a full disk there is no room for complaints either; a list that was cut short must not pass for the tree.
[ "$found" -eq 0 ] || [ -s "$errors" ] || unwritten
# What vanished meanwhile is not missed.
grep -v ': No such file or directory$' <"$errors" >"$own"complaints &&
  mv -f -- "$own"complaints "$errors" && fail listing

cut_short() { [ $? -le 1 ] || unwritten; }
chosen() { grep -zxavEf "$own"exclude -- "$own"all; }
[ -s "$own"exclude ] || chosen() { cat -- "$own"all || return 2; }
if [ -s "$own"include ]; then
  chosen | grep -zxaEf "$own"include >"$own"kept; cut_short
  # The directories that lead there, level by level.
  cut -z -d ' ' -f 4- -- "$own"kept >"$own"level
  while [ -s "$own"level ]; do
    xargs -0 dirname -z -- <"$own"level | sort -zu | grep -zvx '\.' >"$own"parents
    xargs -0 -r printf 'd 0 0 %s/\0' <"$own"parents >>"$own"kept
    mv -f -- "$own"parents "$own"level
  done
  sort -zu -o "$own"kept -- "$own"kept || unwritten
else
  chosen >"$own"kept; cut_short
fi
# Left out, and named: what is no file, directory or link; what is too large.
grep -zav '^[fdl] ' -- "$own"kept | cut -z -d ' ' -f 1,4- >"$own"notes
grep -za '^[fdl] ' -- "$own"kept >"$own"plain; cut_short
mv -f -- "$own"plain "$own"kept
bytes=$(sum 2) space=$(($(sum 3) * 512)) entries=$(grep -zc '' -- "$own"kept)
size=$(((space < bytes ? space : bytes) + 1024 * entries))
[ -z "$limit" ] || [ "$bytes" -le "$limit" ] || { echo "$bytes" >"$errors"; fail large; }
[ "$most" -lt 0 ] || [ "$size" -le "$most" ] || piece=0

compression=
files() { grep -za '^f [1-9]' -- "$own"kept; }
sample() { { files | shuf -zn 16; files | sort -z -t ' ' -k 2,2nr | head -zn 16; } | cut -z -d ' ' -f 4- |
  (cd -- "$source" && xargs -0 -r head -qc 65536 --) 2>/dev/null; }
if [ "$listing" ]; then
  compression=gzip
elif [ "$size" -ge @WORTHWHILE@ ]; then
  sample >"$own"sample
  raw=$(wc -c <"$own"sample) small=$(gzip -1nc <"$own"sample | wc -c)
  [ $((small * 10)) -gt $((raw * 8)) ] || compression=gzip
fi

pack() {
  if [ "$listing" ]; then cat -- "$own"kept; return; fi
  cut -z -d ' ' -f 4- -- "$own"kept | tar -c -f - -C "$source" --format=gnu --sparse --hard-dereference \
    --no-recursion --numeric-owner --owner=0 --group=0 --quoting-style=escape --null --no-unquote -T - 2>"$errors"
}
shrink() { if [ "$compression" ]; then gzip -1nc; else cat; fi; }
cut_up() { if [ "$piece" -gt 0 ]; then split -b "$piece" -d -a @DIGITS@ - "$own"; else cat >"$own"archive; fi; }
: >"$errors"
# Where the disk is full, `tee -p` goes on to the end.
{ { pack; echo $? >"$own"status; } | shrink | tee -p /dev/fd/3 2>/dev/null | sha256sum >"$own"sum; } 3>&1 |
  cut_up 2>"$own"full || { cat -- "$own"full >"$errors"; fail storing; }
changed='file changed as we read it|File shrank by .*'
meanwhile=": ($changed|File removed before we read it|Cannot [a-z]*: No such file or directory)\$"
grep -Ev -e "$meanwhile" -e '^tar: Exiting with failure status' -- "$errors" >"$own"complaints &&
  mv -f -- "$own"complaints "$errors" && fail packing
[ "$(cat -- "$own"status)" -le 2 ] || fail packing
grep -E -e "$meanwhile" -- "$errors" | while read -r line; do printf 'm %s\0' "$line"; done >>"$own"notes

found=0 pieces=0
while read -r length; do found=$((found + length)) pieces=$((pieces + 1)); done < <(
  find . -maxdepth 1 \( -name "$own"'[0-9]*' -o -name "$own"archive \) -printf '%s\n')
read -r digest _ <"$own"sum || fail packing
[ "$piece" -gt 0 ] || pieces=0
noted=$(grep -zc '' -- "$own"notes) notes=$(head -c @NOTES@ -- "$own"notes | base64 -w 0)
answer "packed $found $digest $pieces ${compression:--} $(count f) $(count d) $(count l) $bytes $noted $notes"
"""


@dataclass(frozen=True, slots=True)
class Pack:
    """One packing job: the directory `source` becomes an archive in `stage`.

    It is cut into pieces of `piece` bytes where it seems to have at most `most` bytes (None: always), else left whole.
    More than `limit` bytes of content are refused. `listing` makes a list of what would be packed instead.
    """

    stage: str
    session: str
    source: RemotePath
    filter: Filter
    piece: int
    most: int | None = None
    limit: int | None = None
    listing: bool = False

    WORTHWHILE = 256 << 10
    """Bytes from which on compressing can save a request."""

    @property
    def answer_name(self) -> str:
        """Name of the file in `stage` that holds the job's answer."""
        return f"{self.session}.answer"

    @property
    def archive_name(self) -> str:
        """Name of the file in `stage` that holds the whole archive, where it was not cut."""
        return f"{self.session}.archive"

    def piece_name(self, index: int) -> str:
        """Name of a piece in `stage`."""
        return piece_name(self.session, index)

    def script(self) -> str:
        """The batch script."""
        largest = self.filter.max_file_size
        patterns = self.filter.expressions()
        values = {
            "STAGE": packed(self.stage.encode()),
            "SOURCE": packed(self.source.encoded),
            "PIECE": str(self.piece),
            "MOST": str(-1 if self.most is None else self.most),
            "LIMIT": "" if self.limit is None else str(self.limit),
            "LARGEST": "" if largest is None else str(largest),
            "LISTING": "1" if self.listing else "",
            "EXCLUDE": packed(_records(patterns.exclude)),
            "INCLUDE": packed(_records(patterns.include)),
            "SESSION": self.session,
            "ANSWER": self.answer_name,
            "DIGITS": str(PIECE_NAME_DIGITS),
            "PREFIX": STAGE_PREFIX,
            "STALE": str(STALE_MINUTES),
            "NOTES": str(NOTES),
            "WORTHWHILE": str(self.WORTHWHILE),
        }
        return re.sub("@([A-Z0-9]+)@", lambda match: values[match[1]], _SCRIPT)


def _records(expressions: bytes) -> bytes:
    """Expressions for paths, as expressions for whole records."""
    return b"".join(_RECORD + b"(" + each + b")\n" for each in expressions.split(b"\n") if each)


@dataclass(frozen=True, slots=True)
class Packed:
    """What the job made: `size` bytes with `sha256`, in `pieces` (0: whole), `compression` "" or "gzip".

    `bytes` is the content's; `notes` says what was left out or changed meanwhile, of `noted` such. `reason` when it
    failed.
    """

    size: int = 0
    sha256: str = ""
    pieces: int = 0
    compression: str = ""
    files: int = 0
    directories: int = 0
    links: int = 0
    bytes: int = 0
    noted: int = 0
    notes: tuple[Skipped, ...] = ()
    reason: str = ""


def parse_packed(text: str) -> Packed:
    """Read the answer file. Raises ValueError for anything the script does not write."""
    word, _, rest = text.strip().partition(" ")
    if word == "failed":
        return Packed(reason=rest.strip() or "no reason given")
    if word != "packed":
        raise ValueError(f"not an answer: {text[:80]!r}")
    size, digest, pieces, compression, *counts = rest.split()
    notes = _notes(b64decode(counts.pop())) if len(counts) == 6 else ()
    files, directories, links, content, noted = map(int, counts)
    compression = compression.strip("-")
    return Packed(int(size), digest, int(pieces), compression, files, directories, links, content, noted, tuple(notes))


_WHY = {
    b"s": "a socket",
    b"p": "a named pipe",
    b"b": "a block device",
    b"c": "a character device",
    b"D": "a door",
    b"L": "larger than the limit",
}


def _notes(data: bytes) -> list[Skipped]:
    # The last one may have been cut.
    whole = data.split(b"\0")[:-1]
    return [
        _meanwhile(rest) if kind == b"m" else Skipped(rest, _WHY.get(kind, "not a file, directory or link"))
        for kind, _, rest in (record.partition(b" ") for record in whole)
    ]


def _meanwhile(line: bytes) -> Skipped:
    """What tar said of a file that did not hold still."""
    path, _, said = line.removeprefix(b"tar: ").rpartition(b": ")
    if path.endswith((b": Cannot stat", b": Cannot open")):
        path = path.rpartition(b": ")[0]
    gone = b"changed" not in said and b"shrank" not in said
    why = (
        "removed while it was being packed" if gone else "changed while it was being packed; what arrived is a mixture"
    )
    return Skipped(_unescaped(path), why)


_ESCAPE = re.compile(rb"\\([0-7]{3}|.)", re.DOTALL)
_LETTERS = {b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}


def _unescaped(name: bytes) -> bytes:
    """A name as tar's `--quoting-style=escape` writes it."""

    def one(match: re.Match[bytes]) -> bytes:
        code = match[1]
        return bytes([int(code, 8) & 0xFF]) if len(code) == 3 else _LETTERS.get(code, code)

    return _ESCAPE.sub(one, name)


def parse_listing(data: bytes) -> list[Entry]:
    """The entries of a listing, with kind, path and size (bytes) only."""
    kinds = {kind.value[0].encode(): kind for kind in Kind}
    records = (record.split(b" ", 3) for record in data.split(b"\0") if record)
    return [
        Entry(path.removesuffix(b"/"), kinds[kind], 0, size=int(size) if kind == b"f" else 0)
        for kind, size, _, path in records
    ]
