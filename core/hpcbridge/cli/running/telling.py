"""What is said of a run, and in which names: JSON, outputs of a CI step, its summary, plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcbridge.cli.running.handle import Handle
    from hpcbridge.cli.running.moving import Pulled
    from hpcbridge.jobs.spec import JobSpec
    from hpcbridge.jobs.state import JobInfo

_HANDLE = ("job_id", "system", "workdir", "key")


def facts_of(
    handle: Handle, info: JobInfo | None = None, code: int | None = None, pulled: Pulled | None = None
) -> dict[str, Any]:
    """What `--json` prints: the job's status, where it is, what the command exits with, and what it has fetched."""
    facts = {name: getattr(handle, name) for name in _HANDLE}
    if info is None:
        return facts
    status = info.to_json()
    status.pop("tasks", None)
    fetched = {"pulled": pulled.items if pulled else [], "missing": sorted(pulled.failures) if pulled else []}
    return facts | status | {"code": int(code or 0)} | fetched


def outputs_of(handle: Handle, info: JobInfo | None = None, code: int | None = None) -> dict[str, Any]:
    """The outputs of a CI step, in its way of writing names."""
    facts: dict[str, Any] = {name: getattr(handle, name) for name in _HANDLE}
    if info is not None:
        facts |= {"job_id": info.job_id, "state": str(info.state), "exit_code": int(code or 0)}
    return {name.replace("_", "-"): value for name, value in facts.items()}


def summary_of(handle: Handle, info: JobInfo, code: int, pulled: Pulled | None) -> dict[str, str]:
    """The rows of the summary's table."""
    rows = {"System": handle.system, "State": str(info.state), "Exit code": str(int(code))}
    if info.reason and info.reason != "None":
        rows["Reason"] = info.reason
    if info.nodes:
        rows["Nodes"] = info.nodes
    if info.submitted and info.started:
        rows["In the queue"] = duration((info.started - info.submitted).total_seconds())
    if info.started and info.ended:
        rows["Ran for"] = duration((info.ended - info.started).total_seconds())
    if pulled is not None:
        rows["Results"] = pulled.amount
    return rows


def why(info: JobInfo) -> str:
    """How the job ended, and what to do about it."""
    failure = info.failure()
    hint = f". {failure.hint}" if failure is not None and failure.hint else ""
    return f"{info.describe()}{hint}"


def options_of(spec: JobSpec) -> list[str]:
    """The options for sbatch, of the script itself and of the command line, in the order in which they win."""
    from hpcbridge.jobs.guard import directives_in, spec_directives

    own = directives_in(spec.script) if spec.script is not None else ()
    return [*own, *spec_directives(spec)]


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
