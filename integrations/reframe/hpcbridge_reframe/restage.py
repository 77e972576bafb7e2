"""The script that lays out a stage directory on the cluster from contents that are there; the job runs it first.

It runs once for all tasks of an array and all jobs that need the directory: a link names the job that does it (the
same job may go on after a requeue), and a file says that it is done. A job that fails at it, or is ended, takes its
link away, and the next one that waits tries. Needs bash, coreutils and findutils there.
"""

from __future__ import annotations

import base64
import posixpath
import re
import shlex
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hpcbridge.staging.trees.entries import Kind
from hpcbridge_reframe.tree import Entry

FOLDER = ".hpcbridge"
"""Directory of a stage directory that is ours (and the core's): it is neither shipped nor brought back."""
FAILED_EXIT = 73
"""Exit code (EX_CANTCREAT) of a job whose stage directory could not be laid out; its script was not run."""
PATIENCE = 600
"""Seconds for which a job waits for another one that lays out the directory."""

_SCRIPT = r"""#!/bin/bash
# hpcbridge: lays out this stage directory from what was shipped.
set -u -o pipefail
export LC_ALL=C
stage=@STAGE@ base=@BASE@ done=@FOLDER@/@NAME@.staged lock=@FOLDER@/@NAME@.staging me=${SLURM_JOB_ID:-$$}
fail() { echo "hpcbridge: $stage could not be laid out: $*; nothing was run" >&2; exit @EXIT@; }
cd -- "$stage" || fail "it cannot be entered"
for ((i = 0; ; i++)); do
    [ ! -e "$done" ] || exit 0
    ln -sn "$me" "$lock" 2>/dev/null || [ "$(readlink "$lock")" = "$me" ] && break
    [ "$i" -lt @LOOKS@ ] || fail "job $(readlink "$lock") began and did not finish it"
    sleep 0.5
done
trap '[ -e "$done" ] || rm -f -- "$lock"' EXIT
@WIPE@
unpack() { base64 -d; }
put() {
    cp --reflink=auto -- "$base/$1" "./$2" || fail "$2 cannot be copied from $base/$1"
}
unpack <<'PATHS' | xargs -0 -r rm -rf -- || fail "what is gone cannot be removed"
@GONE@
PATHS
unpack <<'PATHS' | xargs -0 -r mkdir -p -- || fail "directories cannot be made"
@DIRECTORIES@
PATHS
while IFS= read -r -d '' from && IFS= read -r -d '' to; do put "$from" "$to"; done < <(unpack <<'PATHS'
@FILES@
PATHS
)
while IFS= read -r -d '' target && IFS= read -r -d '' to; do
    ln -sfn -- "$target" "./$to" || fail "the link $to cannot be made"
done < <(unpack <<'PATHS'
@LINKS@
PATHS
)
@MODES@
: >"$done" || fail "it cannot be written to"
"""


@dataclass(frozen=True)
class Layout:
    """What has to be done in the stage directory `stage`: `gone` paths to be removed, `entries` to be made.

    `sources` says where on the cluster, relative to `base`, the content of each key is. With `fresh` all that is there
    goes first, but for the files called `keep*`, to which the job writes already. `name` is the script's own.
    """

    name: str
    stage: str
    base: str
    entries: Mapping[str, Entry]
    sources: Mapping[str, str]
    gone: Iterable[str] = ()
    fresh: bool = False
    keep: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Where the script is, on the cluster."""
        return posixpath.join(self.stage, FOLDER, f"{self.name}.sh")

    def script(self) -> bytes:
        """Its text."""
        files = {path: e for path, e in self.entries.items() if e.kind is Kind.FILE}
        directories = [path for path, e in self.entries.items() if e.kind is Kind.DIRECTORY]
        links = {path: e for path, e in self.entries.items() if e.kind is Kind.LINK}
        parents = {posixpath.dirname(path) for path in (*files, *links)} - {""}
        values = {
            "STAGE": shlex.quote(self.stage),
            "BASE": shlex.quote(self.base),
            "FOLDER": FOLDER,
            "NAME": self.name,
            "EXIT": str(FAILED_EXIT),
            "LOOKS": str(PATIENCE * 2),
            "WIPE": self._wipe() if self.fresh else "",
            "GONE": _packed([f"./{path}" for path in (*self.gone, *files, *links)] if not self.fresh else []),
            "DIRECTORIES": _packed([f"./{path}" for path in (*directories, *sorted(parents))]),
            "FILES": _packed([word for path, e in files.items() for word in (self.sources[e.key], path)]),
            "LINKS": _packed([word for path, e in links.items() for word in (e.target, path)]),
            "MODES": _modes_and_times(files, {path: self.entries[path] for path in directories}),
        }
        text = re.sub("@([A-Z]+)@", lambda match: values[match[1]], _SCRIPT)
        return text.encode("utf-8", "surrogateescape")

    def _wipe(self) -> str:
        """What an earlier run left goes, also old output under the names that this job has just opened."""
        kept = " -o ".join(f"-name {shlex.quote(_literal(name) + '*')}" for name in self.keep)
        # Where somebody else has begun before, other tasks may have waited since, with theirs open.
        begun = f"{FOLDER}/{self.name}.begun"
        minutes = f"minutes=1; [ ! -e {begun} ] || minutes={PATIENCE // 60 + 1}; : >{begun}"
        young = f" ! \\( \\( {kept} \\) -mmin -$minutes \\)" if kept else ""
        old = f"find . -mindepth 1 -maxdepth 1 ! -name {FOLDER}{young}"
        return f"{minutes}\n{old} -exec rm -rf -- {{}} + || fail 'it cannot be cleared'"


def _modes_and_times(files: Mapping[str, Entry], directories: Mapping[str, Entry]) -> str:
    modes: dict[int, list[str]] = defaultdict(list)
    times: dict[int, list[str]] = defaultdict(list)
    for path, entry in files.items():
        modes[entry.mode].append(path)
        times[entry.mtime].append(path)
    # Deepest first: a directory that is closed keeps what is in it out of reach.
    for path, entry in sorted(directories.items(), reverse=True):
        modes[entry.mode].append(path)
    commands = [(f"chmod {mode:o}", paths) for mode, paths in modes.items()]
    commands = [(f"touch -d @{mtime}", paths) for mtime, paths in times.items()] + commands
    return "\n".join(
        f"unpack <<'PATHS' | xargs -0 -r {command} -- || fail 'modes and times cannot be set'\n"
        f"{_packed([f'./{path}' for path in paths])}\nPATHS"
        for command, paths in commands
    )


def _packed(words: Iterable[str]) -> str:
    data = b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in words)
    return "\n".join(textwrap.wrap(base64.b64encode(data).decode(), 76))


def _literal(name: str) -> str:
    return re.sub(r"([*?\[\\])", r"\\\1", name)
