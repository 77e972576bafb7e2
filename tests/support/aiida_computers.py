"""The computers of the tests: how AiiDA reaches a sandbox, and what it is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.aiida_profile import AiidaProfile
from support.sandbox import SandboxProcess

TRANSPORT, SCHEDULER = "hpcbridge", "hpcbridge.slurm"
"""Our entry points."""


def credential_file(process: SandboxProcess, path: Path, user: str = "alice") -> Path:
    """Write the user's secret where only this user can read it; the database gets no more than the path."""
    path.touch(mode=0o600)
    path.write_text(
        f'client_id = "{user}"\nclient_secret = "{process.users[user]}"\ntoken_url = "{process.token_url}"\n'
    )
    return path


def auth_params(process: SandboxProcess, credential: Path, **more: Any) -> dict[str, Any]:
    """What `verdi computer configure hpcbridge` asks for."""
    return {"url": process.url, "credential": f"file:{credential}", "system": process.system, **more}


def make_ours(
    label: str, process: SandboxProcess, credential: Path, workdir: str = "/scratch/{username}/aiida", **more: Any
) -> Any:
    """A computer behind a sandbox, reached by our plugins; `more` are parameters of `configure`."""
    poll = more.pop("poll", 1)
    params = auth_params(process, credential, **more)
    return make_computer(label, TRANSPORT, SCHEDULER, workdir, host=process.system, poll=poll, **params)


def make_local(label: str, workdir: Path, scheduler: str = "core.direct") -> Any:
    """What everything is compared with: this machine, by aiida-core's own plugins."""
    return make_computer(label, "core.local", scheduler, str(workdir), safe_interval=0, use_login_shell=False)


def make_firecrest(label: str, process: SandboxProcess, user: str = "alice") -> Any:
    """The same sandbox, reached by aiida-firecrest."""
    params = {
        "url": process.url,
        "token_uri": process.token_url,
        "client_id": user,
        "client_secret": process.users[user],
        "compute_resource": process.system,
        "temp_directory": f"/scratch/{user}/tmp",
        "billing_account": "",
        "max_io_allowed": 8,
        "checksum_check": False,
    }
    return make_computer(label, "firecrest", "firecrest", f"/scratch/{user}/firecrest", **params)


def set_up(profile: AiidaProfile, label: str, transport: str, scheduler: str, workdir: str, host: str = "") -> None:
    """`verdi computer setup`, as a user types it."""
    words = ["-L", label, "-H", host or label, "-T", transport, "-S", scheduler, "-w", workdir]
    profile.verdi("computer", "setup", "--non-interactive", *words)


def configure(profile: AiidaProfile, label: str, transport: str, **options: Any) -> None:
    """`verdi computer configure`, as a user types it."""
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    profile.verdi("computer", "configure", transport, label, "--non-interactive", *words)


def make_computer(
    label: str,
    transport: str,
    scheduler: str,
    workdir: str,
    *,
    host: str = "localhost",
    poll: float = 1,
    **params: Any,
) -> Any:
    """The same without the seconds that each `verdi` takes; returns the stored computer."""
    from aiida import orm

    computer = orm.Computer(
        label=label, hostname=host, transport_type=transport, scheduler_type=scheduler, workdir=workdir
    ).store()
    computer.configure(**params)
    computer.set_minimum_job_poll_interval(poll)
    computer.set_default_mpiprocs_per_machine(1)
    return computer


def installed_code(computer: Any, label: str, executable: str = "/bin/bash", **more: Any) -> Any:
    """A program on a computer."""
    from aiida import orm

    return orm.InstalledCode(label=label, computer=computer, filepath_executable=executable, **more).store()
