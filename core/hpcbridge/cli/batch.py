"""Commands about jobs: submit, status, logs, cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpcbridge.cli import output
from hpcbridge.cli.context import (
    JsonOption,
    SiteOption,
    State,
    SystemOption,
    choose_system,
    connect,
    run,
    state_of,
    usage_error,
)
from hpcbridge.cli.exits import ExitCode, for_job
from hpcbridge.cli.specs import (
    ArrayOption,
    ChargedOption,
    ConstraintOption,
    DirectiveOption,
    EnvOption,
    ErrorOption,
    NameOption,
    NodesOption,
    OutputOption,
    PartitionOption,
    ReservationOption,
    TasksOption,
    TimeOption,
    check_key,
    environment,
    label,
    read_script,
    spec_fields,
)

if TYPE_CHECKING:
    from hpcbridge._output_paths import Stream
    from hpcbridge.hpc import Hpc, Job
    from hpcbridge.jobs.state import JobInfo

STATUS_FIELDS = (
    "job_id",
    "name",
    "state",
    "exit_code",
    "signal",
    "reason",
    "submitted",
    "started",
    "ended",
    "nodes",
)
"""What `status --json` prints, in this order; times are ISO 8601 with zone or null."""

CANNOT_START = 53
"""The signal that Slurm reports for a job whose working directory or output file it could not open."""

JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="The job's id, as `submit` prints it, or the handle file of a `run`.")
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("submit")(submit)
    app.command("status")(status)
    app.command("logs")(logs)
    app.command("cancel")(cancel)


def submit(
    ctx: typer.Context,
    script: Annotated[
        str,
        typer.Argument(
            metavar="SCRIPT", help="Batch script on this machine, - for standard input, or system:/path on the cluster."
        ),
    ],
    name: NameOption = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Submit once: a second submit with the same key finds the first job instead."),
    ] = None,
    workdir: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Remote working directory, made if need be; default: your own there."),
    ] = None,
    account: ChargedOption = None,
    partition: PartitionOption = None,
    reservation: ReservationOption = None,
    constraint: ConstraintOption = None,
    time: TimeOption = None,
    nodes: NodesOption = None,
    ntasks: TasksOption = None,
    array: ArrayOption = None,
    stdout: OutputOption = None,
    stderr: ErrorOption = None,
    directive: DirectiveOption = None,
    env: EnvOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end and exit with the job's code.")] = False,
    queue_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0, help="With --wait: cancel and exit 75 if it has not started after this long."
        ),
    ] = None,
    json: JsonOption = False,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """Submit a batch script.

    In a pipe only the job id is printed: id=$(hpcbridge submit run.sh).
    """
    state = state_of(ctx, site, system)
    if queue_timeout is not None and not wait:
        raise usage_error("it works together with --wait only", "--queue-timeout")
    check_key(key)
    where, source = read_script(script)
    chosen = source | spec_fields(
        name=name or label(key if key is not None else Path(script).stem),
        workdir=workdir,
        account=account,
        partition=partition,
        reservation=reservation,
        constraint=constraint,
        time=time,
        nodes=nodes,
        ntasks=ntasks,
        array=array,
        output=stdout,
        error=stderr,
        directives=tuple(directive or ()),
        env=environment(env or []),
    )
    raise typer.Exit(run(_submit(state, where, chosen, key, wait=wait, queue_timeout=queue_timeout, as_json=json)))


async def _submit(
    state: State,
    where: str | None,
    options: dict[str, Any],
    key: str | None,
    *,
    wait: bool,
    queue_timeout: float | None,
    as_json: bool,
) -> int:
    from hpcbridge.jobs.spec import JobSpec

    async with connect(state) as hpc:
        system = choose_system(hpc, state, where)
        spec = JobSpec(**options)
        again = "Repeat the same command to find out" if key else "`hpcbridge status` lists your jobs"
        await system.info()  # a server that is down is told now; once submitting has begun, outages are waited out
        if spec.workdir is not None:
            await system.mkdir(spec.workdir)
        state.interrupt_note = f"The job may or may not have been submitted. {again}."
        job = await system.submit(spec, key=key)
        state.interrupt_note = _goes_on(job)
        if not wait:
            _print_submitted(job, as_json=as_json)
            return ExitCode.OK
        output.note(f"{_verb(job)} job {job.id} on {system.name}.")
        with output.job_progress() as show:
            info = await _wait(job, show, queue_timeout)
        if info is None:
            output.note(f"Job {job.id} had not started after {queue_timeout:g} s and was cancelled.")
            return ExitCode.TRY_AGAIN
        return await _print_end(job, info, as_json=as_json)


def _verb(job: Job) -> str:
    return "Found" if job.adopted else "Submitted"


def _goes_on(job: Job) -> str:
    return (
        f"Job {job.id} goes on. Follow it: hpcbridge logs -f {job.id}\n"
        f"Its state: hpcbridge status {job.id}    End it: hpcbridge cancel {job.id}"
    )


async def _wait(job: Job, show: Callable[[JobInfo], None] | None, queue_timeout: float | None) -> JobInfo | None:
    """Wait for the end; None when the job was cancelled because it had not started in time."""
    started = asyncio.Event()

    def changed(info: JobInfo) -> None:
        if not info.state.is_queued:
            started.set()
        if show is not None:
            show(info)

    waiting = asyncio.create_task(job.wait(on_change=changed))
    starting = asyncio.create_task(started.wait())
    try:
        await asyncio.wait({waiting, starting}, timeout=queue_timeout, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done() or started.is_set():
            return await waiting
        from hpcbridge.jobs.state import JobState

        info = await job.cancel()
        # It may have ended by itself in the meantime.
        return None if info.state is JobState.CANCELLED else info
    finally:
        waiting.cancel()
        starting.cancel()


def _print_submitted(job: Job, *, as_json: bool) -> None:
    if as_json:
        output.print_json(
            {
                "job_id": job.id,
                "name": job.name,
                "system": job.system.name,
                "workdir": job.spec.workdir if job.spec else None,
                "adopted": job.adopted,
            }
        )
    elif output.stdout_is_terminal():
        output.note(f"{_verb(job)} job {job.id} on {job.system.name}. Follow it: hpcbridge logs -f {job.id}")
    else:
        print(job.id)  # noqa: T201


async def _print_end(job: Job, info: JobInfo, *, as_json: bool) -> int:
    if as_json:
        output.print_json(_fields(info))
    if not info.ok:
        output.note(str(await job.post_mortem()))
        if info.signal == CANNOT_START:
            where = info.workdir or "the working directory"
            output.note(f"Slurm says so when it cannot enter {where} or open the output file there.")
    elif not as_json and output.stderr_is_terminal():  # elsewhere the last change of state has said it
        output.note(f"{output.describe(info)}.")
    return for_job(info)


def _fields(info: JobInfo) -> dict[str, Any]:
    values = info.to_json()
    return {name: values.get(name) for name in STATUS_FIELDS}


def _is_handle(text: str) -> bool:
    return text.endswith(".json") or Path(text).is_file()


async def _named(hpc: Hpc, state: State, text: str) -> Job:
    """The job of an id, or of the handle file that `hpcbridge run` wrote."""
    if not _is_handle(text):
        return choose_system(hpc, state).job(text)
    from hpcbridge.cli.running.course import job_of
    from hpcbridge.cli.running.handle import load

    handle = load(Path(text))
    return await job_of(hpc.system(handle.system), handle)


def status(
    ctx: typer.Context,
    job: Annotated[
        str | None,
        typer.Argument(
            metavar="JOB",
            help="The job's id, or the handle file of a `run`; without one, all your jobs of the last day.",
        ),
    ] = None,
    json: JsonOption = False,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """Show the state of a job, or list your jobs."""
    state = state_of(ctx, site, system)
    run(_list(state, as_json=json) if job is None else _status(state, job, as_json=json))


async def _status(state: State, job_id: str, *, as_json: bool) -> None:
    async with connect(state) as hpc:
        info = await (await _named(hpc, state, job_id)).info()
    if as_json:
        output.print_json(_fields(info))
        return
    fields = {name: getattr(info, name, None) for name in STATUS_FIELDS}
    output.print_fields(fields | {"state": str(info.state)})
    if info.tasks:
        output.print_table(("task", "state", "exit code"), [(t.job_id, str(t.state), t.exit_code) for t in info.tasks])


async def _list(state: State, *, as_json: bool) -> None:
    async with connect(state) as hpc:
        rows = await choose_system(hpc, state).jobs()
    names = ("job_id", "name", "state", "started", "ended", "nodes")
    if as_json:
        output.print_json([{name: getattr(row, name) for name in names} for row in rows])
    else:
        output.print_table(names, [[getattr(row, name) for name in names] for row in rows], empty="No jobs.")


def logs(
    ctx: typer.Context,
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    stderr: Annotated[bool, typer.Option("--stderr", help="Standard error instead of standard output.")] = False,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """Print what a job has written, byte for byte."""
    state = state_of(ctx, site, system)
    state.interrupt_note = f"Job {job} goes on." if follow else None
    run(_logs(state, job, follow=follow, stream="stderr" if stderr else "stdout"))


async def _logs(state: State, job_id: str, *, follow: bool, stream: Stream) -> None:
    async with connect(state) as hpc:
        async for chunk in (await _named(hpc, state, job_id)).logs(follow=follow, stream=stream):
            output.print_bytes(chunk)


def cancel(
    ctx: typer.Context,
    jobs: Annotated[
        list[str], typer.Argument(metavar="JOB...", help="Ids of the jobs, or handle files of `hpcbridge run`.")
    ],
    json: JsonOption = False,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """Cancel jobs and wait until the scheduler confirms it."""
    state = state_of(ctx, site, system)
    run(_cancel(state, jobs, as_json=json))


async def _cancel(state: State, job_ids: list[str], *, as_json: bool) -> None:
    ended = []
    async with connect(state) as hpc:
        for job_id in job_ids:
            info = await (await _named(hpc, state, job_id)).cancel()
            ended.append(_fields(info))
            if not as_json:
                output.note(f"{output.describe(info)}.")
    if as_json:
        output.print_json(ended if len(job_ids) > 1 else ended[0])
