"""What the jobs of a sync have in common: their script's first half, and what is sent along.

One job at a time works on a tree: the lock is a link in the state directory, whose holder gives signs of life. The
manifest that the client means came whole, or as edits of the one that the last job kept; its SHA-256 proves it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

from hpcbridge.staging.joining import STAGE_PREFIX, STALE_MINUTES, packed
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.plan import PIECE_NAME_DIGITS
from hpcbridge.staging.trees.listing import listing
from hpcbridge.staging.trees.patterns import Filter

STATE_PREFIX = ".hpcbridge-sync-"
BEAT = 5
"""Seconds between two signs of life of the job that holds the lock."""
DEAD = 45
"""Seconds without one after which the lock is anyone's: network file systems cache times for up to half a minute."""
TURN = 240
"""Seconds for which a job waits for its turn."""
KEPT_MINUTES = 24 * 60
"""Age after which a later job removes what an interrupted one has left in the state directory."""
ANSWER_BYTES = 2_500_000
"""Bytes of a list in an answer: a direct download delivers 3.9 million."""

COMMON = r"""
set -u -o pipefail
export LC_ALL=C
shopt -s dotglob nullglob
mask=$(umask)
umask 077
# A list that was cut short, as by a full disk, must never pass for a short list: whatever fails unasked is remembered.
broken=
set -E
trap '[ $? -eq 141 ] || { broken=1; [ "$BASHPID" = $$ ] || kill -USR1 $$; }' ERR   # 141: nobody wants to read the rest
trap 'broken=1' USR1
unpack() { printf %s "$1" | base64 -d; }
state=$(unpack @STATE@)
target=$(unpack @TARGET@; printf x); target=${target%x}
session=@SESSION@ me=@SESSION@.@ATTEMPT@ answer=$state/@ANSWER@ work=$state/@SESSION@.work dry=@DRY@
errors=$work/errors

answer() { printf '%s\n' "$*" >"$answer.new" && mv -f -- "$answer.new" "$answer"; }
fail() { answer "failed $1 $(head -c 300 -- "$errors" 2>/dev/null | tr '\n' ' ')"; exit 1; }
sound() {   # sound DOING: nothing has failed so far
  [ "$broken" ] || return 0
  [ -s "$errors" ] || echo 'a list could not be written: no space left, or a quota is full?' >"$errors"
  fail "$1"
}
count() { tr -cd '\0' | wc -c; }
enclosed() {   # a list for the answer
  local text; text=$(cat -- "$@" | gzip -9n | base64 -w 0)
  [ ${#text} -le @LONGEST@ ] && printf %s "$text" || printf %s -
}
wipe() { chmod -R u+rwx -- "$@" 2>/dev/null; rm -rf -- "$@"; }
age() { echo $(($(stat -c %Y -- "$state/$me.now") - $(stat -c %Y -- "$1" 2>/dev/null || echo 0))); }
mine() { [ "$(readlink -- "$state/lock")" = "$me" ]; }
let_go() {
  [ -z "${beating-}" ] || kill "$beating" 2>/dev/null
  rm -f -- "$state/$me.now"
  ! mine || rm -f -- "$state/lock"
}
take_turn() {
  local owner begun=$SECONDS
  until ln -s -- "$me" "$state/lock" 2>/dev/null; do
    owner=$(readlink -- "$state/lock") || continue
    [ "$owner" != "$me" ] || break   # this job was requeued
    echo >"$state/$me.now"
    if [ "$(age "$state/lock")" -ge @DEAD@ ] && [ "$(age "$state/beat")" -ge @DEAD@ ]; then
      mv -fT -- "$state/lock" "$state/$me.dead" 2>/dev/null
      # Somebody else was quicker, and this is theirs.
      [ "$(readlink -- "$state/$me.dead")" = "$owner" ] || mv -nT -- "$state/$me.dead" "$state/lock"
      rm -f -- "$state/$me.dead"
      continue
    fi
    [ $((SECONDS - begun)) -lt @TURN@ ] || { answer "busy $owner"; rm -f -- "$state/$me.now"; exit 1; }
    sleep 0.5
  done
  trap let_go EXIT
  { while mine && kill -0 $$; do echo >"$state/beat"; sleep @BEAT@; done; } </dev/null >/dev/null 2>&1 &
  beating=$!
}
tidy() {   # what nobody comes back for
  local each old=()
  while IFS= read -r -d '' each; do old+=("$each"); done < <(
    find "$state" -mindepth 1 -maxdepth 1 -mmin +@KEPT@ \
      \( -name '????????.*' -o -name '@STAGE@*' -o -name '*.archive' \) -print0
    find "$state/.hpcbridge" -mindepth 1 -maxdepth 1 -mmin +@KEPT@ -print0 2>/dev/null
    find "$target" -mindepth 1 -maxdepth 1 -mmin +@KEPT@ -name '.hpcbridge-????????.work' -print0 2>/dev/null)
  # States of trees that are no longer there.
  while IFS= read -r -d '' each; do
    [ ! -s "$each/tree" ] || [ -e "$(cat -- "$each/tree"; printf /.)" ] || old+=("$each")
  done < <(find "${state%/*}/" -mindepth 1 -maxdepth 1 -type d -name '@STATES@*' -user "$(id -u)" \
    -mmin +@STALE@ -print0)
  [ -z "${old+x}" ] || wipe "${old[@]}"
}
begin() {
  cd -- "$state" || exit 1
  [ ! -e "$answer" ] || exit 0   # requeued: the outcome stands
  [ ! -s "$answer.done" ] || finish
  take_turn
  printf %s "$target" >"$state/tree"
}
finish() {   # the outcome is in $answer.done; it is told when all else is done
  cd -- "$state"
  wipe "$work"; discard; tidy; let_go
  mv -f -- "$answer.done" "$answer"
  exit 0
}
find_target() {
  if [ -L "$target" ]; then   # a link is followed, as for files
    local real; real=$(readlink -en -- "$target"; printf x); real=${real%x}
    [ -n "$real" ] || { answer "target it is a link that leads nowhere"; exit 1; }
    target=$real
  fi
  [ -d "$target" ] || [ ! -e "$target" ] || { answer 'target it is a file'; exit 1; }
}
payload=$(unpack @PAYLOAD@) count=@COUNT@ size=@SIZE@ sum=@SUM@ pieces=@PIECES@. goal=@GOAL@

list_pieces() { seq -f "$payload/$pieces%0@DIGITS@.0f" 0 $((count - 1)); }
in_pieces() { list_pieces | tr '\n' '\0' | xargs -0 cat --; }
receive() {   # the archive: edits of the manifest, and tree/
  [ "$count" -gt 0 ] || return 0
  local found; found=$(in_pieces 2>/dev/null | wc -c)
  [ "$found" = "$size" ] || { answer "damaged $found"; exit 1; }
  { in_pieces | tee -p /dev/fd/3 2>/dev/null | sha256sum >sum; } 3>&1 |
    (umask "$mask"; exec tar -x @UNZIP@ -f - -C "$work" -p --no-same-owner --delay-directory-restore) 2>"$errors"
  local status=${PIPESTATUS[1]} found; read -r found _ <sum
  [ "$found" = "$sum" ] || { cd / && wipe "$work"; answer "damaged $found"; exit 1; }
  [ "$status" -eq 0 ] || fail unpacking
}
open_tree() {   # its directories get their modes when it is complete
  local _
  for _ in {1..64}; do
    [ "$(find tree -type d ! -perm -u=rwx -print -quit 2>/dev/null)" ] || return 0
    find tree -type d ! -perm -u=rwx -exec chmod u+rwx {} + 2>/dev/null
  done
}
discard() {   # the archive
  [ "$count" -eq 0 ] || case $payload in
    "$state") list_pieces | tr '\n' '\0' | xargs -0 rm -f -- ;;
    *) wipe "$payload" ;;
  esac
}
later() { discard; answer "$@"; exit 0; }   # another job goes on with what was unpacked
is_goal() { [ -e "$1" ] && local found && found=$(sha256sum <"$1") && [ "${found%% *}" = "$goal" ]; }
wanted() {   # the manifest that the client means: it came whole, or as edits of the one kept as "$1"
  if is_goal full; then mv -f full want
  elif is_goal want; then :
  elif is_goal "$state/$1"; then cp -- "$state/$1" want
  elif [ -e "$state/$1" ]; then
    touch gone new
    comm -z -23 "$state/$1" gone | sort -z -m - new >want
  fi
  is_goal want || later "base $({ sha256sum <"$state/$1" || echo -; } 2>/dev/null | cut -d ' ' -f 1)"
}
sums() { cut -z -b 1-64,"$1"- | sort -z; }
paths() {   # of a manifest: `$2.names`, and `$2.folders`
  local link
  { of_files "$1" | cut -z -b 104-
    of_links "$1" | cut -z -b 104- | while IFS= read -r -d '' link; do printf '%s\0' "${link%%//*}"; done
  } | sort -z >"$2.names"
  of_folders "$1" | cut -z -b 104- | sort -z >"$2.folders"
}
append_slash() { paste -z -d / - /dev/null; }
included() { if [ -s include ]; then that_match -xE -f include; else cat; fi; }
kept() { included | if [ -s exclude ]; then that_match -v -xE -f exclude; else cat; fi; }   # by the patterns
prepare() {   # the work directory
  mkdir -p -- "$work" && cd -- "$work" || exit 1
  : >"$errors"; broken=   # what failed before was dealt with
  unpack @INCLUDE@ >include; unpack @EXCLUDE@ >exclude
}
keep() { cp -- want "$state/$1.new" && mv -f -- "$state/$1.new" "$state/$1"; }
only() {   # only LIST [COLUMN]: those of the rows that come in whose path (with ./), from COLUMN (102) on, is in LIST
  local row path from=$((${2:-102} - 1))
  declare -A listed=()
  while IFS= read -r -d '' row; do listed["x$row"]=1; done <"$1"
  while IFS= read -r -d '' row; do
    path=${row:from} path=${path%%//*}
    [ -z "${listed["x$path"]-}" ] || printf '%s\0' "$row"
  done
}
"""


@dataclass(frozen=True, slots=True)
class Payload:
    """The archive that came along: `count` pieces in `directory`, named after `session`, of `size` bytes in all."""

    directory: str
    session: str
    count: int
    size: int
    sha256: str
    compression: str = ""


@dataclass(frozen=True, slots=True)
class SyncJob(ABC):
    """One job of a sync.

    `state` is the tree's state directory; `session` names the sync and `attempt` its jobs; `target` is the tree on the
    system; `goal` is the identity of the manifest that the client means; `payload` is None when nothing is sent. `dry`
    changes nothing.
    """

    state: str
    session: str
    attempt: int
    target: RemotePath
    goal: str
    filter: Filter
    payload: Payload | None = None
    dry: bool = False

    @property
    def answer_name(self) -> str:
        """Name of the file in `state` that holds the job's answer."""
        return f"{self.session}.answer-{self.attempt}"

    @abstractmethod
    def script(self) -> str:
        """The batch script."""

    def filled(self, template: str, own: dict[str, str]) -> str:
        """A script with its values put in."""
        sent = self.payload or Payload(self.state, self.session, 0, 0, "")
        include, exclude = self.filter.expressions()
        values = own | {
            "STATE": packed(self.state.encode()),
            "TARGET": packed(self.target.encoded),
            "SESSION": self.session,
            "ATTEMPT": str(self.attempt),
            "ANSWER": self.answer_name,
            "GOAL": self.goal,
            "DRY": str(int(self.dry)),
            "INCLUDE": packed(include),
            "EXCLUDE": packed(exclude),
            "LARGEST": "" if self.filter.max_file_size is None else str(self.filter.max_file_size),
            "PAYLOAD": packed(sent.directory.encode()),
            "COUNT": str(sent.count),
            "SIZE": str(sent.size),
            "SUM": sent.sha256,
            "PIECES": sent.session,
            "UNZIP": "-z" if sent.compression else "",
            "DIGITS": str(PIECE_NAME_DIGITS),
            "STAGE": STAGE_PREFIX,
            "STATES": STATE_PREFIX,
            "STALE": str(STALE_MINUTES),
            "BEAT": str(BEAT),
            "DEAD": str(DEAD),
            "TURN": str(TURN),
            "KEPT": str(KEPT_MINUTES),
            "LONGEST": str(ANSWER_BYTES),
        }
        text = template.replace("@COMMON@", COMMON).replace("@LISTING@", listing())
        return re.sub("@([A-Z0-9]+)@", lambda match: values[match[1]], text)
