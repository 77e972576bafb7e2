"""``#SBATCH`` lines and ``sbatch`` options, as Slurm 22.05 reads them; no I/O.

Sources: sbatch(1) of Slurm 22.05 and its answers on a real one. A mistake raises `SbatchError` with sbatch's exit
status and words, which the server passes on in its own message.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

from hpcbridge_sandbox.scheduling.local.values import (
    ArraySpec,
    SignalSpec,
    parse_array,
    parse_begin,
    parse_nodes,
    parse_signal,
    parse_time,
)


class SbatchError(Exception):
    """``sbatch`` said no: its exit status and what it wrote to stderr."""

    def __init__(self, exit_status: int, stderr: str) -> None:
        """Keep both, as the server quotes both."""
        super().__init__(stderr)
        self.exit_status = exit_status
        self.stderr = stderr


def _table(text: str) -> dict[str, str | None]:
    options: dict[str, str | None] = {}
    for word in text.split():
        long, _, short = word.partition("/")
        options[long] = short or None
    return options


_WITH_VALUE = _table(
    "account/A acctg-freq array/a batch bb bbf begin/b chdir/D cluster-constraint clusters/M comment constraint/C "
    "container core-spec/S cores-per-socket cpu-freq cpus-per-gpu cpus-per-task/c deadline delay-boot dependency/d "
    "error/e exclude/x export export-file extra-node-info/B gid gpu-bind gpu-freq gpus/G gpus-per-node "
    "gpus-per-socket gpus-per-task gres gres-flags hint input/i job-name/J kill-on-invalid-dep licenses/L mail-type "
    "mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nodefile/F nodelist/w nodes/N ntasks/n "
    "ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode output/o partition/p power prefer "
    "priority profile qos/q reservation signal sockets-per-node switches thread-spec threads-per-core time/t time-min "
    "tmp uid wait-all-nodes wckey wrap"
)
_FLAGS = _table(
    "contiguous exclusive get-user-env hold/H ignore-pbs nice no-kill/k no-requeue overcommit/O oversubscribe/s "
    "parsable propagate quiet/Q reboot requeue spread-job test-only use-min-nodes verbose/v wait/W"
)
_MAY_HAVE_VALUE = {"exclusive", "get-user-env", "nice", "no-kill", "propagate"}
_SHORT = {short: long for long, short in (*_WITH_VALUE.items(), *_FLAGS.items()) if short}
_HINT = 'Try "sbatch --help" for more information\n'


@dataclass(frozen=True)
class Options:
    """The options of one submit that the local queue acts upon. Times in seconds; None where nothing was said."""

    name: str | None = None
    account: str | None = None
    partition: str | None = None
    reservation: str | None = None
    constraint: str | None = None
    time_limit: int | None = None
    nodes: int = 1
    ntasks: int | None = None
    ntasks_per_node: int | None = None
    cpus_per_task: int = 1
    array: ArraySpec | None = None
    chdir: str | None = None
    input: str | None = None
    output: str | None = None
    error: str | None = None
    append: bool = False
    signal: SignalSpec | None = None
    export: str | None = None
    dependency: str | None = None
    begin: float | None = None
    hold: bool = False
    requeue: bool = False
    comment: str | None = None
    qos: str | None = None
    unused: dict[str, str] = field(default_factory=dict)


def directive_words(script: str) -> Iterator[str]:
    """Yield the words of the ``#SBATCH`` lines before the first command of the script."""
    for number, line in enumerate(script.split("\n"), 1):
        if line.startswith("#SBATCH"):
            lexer = shlex.shlex(line[len("#SBATCH") :], posix=True, punctuation_chars=False)
            lexer.whitespace_split = True
            lexer.commenters = "#"
            try:
                yield from lexer
            except ValueError as error:
                text = line[len("#SBATCH") :]
                quote = next(character for character in text if character in "\"'")
                left = text[max(0, text.index(quote) - 1) :]
                words = f"sbatch: fatal: stdin: line {number}: Unmatched `{quote}` in [{left}]\n"
                raise SbatchError(1, words) from error
        elif line.strip() and not line.lstrip().startswith("#"):
            return


def _pairs(words: list[str]) -> Iterator[tuple[str, str]]:
    """Split words into (long option, value) as getopt_long does."""
    rest = iter(words)
    for word in rest:
        if word.startswith("--") and len(word) > 2:
            yield _long(word, rest)
        elif word.startswith("-") and len(word) > 1:
            yield from _shorts(word, rest)
        else:
            raise SbatchError(255, f"sbatch: error: Invalid directive found in batch script: {word}\n")


def _long(word: str, rest: Iterator[str]) -> tuple[str, str]:
    name, equals, value = word[2:].partition("=")
    known = [*_WITH_VALUE, *_FLAGS]
    matches = [name] if name in known else [option for option in known if option.startswith(name)]
    if not matches:
        raise SbatchError(255, f"sbatch: unrecognized option '{word}'\n{_HINT}")
    if len(matches) > 1:
        choices = " ".join(f"'--{match}'" for match in sorted(matches))
        raise SbatchError(255, f"sbatch: option '{word}' is ambiguous; possibilities: {choices}\n{_HINT}")
    option = matches[0]
    if option in _FLAGS:
        if equals and option not in _MAY_HAVE_VALUE:
            raise SbatchError(255, f"sbatch: option '--{option}' doesn't allow an argument\n{_HINT}")
        return option, value
    if not equals:
        found = next(rest, None)
        if found is None:
            raise SbatchError(255, f"sbatch: option '--{option}' requires an argument\n{_HINT}")
        value = found
    return option, value


def _shorts(word: str, rest: Iterator[str]) -> Iterator[tuple[str, str]]:
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        option = _SHORT.get(letter)
        if option is None:
            raise SbatchError(255, f"sbatch: invalid option -- '{letter}'\n{_HINT}")
        if option in _FLAGS:
            yield option, ""
            continue
        value = letters or next(rest, None)
        if not value:
            raise SbatchError(255, f"sbatch: option requires an argument -- '{letter}'\n{_HINT}")
        yield option, value
        return


def _count(option: str, value: str) -> int:
    if not re.fullmatch(r"\d+", value) or int(value) < 1:
        raise SbatchError(1, f'sbatch: error: Invalid numeric value "{value}" for --{option}.\n')
    return int(value)


def parse_options(words: list[str], *, now: float) -> Options:
    """Return what the words of directives and command line ask for; the last word on an option wins.

    `now` (Unix time) is what ``--begin`` counts from. Raises `SbatchError` with sbatch's own words.
    """
    given = dict(_pairs(words))
    numbers = {}
    for option, name in (
        ("ntasks", "ntasks"),
        ("ntasks-per-node", "ntasks_per_node"),
        ("cpus-per-task", "cpus_per_task"),
    ):
        if option in given:
            numbers[name] = _count(option, given[option])
    try:
        checked = _checked(given, now)
    except ValueError as error:
        raise SbatchError(255, f"sbatch: error: {error}\n") from error
    array = given.get("array")
    try:
        spec = parse_array(array) if array is not None else None
    except ValueError as error:
        words_of_slurm = "sbatch: error: Batch job submission failed: Invalid job array specification\n"
        raise SbatchError(1, words_of_slurm) from error
    return Options(
        name=given.get("job-name"),
        account=given.get("account"),
        partition=given.get("partition"),
        reservation=given.get("reservation"),
        constraint=given.get("constraint"),
        array=spec,
        chdir=given.get("chdir"),
        input=given.get("input"),
        output=given.get("output"),
        error=given.get("error"),
        append=given.get("open-mode", "").startswith("a"),
        export=given.get("export"),
        dependency=given.get("dependency"),
        hold="hold" in given,
        requeue=_requeue(given),
        comment=given.get("comment"),
        qos=given.get("qos"),
        unused={key: value for key, value in given.items() if key not in _USED},
        **checked,  # type: ignore[arg-type]
        **numbers,  # type: ignore[arg-type]
    )


_USED = {
    *("job-name", "account", "partition", "reservation", "constraint", "time", "nodes", "ntasks", "ntasks-per-node"),
    *("cpus-per-task", "array", "chdir", "input", "output", "error", "open-mode", "signal", "export", "dependency"),
    *("begin", "hold", "requeue", "no-requeue", "comment", "qos"),
}


def _checked(given: dict[str, str], now: float) -> dict[str, object]:
    values: dict[str, object] = {}
    if "time" in given:
        values["time_limit"] = parse_time(given["time"])
    if "nodes" in given:
        values["nodes"] = parse_nodes(given["nodes"])
    if "signal" in given:
        values["signal"] = parse_signal(given["signal"])
    if "begin" in given:
        values["begin"] = parse_begin(given["begin"], now)
    return values


def _requeue(given: dict[str, str]) -> bool:
    """Whether to requeue: the queue has JobRequeue=0; of the two options the last one counts."""
    order = [option for option in given if option in ("requeue", "no-requeue")]
    return bool(order) and order[-1] == "requeue"
