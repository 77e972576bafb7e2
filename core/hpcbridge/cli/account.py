"""Commands about who we are: login, logout."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from hpcbridge.cli import output
from hpcbridge.cli.context import SiteOption, State, connect, run, state_of, usage_error

if TYPE_CHECKING:
    from hpcbridge.credentials.logins import DevicePrompt
    from hpcbridge.sites import Site


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("login")(login)
    app.command("logout")(logout)


def login(
    ctx: typer.Context,
    browser: Annotated[bool, typer.Option("--browser", help="Log in with a browser on this machine.")] = False,
    device: Annotated[bool, typer.Option("--device", help="Log in on any other device, with a code.")] = False,
    site: SiteOption = None,
) -> None:
    """Log in as a person.

    The login is kept in a file that only you can read. Without an option a browser is used where this machine has one,
    else a code to enter on any other device.
    """
    if browser and device:
        raise usage_error("choose one of --browser and --device", "--browser")
    state = state_of(ctx, site)
    state.interrupt_note = "You are not logged in."
    run(_login(state, "browser" if browser else "device" if device else None))


async def _login(state: State, chosen: str | None) -> None:
    from hpcbridge.credentials.factory import login_for
    from hpcbridge.credentials.logins import AuthorizationCodePKCE
    from hpcbridge.sites import resolve_site

    site = resolve_site(state.site)
    credential = login_for(site, _grant(site, chosen))
    if isinstance(credential, AuthorizationCodePKCE):
        await credential.login(_open_browser)
    else:
        await credential.login(_show_code)
    async with connect(state) as hpc:
        systems = ", ".join(system.name for system in await hpc.systems()) or "none"
    output.note(f"Logged in to {site.name}. Systems there: {systems}.")


def _grant(site: Site, chosen: str | None) -> str:
    """The way to log in: the option, else the configuration, else what this machine can do.

    Raises ConfigurationError where the site's settings lead to a token without a person.
    """
    from hpcbridge.credentials.factory import grant_of
    from hpcbridge.errors import ConfigurationError

    configured = grant_of(site)
    if configured not in ("device", "browser"):
        raise ConfigurationError(
            f"no login is needed: the settings lead to a token by themselves ({configured.replace('_', ' ')})",
            site=site.name,
            hint="To log in as a person, unset FIRECREST_CLIENT_SECRET, or set grant = 'device' for the site",
        )
    return chosen or site.credentials.grant or ("browser" if _has_browser() else "device")


def _has_browser() -> bool:
    """Whether a page opened here appears before the person who typed the command."""
    import webbrowser

    if os.environ.get("SSH_CONNECTION"):
        return False
    if sys.platform != "darwin" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def _open_browser(url: str) -> None:
    import webbrowser

    opened = webbrowser.open(url)
    output.note(f"{'Your browser opens' if opened else 'Open in a browser on this machine:'} {url}")


def _show_code(prompt: DevicePrompt) -> None:
    output.note(
        f"Open {prompt.url} in any browser and enter the code {prompt.user_code}\n"
        + (f"or open {prompt.complete_url}\n" if prompt.complete_url else "")
        + f"Waiting for at most {prompt.expires_in / 60:.0f} minutes …"
    )


def logout(ctx: typer.Context, site: SiteOption = None) -> None:
    """Forget the login on this machine."""
    from hpcbridge.credentials.factory import login_for
    from hpcbridge.sites import resolve_site

    resolved = resolve_site(state_of(ctx, site).site)
    login_for(resolved).logout()
    output.note(f"The login to {resolved.name} is forgotten on this machine.")
