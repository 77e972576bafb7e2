"""What a CI job asks of the scheduler, in the variables that it already has.

    CSCS                     SLURM_JOB_NUM_NODES, SLURM_NTASKS, SLURM_TIMELIMIT … and USE_MPI
    Jacamar CI               SCHEDULER_PARAMETERS: "-N2 --ntasks=4 -p debug"
    slurm-gitlab-executor    CI_SLURM_NNODES …, and LOCAL_CI_SLURM_NNODES … for one job

Later ones of this order win, SLURM_* over all. Then the administrator's rule says what of it may be.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hpcbridge_gitlab.verdicts import Cause, Stop

if TYPE_CHECKING:
    from hpcbridge_gitlab.contract import CiJob
    from hpcbridge_gitlab.settings import Rule

_SHORT = {
    "-A": "account",
    "-C": "constraint",
    "-c": "cpus-per-task",
    "-G": "gpus",
    "-L": "licenses",
    "-N": "nodes",
    "-n": "ntasks",
    "-p": "partition",
    "-q": "qos",
    "-t": "time",
    "-w": "nodelist",
    "-x": "exclude",
}

# Suffix of SLURM_… and CI_SLURM_… -> sbatch's option.
_VARIABLES = {
    "ACCOUNT": "account",
    "CONSTRAINT": "constraint",
    "CONTIGUOUS": "contiguous",
    "CPUS_PER_GPU": "cpus-per-gpu",
    "CPUS_PER_TASK": "cpus-per-task",
    "EXCLUSIVE": "exclusive",
    "GPUS": "gpus",
    "GPUS_PER_NODE": "gpus-per-node",
    "GPUS_PER_TASK": "gpus-per-task",
    "GRES": "gres",
    "HINT": "hint",
    "JOB_NUM_NODES": "nodes",
    "MEM": "mem",
    "MEM_BIND": "mem-bind",
    "MEM_PER_CPU": "mem-per-cpu",
    "MEM_PER_GPU": "mem-per-gpu",
    "MEM_PER_NODE": "mem",
    "NETWORK": "network",
    "NICE": "nice",
    "NNODES": "nodes",
    "NTASKS": "ntasks",
    "NTASKS_PER_NODE": "ntasks-per-node",
    "PARTITION": "partition",
    "QOS": "qos",
    "RESERVATION": "reservation",
    "THREADS_PER_CORE": "threads-per-core",
    "TIMELIMIT": "time",
    "TIME_MIN": "time-min",
}

_FLAGS = frozenset({"contiguous", "exclusive"})
OPTIONS = frozenset(_VARIABLES.values()) | {
    "cores-per-socket",
    "distribution",
    "exclude",
    "gpu-bind",
    "gpus-per-socket",
    "licenses",
    "mincpus",
    "nodelist",
    "ntasks-per-core",
    "ntasks-per-gpu",
    "ntasks-per-socket",
    "sockets-per-node",
    "switches",
    "tmp",
    "uenv",
    "view",
}
"""Options that ask for resources; what else sbatch has (files, signals, users …) is the driver's."""

_CHOICES = (("account", "accounts"), ("partition", "partitions"), ("qos", "qoses"), ("reservation", "reservations"))
_OPEN = frozenset({"partitions", "qoses"})
_VALUE = re.compile(r"[^'\"\\\x00-\x1f\x7f]*")


@dataclass
class Wishes:
    """Options for sbatch: name -> value ("" for a flag), and for each where it comes from.

    `wide`: the script runs once per task (USE_MPI), not once.
    """

    options: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    wide: bool = False

    def set(self, option: str, value: str, source: str) -> None:
        """Add or replace one."""
        if not _VALUE.fullmatch(value):
            raise Stop(Cause.POLICY, f"{source}: quotes, backslashes and control characters are not allowed")
        if option in _FLAGS and value.lower() in ("no", "false", "0", "off"):
            self.options.pop(option, None)
            return
        flag = option in _FLAGS and value.lower() in ("yes", "true", "1", "on")
        self.options[option] = "" if flag else value
        self.sources[option] = source

    @property
    def directives(self) -> tuple[str, ...]:
        """As sbatch's options, `time` apart."""
        items = ((name, value) for name, value in sorted(self.options.items()) if name != "time")
        return tuple(f"--{name}={_quoted(value)}" if value else f"--{name}" for name, value in items)


def _quoted(value: str) -> str:
    return f'"{value}"' if re.search(r"[\s#]", value) else value


def of(job: CiJob, rule: Rule) -> Wishes:
    """What the job asks for, within the rule. Raises Stop (POLICY) that names the variable and what is allowed."""
    wishes = Wishes()
    for name in ("account", "partition", "qos", "reservation", "constraint"):
        if value := getattr(rule, name):
            wishes.set(name, value, "the rule")
    _from_parameters(wishes, job, rule)
    for prefix in ("CI_SLURM_", "LOCAL_CI_SLURM_", "SLURM_"):
        for suffix, option in _VARIABLES.items():
            if value := job.wish(prefix + suffix):
                wishes.set(option, value, prefix + suffix)
    wishes.wide = (job.wish("USE_MPI") or "").upper() == "YES"
    _check(wishes, rule)
    return wishes


def _from_parameters(wishes: Wishes, job: CiJob, rule: Rule) -> None:
    source = "SCHEDULER_PARAMETERS"
    for option, value in parse(job.wish(source) or "", source).items():
        if option not in OPTIONS and option not in rule.allow:
            raise Stop(
                Cause.POLICY, f"{source}: --{option} is not allowed here", hint=f"Allowed: {', '.join(sorted(OPTIONS))}"
            )
        wishes.set(option, value, source)


def parse(text: str, source: str) -> dict[str, str]:
    """`-N2 --time=10 -p debug` as option -> value. Raises Stop (POLICY) for what is no option."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise Stop(Cause.POLICY, f"{source}: {error}") from None
    found: dict[str, str] = {}
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
        elif word[:2] in _SHORT:
            name, value = _SHORT[word[:2]], word[2:].removeprefix("=")
            equals = value
        else:
            raise Stop(Cause.POLICY, f"{source}: {word!r} is no option that is allowed here")
        if not equals and name not in _FLAGS and words and not words[0].startswith("-"):
            value = words.pop(0)
        found[name] = value
    return found


def _check(wishes: Wishes, rule: Rule) -> None:
    for option, plural in _CHOICES:
        value = wishes.options.get(option)
        allowed = (getattr(rule, option), *getattr(rule, plural))
        if value is None or value in allowed or (plural in _OPEN and not getattr(rule, plural)):
            continue
        known = ", ".join(filter(None, allowed)) or "none"
        raise Stop(
            Cause.POLICY, f"{wishes.sources[option]}: {option} {value!r} is not allowed here", hint=f"Allowed: {known}"
        )
    for option, most in (("nodes", rule.max_nodes), ("ntasks", rule.max_tasks)):
        value = wishes.options.get(option)
        if not most or value is None:
            continue
        count = value.rpartition("-")[2]
        if not count.isdigit() or int(count) > most:
            raise Stop(Cause.POLICY, f"{wishes.sources[option]}: {option} {value} is over the limit of {most}")


def seconds(text: str, source: str) -> int:
    """Slurm's time (`30`, `10:00`, `01:00:00`, `1-12`) in seconds. Raises Stop (POLICY)."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise Stop(Cause.POLICY, f"{source}: {text!r} is no time", hint="Minutes, MM:SS, HH:MM:SS or D-HH:MM:SS")
    days, first, second, third = match.groups()
    parts = [int(part) for part in (first, second, third) if part is not None]
    if days is not None:
        hours, minutes, secs = [*parts, 0, 0][:3]
        return int(days) * 86400 + hours * 3600 + minutes * 60 + secs
    if len(parts) == 3:
        return parts[0] * 3600 + parts[1] * 60 + parts[2]
    return parts[0] * 60 + (parts[1] if len(parts) == 2 else 0)


def time_limit(wishes: Wishes, rule: Rule, timeout: int) -> tuple[int, str]:
    """The allocation's limit in minutes, and where it comes from: the job's wish, its CI time-out, the rule's limit."""
    most = seconds(rule.max_time, "max_time") if rule.max_time else None
    asked = wishes.options.get("time")
    if asked is not None:
        limit, source = seconds(asked, wishes.sources["time"]), wishes.sources["time"]
        if most is not None and limit > most:
            raise Stop(Cause.POLICY, f"{source}: {asked} is over the limit of {rule.max_time}")
    else:
        limit, source = timeout, "the CI job's time-out"
        if most is not None and limit > most:
            limit, source = most, "max_time of the rule"
    return max(1, -(-limit // 60)), source
