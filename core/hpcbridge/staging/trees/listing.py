"""What a tree on the system looks like: its manifest, made by a job with find and coreutils, and no process per file.

Both sides write a manifest as sorted rows of fixed columns, each ended by NUL, so that `comm` compares two of them and
their SHA-256 names them. Files carry their SHA-256. A job remembers the digests it has computed beside the file's
*signature* (change time, size, modification time, inode; all to the nanosecond), and reads a file again only when that
has changed. A file whose change time is not older than the listing could change once more without showing it: its
digest is not remembered.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from hpcbridge.staging.trees.entries import Entry, Kind

_PATH = 101
"""Bytes before the path: SHA-256 (64), kind (1), mode (3), size (20), seconds of the modification time (13)."""
_LETTERS = {kind.value[0].encode(): kind for kind in Kind}
_NO_SUM = b"-" * 64


def row(entry: Entry) -> bytes:
    """One row of a manifest, without its NUL.

    Times of directories and links do not count: the first change with whatever is put there. Paths start with `./`, so
    that no tool takes one for an option; `//` parts the target of a link from its path.
    """
    if entry.kind is Kind.FILE:
        if entry.sha256 is None:
            raise ValueError(f"{entry.path!r} has not been hashed")
        head = b"%sf%03o%20d%13d" % (entry.sha256.encode(), entry.mode, entry.size, entry.mtime)
        return head + b"./" + entry.path
    if entry.kind is Kind.DIRECTORY:
        return b"%sd%03o%20d%13d./%s" % (_NO_SUM, entry.mode, 0, 0, entry.path)
    return b"%sl777%20d%13d./%s//%s" % (_NO_SUM, 0, 0, entry.path, entry.target)


def entry_of(text: bytes) -> Entry:
    """Read a row. Raises ValueError for anything else."""
    kind, rest = _LETTERS.get(text[64:65]), text[_PATH:]
    if kind is None or not rest.startswith(b"./"):
        raise ValueError(f"not a row of a manifest: {text[:120]!r}")
    path, _, target = rest[2:].partition(b"//") if kind is Kind.LINK else (rest[2:], b"", b"")
    entry = Entry(path, kind, int(text[65:68], 8), int(text[68:88]), int(text[88:101]), target)
    return replace(entry, sha256=text[:64].decode("ascii")) if kind is Kind.FILE else entry


def path_of(text: bytes) -> bytes:
    """The path in a row, without `./` and target."""
    path = text[_PATH + 2 :]
    return path.partition(b"//")[0] if text[64:65] == b"l" else path


def rows(entries: Iterable[Entry]) -> list[bytes]:
    """The rows of a tree, sorted as both sides sort them: by all their bytes."""
    return sorted(map(row, entries))


def joined(each: Iterable[bytes]) -> bytes:
    """Records as they stand in a file: each ended by NUL."""
    return b"".join(one + b"\0" for one in each)


def records(data: bytes) -> Iterator[bytes]:
    """What `joined` joined. Raises ValueError when the end is missing."""
    *whole, rest = data.split(b"\0")
    if rest:
        raise ValueError("the last record is cut short")
    return iter(whole)


def identity(each: Iterable[bytes]) -> str:
    """What names a manifest: the hexadecimal SHA-256 of its file."""
    return hashlib.sha256(joined(each)).hexdigest()


_BLANK = " " * 24 + f"{0:20d}{0:13d}" + " " * 31
_ROWS = {
    "FILE": "z" * 64 + r"f%04m%24C@%20s%24T@%20i./%P\0",
    "FILE_AT": "z" * 64 + r"f%04m%24C@%20s%24T@%20i%p\0",
    "RACY": "z" * 64 + rf"f%04m{'racy':>24}%20s%24T@%20i./%P\0",
    "DIRECTORY": "-" * 64 + rf"d%04m{_BLANK}./%P\0",
    "LINK": "-" * 64 + rf"l0777{_BLANK}./%P//%l\0",
    "FILLER": " " * 93,
}

_FUNCTIONS = r"""
# Rows while they are made: sum (64 columns), kind, mode (4), change time (24), size (20), modification time (24), inode
# (20), and from column 158 on ./path, for links //target. In a manifest: sum, kind, mode (3), size (20), seconds (13)
# and from column 102 on the path. A sum of z is not known yet; sorted by all bytes, it comes after those that are.
by_column() { local column=$1; shift; sort -z -t '\0' -k "1.$column" "$@"; }
in_manifest() { cut -z -b 1-65,67-69,94-126,158-; }
in_rows() { cut -z -b 1-64,"$1"- --output-delimiter='@FILLER@'; }   # sums of paths that start in column "$1"
that_match() { grep -z -a "$@" || [ $? -eq 1 ]; }   # none is no error
of_files() { that_match '^[0-9a-z]' -- "$@"; }
of_folders() { that_match '^-\{64\}d' -- "$@"; }
of_links() { that_match '^-\{64\}l' -- "$@"; }
signatures() {   # of the paths that come in, unless they changed after file "$1" was written
  xargs -0 -r bash -c 'ref=$1; shift; find "$@" -maxdepth 0 -type f ! -newercc "$ref" -printf "@FILE_AT@"' find "$1"
}
tick() {   # until the file system's clock has left the moment in which file "$1" was written
  local n=0
  until { echo >tick; [ tick -nt "$1" ]; } || [ $((n += 1)) -gt 200 ]; do sleep 0.01; done
}

# list DIRECTORY [BYTES]: makes `files` and `others` (rows); `names`, `folders` and `large`: the paths of what is no
# directory, of directories, and of files of more than BYTES.
list() {
  local each bytes=${2:-9223372036854775807}
  for each in files others names folders large; do : >"$each"; done
  echo >ref; tick ref
  set -- "$1" "$PWD"
  ( cd -- "$1" && find . -mindepth 1 \( -name .hpcbridge -o -name '.hpcbridge-*' -o -name '.*.hpcbridge-*' \) -prune \
    -o -type d -fprintf "$2/others" '@DIRECTORY@' -fprintf "$2/folders" '%P\0' \
    -o -type l -fprintf "$2/others" '@LINK@' -fprintf "$2/names" '%P\0' \
    -o -type f \( -newercc "$2/ref" -fprintf "$2/files" '@RACY@' -o -fprintf "$2/files" '@FILE@' \) \
      \( -size "+${bytes}c" -fprintf "$2/large" '%P\0' -o -fprintf "$2/names" '%P\0' \) \
    -o -type f -o -fprintf "$2/names" '%P\0' ) 2>>errors
}

# attach COLUMN SUMS ROWS: those of ROWS whose columns from COLUMN on are in SUMS as well, with the sum from there.
attach() {
  by_column "$1" -- "$2" "$3" | uniq -z -s $(($1 - 1)) -D >pairs
  paste -z -d '\0' <(that_match -v '^z' pairs | cut -z -b 1-64) <(that_match '^z' pairs | cut -z -b 65-)
}

# recognize CACHE: divides `files` into `known` (what CACHE has a sum of, with it) and `unknown`.
recognize() {
  [ -e "$1" ] || : >"$1"
  attach 70 "$1" files >known
  by_column 70 known files | uniq -z -s 69 -u >unknown
}

# read_wanted MANIFEST DIRECTORY: reads those files of DIRECTORY that are unknown and have a size that MANIFEST wants:
# `hashed`, and `unread`, the rest.
read_wanted() {
  comm -z -12 <(cut -z -b 94-113,158- unknown | sort -z) <(of_files "$1" | cut -z -b 69-88,102- | sort -z) >reading
  read_files "$2"
}
read_all() { cut -z -b 94-113,158- unknown >reading; read_files "$1"; }
read_files() {   # `reading` has sizes and paths; what was read is remembered now and then, should the job be killed
  local row bytes=0 batch=()
  : >sums; : >hashed
  while IFS= read -r -d '' row; do
    batch+=("${row:20}") bytes=$((bytes + ${row:0:20}))
    [ "$bytes" -lt @BATCH@ ] || { read_batch "$1"; remember "$state/cache" known hashed; bytes=0 batch=(); }
  done <reading
  read_batch "$1"
  by_column 70 hashed unknown | uniq -z -s 69 -u >unread
}
read_batch() {
  [ -n "${batch+x}" ] || return 0
  printf '%s\0' "${batch[@]}" | (cd -- "$1" && xargs -0 sha256sum -z -- || :) 2>>errors | in_rows 67 >>sums
  attach 158 sums unknown >hashed
}

# manifest: what `list`, `recognize` and `read_...` have found, sorted.
manifest() { cat known hashed unread others | in_manifest | sort -z; }

# remember CACHE ROWS...: keeps their sums for the next time.
remember() {
  local cache=$1; shift
  cat -- "$@" | that_match -v '^.\{69\} *racy' | by_column 70 -u >"$cache.new" && mv -f -- "$cache.new" "$cache"
}
"""

FILE_ROW = _ROWS["FILE"]
"""What find prints of a file: a row whose sum is not known yet."""
BATCH = 50_000_000_000
"""Bytes of files that are read before their digests are remembered: some minutes."""


def listing() -> str:
    """Functions for a job's script; they work in files of the current directory, under LC_ALL=C.

    `$state` is the directory of the remembered digests (`cache`).
    """
    values = _ROWS | {"BATCH": str(BATCH)}
    return re.sub("@([A-Z_]+)@", lambda match: values[match[1]], _FUNCTIONS)
