"""A FirecREST v2 backend on this machine, for trying and testing.

Heavy imports wait until the command runs, so that ``--help`` stays quick.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hpcbridge_sandbox.settings import Settings, UserSettings

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
app = typer.Typer(help="Run a FirecREST v2 backend on this machine, for trying and testing.", add_completion=False)


@app.callback(invoke_without_command=True)
def sandbox(
    env_file: Annotated[
        Path | None, typer.Option(help="Write export lines for clients to this file (mode 0600).")
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the REST interface; 0 picks a free one.")] = 0,
    host: Annotated[str, typer.Option(help="Loopback address to bind to.")] = "127.0.0.1",
    scheduler: Annotated[str, typer.Option(help="'local' queue or a real 'slurm'.")] = "local",
    scheduler_mode: Annotated[
        str, typer.Option(help="How the server talks to the scheduler: ssh, hybrid or rest.")
    ] = "ssh",
    user: Annotated[list[str] | None, typer.Option(help="NAME[:SECRET]; repeatable. Default: alice and bob.")] = None,
    system: Annotated[list[str] | None, typer.Option(help="Name of a system; repeatable.")] = None,
    state: Annotated[
        Path | None, typer.Option(help="Keep jobs, files, keys and ports here. Default: temporary.")
    ] = None,
    server_version: Annotated[str, typer.Option(help="Behave like FirecREST 2.5.6 or 2.5.7.")] = "2.5.7",
    transfer: Annotated[str, typer.Option(help="How large files move: s3, streamer or none.")] = "s3",
    s3_part_size: Annotated[int, typer.Option(help="Bytes of one part of an S3 upload.")] = 67_108_864,
    streamer_ports: Annotated[str, typer.Option(help="Ports that streamers may take.")] = "5665-5675",
    streamer_wait: Annotated[int, typer.Option(help="Seconds a streamer waits for its client.")] = 600,
    streamer_limit: Annotated[int, typer.Option(help="Bytes that one upload by streamer may have.")] = 5 * 1024**3,
    ingress_look: Annotated[float, typer.Option(help="Seconds between looks for an uploaded S3 object.")] = 60.0,
    accounting_lag: Annotated[float, typer.Option(help="Longest seconds until accounting shows the truth.")] = 5.0,
    time_scale: Annotated[float, typer.Option(help="Multiply both times above.")] = 1.0,
    max_sessions: Annotated[int | None, typer.Option(help="Concurrent commands per user (OpenSSH: 10).")] = None,
    expose: Annotated[
        list[str] | None, typer.Option(help="HOST[:TARGET][:ro]: show a directory to the cluster.")
    ] = None,
    offline_jobs: Annotated[bool, typer.Option(help="Jobs have no network (local queue, as root).")] = False,
    root_path: Annotated[str, typer.Option(help="URL path prefix, like /hpc/firecrest/v2.")] = "",
    latency: Annotated[float, typer.Option(help="Seconds added before every REST answer.")] = 0.0,
    isolation: Annotated[str, typer.Option(help="auto, namespace or bwrap.")] = "auto",
    token_lifetime: Annotated[float, typer.Option(help="Seconds that an access token lives.")] = 300.0,
    command_timeout: Annotated[float, typer.Option(help="Seconds that one command on the login node may take.")] = 5.0,
    require_account: Annotated[bool, typer.Option(help="Transfer jobs must name an account.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more to standard error.")] = False,
) -> None:
    """Run a FirecREST v2 backend on this machine until it is stopped: one machine, not a production service."""
    import contextlib
    import shutil
    import tempfile

    if sys.platform != "linux":
        typer.echo("hpcbridge sandbox: the sandbox needs Linux (namespaces); hpcbridge itself does not", err=True)
        raise typer.Exit(1)

    from pydantic import ValidationError

    from hpcbridge_sandbox.settings import Exposed, Settings

    with contextlib.ExitStack() as stack:
        if state is None:
            state = Path(tempfile.mkdtemp(prefix="hpcbridge-sandbox-"))
            stack.callback(shutil.rmtree, state, ignore_errors=True)
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            settings = Settings(
                host=host,
                port=port,
                state=state.resolve(),
                env_file=env_file.resolve() if env_file else None,
                users=_users(user or ["alice", "bob"], state),
                systems=tuple(system or ["sandbox"]),
                root_path="/" + root_path.strip("/") if root_path.strip("/") else "",
                scheduler=scheduler,  # type: ignore[arg-type]  # checked by the model
                scheduler_mode=scheduler_mode,  # type: ignore[arg-type]
                server_version=server_version,  # type: ignore[arg-type]
                isolation=isolation,  # type: ignore[arg-type]
                transfer=transfer,  # type: ignore[arg-type]
                s3_part_size=s3_part_size,
                streamer_ports=streamer_ports,  # type: ignore[arg-type]
                streamer_wait=streamer_wait,
                streamer_limit=streamer_limit,
                ingress_look=ingress_look,
                accounting_lag=accounting_lag,
                time_scale=time_scale,
                max_sessions=max_sessions,
                offline_jobs=offline_jobs,
                expose=tuple(Exposed.parse(one) for one in expose or []),
                latency=latency,
                token_lifetime=token_lifetime,
                command_timeout=command_timeout,
                require_account=require_account,
            )
        except ValidationError as error:
            raise typer.BadParameter("; ".join(f"{_flag(e['loc'][0])}: {e['msg']}" for e in error.errors())) from None
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        _run(settings, verbose)


def _flag(setting: object) -> str:
    """The option that a setting comes from."""
    names = {"name": "user", "secret": "user", "users": "user", "systems": "system"}
    return "--" + names.get(str(setting), str(setting)).replace("_", "-")


def _users(given: list[str], state: Path) -> tuple[UserSettings, ...]:
    """Read ``NAME[:SECRET]``; a secret that is not given is that of the last run on this state, or a new one."""
    from hpcbridge_sandbox.settings import UserSettings
    from hpcbridge_sandbox.store import Store

    store = Store(state / "sandbox.db")
    kept: dict[str, str] = store.get("user_secrets", {})
    users = []
    for text in given:
        name, _, secret = text.partition(":")
        secret = secret or kept.get(name, "")
        users.append(UserSettings(name=name, secret=secret) if secret else UserSettings(name=name))
    store.put("user_secrets", {**kept, **{user.name: user.secret for user in users}})
    store.close()
    return tuple(users)


def _run(settings: Settings, verbose: bool) -> None:
    import asyncio
    import logging

    from hpcbridge_sandbox import server
    from hpcbridge_sandbox.cluster.programs import missing_programs

    # Authlib logs every token that it issues at DEBUG, so only our own logger is ever that loud.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format=LOG_FORMAT)
    logging.getLogger("hpcbridge.sandbox").setLevel(logging.DEBUG if verbose else logging.INFO)

    def ready(started: server.Running) -> None:
        names = ", ".join(user.name for user in settings.users)
        what = f"users {names}; one machine, not a production service"
        follow = f"; next: source {shlex.quote(str(settings.env_file))}" if settings.env_file else ""
        typer.echo(f"hpcbridge sandbox ready: {started.sandbox.base_url} ({what}){follow}")

    for line in missing_programs():
        typer.echo(f"hpcbridge sandbox: {line}", err=True)
    try:
        asyncio.run(server.run(settings, ready))
    except (RuntimeError, OSError) as error:
        typer.echo(f"hpcbridge sandbox: {error}", err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    app()
