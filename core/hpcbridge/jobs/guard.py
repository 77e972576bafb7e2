"""What surrounds the user's script: the lock that lets it run once, its environment, its directives.

Everything lives in `<workdir>/.hpcbridge/` on the system:

    <name>.lock          symbolic link to the owner's job id, made by the job itself when it starts
    <name>.private/env   the environment (file 0600 in a directory 0700), sourced by the job
    <name>.script        the user's script, where its interpreter is not a shell
    <name>.batch         the batch script, for schedulers in hybrid mode

The texts made here are POSIX shell, and pass through dash, bash, ksh and zsh with any of `-e -u -x -v -l`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hpcbridge.errors import InvalidSpec
from hpcbridge.jobs.names import normal_directory
from hpcbridge.jobs.spec import JobSpec

FOLDER = ".hpcbridge"
"""Directory below the work directory that holds locks and private files."""

CANNOT_LOCK_EXIT = 73
"""Exit code (EX_CANTCREAT) of a job that could not make or read its lock or its environment; its script was not run."""

_SHELLS = frozenset({"sh", "bash", "dash", "ash", "ksh", "mksh", "zsh"})

_GUARD = """\
# hpcbridge: one execution per key, whatever happens to the submit. The lock names the job that runs.
# No tracing here: with bash -x or -v it would print the environment's values.
{{ case $- in *[xv]*) hpcbridge_flags=$-; set +xv ;; *) hpcbridge_flags= ;; esac; }} 2>/dev/null
hpcbridge_once() {{
    if [ -z "$1" ]; then
        echo "hpcbridge: no job id in the environment; nothing was run" >&2; exit {cannot}
    fi
    if [ ! -d "$2" ] && mkdir "$2" 2>/dev/null; then
        chmod --reference="${{2%/*}}/." "$2" 2>/dev/null || :
    fi
    for hpcbridge_try in 1 2 3 4 5; do
        if ln -sn "$1" "$3" 2>/dev/null; then return 0; fi
        hpcbridge_owner=$(readlink "$3" 2>/dev/null) || hpcbridge_owner=
        if [ "$hpcbridge_owner" = "$1" ]; then return 0; fi
        if [ -n "$hpcbridge_owner" ]; then
            echo "hpcbridge: job $1 lost to job $hpcbridge_owner, which holds $3; nothing was run" >&2; exit {lost}
        fi
        sleep 1
    done
    echo "hpcbridge: cannot make $3: $(ln -sn "$1" "$3" 2>&1); nothing was run" >&2; exit {cannot}
}}
hpcbridge_once "${{SLURM_ARRAY_JOB_ID:-${{SLURM_JOB_ID:-}}}}" {folder} {lock}
"""

_SOURCE = """\
hpcbridge_env() {{
    for hpcbridge_try in 1 2 3 4 5; do
        if [ -r "$1/env" ]; then return 0; fi
        sleep 1
    done
    echo "hpcbridge: cannot read $1/env; nothing was run" >&2; exit {cannot}
}}
hpcbridge_env {private}
. {private}/env
"""

_TIDY = """\
unset -f hpcbridge_once hpcbridge_env 2>/dev/null || :
unset hpcbridge_try hpcbridge_owner || :
case $hpcbridge_flags in *v*) set -v ;; esac
case $hpcbridge_flags in *x*) set -x ;; esac
# From here on it is the job's own script.
"""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the files of the job `name` are, below its work directory."""

    workdir: str
    name: str

    @property
    def folder(self) -> str:
        """The directory of all of them."""
        return f"{normal_directory(self.workdir).rstrip('/')}/{FOLDER}"

    @property
    def lock(self) -> str:
        """The symbolic link whose target is the owner's job id."""
        return f"{self.folder}/{self.name}.lock"

    @property
    def private(self) -> str:
        """Directory (0700) of the environment file."""
        return f"{self.folder}/{self.name}.private"

    @property
    def script(self) -> str:
        """The user's script as a file, where its interpreter is not a shell."""
        return f"{self.folder}/{self.name}.script"

    @property
    def batch(self) -> str:
        """The batch script as a file, for schedulers in hybrid mode."""
        return f"{self.folder}/{self.name}.batch"


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The `#!` line of a script: program and at most one argument, as the kernel reads it."""

    argv: tuple[str, ...]

    @classmethod
    def of(cls, script: str) -> Interpreter:
        """Parse the first line. Raises InvalidSpec when it is none."""
        line = script.partition("\n")[0]
        words = line.removeprefix("#!").strip().split(None, 1)
        if not line.startswith("#!") or not words:
            raise InvalidSpec("The first line of the script must start with #! and an interpreter, such as #!/bin/bash")
        return cls(tuple(word.strip() for word in words))

    @property
    def is_shell(self) -> bool:
        """Whether the prelude can be put into the script itself."""
        words = " ".join(self.argv).split()
        if words[0].rpartition("/")[2] == "env":
            words = [word for word in words[1:] if not word.startswith("-") and "=" not in word] or words
        return words[0].rpartition("/")[2] in _SHELLS


def split_head(script: str) -> tuple[str, str]:
    """The script's head (all that sbatch looks at: up to the first line that is neither blank nor a comment), the rest.

    Only newlines end a line, as for sbatch and the shell.
    """
    lines = re.findall(r"[^\n]*\n|[^\n]+", script)
    for number, line in enumerate(lines):
        if line.strip() and not line.startswith("#"):
            return "".join(lines[:number]), "".join(lines[number:])
    return "".join(lines), ""


def directives_in(script: str) -> tuple[str, ...]:
    """The options in the script's `#SBATCH` lines, as sbatch finds them, one string per line."""
    lines = split_head(script)[0].split("\n")
    return tuple(line.removeprefix("#SBATCH").strip() for line in lines if re.match(r"#SBATCH\s", line))


def spec_directives(spec: JobSpec) -> tuple[str, ...]:
    """The options that the specification's own fields stand for."""
    fields = {
        "account": spec.account,
        "partition": spec.partition,
        "reservation": spec.reservation,
        "constraint": spec.constraint,
        "time": spec.time,
        "nodes": spec.nodes,
        "ntasks": spec.ntasks,
        "array": spec.array,
    }
    named = (f"--{name}={_quoted(str(value))}" for name, value in fields.items() if value is not None)
    return (*spec.directives, *named)


def _quoted(value: str) -> str:
    return f'"{value}"' if re.search(r"[\s#]", value) else value


def environment_file(env: Mapping[str, str]) -> bytes:
    """The environment as `export NAME='value'` lines; every byte but NUL arrives as it is."""
    lines = (f"export {name}=".encode() + _shell_quoted(value) + b"\n" for name, value in env.items())
    return b"".join(lines)


def _shell_quoted(value: str) -> bytes:
    return b"'" + value.encode("utf-8", "surrogateescape").replace(b"'", b"'\\''") + b"'"


def prelude(places: Places, *, env: bool, keep_env: bool = True) -> str:
    """The shell text that takes the lock, or leaves with 75, and then sources the environment.

    `keep_env=False` removes the environment file once read: only right for a job that can neither be requeued nor is
    an array.
    """
    quote = shlex.quote
    text = _GUARD.format(folder=quote(places.folder), lock=quote(places.lock), cannot=CANNOT_LOCK_EXIT, lost=75)
    if env:
        text += _SOURCE.format(private=quote(places.private), cannot=CANNOT_LOCK_EXIT)
        if not keep_env:
            text += f"rm -rf {quote(places.private)} || :\n"
    return text + _TIDY


def guarded(script: str, places: Places, directives: Iterable[str], *, env: bool, keep_env: bool = True) -> str:
    """A shell script with the guard put in after its head; `directives` follow its own and so win over them."""
    head, body = split_head(script)
    if not head.endswith("\n"):
        head += "\n"
    return head + _sbatch_lines(directives) + prelude(places, env=env, keep_env=keep_env) + body


def wrapper(
    path: str, interpreter: Interpreter, places: Places, directives: Iterable[str], *, env: bool, keep_env: bool = True
) -> str:
    """A batch script that takes the lock and then becomes the script at `path`, whose directives it carries."""
    command = " ".join(shlex.quote(word) for word in (*interpreter.argv, path))
    start = "#!/bin/sh\n" + _sbatch_lines(directives)
    return f'{start}{prelude(places, env=env, keep_env=keep_env)}exec {command} "$@"\n'


def _sbatch_lines(directives: Iterable[str]) -> str:
    return "".join(f"#SBATCH {directive}\n" for directive in directives)


def may_come_again(directives: Iterable[str]) -> bool:
    """Whether the scheduler may start the job's script more than once: arrays, and all that is not `--no-requeue`."""
    lines = list(directives)
    words = [word for line in lines for word in line.split()]
    return "--no-requeue" not in words or array_in(lines) is not None


def array_in(directives: Iterable[str]) -> str | None:
    """The array expression among the options (the last one wins), or None."""
    value = None
    for option, argument in options_in(directives):
        if option in ("-a", "--array"):
            value = argument
    return value


def options_in(directives: Iterable[str]) -> list[tuple[str, str | None]]:
    """Option and argument of each directive: `-p debug`, `-pdebug`, `--partition debug`, `--partition=debug`.

    Raises InvalidSpec for a quote without its match, as sbatch does.
    """
    found: list[tuple[str, str | None]] = []
    for line in directives:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            raise InvalidSpec(f"A quote without its match in the directive {line}") from None
        while words:
            word = words.pop(0)
            if word.startswith("--"):
                name, equals, value = word.partition("=")
                found.append((name, value if equals else _argument(words)))
            elif word.startswith("-") and len(word) > 2:
                found.append((word[:2], word[2:]))
            elif word.startswith("-"):
                found.append((word, _argument(words)))
    return found


def _argument(words: list[str]) -> str | None:
    return words.pop(0) if words and not words[0].startswith("-") else None


_REST_FIELDS = {
    "-A": "account",
    "--account": "account",
    "-p": "partition",
    "--partition": "partition",
    "-C": "constraints",
    "--constraint": "constraints",
    "--reservation": "reservation",
    "-o": "standardOutput",
    "--output": "standardOutput",
    "-e": "standardError",
    "--error": "standardError",
    "-i": "standardInput",
    "--input": "standardInput",
}
_IMPLIED = frozenset({"-J", "--job-name", "-D", "--chdir"})


def rest_fields(directives: Iterable[str]) -> dict[str, str]:
    """Directives as fields of the REST call, for schedulers in REST mode, which ignore `#SBATCH` lines.

    Raises InvalidSpec naming those that the call cannot carry.
    """
    fields: dict[str, str] = {}
    lost: list[str] = []
    for option, argument in options_in(directives):
        if option in _REST_FIELDS and argument is not None:
            fields[_REST_FIELDS[option]] = argument
        elif option not in _IMPLIED:
            lost.append(option if argument is None else f"{option} {argument}")
    if lost:
        raise InvalidSpec(
            f"The scheduler of this system is in REST mode and would ignore {', '.join(sorted(set(lost)))}",
            hint="Leave these out, or use a system in ssh or hybrid mode",
        )
    return fields
