"""What ``sbatch`` and the controller say to a submit: from the REST call to a `Request`, or an error in their words."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from hpcbridge_sandbox.cluster import User
from hpcbridge_sandbox.scheduling.base import JobSubmission, refused
from hpcbridge_sandbox.scheduling.local.directives import Options, SbatchError, directive_words, parse_options
from hpcbridge_sandbox.scheduling.local.job import Request, Simulation
from hpcbridge_sandbox.scheduling.local.values import export_values

CPUS = 64
"""CPU slots of the local queue's one machine."""

MAX_NODES = 4
"""Nodes are only counted; a job that asks for more waits for ever with PartitionNodeLimit."""

MAX_SCRIPT = 4 * 1024 * 1024
"""Slurm's default ``max_script_size`` in bytes."""

FEATURES = ("f7t", "mc")
DEFAULT_LIMIT = 3600
"""Seconds a job gets that names no time (DefaultTime)."""


@dataclass(frozen=True)
class Partition:
    """A partition: its longest time in seconds, and whether it is shown."""

    name: str
    max_time: int = 86400
    hidden: bool = False


PARTITIONS = {
    partition.name: partition
    for partition in (
        Partition("normal"),
        Partition("debug", max_time=1800),
        Partition("xfer"),
        Partition("hidden", hidden=True),
    )
}
DEFAULT_PARTITION = "normal"

ACCOUNT_LIMITS: Mapping[str, int | None] = {"limited": 1, "proj1": None}
"""Accounts besides the users' own: how many jobs may be submitted at once (MaxSubmitJobs)."""

_FAILED = "sbatch: error: Batch job submission failed:"


def accounts_of(user: User) -> list[str]:
    """Return the accounts of a user, in Slurm's order."""
    return sorted({*ACCOUNT_LIMITS, user.account})


def check_script(script: str) -> None:
    """Raise `SbatchError` for a script that sbatch does not take."""
    if not script.strip():
        empty = "contains only whitespace" if script else "is empty"
        raise SbatchError(1, f"sbatch: error: Batch script {empty}!\n")
    if not script.startswith("#!"):
        raise SbatchError(
            1,
            "sbatch: error: This does not look like a batch script.  The first\n"
            "sbatch: error: line must start with #! followed by the path to an interpreter.\n"
            "sbatch: error: For instance: #!/bin/sh\n",
        )
    if "\0" in script:
        raise SbatchError(
            1,
            "sbatch: error: The Slurm controller does not allow scripts that\n"
            "sbatch: error: contain a NULL character '\\0'.\n",
        )
    if "\r\n" in script:
        raise SbatchError(
            1,
            "sbatch: error: Batch script contains DOS line breaks (\\r\\n)\n"
            "sbatch: error: instead of expected UNIX line breaks (\\n).\n",
        )
    if len(script.encode(errors="surrogateescape")) >= MAX_SCRIPT:
        raise SbatchError(1, f"{_FAILED} Pathname of a file, directory or other parameter too long\n")


def _call_words(job: JobSubmission) -> list[str]:
    """Return the options that the REST call sets; they come after the directives and so win."""
    given = (
        ("partition", job.partition),
        ("reservation", job.reservation),
        ("account", job.account),
        ("job-name", job.name),
        ("error", job.standard_error),
        ("output", job.standard_output),
        ("input", job.standard_input),
        ("constraint", job.constraints),
    )
    return [f"--{option}={value}" for option, value in given if value]


def _check_request(
    options: Options, user: User, submitted: int, *, require_account: bool, reservations: Collection[str]
) -> None:
    """Raise `SbatchError` for what the controller refuses at once; `submitted` counts the account's live jobs."""
    if options.partition is not None and options.partition not in PARTITIONS:
        raise SbatchError(
            1,
            f"sbatch: error: invalid partition specified: {options.partition}\n"
            f"{_FAILED} Invalid partition name specified\n",
        )
    missing = require_account and options.account is None
    if missing or (options.account is not None and options.account not in accounts_of(user)):
        raise SbatchError(1, f"{_FAILED} Invalid account or account/partition combination specified\n")
    if options.reservation is not None and options.reservation not in reservations:
        raise SbatchError(1, f"{_FAILED} Requested reservation is invalid\n")
    if options.constraint is not None:
        features = re.findall(r"[A-Za-z0-9_.=-]+", options.constraint)
        if not set(features) <= set(FEATURES):
            raise SbatchError(1, f"{_FAILED} Invalid feature specification\n")
    if options.qos not in (None, "normal"):
        raise SbatchError(1, f"{_FAILED} Invalid qos specification\n")
    limit = ACCOUNT_LIMITS.get(options.account or user.account)
    if limit is not None and submitted >= limit:
        raise SbatchError(
            1,
            "sbatch: error: AssocMaxSubmitJobLimit\n"
            f"{_FAILED} Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)\n",
        )
    if cpus_of(options) > CPUS * options.nodes:
        raise SbatchError(
            1,
            "sbatch: error: CPU count per node can not be satisfied\n"
            f"{_FAILED} Requested node configuration is not available\n",
        )


def tasks_of(options: Options) -> int:
    """Return the number of tasks asked for."""
    return options.ntasks or (options.ntasks_per_node or 1) * options.nodes


def cpus_of(options: Options) -> int:
    """Return the CPU slots that the job takes."""
    return tasks_of(options) * options.cpus_per_task


def _environment(job: JobSubmission) -> dict[str, str]:
    """Return the variables of ``--export=ALL,K=V,…``.

    The server always gives that option on the command line, so a directive's ``--export`` never counts. slurmrestd
    takes a list as it is.
    """
    if isinstance(job.env, list):
        return dict(piece.split("=", 1) for piece in job.env if "=" in piece)
    return export_values([f"{key}={value}" for key, value in job.env.items()])


def _simulation(comment: str | None) -> Simulation | None:
    if comment is None or not comment.startswith("simulate:"):
        return None
    try:
        return Simulation.parse(comment.removeprefix("simulate:"))
    except ValueError as error:
        raise SbatchError(1, f"sbatch: error: --comment={comment}: {error}\n") from error


def pending_reason(options: Options, partition: str) -> str | None:
    """Return why a job can never run although it is accepted, or None."""
    if options.nodes > MAX_NODES:
        return "PartitionNodeLimit"
    if options.time_limit is not None and options.time_limit > PARTITIONS[partition].max_time:
        return "PartitionTimeLimit"
    return None


def admit(
    user: User,
    job: JobSubmission,
    script: str,
    *,
    submitted: Mapping[str, int],
    now: float,
    rest: bool,
    require_account: bool = False,
    reservations: Collection[str] = (),
) -> tuple[Request, str]:
    """Return the request and the job's name.

    Args:
        user: who submits.
        job: the REST call.
        script: the script's text, inline or read from ``scriptPath``.
        submitted: live jobs by account.
        now: Unix time.
        rest: the call goes to slurmrestd, which reads no directives and names a job ``allocation``.
        require_account: users have no default account.
        reservations: names of the reservations in force; jobs may name them, nothing is set aside.

    Raises:
        ApiError: 500 or 403 with sbatch's words.
    """
    try:
        check_script(script)
        words = [] if rest else list(directive_words(script))
        options = parse_options([*words, *_call_words(job)], now=now)
        live = submitted.get(options.account or user.account, 0)
        _check_request(options, user, live, require_account=require_account, reservations=reservations)
        simulation = _simulation(options.comment)
    except SbatchError as error:
        raise refused(error.exit_status, error.stderr) from error
    partition = options.partition or DEFAULT_PARTITION
    limit = options.time_limit if options.time_limit is not None else min(DEFAULT_LIMIT, PARTITIONS[partition].max_time)
    request = Request(
        user=user.name,
        uid=user.uid,
        group="users",
        account=options.account or user.account,
        partition=partition,
        workdir=job.working_directory,
        options=options,
        script=script,
        env=_environment(job),
        stdin=options.input or "/dev/null",
        stdout=options.output,
        stderr=options.error,
        limit=limit,
        nodes=options.nodes,
        tasks=tasks_of(options),
        cpus=cpus_of(options),
        simulation=simulation,
        rest=rest,
    )
    return request, options.name or _default_name(job, rest=rest)


def _default_name(job: JobSubmission, *, rest: bool) -> str:
    if rest:
        return "allocation"
    return job.script_path.rsplit("/", 1)[-1] if job.script_path else "sbatch"
