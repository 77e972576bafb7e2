"""The batch jobs of the transfer endpoints: scripts from templates, submitted to the scheduler as the user."""

from __future__ import annotations

import uuid
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hpcbridge_sandbox.cluster.users import User
from hpcbridge_sandbox.context import Sandbox
from hpcbridge_sandbox.errors import ApiError
from hpcbridge_sandbox.scheduling.base import JobSubmission
from hpcbridge_sandbox.transfer.models import TransferJob, TransferJobLogs

PARALLEL_PARTS = 3
"""Parts that an egress job sends at once: ``parallel_runs`` of the recorded systems."""

JOB_DIRECTIVES = ("#SBATCH --nodes=1", "#SBATCH --ntasks=1", "#SBATCH --partition=xfer", "#SBATCH --time=0-00:15:00")
"""``datatransfer_jobs_directives`` of the recorded systems; their jobs have a limit of 900 s."""

ACCOUNT_DIRECTIVE = "#SBATCH --account={account}"
"""Added where an account is required, for the caller's to be filled in."""


def directives(require_account: bool) -> tuple[str, ...]:
    """``datatransfer_jobs_directives`` of ``/status/systems``."""
    return (*JOB_DIRECTIVES, ACCOUNT_DIRECTIVE) if require_account else JOB_DIRECTIVES


@cache
def _templates() -> Environment:
    # The real server renders with HTML escaping too: a path with & < > " or ' reaches its job changed.
    return Environment(
        loader=PackageLoader("hpcbridge_sandbox.transfer", "scripts"), autoescape=True, undefined=StrictUndefined
    )


def render_script(template: str, **values: Any) -> str:
    """Text of the batch script *template* (``copy``, ``move``, ``ingress``, …) with *values* put in."""
    return _templates().get_template(f"{template}.sh.j2").render(**values)


async def size_of(sandbox: Sandbox, user: User, path: str) -> int:
    """Bytes of the file *path*; links are followed.

    Raises:
        ApiError: 404, 403 or 500 as ``stat`` says.
    """
    result = await sandbox.cluster.run(user, ["stat", "--dereference", "-c", "%s", "--", path])
    if result.returncode == 0:
        return int(result.stdout)
    words = result.stderr.decode(errors="replace").strip()
    status = 404 if "No such file" in words else 403 if "Permission denied" in words else 500
    raise ApiError(status, f"Remote process failed with exit status:{result.returncode} and error message:{words}")


async def submit_job(
    sandbox: Sandbox, user: User, system: str, name: str, template: str, account: str | None, **values: Any
) -> TransferJob:
    """Submit the job called *name* from *template* and return what the endpoints say of it.

    Raises:
        ApiError: 400 without the account that this system requires; else what the scheduler raises.
    """
    if sandbox.settings.require_account and account is None:
        raise ApiError(400, "Account parameter is required on this system.")
    lines = "\n".join(directives(sandbox.settings.require_account)).replace("{account}", account or "")
    script = render_script(template, directives=lines, **values)
    unique = uuid.uuid4()
    logs = TransferJobLogs(
        output_log=f"{user.home}/.f7t_file_handling_job_{unique}.log",
        error_log=f"{user.home}/.f7t_file_handling_job_error_{unique}.log",
    )
    job_id = await sandbox.scheduler.submit(
        user,
        JobSubmission(
            name=name,
            working_directory=user.home,
            standard_input="/dev/null",
            standard_output=logs.output_log,
            standard_error=logs.error_log,
            env={"PATH": "/bin:/usr/bin/:/usr/local/bin/"},
            script=script,
        ),
    )
    return TransferJob(job_id=job_id, system=system, working_directory=user.home, logs=logs)
