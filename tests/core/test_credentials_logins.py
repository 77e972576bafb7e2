"""A person logs in at a real issuer: in a browser, and on another device; afterwards processes share the login."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from hpcbridge import errors
from hpcbridge.credentials import (
    AuthorizationCodePKCE,
    DeviceCode,
    DevicePrompt,
    FileStore,
    Issuer,
    Secret,
    credential_for,
)
from hpcbridge.credentials.factory import login_for
from hpcbridge.credentials.sources import SecretSource
from hpcbridge.firecrest import FirecrestClient
from hpcbridge.http import HttpSession
from hpcbridge.sites import Site, resolve_site
from support.sandbox import SandboxProcess


def issuer_of(sandbox: SandboxProcess, user: str = "alice") -> Issuer:
    secret = SecretSource("client_secret", value=Secret(sandbox.users[user]))
    return Issuer(user, token_url=sandbox.token_url, secret=secret, scope="openid offline_access")


async def browse(url: str, user: str, password: str, decision: str = "allow") -> int:
    """What a person does on the issuer's login page."""
    async with httpx.AsyncClient(follow_redirects=True, timeout=20) as browser:
        assert (await browser.get(url)).status_code == 200
        parts = urlsplit(url)
        form = {name: values[0] for name, values in parse_qs(parts.query).items()}
        answer = await browser.post(
            f"{parts.scheme}://{parts.netloc}{parts.path}",
            data={**form, "username": user, "password": password, "decision": decision},
        )
        return answer.status_code


async def test_login_in_a_browser(sandbox: SandboxProcess, tmp_path: Path) -> None:
    credential = AuthorizationCodePKCE(issuer_of(sandbox), FileStore(tmp_path / "login.json"))
    with pytest.raises(errors.LoginRequired):
        await credential.access_token()
    tasks: list[asyncio.Task[int]] = []

    def open_browser(url: str) -> None:
        query = parse_qs(urlsplit(url).query)
        assert query["code_challenge_method"] == ["S256"]
        assert query["redirect_uri"][0].startswith("http://127.0.0.1:")
        tasks.append(asyncio.create_task(browse(url, "alice", sandbox.users["alice"])))

    await asyncio.wait_for(credential.login(open_browser), 20)
    assert await tasks[0] == 200
    session = HttpSession(Site(url=sandbox.url), credential)
    assert (await FirecrestClient(session).userinfo(sandbox.system)).name == "alice"
    await session.aclose()

    # another process, later: rotated, and still logged in
    again = AuthorizationCodePKCE(issuer_of(sandbox), FileStore(tmp_path / "login.json"))
    token = await again.access_token()
    assert token == await credential.access_token()
    again.invalidate(token)
    assert await again.access_token() != token
    credential.invalidate(token)
    assert await credential.access_token() == await again.access_token()
    again.logout()
    with pytest.raises(errors.LoginRequired):
        await again.access_token()


async def test_a_declined_or_forged_browser_login(sandbox: SandboxProcess, tmp_path: Path) -> None:
    credential = AuthorizationCodePKCE(issuer_of(sandbox), FileStore(tmp_path / "login.json"))
    seen: list[int] = []

    async def attack(url: str) -> None:
        redirect = parse_qs(urlsplit(url).query)["redirect_uri"][0]
        async with httpx.AsyncClient() as stranger:
            seen.append((await stranger.get(f"{redirect}?code=stolen&state=guessed")).status_code)
            seen.append((await stranger.get(redirect.replace("/callback", "/"))).status_code)
        await browse(url, "alice", sandbox.users["alice"], decision="deny")

    with pytest.raises(errors.AuthenticationError, match="did not log you in"):
        await asyncio.wait_for(credential.login(attack), 20)
    assert seen == [404, 404]


async def test_login_on_another_device(sandbox: SandboxProcess, tmp_path: Path) -> None:
    credential = DeviceCode(issuer_of(sandbox, "bob"), FileStore(tmp_path / "login.json"))

    async def person(prompt: DevicePrompt) -> None:
        assert prompt.expires_in > 60
        async with httpx.AsyncClient(timeout=20) as phone:
            data = {"user_code": prompt.user_code, "username": "bob", "password": sandbox.users["bob"]}
            assert (await phone.post(prompt.url, data={**data, "decision": "allow"})).status_code == 200

    await asyncio.wait_for(credential.login(person), 40)
    session = HttpSession(Site(url=sandbox.url), credential)
    assert (await FirecrestClient(session).userinfo(sandbox.system)).name == "bob"
    await session.aclose()


async def test_a_declined_device(sandbox: SandboxProcess, tmp_path: Path) -> None:
    credential = DeviceCode(issuer_of(sandbox, "bob"), FileStore(tmp_path / "login.json"))

    async def person(prompt: DevicePrompt) -> None:
        async with httpx.AsyncClient(timeout=20) as phone:
            data = {"user_code": prompt.user_code, "username": "bob", "password": sandbox.users["bob"]}
            await phone.post(prompt.url, data={**data, "decision": "deny"})

    with pytest.raises(errors.AuthenticationError):
        await asyncio.wait_for(credential.login(person), 40)


async def test_the_settings_lead_to_the_same_login(
    sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    site = resolve_site(url=sandbox.url, token_url=sandbox.token_url, client_id="alice", grant="browser")
    login, used = login_for(site, "device"), credential_for(site)
    assert login.identity == used.identity
    assert str(tmp_path) in used.identity


async def test_the_issuers_tokens_expire_and_nobody_notices(sandbox: SandboxProcess) -> None:
    sandbox.post("/token", {"lifetime": 32})
    try:
        env = sandbox.client_env()
        site = resolve_site(
            url=env["FIRECREST_URL"], token_url=env["AUTH_TOKEN_URL"],
            client_id="alice", client_secret=env["FIRECREST_CLIENT_SECRET"],
        )  # fmt: skip
        session = HttpSession(site, credential_for(site))
        client = FirecrestClient(session)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            await client.systems(fresh=True, patience=0)
            await asyncio.sleep(0.1)
        assert session.counters.by_status[401] == 0
        sandbox.post("/expire-tokens")
        await client.systems(fresh=True, patience=0)
        assert session.counters.by_status[401] == 1
        await session.aclose()
    finally:
        sandbox.post("/token", {"lifetime": 300})
