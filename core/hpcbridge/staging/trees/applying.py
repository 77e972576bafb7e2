"""The job that brings a tree on the system up to date: its script, and what it answers.

It makes the wanted manifest of the one that it keeps and of the edits that were sent, compares it with what is there,
and looks for content first in the archive that came along, then, by SHA-256, among the files that are there already.
If anything is missing it changes nothing, says what it needs, and keeps what it has got; else entries are published
each by one rename, as `unpacking` does. Whatever is interrupted at any point is found out by the next comparison: no
file is ever believed to be what its signature does not prove.

One job at a time works on a tree: the lock is a link in the state directory, whose holder gives signs of life.
"""

from __future__ import annotations

import gzip
import re
from base64 import b64decode
from dataclasses import dataclass
from enum import StrEnum

from hpcbridge.staging.joining import STAGE_PREFIX, packed
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.plan import PIECE_NAME_DIGITS
from hpcbridge.staging.trees.listing import FILE_ROW, LISTING, records
from hpcbridge.staging.trees.patterns import Filter
from hpcbridge.staging.trees.unpacking import PUBLISH

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
unpack() { printf %s "$1" | base64 -d; }
state=$(unpack @STATE@)
target=$(unpack @TARGET@; printf x); target=${target%x}
session=@SESSION@ me=@SESSION@.@ATTEMPT@ answer=$state/@ANSWER@ work=$state/@SESSION@.work
errors=$work/errors

answer() { printf '%s\n' "$*" >"$answer.new" && mv -f -- "$answer.new" "$answer"; }
fail() { answer "failed $1 $(head -c 300 -- "$errors" 2>/dev/null | tr '\n' ' ')"; exit 1; }
count() { tr -cd '\0' | wc -c; }
enclosed() {   # a list for the answer
  local text; text=$(cat -- "$@" | gzip -9n | base64 -w 0)
  [ ${#text} -le @LONGEST@ ] && printf %s "$text" || printf %s -
}
wipe() { chmod -R u+rwx -- "$@" 2>/dev/null; rm -rf -- "$@"; }
age() { echo $(($(stat -c %Y -- "$state/$me.now") - $(stat -c %Y -- "$1" 2>/dev/null || echo 0))); }
mine() { [ "$(readlink -- "$state/lock")" = "$me" ]; }
let_go() { [ -z "${beating-}" ] || kill "$beating" 2>/dev/null; rm -f -- "$state/$me.now"; mine && rm -f -- "$state/lock"; }
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
    find "$state" -mindepth 1 -maxdepth 1 \( -name '????????.*' -o -name '@STAGE@*' \) -mmin +@KEPT@ -print0
    find "$state/.hpcbridge" -mindepth 1 -maxdepth 1 -mmin +@KEPT@ -print0 2>/dev/null)
  [ -z "${old+x}" ] || wipe "${old[@]}"
}
find_target() {
  if [ -L "$target" ]; then   # a link is followed, as for files
    local real; real=$(readlink -en -- "$target"; printf x); real=${real%x}
    [ -n "$real" ] || { answer "target it is a link that leads nowhere"; exit 1; }
    target=$real
  fi
  [ -d "$target" ] || [ ! -e "$target" ] || { answer 'target it is a file'; exit 1; }
}
"""

_SCRIPT = r"""#!/bin/bash
# hpcbridge: brings a tree up to date.
@COMMON@
@LISTING@
goal=@GOAL@ delete=@DELETE@ dry=@DRY@ mode=@MODE@
payload=$(unpack @PAYLOAD@) count=@COUNT@ size=@SIZE@ sum=@SUM@ pieces=@PIECES@.

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
is_goal() { [ -e "$1" ] && local found && found=$(sha256sum <"$1") && [ "${found%% *}" = "$goal" ]; }
want() {   # the manifest to be reached
  if is_goal full; then mv -f full want
  elif is_goal want; then :
  elif is_goal "$state/manifest"; then cp -- "$state/manifest" want
  elif [ -e "$state/manifest" ]; then
    touch gone new
    comm -z -23 "$state/manifest" gone | sort -z -m - new >want
  fi
  is_goal want || { answer base; exit 1; }
}
sums() { cut -z -b 1-64,"$1"- | sort -z; }
paths() {   # of a manifest: `$2.names`, and `$2.folders`
  local link
  { of_files "$1" | cut -z -b 104-
    of_links "$1" | cut -z -b 104- | while IFS= read -r -d '' link; do printf '%s\0' "${link%%//*}"; done
  } | sort -z >"$2.names"
  of_folders "$1" | cut -z -b 104- | sort -z >"$2.folders"
}
kept() {   # of the paths that come in, those that the patterns keep
  if [ -s include ]; then that_match -xE -f include; else cat; fi | if [ -s exclude ]; then that_match -xE -v -f exclude; else cat; fi
}
grouped() {   # grouped WIDTH COMMAND...: once for all paths with the same value in the first columns
  local width=$1 row value= batch=(); shift
  while IFS= read -r -d '' row; do
    if [ "${row:0:width}" != "$value" ]; then flush "$@"; value=${row:0:width} batch=(); fi
    batch+=("${row:width}")
  done
  flush "$@"
}
flush() { [ -z "${batch+x}" ] || printf '%s\0' "${batch[@]}" | xargs -0 "$@${value// /}" --; }
retouch() {   # modes and times of the rows in file "$1", below directory "$2"
  cut -z -b 66-68,102- <"$1" | sort -z | (cd -- "$2" && grouped 3 chmod '') &&
    of_files "$1" | cut -z -b 89- | sort -z | (cd -- "$2" && grouped 13 touch -h -c -m -d @)
}
look_around() {   # what is there, and what it lacks: `need`
  : >known; : >hashed; : >actual; : >names; : >folders; : >large
  if [ -d "$target" ]; then
    list "$target" @LARGEST@ && [ -x "$target" ] || fail listing
    recognize "$state/cache"; read_wanted want "$target"; manifest >actual
  fi
  comm -z -23 want actual >need
  paths want want
  sort -z names large >there.names; sort -z folders >there.folders
  of_files need | sums 102 >need.sums; of_files actual | sums 102 >actual.sums
  comm -z -23 need.sums actual.sums >content
}
check_staged() {   # nothing leaves `tree` that the manifest does not want: `good`
  local link
  (cd tree && find . -type f -print0 | xargs -0 -r sha256sum -z --) 2>>"$errors" | sums 67 >staged
  of_files want | sums 102 >want.sums
  comm -z -23 staged want.sums | cut -z -b 65- | (cd tree && xargs -0 -r rm -f --)
  comm -z -12 staged want.sums >good
  (cd tree && find . -type l -printf './%P//%l\0') | sort -z |
    comm -z -23 - <(of_links want | cut -z -b 102- | sort -z) |
    while IFS= read -r -d '' link; do rm -f -- "tree/${link%%//*}"; done
  comm -z -23 content good >lack
}
copy_known() {   # content that is there under another name
  local row from to
  declare -A source=()
  while IFS= read -r -d '' row; do source[${row:0:64}]=${row:157}; done < <(
    cut -z -b 1-64 lack | sort -zu | tr '\0' '\n' >patterns; cat known hashed | that_match -F -f patterns)
  while IFS= read -r -d '' row; do
    from=${source[${row:0:64}]-} to=${row:64}
    [ -z "$from" ] || printf '%s//%s\0' "${to%/*}" "$from//$to"
  done <lack | sort -z >copies
  [ -s copies ] || return 0
  while IFS= read -r -d '' row; do printf '%s\0' "tree/${row%%//*}"; done <copies | sort -zu | xargs -0 mkdir -p --
  local parent= batch=()
  while IFS= read -r -d '' row; do
    from=${row#*//} to=${from#*//} from=${from%%//*}
    [ "${row%%//*}" = "$parent" ] || { copy_batch; parent=${row%%//*} batch=(); }
    if [ "${from##*/}" = "${to##*/}" ]; then batch+=("$from"); else copy "$from" -T "$work/tree/$to"; fi
  done <copies
  copy_batch
  (cd tree && cut -z -b 65- <"$work/lack" | xargs -0 -r sha256sum -z --) 2>/dev/null | sums 67 | comm -z -12 - lack >copied
  cp lack sought; comm -z -23 sought copied >lack
  cut -z -b 65- lack | (cd tree && xargs -0 -r rm -f --)
  sort -z good copied -o good
}
copy() { (cd -- "$target" && cp -p -P --reflink=auto "$@") 2>>"$errors"; }
copy_batch() { [ -z "${batch+x}" ] || printf '%s\0' "${batch[@]}" |
  (cd -- "$target" && xargs -0 cp -p -P --reflink=auto -t "$work/tree/$parent" --) 2>>"$errors"; }
find_extras() {   # with delete: what is there and not wanted, and is kept by the patterns
  local folder
  : >extra.names; : >extra.folders
  [ "$delete" -eq 1 ] || return 0
  sort -z names | comm -z -23 - <(sort -z want.names want.folders) | kept | sort -z >extra.names
  comm -z -23 there.folders want.folders | append_slash | kept |
    while IFS= read -r -d '' folder; do printf '%s\0' "${folder%/}"; done | sort -z >extra.folders
}
find_blocked() {   # directories where something else shall be, and the reverse
  local path up
  comm -z -12 want.names there.folders >blocked; comm -z -12 want.folders there.names >replaced
  [ -s blocked ] || return 0
  if [ -e "$state/manifest" ]; then paths "$state/manifest" old; else : >old.names; : >old.folders; fi
  declare -A above=()
  while IFS= read -r -d '' path; do above["x$path"]=1; done <blocked
  sort -z there.names there.folders |
    comm -z -23 - <(sort -z -u old.names old.folders extra.names extra.folders) |
    while IFS= read -r -d '' path; do
      up=$path
      while [ "${up%/*}" != "$up" ]; do
        up=${up%/*}
        [ -z "${above["x$up"]-}" ] || { printf '%s\0' "$path"; break; }
      done
    done >foreign
  [ ! -s foreign ] || { head -z -n 20 foreign >some; answer "conflict $(enclosed some)"; exit 1; }
}
tell() {   # what changes: added, changed, touched, deleted, each list ended by an empty record
  paths need need
  sort -z need.names need.folders | comm -z -23 - <(sort -z there.names there.folders) >added
  sort -z need.names need.folders | comm -z -23 - added >altered
  { cut -z -b 67- content; of_links need | cut -z -b 104- |
    while IFS= read -r -d '' link; do printf '%s\0' "${link%%//*}"; done; cat blocked replaced; } | sort -z -u >other
  comm -z -12 altered other >changed; comm -z -23 altered other >touched
  printf '\0' >end; enclosed added end changed end touched end extra.names extra.folders end
}
complete() {   # what needs no content, and the modes of directories
  local row path
  comm -z -23 need.folders there.folders | (cd tree && xargs -0 -r mkdir -p --) || return 1
  while IFS= read -r -d '' row; do
    row=./${row:103} path=${row%%//*}
    [ -L "tree/$path" ] || { mkdir -p -- "tree/${path%/*}" && ln -s -- "${row#*//}" "tree/$path"; } || return 1
  done < <(of_links need)
  # Those that lead there, too; times of directories do not count.
  (cd tree && find . -mindepth 1 -type d -print0) | sort -z >leading
  of_folders want | by_column 102 | in_order leading >rows && retouch rows tree
}
in_order() {   # rows of a manifest whose path is in the list "$1"
  declare -A listed=()
  local row
  while IFS= read -r -d '' row; do listed["x$row"]=1; done <"$1"
  while IFS= read -r -d '' row; do [ -z "${listed["x${row:101}"]-}" ] || printf '%s\0' "$row"; done
}
clear_way() {
  local path number=0
  while IFS= read -r -d '' path; do
    [ -L "$target/$path" ] || [ ! -d "$target/$path" ] || chmod u+rwx -- "$target/$path"
    mv -fT -- "$target/$path" "$work/way.$((number += 1))" || return 1
  done < <(cat blocked replaced)
}
touch_up() {   # what has its content, and not its mode or time
  local path
  while IFS= read -r -d '' path; do printf './%s\0' "$path"; done <touched >touching
  in_order touching <need >rows; [ ! -s rows ] || retouch rows "$target"
}
remove_extras() {
  local path folder
  [ -s extra.names ] || [ -s extra.folders ] || return 0
  while IFS= read -r -d '' path; do
    folder=${path%/*}; [ "$folder" != "$path" ] || folder=.
    [ -w "$target/$folder" ] || [ ! -d "$target/$folder" ] || printf '%4s./%s\0' "$(stat -c %a -- "$target/$folder")" "$folder"
  done < <(cat extra.names extra.folders) | sort -z -u >closed
  ( cd -- "$target" || exit 1
    cut -z -b 5- <"$work/closed" | xargs -0 -r chmod u+rwx --
    xargs -0 -r rm -f -- <"$work/extra.names" || exit 1
    sort -z -r "$work/extra.folders" | xargs -0 -r rmdir --ignore-fail-on-non-empty -- 2>/dev/null
    grouped 4 chmod '' <"$work/closed" 2>/dev/null; true )
}
settle() {   # remember what is there now
  echo >ref; tick ref
  cut -z -b 158- staged.rows | (cd -- "$target" && signatures "$work/ref") >after
  attach 94 staged.rows after >fresh
  remember "$state/cache" known hashed fresh
  cp -- want "$state/manifest.new" && mv -f -- "$state/manifest.new" "$state/manifest"
}

cd -- "$state" || exit 1
grep -qs '^applied ' -- "$answer" && exit 0   # requeued: the outcome stands
take_turn
find_target
if [ -d "$target" ] && [ "$(stat -Lc %d -- "$target")" != "$(stat -c %d .)" ]; then
  work=$target/.hpcbridge-$session.work errors=$work/errors   # a rename does not leave a file system
fi
mkdir -p -- "$work" && cd -- "$work" || exit 1
: >"$errors"
unpack @INCLUDE@ >include; unpack @EXCLUDE@ >exclude
whose=$target; [ -d "$whose" ] || { whose=${target%/*}; whose=${whose:-/}; }
(umask "$mask"; mkdir -p tree)
[ ! -g "$whose" ] || { chgrp --reference="$whose" tree && chmod g+s tree; } 2>/dev/null

receive
open_tree
want
look_around
check_staged
[ "$dry" -eq 1 ] || copy_known
find_extras
find_blocked
changes=$(tell)
[ "$dry" -eq 0 ] || { cd / && wipe "$work"; answer "dry $changes"; exit 0; }
[ ! -s lack ] || { cut -z -b 67- lack >missing; answer "want $(enclosed missing)"; exit 0; }

complete 2>"$errors" || fail completing
[ ! -g tree ] || find tree -type d -exec chmod g+s {} +
(cd tree && find . -type f -printf '@FILE@') >files
in_rows 65 <good >sums; attach 158 sums files >staged.rows
mine || { echo 'another job has taken over' >"$errors"; fail lock; }
tree=$work/tree stage=$work
clear_way 2>"$errors" || fail clearing
if [ ! -d "$target" ] || [ "$(find tree -mindepth 1 -print -quit)" ]; then
@PUBLISH@
fi
touch_up 2>"$errors" || fail touching
remove_extras 2>"$errors" || fail removing
settle 2>"$errors" || fail settling
cd -- "$state"
wipe "$work"
[ "$count" -eq 0 ] || case $payload in "$state") list_pieces | xargs rm -f -- ;; *) wipe "$payload" ;; esac
tidy
answer "applied $changes"
"""


class Verdict(StrEnum):
    """The first word of the job's answer."""

    APPLIED = "applied"
    """The tree is as wanted."""
    DRY = "dry"
    """What would change; nothing has."""
    WANT = "want"
    """Content is missing; nothing has changed."""
    BASE = "base"
    """The manifest that the edits are for is not the one that is kept there: the whole is needed."""
    DAMAGED = "damaged"
    """The archive is not the one that was sent."""
    BUSY = "busy"
    """Another job works on the tree."""
    CONFLICT = "conflict"
    """Something that nobody may delete is where a file shall be."""
    TARGET = "target"
    """The target is no directory."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the job says: `paths` are those it lacks (or that are in the way), None when there are too many to tell.

    `added`, `changed`, `touched` (mode or time) and `deleted` are paths.
    """

    verdict: Verdict
    reason: str = ""
    paths: tuple[bytes, ...] | None = ()
    added: tuple[bytes, ...] = ()
    changed: tuple[bytes, ...] = ()
    touched: tuple[bytes, ...] = ()
    deleted: tuple[bytes, ...] = ()


def parse_answer(text: str) -> Answer:
    """Read the answer file. Raises ValueError for anything the script does not write."""
    word, _, rest = text.strip().partition(" ")
    verdict = Verdict(word)
    if verdict in (Verdict.WANT, Verdict.CONFLICT):
        return Answer(verdict, paths=None if rest == "-" else tuple(records(_opened(rest))))
    if verdict in (Verdict.APPLIED, Verdict.DRY):
        return Answer(verdict, "", (), *_sections(b"\0\0\0\0" if rest == "-" else _opened(rest)))
    return Answer(verdict, rest.strip())


def _opened(text: str) -> bytes:
    return gzip.decompress(b64decode(text, validate=True))


def _sections(data: bytes) -> list[tuple[bytes, ...]]:
    found: list[list[bytes]] = [[]]
    for record in records(data):
        if record:
            found[-1].append(record)
        else:
            found.append([])
    if len(found) != 5 or found.pop():
        raise ValueError("the answer has not four lists")
    return [tuple(each) for each in found]


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
class Apply:
    """One job of a sync: the tree at `target` gets the manifest named `goal`.

    `state` is the tree's state directory; `session` names the sync and `attempt` its jobs; `payload` is None when
    nothing is sent. `delete` removes what is not in the manifest and kept by `filter`; `dry` changes nothing. `mode` is
    that of a new tree's root.
    """

    state: str
    session: str
    attempt: int
    target: RemotePath
    goal: str
    filter: Filter
    payload: Payload | None = None
    delete: bool = False
    dry: bool = False
    mode: int | None = None

    @property
    def answer_name(self) -> str:
        """Name of the file in `state` that holds the job's answer."""
        return f"{self.session}.answer-{self.attempt}"

    def script(self) -> str:
        """The batch script."""
        sent = self.payload or Payload(self.state, self.session, 0, 0, "")
        include, exclude = self.filter.expressions()
        values = common_values(self.state, self.session, self.attempt, self.target, self.answer_name) | {
            "GOAL": self.goal,
            "DELETE": str(int(self.delete)),
            "DRY": str(int(self.dry)),
            "MODE": "" if self.mode is None else f"{self.mode:o}",
            "PAYLOAD": packed(sent.directory.encode()),
            "COUNT": str(sent.count),
            "SIZE": str(sent.size),
            "SUM": sent.sha256,
            "PIECES": sent.session,
            "DIGITS": str(PIECE_NAME_DIGITS),
            "UNZIP": "-z" if sent.compression else "",
            "INCLUDE": packed(include),
            "EXCLUDE": packed(exclude),
            "LARGEST": "" if self.filter.max_file_size is None else str(self.filter.max_file_size),
            "FILE": FILE_ROW,
            "PUBLISH": PUBLISH,
        }
        return filled(_SCRIPT, values)


def common_values(state: str, session: str, attempt: int, target: RemotePath, answer: str) -> dict[str, str]:
    """What `COMMON` and `LISTING` need."""
    return {
        "STATE": packed(state.encode()),
        "TARGET": packed(target.encoded),
        "SESSION": session,
        "ATTEMPT": str(attempt),
        "ANSWER": answer,
        "STAGE": STAGE_PREFIX,
        "BEAT": str(BEAT),
        "DEAD": str(DEAD),
        "TURN": str(TURN),
        "KEPT": str(KEPT_MINUTES),
        "LONGEST": str(ANSWER_BYTES),
    }


def filled(template: str, values: dict[str, str]) -> str:
    """A script with its values put in."""
    text = template.replace("@COMMON@", COMMON).replace("@LISTING@", LISTING)
    return re.sub("@([A-Z0-9]+)@", lambda match: values[match[1]], text)
