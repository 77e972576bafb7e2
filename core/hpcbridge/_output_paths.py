"""Where a job's standard output and standard error are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from hpcbridge.errors import NotFound

if TYPE_CHECKING:
    from hpcbridge.firecrest import FirecrestClient
    from hpcbridge.jobs.spec import JobSpec

Stream = Literal["stdout", "stderr"]

_PATTERN = re.compile(r"%(\d*)([%AajJuxNnst])")


async def output_path(
    client: FirecrestClient, system: str, job_id: str, stream: Stream, *, spec: JobSpec | None, name: str | None
) -> str:
    """The absolute path of a job's stream; `job_id` may be that of an array's task (`120_1`).

    The controller knows it while it remembers the job (MinJobAge after the end). Later it is what was asked for, else
    Slurm's default `slurm-<id>.out` in the working directory. Raises JobNotFound.
    """
    parent, _, index = job_id.partition("_")
    if path := await _remembered(client, system, parent, stream):
        # Of an array the controller names one task's file.
        return re.sub(rf"(?<!\d){parent}_\d+", f"{parent}_{index}", path) if index else path
    workdir = spec.workdir if spec is not None and spec.workdir else await _workdir(client, system, parent)
    default = "slurm-%A_%a.out" if index else "slurm-%j.out"
    pattern = (spec.output or default) if spec is not None else default
    if stream == "stderr" and spec is not None and spec.error:
        pattern = spec.error
    path = expand(pattern, job_id, name or "")
    return path if path.startswith("/") else f"{workdir.rstrip('/')}/{path}"


def expand(pattern: str, job_id: str, name: str) -> str:
    """Slurm's filename patterns, as far as a client can know them: %A %a %j %J %x %%; others stay."""
    parent, _, index = job_id.partition("_")
    values = {"A": parent, "a": index, "j": parent, "J": parent, "x": name, "%": "%"}

    def value(match: re.Match[str]) -> str:
        width, letter = match.groups()
        known = values.get(letter)
        if known is None:
            return match[0]
        return known.zfill(int(width)) if width and known.isdigit() else known

    return _PATTERN.sub(value, pattern)


async def _remembered(client: FirecrestClient, system: str, job_id: str, stream: Stream) -> str | None:
    try:
        known = await client.metadata(system, job_id)
    except NotFound:
        return None
    path = known.standard_error if stream == "stderr" else known.standard_output
    return path if path is not None and path.startswith("/") else None


async def _workdir(client: FirecrestClient, system: str, job_id: str) -> str:
    rows = await client.job(system, job_id)
    for row in rows:
        if row.working_directory:
            return row.working_directory
    raise NotFound(
        "neither the controller nor accounting says where this job writes",
        system=system,
        job_id=job_id,
        hint="Read the file itself: hpcbridge ls, hpcbridge get",
    )
