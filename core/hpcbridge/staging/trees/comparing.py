"""The job that compares a tree on the system with what the client has, and packs what differs.

It reads only files whose digest it does not remember, so what the client has under other names need not be sent. What
changes while it is packed is named, and not to be used.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpcbridge.staging.trees.jobscript import SyncJob

EMBEDDED = 2_000_000
"""Bytes of an archive that come within the answer, in base64: a direct download delivers 3.9 million bytes."""
ARCHIVE_SUFFIX = ".archive"

_SCRIPT = r"""#!/bin/bash
# hpcbridge: compares a tree with what is elsewhere, and packs what differs.
@COMMON@
@LISTING@
most=@MOST@
named() {   # paths of the files, links and directories that the patterns keep, and of directories that lead to them
  local path
  declare -A seen=()
  { sort -z names | kept; append_slash <folders | kept; } | while IFS= read -r -d '' path; do
    path=./${path%/}
    while [ "$path" != . ] && [ -z "${seen["x$path"]-}" ]; do
      seen["x$path"]=1; printf '%s\0' "$path"; path=${path%/*}
    done
  done
}
complain() {   # but not about what vanished meanwhile
  ! grep -v ': No such file or directory$' <errors >complaints || { mv -f complaints errors; fail reading; }
}
look_around() {   # `actual`: what is kept of the tree; `odd` and `large`: what is left out
  list "$target" @LARGEST@ || [ -s errors ]
  complain
  kept <names | sort -z >names.kept; kept <large | sort -z >large.kept; mv -f large.kept large
  if [ -s include ] || [ -s exclude ] || [ -s large ]; then
    named >listed
    for each in files others; do only listed 158 <"$each" >selected; mv -f selected "$each"; done
  fi
  recognize "$state/cache"; read_all "$target"
  remember "$state/cache" known hashed
  complain
  manifest >actual
  paths actual there; paths want here
  comm -z -23 names.kept there.names >odd
}
compare() {   # `rows`: what the client lacks; `extra`: what it has too much; `packing`: what it is sent
  local row path total
  total=$(($(of_files actual | cut -z -b 69-88 | tr '\0' '+')0))
  [ "$most" -lt 0 ] || [ "$total" -le "$most" ] || { answer "large $total"; exit 1; }
  comm -z -23 actual want >rows
  sort -z here.names here.folders | comm -z -23 - <(sort -z there.names there.folders) >extra
  declare -A has=()
  while IFS= read -r -d '' row; do has[$row]=1; done < <(of_files want | cut -z -b 1-64 | sort -z -u)
  while IFS= read -r -d '' row; do
    path=${row:101}
    case ${row:64:1} in
      f) [ -n "${has[${row:0:64}]-}" ] || printf '%s\0' "$path" ;;
      l) printf '%s\0' "${path%%//*}" ;;
      d) printf '%s\0' "$path" ;;
    esac
  done <rows | sort -z >chosen
  [ "$dry" -eq 0 ] || : >chosen
  { printf '.\0'; cat chosen
    while IFS= read -r -d '' path; do
      while path=${path%/*}; [ "$path" != . ]; do printf '%s\0' "$path"; done
    done <chosen
  } | sort -z -u >packing
}
sample() {
  head -c 65536 rows
  shuf -z -n 16 chosen | (cd -- "$target" && xargs -0 -r head -q -c 65536 --) 2>/dev/null
}
pays() {
  sample >sample
  local raw small; raw=$(wc -c <sample) small=$(gzip -1nc <sample | wc -c)
  [ $((small * 10)) -le $((raw * 8)) ]
}
pack() {
  tar -c -b 1 -f - --format=gnu --sparse --hard-dereference --no-recursion --numeric-owner --owner=0 --group=0 \
    --quoting-style=escape --transform='flags=r;s,^\.,tree,' \
    -C "$work" rows extra odd large -C "$target" --null --no-unquote -T "$work/packing" 2>"$errors"
}
unsteady() {   # files that are not what they were when they were listed
  (cd -- "$target" && signatures "$work/ref") <chosen 2>/dev/null | sort -z >after
  { cut -z -b 158- files | sort -z | comm -z -12 - chosen; } >expected
  comm -z -12 after <(sort -z files) | cut -z -b 158- | sort -z | comm -z -23 expected - | cut -z -b 3-
}

begin
find_target
[ -d "$target" ] || { answer 'target No such directory'; exit 1; }
prepare
receive
wanted have
keep have
look_around
compare
sound reading
chosen_before=$(cat rows chosen files extra odd large | sha256sum); archive=$state/${chosen_before:0:16}@SUFFIX@
if [ ! -e "$archive" ]; then
  compression=; ! pays || compression=1
  { pack; echo $? >status; } | if [ "$compression" ]; then gzip -1nc; else cat; fi >"$archive.new" || fail storing
  grep -E -v -e ': (file changed as we read it|File shrank by .*|File removed before we read it)$' \
    -e ': Cannot [a-z]*: No such file or directory$' -e '^tar: Exiting with failure status' <errors >complaints &&
    { mv -f complaints errors; fail packing; }
  [ "$(cat status)" -le 2 ] || fail packing
  mv -f -- "$archive.new" "$archive"
fi
unsteady >changed
size=$(stat -c %s -- "$archive") sum=$(sha256sum <"$archive") || fail reading
line="packed $size ${sum%% *} ${archive##*/} $(enclosed changed)"
if [ "$size" -le @EMBEDDED@ ]; then
  { printf '%s ' "$line"; base64 -w 0 <"$archive"; echo; } >"$answer.done"
  rm -f -- "$archive"
else
  printf '%s -\n' "$line" >"$answer.done"
fi
finish
"""


@dataclass(frozen=True, slots=True)
class Compare(SyncJob):
    """What the client has is the manifest named `goal`; `most` bytes may be in the files of the tree (None: any)."""

    most: int | None = None

    def script(self) -> str:
        """The batch script."""
        own = {
            "MOST": str(-1 if self.most is None else self.most),
            "EMBEDDED": str(EMBEDDED),
            "SUFFIX": ARCHIVE_SUFFIX,
        }
        return self.filled(_SCRIPT, own)
