"""AiiDA: set up a computer from URL and credential alone.

Heavy imports wait until a command runs, so that `--help` stays quick.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hpcbridge_aiida.references import Endpoint

app = typer.Typer(help="AiiDA: set up a computer from URL and credential alone.", add_completion=False)


@app.callback()
def aiida() -> None:
    """AiiDA: set up a computer from URL and credential alone."""


@app.command()
def setup(
    label: Annotated[str, typer.Argument(help="What AiiDA shall call the computer.")],
    url: Annotated[str, typer.Option(help="URL of the FirecREST API.")],
    credential: Annotated[str, typer.Option(help="A reference to the credential, such as site:NAME or env.")],
    system: Annotated[str, typer.Option(help="Name of the system; default: LABEL, or the only one there is.")] = "",
    client_id: Annotated[str, typer.Option(help="Where the credential's own place does not name it.")] = "",
    token_url: Annotated[str, typer.Option(help="Where the credential's own place does not name it.")] = "",
    account: Annotated[str, typer.Option(help="Charged for jobs that copy and archive files for AiiDA.")] = "",
    workdir: Annotated[str, typer.Option(help="Work directory, with {username}; default: your own one there.")] = "",
    mpirun: Annotated[str, typer.Option(help="How programs are started in parallel.")] = "srun -n {tot_num_mpiprocs}",
    profile: Annotated[str | None, typer.Option(help="AiiDA's profile; default: its default.")] = None,
) -> None:
    """Set up and configure an AiiDA computer; what is not given is asked of the deployment."""
    from hpcbridge_aiida.references import Endpoint

    endpoint = Endpoint(url.rstrip("/"), credential, client_id, token_url, system, account, hostname=label)
    name, found = asyncio.run(_ask(endpoint))
    _make(label, endpoint, name, workdir or found, mpirun.split(), profile)
    typer.echo(f"{label}: system {name}, work directory {workdir or found}")
    typer.echo(f"Next: verdi computer test {label}")


async def _ask(endpoint: Endpoint) -> tuple[str, str]:
    """The system's name, and a work directory in the user's own directory there; on scratch, where there is one."""
    from hpcbridge.errors import HpcBridgeError
    from hpcbridge_aiida.sessions import open_session

    session = await open_session(endpoint)
    info, user = await session.handle.info(), await session.user()
    for scratch in (each.path.rstrip("/") for each in info.file_systems if each.data_type == "scratch"):
        with suppress(HpcBridgeError):
            await session.client.stat(session.system, f"{scratch}/{user}")
            return session.system, f"{scratch}/{{username}}/aiida"
    home = await session.handle.home()
    return session.system, f"{home.removesuffix(user)}{{username}}/aiida"


def _make(label: str, endpoint: Endpoint, system: str, workdir: str, mpirun: list[str], profile: str | None) -> None:
    from aiida import load_profile, orm
    from aiida.common.exceptions import NotExistent

    from hpcbridge.errors import AlreadyExists

    load_profile(profile)
    try:
        orm.Computer.collection.get(label=label)
    except NotExistent:
        pass
    else:
        raise AlreadyExists(
            f"AiiDA has a computer {label!r} already",
            hint=f"Change it with `verdi computer configure hpcbridge {label}`",
        )
    computer = orm.Computer(
        label=label,
        hostname=system,
        transport_type="hpcbridge",
        scheduler_type="hpcbridge.slurm",
        workdir=workdir,
        description=f"{system} behind {endpoint.url}",
    )
    computer.set_mpirun_command(mpirun)
    computer.set_default_mpiprocs_per_machine(1)
    computer.store()
    names = ("url", "credential", "client_id", "token_url", "account")
    computer.configure(system=system, **{name: getattr(endpoint, name) for name in names})
