"""The job that turns a staged archive into a tree: its script. It answers as the joining job does (`joining.Answer`).

The archive is checked while it is unpacked into a hidden directory, and only then published: a new tree by one rename,
into an existing directory entry by entry, each by one rename and none through a link. What is in the way is looked for
before the first rename. No process per file is started: one `mv` for each directory that is on both sides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hpcbridge.staging.joining import OVERTAKE, STAGE_PREFIX, STALE_MINUTES, packed
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.plan import PIECE_NAME_DIGITS

_SCRIPT = r"""#!/bin/bash
# hpcbridge: unpacks @COUNT@ pieces of an archive into a hidden directory, checks and publishes them by rename.
set -u -o pipefail
export LC_ALL=C
shopt -s dotglob nullglob
mask=$(umask)
umask 077
unpack() { printf %s "$1" | base64 -d; }
stage=$(unpack @STAGE@)
target=$(unpack @TARGET@; printf x); target=${target%x}
count=@COUNT@ size=@SIZE@ want=@SHA256@ unzip=@UNZIP@ mode=@MODE@
pieces=@SESSION@. answer=@ANSWER@ errors=@SESSION@.errors

answer() { printf '%s\n' "$*" >"$answer.new" && mv -f -- "$answer.new" "$answer"; }
why() { head -c 300 -- "$errors" 2>/dev/null | tr '\n' ' '; }
fail() { answer "failed $1 $(why)"; wipe; exit 1; }
list() { seq -f "$pieces%0@DIGITS@.0f" 0 $((count - 1)); }
wipe() {
  local old
  for old in "$stage/$pieces"*.tree "$target/.hpcbridge-$pieces"*.tree; do
    [ ! -d "$old" ] || { chmod -R u+rwx -- "$old"; rm -rf -- "$old"; } 2>/dev/null
  done
}
finish() {   # the answer comes last: whoever reads it may remove this directory
  wipe
  find "${stage%/*}/" -maxdepth 1 -type d -name '@PREFIX@*' -user "$(id -u)" -mmin +@STALE@ \
    -exec rm -rf {} + 2>/dev/null
  mv -f -- "$answer.done" "$answer"; exit 0
}
@OVERTAKE@

cd -- "$stage" || exit 1
# Requeued after it had published: the outcome stands.
grep -qs '^published ' -- "$answer" && exit 0
[ ! -s "$answer.done" ] || finish
wipe

# A link is followed, as for files: the tree is published where it points.
if [ -L "$target" ]; then
  real=$(readlink -en -- "$target"; printf x); real=${real%x}
  [ -n "$real" ] || { echo 'it is a link that leads nowhere' >"$errors"; fail target; }
  target=$real
fi
[ -d "$target" ] || [ ! -e "$target" ] || { echo 'it is a file' >"$errors"; fail target; }
tree=$stage/@SESSION@.@ATTEMPT@.tree
if [ -d "$target" ] && [ "$(stat -Lc %d -- "$target")" != "$(stat -c %d .)" ]; then
  tree=$target/.hpcbridge-@SESSION@.@ATTEMPT@.tree   # a rename does not leave a file system
fi
mkdir -- "$tree" 2>"$errors" || fail unpacking
whose=$target; [ -d "$whose" ] || { whose=${target%/*}; whose=${whose:-/}; }
[ ! -g "$whose" ] || { chgrp --reference="$whose" -- "$tree" && chmod g+s -- "$tree"; } 2>/dev/null

damaged() {
  list | xargs sha256sum -- >"$pieces"sums 2>/dev/null
  wipe; answer "mismatch $found ${sum:--}"; exit 1
}
found=0 sum=
while read -r bytes; do found=$((found + bytes)); done < <(list | xargs stat -c %s -- 2>/dev/null)
[ "$found" = "$size" ] || damaged
if [ -n "$want" ]; then
  # Where tar gives up, `tee -p` goes on, so that the digest tells whose fault it is.
  { list | xargs cat -- | tee -p /dev/fd/3 2>/dev/null | sha256sum >"$pieces"sum; } 3>&1
else
  list | xargs cat --
fi | (umask "$mask"; exec tar -x $unzip -f - -C "$tree" -p --no-same-owner --delay-directory-restore) 2>"$errors"
status=${PIPESTATUS[1]}
[ -z "$want" ] || read -r sum _ <"$pieces"sum || fail reading
[ "$sum" = "$want" ] || damaged
if [ "$status" -ne 0 ]; then   # tar does not say why a write was short
  short=$(grep -m 1 ': Wrote only ' -- "$errors") && echo "No space left, or a quota is full: $short" >"$errors"
  fail unpacking
fi
[ ! -g "$tree" ] || find "$tree" -type d -exec chmod g+s {} + 2>/dev/null

overtake "$(list | head -n 1)"
@PUBLISH@
publish 2>"$errors" || fail publishing
printf 'published %s %s\n' "$size" "${sum:--}" >"$answer.done"
finish
"""

PUBLISH = r"""
real_directory() { [ -d "$1" ] && [ ! -L "$1" ]; }
in_the_way=() closed=()
look() {   # "$1": a directory on both sides, with a slash, or nothing for the tree itself
  local entry name there
  for entry in "$tree/$1"*; do
    name=${entry#"$tree/"} there=$target/$name
    if real_directory "$entry"; then
      if real_directory "$there"; then
        [ -w "$there" ] && [ -x "$there" ] || { [ -O "$there" ] && closed+=("$there"); } || in_the_way+=("$name")
        look "$name/"
      elif [ -e "$there" ] || [ -L "$there" ]; then
        in_the_way+=("$name")
      fi
    elif real_directory "$there"; then
      in_the_way+=("$name")
    fi
  done
}
open_up() {   # directories of the tree that cannot be read or written: those within them show in the next turn
  local _
  for _ in {1..64}; do
    [ "$(find "$tree" -type d ! -perm -u=rwx -print -quit 2>/dev/null)" ] || return 0
    find "$tree" -type d ! -perm -u=rwx -exec chmod u+rwx {} + 2>/dev/null
  done
  return 1
}
enter() {   # a directory of the target, unless a link has taken its place, or that of one above it
  cd -P -- "$target/$1" || return 1
  [ "$PWD/" = "$root/$1" ] || { printf '%q: a link leads elsewhere now\n' "$1" >&2; return 1; }
}
merge() {
  local entry name moved=()
  for entry in "$tree/$1"*; do
    name=${entry#"$tree/"}
    if real_directory "$entry" && real_directory "$target/$name"; then merge "$name/" || return 1
    else moved+=("$entry"); fi
  done
  [ -z "${moved+x}" ] || (enter "$1" && printf '%s\0' "${moved[@]}" | xargs -0 mv -f -t . --) || return 1
}
real() { local real; real=$(cd -P -- "$target" && printf '%sx' "$PWD") && root=${real%x} && root=${root%/}; }
publish() {
  if [ ! -d "$target" ]; then
    [ "$mode" ] || mode=$(printf %o $((0777 & ~8#$mask)))
    # A directory that changes its parent has to be writable.
    chmod "$(printf %o $((8#$mode | 0700)))" -- "$tree" && mv -fT -- "$tree" "$target" &&
      { [ $((8#$mode & 0700)) -eq $((0700)) ] || chmod "$mode" -- "$target"; }
    return
  fi
  # The directories' modes and times are put on last, when everything is in its place; until then ours are writable.
  (cd -- "$tree" && find . -mindepth 1 -type d -print0 |
    tar -c --no-recursion --null --no-unquote -T - -f "$stage/$pieces"directories) && open_up || return 1
  look ''
  if [ -n "${in_the_way+x}" ]; then
    printf '%q ' "${in_the_way[@]:0:5}" >"$errors"; fail in_the_way
  fi
  [ -z "${closed+x}" ] || printf '%s\0' "${closed[@]}" | xargs -0 chmod u+rwx -- || return 1
  real && merge '' || return 1
  tar -x -f "$stage/$pieces"directories -C "$target" -p --no-same-owner --delay-directory-restore
}
"""


@dataclass(frozen=True, slots=True)
class Unpack:
    """One unpacking job: `count` pieces in `stage`, an archive of `size` bytes, become the tree `target`.

    `sha256` is the hex digest of the archive, None when only the size counts; `compression` "" or "gzip"; `mode` that
    of a new tree's root, None for what the umask gives. `attempt` tells repeated jobs of one session apart.
    """

    stage: str
    session: str
    target: RemotePath
    count: int
    size: int
    sha256: str | None
    compression: str = ""
    mode: int | None = None
    attempt: int = 1

    @property
    def answer_name(self) -> str:
        """Name of the file in `stage` that holds the job's answer."""
        return f"{self.session}.answer-{self.attempt}"

    def script(self) -> str:
        """The batch script."""
        values = {
            "STAGE": packed(self.stage.encode()),
            "TARGET": packed(self.target.encoded),
            "COUNT": str(self.count),
            "SIZE": str(self.size),
            "SHA256": self.sha256 or "",
            "SESSION": self.session,
            "ATTEMPT": str(self.attempt),
            "ANSWER": self.answer_name,
            "DIGITS": str(PIECE_NAME_DIGITS),
            "PREFIX": STAGE_PREFIX,
            "STALE": str(STALE_MINUTES),
            "UNZIP": "-z" if self.compression else "",
            "MODE": "" if self.mode is None else f"{self.mode:o}",
            "PUBLISH": PUBLISH,
        }
        return re.sub("@([A-Z0-9]+)@", lambda match: values[match[1]], _SCRIPT.replace("@OVERTAKE@", OVERTAKE))
