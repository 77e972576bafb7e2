"""The batch scripts of cp, mv, rm, mkdir, du and exact listings: plain bash, coreutils and findutils.

Paths travel as base64, so that no character of a name is ever part of a script. A script answers in a file
of one line per failure and a last line `ended`, because the state of a job does not say which of its paths failed.
Finished paths are on record in the stage: a job that Slurm has requeued goes on where it stopped.
"""

from __future__ import annotations

import re
from base64 import b64decode, encodebytes
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from hpcbridge.staging.joining import packed

STALE_MINUTES = 7 * 24 * 60

_HEAD = r"""#!/bin/bash
# hpcbridge: @TITLE@
set -u -o pipefail
export LC_ALL=C
unpack() { printf %s "$1" | base64 -d; printf x; }
stage=$(unpack @STAGE@); stage=${stage%x}
session=@SESSION@
cd -- "$stage" || exit 1
answer() { mv -f -- answer.new answer; }
[ ! -s answer ] || exit 0
said() { head -c 400 -- errors | tr '\n' ' '; }
clean() {   # what earlier commands of ours that were killed have left beside this directory, after a week
  find "${stage%/*}/" -maxdepth 1 -type d -name '.hpcbridge-get-*' -user "$(id -u)" -mmin +@STALE@ \
    -exec rm -rf {} + 2>/dev/null
}
"""

_EACH = r"""
rerun=; [ ! -s started ] || rerun=yes
touch started finished
index=0
each() {   # path: runs `one` for it, once
  local words
  again=
  if [ -n "$rerun" ]; then
    grep -qx "$index" finished && return
    grep -qx "$index" started && again=yes
  fi
  echo "$index" >>started
  if ! one "$1" 2>errors </dev/null; then
    words=$(said); [ -z "${part-}" ] || words=${words//"$part"/"$target"}
    printf 'failed %s %s\n' "$index" "$(printf %s "$words" | base64 -w 0)" >>failures
  fi
  echo "$index" >>finished
}
base64 -d <<'PATHS' >paths
@PATHS@
PATHS
while IFS= read -r -d '' path; do each "$path"; index=$((index + 1)); done <paths
{ cat failures 2>/dev/null; echo ended; } >answer.new
clean
answer
"""

_INTO = r"""
destination=$(unpack @DESTINATION@); destination=${destination%x}
several=@SEVERAL@
# Decided once: a requeued job must not take what it has made itself for a directory that was there.
if [ ! -s kind ]; then
  if [ -d "$destination" ]; then echo inside; else echo plain; fi >kind.new; mv -f kind.new kind
fi
kind=$(cat kind)
aim() {   # sets target and part, a hidden name beside it
  if [ "$kind" = inside ]; then target=$destination/${1##*/}
  elif [ "$several" -eq 1 ]; then echo "$command: target '$destination' is not a directory" >&2; return 1
  else target=$destination; fi
  part=${target%/*}/.hpcbridge-$command-$session-$index
}
"""

_COPY = r"""
command=cp recursive=@RECURSIVE@ part=
one() {
  aim "$1" || return
  if [ -d "$1" ] && [ "$recursive" -eq 0 ]; then
    echo "cp: -r not specified; omitting directory '$1'" >&2; return 1
  fi
  # -R: links are copied as links, as `cp -r` does.
  if [ "$recursive" -eq 1 ]; then set -- -R "$1"; else set -- -f "$1"; fi
  if [ -L "$target" ] && [ ! -d "$2" ]; then   # write where the link points, as cp does
    local real; real=$(readlink -fn -- "$target"; printf x); real=${real%x}
    [ -z "$real" ] || { target=$real; part=${target%/*}/.hpcbridge-$command-$session-$index; }
  fi
  # Into a directory that exists cp merges; a device or a pipe is written to; a file that may be written in a directory
  # that may not cannot be replaced by a rename. Its own words are best for what it cannot do at all.
  if [ -d "$target" ] || { [ -e "$target" ] && [ ! -f "$target" ]; } || [ ! -w "${target%/*}/" ] ||
     [ "$2" -ef "$target" ] || { [ ! -e "$2" ] && [ ! -L "$2" ]; }; then
    cp "$1" -T -- "$2" "$target"; return
  fi
  rm -rf -- "$part"
  cp "$1" -T -- "$2" "$part" && { [ ! -f "$target" ] || chmod --reference="$target" -- "$part"; } &&
    mv -fT -- "$part" "$target" && return
  rm -rf -- "$part"; return 1
}
"""

_MOVE = r"""
command=mv part=
one() {
  aim "$1" || return
  if [ ! -e "$1" ] && [ ! -L "$1" ]; then   # a requeued job may have moved it before it was ended
    [ -n "$again" ] && { [ -e "$target" ] || [ -L "$target" ]; } && return
  fi
  local from to
  from=$(stat -c %d -- "$1" 2>/dev/null); to=$(stat -c %d -- "${target%/*}/" 2>/dev/null)
  if [ -z "$from" ] || [ -z "$to" ] || [ "$from" = "$to" ] || [ -d "$target" ]; then
    mv -fT -- "$1" "$target"; return
  fi
  # To another file system: copied under a hidden name, and there at once.
  rm -rf -- "$part"
  cp -aT -- "$1" "$part" && mv -fT -- "$part" "$target" && rm -rf -- "$1" && return
  rm -rf -- "$part"; return 1
}
"""

_REMOVE = r"""
options=@OPTIONS@
one() {
  [ -n "$again" ] && [ ! -e "$1" ] && [ ! -L "$1" ] && return
  rm --interactive=never $options -- "$1"
}
"""

_MAKE = r"""
options=@OPTIONS@
one() {
  [ -n "$again" ] && [ -d "$1" ] && return
  mkdir $options -- "$1"
}
"""

_RECORDS = r"""
path=$(unpack @PATH@); path=${path%x}
: >errors
@WORK@
{ echo "listed $(stat -c %s records)"; [ ! -s errors ] || echo "said $(said | base64 -w 0)"; } >answer.new
clean
answer
"""

_LIST = r"""find "$path/" -mindepth 1 @DEPTH@ -printf '%M %s %T@ %u %g %P//%l\0' >records 2>errors"""
"""A relative path never holds `//`, so it ends where that begins."""

_MEASURE = r"""
[ -d "$path" ] && [ ! -L "$path" ] && path=$path/
declare -A bytes files links
bytes["."]=0
while IFS= read -r -d '' record; do   # taken apart by hand: `read` strips blanks, which names may begin or end with
  kind=${record%% *} record=${record#* }
  size=${record%% *} where=${record#* }
  if [ "$kind" != d ]; then
    case $where in */*) where=${where%/*} ;; *) where= ;; esac
  fi
  where=./$where
  where=${where%/}
  case $kind in
    d) bytes["$where"]=${bytes["$where"]-0} ;;
    l) links["$where"]=$((${links["$where"]-0} + 1)) ;;
    f) files["$where"]=$((${files["$where"]-0} + 1)); bytes["$where"]=$((${bytes["$where"]-0} + size)) ;;
    *) files["$where"]=$((${files["$where"]-0} + 1)) ;;
  esac
done < <(find "$path" -printf '%y %s %P\0' 2>errors)
for where in "${!bytes[@]}"; do
  printf '%s %s %s %s\0' "${bytes["$where"]}" "${files["$where"]-0}" "${links["$where"]-0}" "$where"
done >records
"""


class Verb(StrEnum):
    """What a job does to each of its paths."""

    COPY = "cp"
    MOVE = "mv"
    REMOVE = "rm"
    MAKE = "mkdir"


_BODIES = {Verb.COPY: _INTO + _COPY, Verb.MOVE: _INTO + _MOVE, Verb.REMOVE: _REMOVE, Verb.MAKE: _MAKE}


@dataclass(frozen=True, slots=True)
class Changes:
    """One job that does `verb` to every path of `paths` (bytes).

    `destination` is where cp and mv go; a directory that exists means inside it. `options` are given to rm and mkdir.
    """

    verb: Verb
    paths: Sequence[bytes]
    destination: bytes = b""
    recursive: bool = False
    several: bool = False
    options: str = ""

    def script(self, stage: str, session: str) -> str:
        """The batch script for a private directory `stage`; `session` makes its hidden names unique."""
        return _filled(
            _HEAD + _BODIES[self.verb] + _EACH,
            TITLE=f"{self.verb.value} of {len(self.paths)} paths",
            STAGE=packed(stage.encode()),
            SESSION=session,
            STALE=str(STALE_MINUTES),
            DESTINATION=packed(self.destination),
            SEVERAL=str(int(self.several)),
            RECURSIVE=str(int(self.recursive)),
            OPTIONS=f"'{self.options}'",
            PATHS=encodebytes(b"".join(path + b"\0" for path in self.paths)).decode().strip(),
        )


@dataclass(frozen=True, slots=True)
class Records:
    """One job that writes down what is under `path`: its entries (`recursive` or not), or with `measure` its size."""

    path: bytes
    recursive: bool = True
    measure: bool = False

    def script(self, stage: str, session: str) -> str:
        """The batch script for a private directory `stage`."""
        work = _MEASURE if self.measure else _LIST.replace("@DEPTH@", "" if self.recursive else "-maxdepth 1")
        return _filled(
            _HEAD + _RECORDS.replace("@WORK@", work),
            TITLE="measures a directory" if self.measure else "lists a directory",
            STAGE=packed(stage.encode()),
            SESSION=session,
            STALE=str(STALE_MINUTES),
            PATH=packed(self.path),
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What a job says: index of a path -> coreutils' words for each failure; bytes in its file of records, if any."""

    failures: dict[int, str] = field(default_factory=dict)
    records: int | None = None
    said: str = ""


def parse_answer(text: str) -> Answer:
    """Read the answer file. Raises ValueError for anything the scripts do not write."""
    failures, records, said, ended = {}, None, "", False
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == "failed":
            index, _, words = rest.partition(" ")
            failures[int(index)] = _text(words)
        elif word == "listed":
            records, ended = int(rest), True
        elif word == "said":
            said = _text(rest)
        elif word == "ended":
            ended = True
        else:
            raise ValueError(f"not an answer: {line[:80]!r}")
    if not ended:
        raise ValueError("not a whole answer")
    return Answer(failures, records, said)


def _text(word: str) -> str:
    return b64decode(word).decode(errors="backslashreplace").strip()


def _filled(script: str, **values: str) -> str:
    return re.sub("@([A-Z]+)@", lambda match: values[match[1]], script)
