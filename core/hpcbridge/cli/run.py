"""Commands that run one job from beginning to end: run, attach, collect."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpcbridge.cli.context import (
    DryRunOption,
    JsonOption,
    QuietOption,
    SiteOption,
    State,
    SystemOption,
    state_of,
    usage_error,
)
from hpcbridge.cli.context import (
    run as run_loop,
)
from hpcbridge.cli.sizes import parse_size
from hpcbridge.cli.specs import (
    ArrayOption,
    ChargedOption,
    ConstraintOption,
    DirectiveOption,
    EnvOption,
    ErrorOption,
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
from hpcbridge.cli.transfers import (
    ExcludeFromOption,
    ExcludeOption,
    IncludeOption,
    MaxFileSizeOption,
    MaxSizeOption,
    choice_of,
)
from hpcbridge.cli.usage import COMMAND, CommandOrScript

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from hpcbridge.cli.running.ci import Ci
    from hpcbridge.cli.running.course import Course
    from hpcbridge.cli.running.handle import Handle
    from hpcbridge.cli.running.reporting import Reporter

SERVICES = ("github", "gitlab", "jenkins", "none")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

CiOption = Annotated[
    str | None,
    typer.Option("--ci", metavar="|".join(SERVICES), help="Whose log this is; default: what the environment says."),
]
HandleArgument = Annotated[Path, typer.Argument(metavar="HANDLE", help="The file that `run --handle` wrote.")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("run", cls=CommandOrScript)(run)
    app.command("attach")(attach)
    app.command("collect")(collect)


def run(
    ctx: typer.Context,
    script: Annotated[
        str | None,
        typer.Argument(
            metavar="SCRIPT",
            help="Batch script on this machine, - for standard input, or system:/path on the cluster; or after -- a "
            "command and its arguments.",
        ),
    ] = None,
    push: Annotated[
        list[str] | None,
        typer.Option(
            "--push",
            metavar="PATH[:TARGET]",
            help="Send a directory (its content, and only what differs) or a file into the work directory, or below it "
            "to TARGET. Repeatable.",
        ),
    ] = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    exclude_from: ExcludeFromOption = None,
    with_git: Annotated[
        bool, typer.Option("--with-git", help="Send .git, too: it may hold a token of the CI service.")
    ] = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove what only the work directory has, but for what is left out.")
    ] = False,
    max_file_size: MaxFileSizeOption = None,
    max_size: MaxSizeOption = None,
    share: Annotated[
        bool, typer.Option("--share", help="Push although another job still works in that directory.")
    ] = False,
    workdir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Remote work directory, absolute or below your own; default: your own, or with --push one in "
            "~/hpcbridge-runs.",
        ),
    ] = None,
    pull: Annotated[
        list[str] | None,
        typer.Option(
            "--pull",
            metavar="PATTERN",
            help="Fetch these files or directories when the job has ended, well or not: 'out/**/*.xml'. Repeatable.",
        ),
    ] = None,
    into: Annotated[Path, typer.Option("--into", metavar="DIR", help="Where they go on this machine.")] = Path(),
    no_pull: Annotated[bool, typer.Option("--no-pull", help="Fetch nothing, whatever --pull says.")] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="A pattern that matches nothing is no failure.")
    ] = False,
    cleanup: Annotated[
        bool, typer.Option("--cleanup", help="Remove the run's own work directory when all went well.")
    ] = False,
    key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Run once: whoever runs with the same key again gets the first job."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Job name; default: the key, the CI job's or script's name."),
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
    secret: Annotated[
        list[str] | None,
        typer.Option("--secret", metavar="NAME", help="Like --env NAME, and hidden in the output. Repeatable."),
    ] = None,
    queue_timeout: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Cancel and exit 75 if it has not started after this long: 90, 30m, 2h."),
    ] = None,
    handle: Annotated[
        Path | None, typer.Option("--handle", metavar="FILE", help="Write down how to get back to this run.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Submit, write --handle and end; go on with attach or collect.")
    ] = False,
    ci: CiOption = None,
    dry_run: DryRunOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="The job's output and errors only.")] = False,
    json: JsonOption = False,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """Run a script or a command as one job: push files, submit, follow its output, pull results, exit with its code.

    hpcbridge run --push . --pull 'results/*.xml' --time 30 -- make check
    """
    from hpcbridge.cli.running import moving
    from hpcbridge.cli.running.course import Course
    from hpcbridge.cli.running.plan import Plan
    from hpcbridge.cli.running.rehearsal import rehearse

    state = state_of(ctx, site, system)
    check_key(key)
    recognised = _service(ci)
    where, source, default = _work(ctx.meta.get(COMMAND), script)
    hidden = _secrets(secret or [])
    fields = source | spec_fields(
        name=name or label(key if key is not None else recognised.label or default),
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
        env=environment(env or []) | hidden,
    )
    if detach and handle is None:
        raise usage_error("it needs --handle FILE, which is how to get back to the run", "--detach")
    if cleanup and (workdir is not None or key is not None):
        raise usage_error(
            "it removes what the run makes for itself, so it goes with neither --workdir nor --key", "--cleanup"
        )
    plan = Plan(
        fields=fields,
        where=where,
        ci=recognised,
        key=key,
        workdir=_checked_workdir(workdir),
        pushes=tuple(map(moving.parse_push, push or [])),
        choice=choice_of(include, [*(exclude or []), *([] if with_git else [".git"])], exclude_from, max_file_size),
        delete=delete,
        max_size=parse_size(max_size, "--max-size"),
        share=share,
        pulls=() if no_pull else tuple(map(moving.check_pull, pull or [])),
        into=into,
        allow_missing=allow_missing,
        cleanup=cleanup,
        queue_timeout=parse_duration(queue_timeout, "--queue-timeout"),
        handle=handle,
        detach=detach,
    )
    if dry_run:
        raise typer.Exit(run_loop(rehearse(state, plan, as_json=json)))
    course = Course(state, _reporter(recognised, quiet=quiet, hidden=list(hidden.values())), as_json=json)
    if recognised.is_service and not _has_time_limit(fields):
        course.reporter.warning(
            "no --time: if this machine is lost, the job runs on until the partition's own limit ends it"
        )
    try:
        _end(course.run(plan), course.stop)
    finally:
        course.close()


def attach(
    ctx: typer.Context,
    handle: HandleArgument,
    ci: CiOption = None,
    quiet: QuietOption = False,
    json: JsonOption = False,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """Follow the job of a run from its first byte to its end, pull its results, and exit with its code.

    Ctrl-C leaves the job alone.
    """
    course, loaded = _course(ctx, handle, ci, quiet=quiet, as_json=json, site=site, system=system)
    _end(course.attach(loaded), _leave)


def collect(
    ctx: typer.Context,
    handle: HandleArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end; else one that has not ended is exit 75.")] = (
        False
    ),
    logs: Annotated[bool, typer.Option("--logs", help="Print what it has written, too.")] = False,
    ci: CiOption = None,
    quiet: QuietOption = False,
    json: JsonOption = False,
    site: SiteOption = None,
    system: SystemOption = None,
) -> None:
    """Pull the results of a run whose job has ended, and exit with the job's code."""
    course, loaded = _course(ctx, handle, ci, quiet=quiet, as_json=json, site=site, system=system)
    _end(course.collect(loaded, wait=wait, logs=logs), _leave)


async def _leave() -> None:
    """Whoever attaches to a job has not begun it."""


def _course(
    ctx: typer.Context,
    path: Path,
    ci: str | None,
    *,
    quiet: bool,
    as_json: bool,
    site: str | None,
    system: str | None,
) -> tuple[Course, Handle]:
    """What goes on with the run of a handle, and the handle."""
    from hpcbridge.cli.running.course import Course
    from hpcbridge.cli.running.handle import load

    state = state_of(ctx, site, system)
    loaded = load(path)
    state.site = state.site or loaded.site
    return Course(state, _reporter(_service(ci), quiet=quiet, hidden=[]), as_json=as_json), loaded


def _end(work: Coroutine[Any, Any, int], after: Callable[[], Awaitable[None]]) -> None:
    """Do the work and exit with its code; a signal ends it as Ctrl-C ends a command."""
    from hpcbridge.cli.running.interrupts import Interrupted, until_interrupted

    async def whole() -> int:
        return await until_interrupted(work, after)

    try:
        code = run_loop(whole())
    except Interrupted:
        raise KeyboardInterrupt from None
    raise typer.Exit(code)


def _reporter(ci: Ci, *, quiet: bool, hidden: list[str]) -> Reporter:
    import os

    from hpcbridge.cli.running.reporting import reporter

    made = reporter(ci.service, quiet=quiet, hidden=hidden)
    # The one secret of ours that is in the environment: we never show it, and the service makes sure of it.
    made.hide(os.environ.get("FIRECREST_CLIENT_SECRET", ""))
    return made


def _service(chosen: str | None) -> Ci:
    from hpcbridge.cli.running.ci import recognise

    if chosen not in (None, *SERVICES):
        raise usage_error(f"{chosen!r} is not one of {', '.join(SERVICES)}", "--ci")
    return recognise(chosen)


def _work(command: list[str] | None, script: str | None) -> tuple[str | None, dict[str, str], str]:
    """(system named by the path, field of JobSpec, a name for it)."""
    if command is not None and script is not None:
        raise usage_error("give either a script or, after --, a command", "SCRIPT")
    if command is not None:
        if not command:
            raise usage_error("the command after -- is missing", "COMMAND")
        if not all(word.isprintable() or word.encode("utf-8", "replace").decode() == word for word in command):
            raise usage_error("the command holds bytes that are not UTF-8; put it into a script of its own", "COMMAND")
        return None, {"script": f"#!/bin/bash\nexec {shlex.join(command)}\n"}, Path(command[0]).name
    if script is None:
        raise usage_error("give a batch script, or a command after --: hpcbridge run -- make check", "SCRIPT")
    where, source = read_script(script)
    return where, source, Path(script).stem


def _secrets(names: list[str]) -> dict[str, str]:
    from hpcbridge.cli.running.masking import SHORTEST, lines_of

    for name in names:
        if "=" in name:
            raise usage_error(
                "give the variable's name alone: a value on the command line is seen by others", "--secret"
            )
    values = environment(names, "--secret")
    for name, value in values.items():
        if not lines_of(value):
            raise usage_error(
                f"the value of {name} is shorter than {SHORTEST} characters: it cannot be hidden", "--secret"
            )
    return values


def _checked_workdir(workdir: str | None) -> str | None:
    if workdir is not None and not workdir.strip():
        raise usage_error("it must not be empty", "--workdir")
    return workdir


def _has_time_limit(fields: dict[str, Any]) -> bool:
    from hpcbridge.jobs.guard import directives_in, options_in

    if "time" in fields or "script_path" in fields:
        return True
    lines = (*directives_in(fields["script"]), *fields.get("directives", ()))
    return any(option in ("-t", "--time") for option, _ in options_in(lines))


def parse_duration(text: str | None, option: str) -> float | None:
    """Seconds of `90`, `30m`, `2h`; None stays None. What is none is an error of usage."""
    if text is None:
        return None
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise usage_error(f"{text!r} is not a time: write 90, 30m or 2h", option)
    return float(match[1]) * _SECONDS[match[2]]


__all__ = ["State", "add_to"]
