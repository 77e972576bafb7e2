"""The commands behind the file operations, and what the server makes of their output.

The real server pastes paths into a shell line between single quotes, so a path with a quote breaks it. Here no path
ever reaches a shell as text: a quote is answered with the words of the broken shell, and nothing runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from hpcbridge_sandbox.cluster import Cluster, CommandResult, User
from hpcbridge_sandbox.errors import ApiError, CommandTimeout

LS = ("ls", "-l", "--quoting-style=c", "--time-style=+%Y-%m-%dT%H:%M:%S")
_LS_LINE = re.compile(
    r"(?P<type>\S)(?P<permissions>\S+)\s+\d+\s+(?P<user>\S+)\s+(?P<group>\S+)\s+(?P<size>\d+)\s+(?P<time>[\dT:-]+)\s+"
    r'"(?P<name>(?:[^"\\]|\\.)*)"(?: -> "(?P<target>(?:[^"\\]|\\.)*)")?$'
)
_LS_FOLDER = re.compile(r'"(?P<folder>.+)":$')
_ESCAPED = re.compile(r'\\(["\\])')
STAT_FORMAT = "%f %i %d %h %u %g %s %X %Y %Z"
STAT_FIELDS = ("mode", "ino", "dev", "nlink", "uid", "gid", "size", "atime", "mtime", "ctime")
READ_ONLY = "Read-only file system"
OWNERS_COMMANDS = frozenset({"chmod", "chown"})
UNBALANCED_QUOTE = "bash: -c: line 1: unexpected EOF while looking for matching `''"


@dataclass(frozen=True)
class Shell:
    """Runs file commands of one user on one cluster."""

    cluster: Cluster
    user: User

    async def run(self, argv: Sequence[str], *, input: bytes | None = None, hold_stdin: bool = False) -> CommandResult:
        """Run a command; raises `ApiError` as the server maps its exit status and error text."""
        if any("'" in argument for argument in argv):
            raise failure(2, UNBALANCED_QUOTE)
        if any(not _passable(argument) for argument in argv):
            raise failure(1, "invalid byte in an argument")
        result = await self.cluster.run(self.user, argv, input=input, hold_stdin=hold_stdin)
        if result.returncode != 0:
            raise failure(result.returncode, self._as_on_a_login_node(argv, text(result.stderr)))
        return result

    def _as_on_a_login_node(self, argv: Sequence[str], stderr: str) -> str:
        """Say of the cluster's read-only parts what is said of directories that root or somebody else owns.

        Directories that ``--expose`` shows read-only are read-only on purpose, and told so.
        """
        shown = [one.target for one in self.cluster.settings.expose if one.read_only]
        if any(PurePosixPath(argument).is_relative_to(target) for argument in argv for target in shown):
            return stderr
        changes_owned = not OWNERS_COMMANDS.isdisjoint(argv)
        return stderr.replace(READ_ONLY, "Operation not permitted" if changes_owned else "Permission denied")

    async def then_ls(self, argv: Sequence[str], shown: str) -> dict[str, str | None] | None:
        """Run a command and, where it succeeds, list ``shown`` itself; return that entry."""
        # The first command's own output is dropped: it must not be taken for a line of ls.
        script = f'shown=$1; shift; "$@" >/dev/null && exec {" ".join(LS)} -d -- "$shown"'
        result = await self.run(["bash", "-c", script, "bash", shown, *argv])
        return next(parse_ls(text(result.stdout)), None)


def _passable(argument: str) -> bool:
    try:
        return b"\0" not in argument.encode()
    except UnicodeEncodeError:
        return False


def text(data: bytes) -> str:
    """Decode a command's output as the server does: what is not UTF-8 is replaced."""
    return data.decode("utf-8", errors="replace")


def failure(exit_status: int, stderr: str) -> ApiError:
    """Return the error for a command that failed (``BaseCommandErrorHandling`` of FirecREST)."""
    message = f"Remote process failed with exit status:{exit_status}"
    if stderr:
        message += f" and error message:{stderr.strip()}"
    if exit_status == 124:
        return CommandTimeout(message)
    for words, status in (
        ("No such file or directory", 404),
        ("Permission denied", 403),
        ("Operation not permitted", 403),
        ("File exists", 400),
    ):
        if words in stderr:
            return ApiError(status, message)
    return ApiError(500, message)


def parse_ls(output: str) -> Iterator[dict[str, str | None]]:
    """Yield the entries of ``ls -l``, with names relative to the first folder for ``ls -R``.

    Names come as the server gives them: only an escaped quote or backslash is undone, so ``é`` stays ``\\303\\251``.
    """
    root: str | None = None
    prefix = ""
    for line in output.split("\n"):
        folder = _LS_FOLDER.match(line)
        if folder:
            name = folder["folder"].rstrip("/") + "/"
            root = name if root is None else root
            prefix = name.removeprefix(root)
            continue
        match = _LS_LINE.match(line)
        if match:
            target = match["target"]
            yield {
                "name": prefix + _ESCAPED.sub(r"\1", match["name"]),
                "type": match["type"],
                "linkTarget": None if target is None else _ESCAPED.sub(r"\1", target),
                "user": match["user"],
                "group": match["group"],
                "permissions": match["permissions"],
                "lastModified": match["time"],
                "size": match["size"],
            }


def ls_command(path: str, *, hidden: bool, numeric: bool, recursive: bool, dereference: bool) -> list[str]:
    """Return the ``ls`` of a listing."""
    options = [("-A", hidden), ("--numeric-uid-gid", numeric), ("-R", recursive), ("-L", dereference)]
    return [*LS, *(option for option, wanted in options if wanted), "--", path]


def part_command(program: str, path: str, byte_count: int | None, lines: int | None, skip: bool) -> list[str]:
    """Return ``head`` or ``tail``; a zero counts as not given, as on the real server."""
    sign = ("-" if program == "head" else "+") if skip else ""
    options = [f"--bytes={sign}{byte_count}"] if byte_count else []
    options += [f"--lines={sign}{lines}"] if lines else []
    return [program, *options, "--", path]


def parse_stat(output: str) -> dict[str, int]:
    """Return the numbers of ``stat -c``; the mode is printed in hexadecimal."""
    values = output.split()
    return {name: int(value, 16 if name == "mode" else 10) for name, value in zip(STAT_FIELDS, values, strict=True)}


def parse_checksum(result: CommandResult) -> dict[str, str]:
    """Return the digest; a path with white space makes the server stumble over the output."""
    parts = text(result.stdout).split()
    if len(parts) != 2:
        raise ApiError(500, f"Invalid output: {text(result.stdout)} {text(result.stderr)}")
    return {"algorithm": "SHA256", "checksum": parts[0]}


def view_window(output: bytes, size: int, offset: int) -> str:
    """Cut the requested window out of ``dd``'s two blocks. The server cuts characters, not bytes."""
    start = offset % size
    return text(output)[start : start + size]


def compress_command(path: str, target: str, pattern: str | None, flag: str, dereference: bool) -> list[str]:
    """Return ``tar`` over one path, or over the plain files beside it whose path matches ``pattern``."""
    directory, name = os.path.split(path)
    follow = ["--dereference"] if dereference else []
    if pattern:
        script = (
            'cd "$1" || exit; pattern=$2; target=$3; shift 3; '
            'find . -type f -regex "$pattern" -print0 | tar "$@" -czvf "$target" --null --files-from -'
        )
        return ["bash", "-c", script, "bash", directory, pattern, target, *follow]
    return ["tar", *follow, f"-c{flag}vf", target, "-C", directory, "--", name]


COMPRESSION_FLAGS = {"none": "", "gzip": "z", "bzip2": "j", "xz": "J"}
