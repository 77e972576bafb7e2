"""One batch job for what FirecREST has no quick call for: copies, renames, links, archives. Bash and coreutils.

Paths travel as base64, so that no character of a name is ever part of a script. The job answers in a file: a line for
each operation that failed, and a last line `ended`. A job that Slurm has requeued goes on where it stopped.
"""

from __future__ import annotations

import posixpath
import secrets
import shlex
from base64 import b64decode, b64encode, encodebytes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpcbridge.errors import HpcBridgeError

if TYPE_CHECKING:
    from hpcbridge.staging.context import Transfer
    from hpcbridge_aiida.spool import Operation

VERBS = ("cp", "mv", "ln", "mkdir")

_HEAD = r"""#!/bin/bash
# hpcbridge: @TITLE@
set -u -o pipefail
export LC_ALL=C
unpack() { printf %s "$1" | base64 -d; printf x; }
stage=$(unpack @STAGE@); stage=${stage%x}
cd -- "$stage" || exit 1
[ ! -s answer ] || exit 0
"""

_OPERATIONS = r"""
do_cp() {   # exactly to the target, so that doing it twice changes nothing
  if [ ! -e "${3%/*}/" ]; then echo "cp: cannot create '$3': its directory does not exist" >&2; return 1; fi
  cp $1 -T -- "$2" "$3"
}
do_mv() {
  if [ -e "$3" ] || [ -L "$3" ]; then
    [ -n "$again" ] && [ ! -e "$2" ] && [ ! -L "$2" ] && return
    echo "mv: destination exists: '$3'" >&2; return 1
  fi
  mv -T -- "$2" "$3"
}
do_ln() {
  [ -n "$again" ] && [ "$(readlink -- "$3")" = "$2" ] && return
  ln -sT -- "$2" "$3"
}
do_mkdir() { mkdir -p -- "$3"; }
rerun=; [ ! -e started ] || rerun=yes
touch started finished
index=0
while IFS= read -r -d '' verb && IFS= read -r -d '' options && IFS= read -r -d '' source && IFS= read -r -d '' target
do
  if ! grep -qx "$index" finished; then
    again=$rerun
    if ! "do_$verb" "$options" "$source" "$target" 2>errors </dev/null; then
      printf 'failed %s %s\n' "$index" "$(head -c 400 errors | tr '\n' ' ' | base64 -w 0)" >>failures
    fi
    echo "$index" >>finished
  fi
  index=$((index + 1))
done < <(base64 -d <<'OPERATIONS'
@OPERATIONS@
OPERATIONS
)
{ cat failures 2>/dev/null; echo ended; } >answer.new
mv -f -- answer.new answer
"""

_COMMAND = r"""
command=$(unpack @COMMAND@); command=${command%x}
base64 -d <<'INPUT' >input
@INPUT@
INPUT
bash -c "$command" <input >out 2>err; status=$?
{ echo "status $status"; echo "out $(head -c 1000000 out | base64 -w 0)"; echo "err $(head -c 100000 err | base64 -w 0)"
  echo ended; } >answer.new
mv -f -- answer.new answer
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command has said: exit status and both streams, whole up to a megabyte."""

    status: int
    out: str
    err: str


async def run_operations(t: Transfer, operations: Sequence[Operation]) -> dict[int, str]:
    """Do all of `operations` in order by one job; returns the words of those that failed, by index."""
    fields = [(each.verb, each.options, each.source, each.target) for each in operations]
    packed = b"".join(text.encode("utf-8", "surrogateescape") + b"\0" for each in fields for text in each)
    script = _HEAD + _OPERATIONS.replace("@OPERATIONS@", encodebytes(packed).decode().strip())
    title = f"{len(operations)} file operations for AiiDA"
    failures = {}
    for word, rest in await _run(t, script, title, "files"):
        if word == "failed":
            index, _, words = rest.partition(" ")
            failures[int(index)] = _text(words).strip() or "it failed without a word"
    return failures


async def run_command(t: Transfer, command: str, stdin: str = "") -> Outcome:
    """Run one shell command by a job."""
    script = _HEAD + _COMMAND.replace("@COMMAND@", _packed(command)).replace(
        "@INPUT@", encodebytes(stdin.encode()).decode().strip()
    )
    said = dict(await _run(t, script, "a command for AiiDA", "command"))
    return Outcome(int(said["status"]), _text(said["out"]), _text(said["err"]))


def tar_command(target: str, root: str, names: Sequence[str], compression: str, links: str) -> str:
    """The command that packs `names`, relative to `root`; `compression` and `links` are letters of tar's options."""
    listed = " ".join(shlex.quote(name) for name in names)
    return f"tar -c{compression}{links}f {shlex.quote(target)} -C {shlex.quote(root)} -- {listed}"


async def _run(t: Transfer, script: str, title: str, verb: str) -> list[tuple[str, str]]:
    """Run `script` in a directory of its own; returns the lines of its answer, taken apart after the first word."""
    from hpcbridge.staging import keyed_jobs

    stage, session = await keyed_jobs.private_directory(t), secrets.token_hex(4)
    text = script.replace("@TITLE@", title).replace("@STAGE@", _packed(stage))
    job = keyed_jobs.spec(t, script=text, directory=stage, label=f"aiida-{verb}", session=session)
    answer = await keyed_jobs.run(t, job.replace(time="60") if job.time else job, session, f"{stage}/answer")
    if answer is None or not answer.endswith("ended\n"):
        log = posixpath.join(stage, f"{session}.log")
        raise t.error(f"the job with {title} ended without an answer", kind=HpcBridgeError, path=log)
    await keyed_jobs.remove_directory(t, stage)
    lines = [line.partition(" ") for line in answer.splitlines()[:-1]]
    return [(word, rest) for word, _, rest in lines]


def _packed(text: str) -> str:
    return f"'{b64encode(text.encode('utf-8', 'surrogateescape')).decode()}'"


def _text(word: str) -> str:
    return b64decode(word).decode(errors="replace")
