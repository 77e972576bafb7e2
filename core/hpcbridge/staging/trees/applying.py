"""The job that brings a tree on the system up to date.

It makes the wanted manifest of the one that it keeps and of the edits that were sent, compares it with what is there,
and looks for content first in the archive that came along, then, by SHA-256, among the files that are there already.
If anything is missing it changes nothing, says what it needs, and keeps what it has got; else entries are published
each by one rename, as `unpacking` does. Whatever is interrupted at any point is found out by the next comparison: no
file is ever believed to be what its signature does not prove.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpcbridge.staging.trees.jobscript import SyncJob
from hpcbridge.staging.trees.listing import FILE_ROW
from hpcbridge.staging.trees.unpacking import PUBLISH

_SCRIPT = r"""#!/bin/bash
# hpcbridge: brings a tree up to date.
@COMMON@
@LISTING@
base=@BASE@ delete=@DELETE@ mode=@MODE@ born=@BORN@
grouped() {   # grouped WIDTH COMMAND...: once for all paths with the same value in the first columns
  local width=$1 row value= batch=(); shift
  { while IFS= read -r -d '' row; do
      if [ "${row:0:width}" != "$value" ]; then flush "$@" || return; value=${row:0:width} batch=(); fi
      batch+=("${row:width}")
    done
    flush "$@"
  } | xargs -0 -r -n 2 -P 4 "${@:1:$#-1}"   # a path alone: this shell would take longer to start its process
}
flush() {
  if [ "${#batch[@]}" -gt 1 ]; then printf '%s\0' "${batch[@]}" | xargs -0 "$@${value// /}" --
  elif [ -n "${batch+x}" ]; then printf '%s\0' "${@: -1}${value// /}" "${batch[0]}"; fi
}
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
  (cd tree && cut -z -b 65- <"$work/lack" | xargs -0 -r sha256sum -z -- || :) 2>/dev/null | sums 67 |
    comm -z -12 - lack >copied
  cp lack sought; comm -z -23 sought copied >lack
  cut -z -b 65- lack | (cd tree && xargs -0 -r rm -f --)
  sort -z good copied -o good
  cut -z -b 65- copied >leading; only leading <need >rows; retouch rows tree 2>>"$errors"
}
copy() { (cd -- "$target" && cp -p -P --reflink=auto "$@") 2>>"$errors" || :; }
copy_batch() { [ -z "${batch+x}" ] || printf '%s\0' "${batch[@]}" |
  (cd -- "$target" && xargs -0 cp -p -P --reflink=auto -t "$work/tree/$parent" --) 2>>"$errors" || :; }
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
  printf '\0' >end; printf '%s ' "$(cat extra.names extra.folders | count)"
  enclosed added end changed end touched end extra.names extra.folders end
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
  of_folders want | by_column 102 | only leading >rows && retouch rows tree
}
enter_above() { name=./${1##*/}; case $1 in */*) enter "${1%/*}/" ;; *) enter '' ;; esac; }
clear_way() {
  local path number=0
  while IFS= read -r -d '' path; do
    number=$((number + 1))
    ( enter_above "$path" || exit 1
      [ -L "$name" ] || [ ! -d "$name" ] || chmod u+rwx -- "$name"
      mv -fT -- "$name" "$work/way.$number" ) || return 1
  done < <(cat blocked replaced)
}
touch_up() {   # what has its content, and not its mode or time
  local path
  while IFS= read -r -d '' path; do printf './%s\0' "$path"; done <touched >touching
  only touching <need >rows; [ ! -s rows ] || retouch rows "$target"
}
remove_names() {   # directory by directory, in each of which we are then, whatever takes its place meanwhile
  local path name above= batch=()
  while IFS= read -r -d '' path; do
    if [ "${path%"${path##*/}"}" != "$above" ] || [ -z "${batch+x}" ]; then
      remove_batch || return 1
      above=${path%"${path##*/}"}
      [ -d "$target/$above" ] || continue
      enter_above "$path" || return 1
    fi
    batch+=("./${path##*/}")
  done
  remove_batch
}
remove_batch() { [ -z "${batch+x}" ] || printf '%s\0' "${batch[@]}" | xargs -0 rm -f -- || return 1; batch=(); }
remove_extras() {
  local path folder
  [ -s extra.names ] || [ -s extra.folders ] || return 0
  while IFS= read -r -d '' path; do
    folder=${path%/*}; [ "$folder" != "$path" ] || folder=.
    [ ! -d "$target/$folder" ] || [ -w "$target/$folder" ] ||
      printf '%4s./%s\0' "$(stat -c %a -- "$target/$folder")" "$folder"
  done < <(cat extra.names extra.folders) | sort -z -u >closed
  ( cd -- "$target" || exit 1
    cut -z -b 5- <"$work/closed" | xargs -0 -r chmod u+rwx --
    remove_names <"$work/extra.names" || exit 1
    cd -- "$target" || exit 1
    sort -z -r "$work/extra.folders" | xargs -0 -r rmdir --ignore-fail-on-non-empty -- 2>/dev/null
    grouped 4 chmod '' <"$work/closed" 2>/dev/null; true )
}
settle() {   # remember what is there now
  echo >ref; tick ref
  cut -z -b 158- staged.rows | (cd -- "$target" && signatures "$work/ref") >after
  attach 94 staged.rows after >fresh
  remember "$state/cache" known hashed fresh
  keep manifest
}

begin
find_target
if [ -d "$target" ] && [ "$(stat -Lc %d -- "$target")" != "$(stat -c %d .)" ]; then
  work=$target/.hpcbridge-$session.work errors=$work/errors   # a rename does not leave a file system
fi
prepare
whose=$target; [ -d "$whose" ] || { whose=${target%/*}; whose=${whose:-/}; }
(umask "$mask"; mkdir -p tree)
[ ! -g "$whose" ] || { chgrp --reference="$whose" tree && chmod g+s tree; } 2>/dev/null

receive
open_tree
# A job that waited too long must not take the tree back to what it was.
found=-; [ ! -e "$state/manifest" ] || { found=$(sha256sum <"$state/manifest"); found=${found%% *}; }
[ "$found" = "$base" ] || [ "$found" = "$goal" ] || later "base $found"
# Nor one whose base has come back since.
last=; [ ! -s "$state/born" ] || last=$(head -c 19 -- "$state/born" | tr -cd 0-9)
[ "$dry" -eq 1 ] || [ "${last:-0}" -le "$born" ] || later "late $last"
wanted manifest
look_around
check_staged
[ "$dry" -eq 1 ] || copy_known
find_extras
find_blocked
changes=$(tell)
sound comparing
[ "$dry" -eq 0 ] || { printf 'dry %s\n' "$changes" >"$answer.done"; finish; }
[ ! -s lack ] || { cut -z -b 67- lack >missing; later "want $(enclosed missing)"; }

complete 2>"$errors" || fail completing
[ ! -g tree ] || find tree -type d -exec chmod g+s {} +
(cd tree && find . -type f -printf '@FILE@') >files
in_rows 65 <good >sums; attach 158 sums files >staged.rows
sound completing
mine || { echo 'another job has taken over' >"$errors"; fail lock; }
echo "$born" >"$state/born.new" && mv -f -- "$state/born.new" "$state/born" || fail completing
@PUBLISH@
tree=$work/tree stage=$work
[ ! -d "$target" ] || real 2>"$errors" || fail clearing
clear_way 2>"$errors" || fail clearing
if [ ! -d "$target" ] || [ "$(find tree -mindepth 1 -print -quit)" ]; then
  publish 2>"$errors" || fail publishing
fi
touch_up 2>"$errors" || fail touching
remove_extras 2>"$errors" || fail removing
settle 2>"$errors" || fail settling
sound settling
printf 'applied %s\n' "$changes" >"$answer.done"
finish
"""


@dataclass(frozen=True, slots=True)
class Apply(SyncJob):
    """The tree at `target` gets the manifest named `goal`.

    `base` is the identity of the manifest that is supposed to be kept there, "-" for none. `delete` removes what is not
    in the manifest and kept by `filter`. `mode` is that of a new tree's root. `born` is when the job was made (ns since
    1970, by the client's clock): once a later one has changed the tree, it changes nothing.
    """

    base: str = "-"
    delete: bool = False
    mode: int | None = None
    born: int = 0

    def script(self) -> str:
        """The batch script."""
        own = {
            "BASE": self.base,
            "DELETE": str(int(self.delete)),
            "MODE": "" if self.mode is None else f"{self.mode:o}",
            "BORN": str(self.born),
            "FILE": FILE_ROW,
            "PUBLISH": PUBLISH,
        }
        return self.filled(_SCRIPT, own)
