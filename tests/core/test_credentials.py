"""Tokens: cached, fetched once for all, renewed ahead of need, patient with a silent issuer, careful with rotation."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcbridge import errors
from hpcbridge.credentials import (
    ClientCredentials,
    FileStore,
    Issuer,
    Login,
    MemoryStore,
    RefreshToken,
    Secret,
    TokenCallable,
    TokenCommand,
    TokenFile,
)
from hpcbridge.credentials.sources import SecretSource
from hpcbridge.credentials.tokens import Token
from support.httpd import Answer, Httpd, Request, httpd


class Script:
    """An issuer that answers as told; `answers` holds what comes next, the last one for ever."""

    def __init__(self, *answers: Answer | None, lifetime: float = 300, delay: float = 0.0) -> None:
        self.answers = list(answers)
        self.lifetime, self.delay = lifetime, delay
        self.forms: list[dict[str, str]] = []

    async def __call__(self, request: Request) -> Answer | None:
        self.forms.append({name: values[0] for name, values in parse_qs(request.body.decode()).items()})
        if self.answers:
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        number = len(self.forms)
        body = {"access_token": f"access-{number}", "token_type": "Bearer", "expires_in": self.lifetime}
        if self.forms[-1].get("grant_type") == "refresh_token":
            body["refresh_token"] = f"refresh-{number}"
        return Answer(200, body, delay=self.delay)


def due_token() -> Token:
    """One that is due since a second, and spent in two."""
    return Token(Secret("access-0"), 40, obtained=time.monotonic() - 6)


@asynccontextmanager
async def issuing(script: Script, **options: Any) -> AsyncIterator[tuple[Issuer, Httpd]]:
    async with httpd(script) as server:
        secret = SecretSource("client_secret", value=Secret("the client's secret"))
        yield Issuer("me", token_url=server.url + "/token", secret=secret, **options), server


async def test_a_thousand_callers_cost_one_request() -> None:
    script = Script(delay=0.05)
    async with issuing(script) as (issuer, _):
        credential = ClientCredentials(issuer)
        tokens = await asyncio.gather(*(credential.access_token() for _ in range(1000)))
        assert set(tokens) == {"access-1"}
        assert [form["grant_type"] for form in script.forms] == ["client_credentials"]
        assert script.forms[0]["client_id"] == "me"
        assert script.forms[0]["client_secret"] == "the client's secret"


async def test_the_loop_does_not_stand_still_while_the_client_is_made() -> None:
    """Certificates are read for it."""
    threads = []

    def options(_url: str) -> dict[str, Any]:
        threads.append(threading.current_thread())
        return {}

    async with issuing(Script(), options=options) as (issuer, _):
        await ClientCredentials(issuer).access_token()
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


async def test_callers_in_other_threads_and_loops_share_it_too() -> None:
    script = Script(delay=0.05)
    async with issuing(script) as (issuer, _):
        credential = ClientCredentials(issuer)
        found: list[str] = []
        threads = [
            threading.Thread(target=lambda: found.append(asyncio.run(credential.access_token()))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(0.01)
        assert found == ["access-1"] * 4
        assert len(script.forms) == 1


async def test_a_cancelled_caller_does_not_take_the_token_from_the_others() -> None:
    script = Script(delay=0.1)
    async with issuing(script) as (issuer, _):
        credential = ClientCredentials(issuer)
        first = asyncio.create_task(credential.access_token())
        second = asyncio.create_task(credential.access_token())
        await asyncio.sleep(0.03)
        first.cancel()
        assert await second == "access-1"
        assert len(script.forms) == 1


async def test_a_loop_that_ends_under_a_fetch_does_not_stall_the_others() -> None:
    script = Script(delay=0.2)
    async with issuing(script) as (issuer, _):
        credential = ClientCredentials(issuer)

        def leave_early() -> None:
            async def begin() -> None:
                task = asyncio.create_task(credential.access_token())
                while not script.forms:
                    await asyncio.sleep(0.005)
                task.cancel()

            asyncio.run(begin())

        thread = threading.Thread(target=leave_early)
        thread.start()
        while not script.forms:
            await asyncio.sleep(0.005)
        assert await asyncio.wait_for(credential.access_token(), 3) == "access-2"
        thread.join()


@pytest.mark.parametrize(
    ("lifetime", "due", "spent"),
    [(300, 208, 268), (3600, 3508, 3568), (60, 18.7, 28), (40, 5.3, 8), (20, 10.7, 16), (32, 0.7, 1.0)],
)
def test_when_a_token_is_due_and_when_it_is_spent(lifetime: float, due: float, spent: float) -> None:
    token = Token(Secret("x"), lifetime, obtained=0.0)
    assert token.due_at == pytest.approx(due, abs=0.1)
    assert token.spent_at == pytest.approx(spent, abs=0.1)


@given(lifetime=st.floats(min_value=0.1, max_value=1e6))
def test_a_token_is_due_before_it_is_spent_and_spent_before_the_server_refuses_it(lifetime: float) -> None:
    token = Token(Secret("x"), lifetime, obtained=0.0)
    assert 0 <= token.due_at <= token.spent_at <= lifetime
    if lifetime > 30:
        assert token.spent_at <= lifetime - 30
        assert token.spent_at >= min(lifetime - 32, (lifetime - 30) / 2) - 1e-6


async def test_an_issuer_known_by_its_discovery_document_alone() -> None:
    paths: list[str] = []

    async def serve(request: Request) -> Answer:
        paths.append(request.path)
        base = f"http://{request.headers['host']}"
        if request.path == "/realms/x/.well-known/openid-configuration":
            return Answer(200, {"token_endpoint": f"{base}/t", "device_authorization_endpoint": f"{base}/d"})
        if request.path == "/t":
            return Answer(200, {"access_token": "found", "token_type": "Bearer", "expires_in": 300})
        return Answer(404)

    async with httpd(serve) as server:
        secret = SecretSource("client_secret", value=Secret("12345678"))
        by_issuer = Issuer("me", issuer=server.url + "/realms/x", secret=secret)
        assert await ClientCredentials(by_issuer).access_token() == "found"
        by_token = Issuer("me", token_url=server.url + "/realms/x/protocol/openid-connect/token")
        assert await by_token.endpoint("device_authorization_endpoint") == server.url + "/d"
        with pytest.raises(errors.ConfigurationError, match="no authorization_endpoint"):
            await by_token.endpoint("authorization_endpoint")
        nowhere = Issuer("me", token_url=server.url + "/elsewhere/token")
        with pytest.raises(errors.ConfigurationError, match=r"no discovery document.*issuer"):
            await nowhere.endpoint("authorization_endpoint")


@pytest.mark.parametrize("status", [200, 404, 501])
async def test_a_wrong_token_url_is_what_to_check(status: int) -> None:
    async def serve(request: Request) -> Answer:
        return Answer(status, {"detail": "no token endpoint"})

    async with httpd(serve) as server:
        issuer = Issuer("me", token_url=server.url, secret=SecretSource("client_secret", value=Secret("12345678")))
        with pytest.raises(errors.HpcBridgeError, match="Check AUTH_TOKEN_URL"):
            await ClientCredentials(issuer).access_token()


async def test_a_due_token_is_renewed_in_the_background() -> None:
    script = Script()
    async with issuing(script) as (issuer, _):
        credential = ClientCredentials(issuer)
        credential._token = due_token()
        assert await credential.access_token() == "access-0"
        async with asyncio.timeout(10):
            while await credential.access_token() == "access-0":
                await asyncio.sleep(0.005)
        assert await credential.access_token() == "access-1"


async def test_tokens_that_live_less_than_the_servers_minimum_are_still_used() -> None:
    script = Script(lifetime=5)
    async with issuing(script) as (issuer, _):
        credential = ClientCredentials(issuer)
        assert [await credential.access_token() for _ in range(3)] == ["access-1"] * 3


async def test_an_issuer_that_is_down_is_not_noticed_while_a_token_lasts() -> None:
    script = Script(Answer(503))
    async with issuing(script) as (issuer, _):
        credential = ClientCredentials(issuer)
        credential._token = due_token()
        while not script.forms:
            assert await credential.access_token() == "access-0"
            await asyncio.sleep(0.005)
        for _ in range(20):
            assert await credential.access_token() == "access-0"
            await asyncio.sleep(0.005)
        assert len(script.forms) == 1  # and it is not asked over and over


@pytest.mark.parametrize("bad", [Answer(503), Answer(502, b"<html>"), Answer(200, b"not json"), None], ids=str)
async def test_an_issuer_without_an_answer_is_unavailable_not_a_refusal(bad: Answer | None) -> None:
    async with issuing(Script(bad)) as (issuer, _):
        with pytest.raises(errors.Unavailable) as failed:
            await ClientCredentials(issuer).access_token()
        assert failed.value.__context__ is None


@pytest.mark.parametrize("status", [400, 401])
async def test_a_refusal_says_what_to_do_and_is_not_repeated_at_once(status: int) -> None:
    script = Script(Answer(status, {"error": "invalid_client", "error_description": "Bad secret"}))
    async with issuing(script) as (issuer, server):
        credential = ClientCredentials(issuer)
        for _ in range(5):
            with pytest.raises(
                errors.AuthenticationError, match=r"invalid_client \(Bad secret\).*client id"
            ) as refused:
                await credential.access_token()
        assert server.url in str(refused.value)
        assert len(script.forms) == 1


async def test_only_the_refused_token_is_forgotten() -> None:
    async with issuing(Script()) as (issuer, _):
        credential = ClientCredentials(issuer)
        await credential.access_token()
        credential.invalidate("another")
        assert await credential.access_token() == "access-1"
        credential.invalidate("access-1")
        assert await credential.access_token() == "access-2"


async def test_basic_authentication_of_the_client() -> None:
    script = Script()
    async with issuing(script, client_auth="client_secret_basic") as (issuer, server):
        await ClientCredentials(issuer).access_token()
        expected = base64.b64encode(b"me:the client's secret").decode()
        assert server.requests[0].headers["authorization"] == f"Basic {expected}"
        assert "client_secret" not in script.forms[0]


# -- refresh and rotation ----------------------------------------------------------------------------------------------


async def test_rotation_is_handed_back_before_the_token_is_used() -> None:
    told: list[str] = []
    script = Script()
    async with issuing(script) as (issuer, _):
        credential = RefreshToken(issuer, refresh_token="refresh-0", on_rotation=told.append)
        assert await credential.access_token() == "access-1"
        assert told == ["refresh-1"]
        credential.invalidate("access-1")
        await credential.access_token()
        assert [form["refresh_token"] for form in script.forms] == ["refresh-0", "refresh-1"]
        assert told == ["refresh-1", "refresh-2"]


async def test_rotation_survives_a_cancelled_caller() -> None:
    script = Script(delay=0.1)
    store = MemoryStore(Login(Secret("refresh-0")))
    async with issuing(script) as (issuer, _):
        credential = RefreshToken(issuer, store)
        caller = asyncio.create_task(credential.access_token())
        await asyncio.sleep(0.03)
        caller.cancel()
        async with asyncio.timeout(10):
            while (login := store.load()) is None or login.refresh_token == Secret("refresh-0"):
                await asyncio.sleep(0.01)
        assert login.refresh_token == Secret("refresh-1")


async def test_a_login_that_has_ended_asks_for_another() -> None:
    async with issuing(Script(Answer(400, {"error": "invalid_grant"}))) as (issuer, _):
        with pytest.raises(errors.LoginRequired, match="hpcbridge login"):
            await RefreshToken(issuer, refresh_token="old").access_token()
        with pytest.raises(errors.LoginRequired, match="hpcbridge login"):
            await RefreshToken(issuer).access_token()


async def test_the_store_is_for_its_owner_only(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "logins" / "x.json")
    store.save(Login(Secret("refresh-0"), Secret("access-0"), time.time() + 300))
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    login = store.load()
    assert login is not None
    assert login.refresh_token == Secret("refresh-0")
    assert 290 < login.remaining <= 300
    assert list(tmp_path.glob("logins/.login-*")) == []
    store.path.chmod(0o644)
    with pytest.raises(errors.ConfigurationError, match="open to others"):
        store.load()
    store.forget()
    assert store.load() is None


def test_yesterdays_login_loads(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"format": 1, "refresh_token": "r", "access_token": null, "expires_at": 0}')
    path.chmod(0o600)
    login = FileStore(path).load()
    assert login is not None
    assert login.refresh_token == Secret("r")
    path.write_text('{"format": 99}')
    with pytest.raises(errors.ConfigurationError, match="newer"):
        FileStore(path).load()
    path.write_text("{")
    with pytest.raises(errors.ConfigurationError, match="damaged"):
        FileStore(path).load()


PROCESS = """
import asyncio, sys
from pathlib import Path
from hpcbridge.credentials import FileStore, Issuer, RefreshToken
async def main():
    credential = RefreshToken(Issuer("me", token_url=sys.argv[1]), FileStore(Path(sys.argv[2])))
    print(await credential.access_token())
asyncio.run(main())
"""


async def test_processes_take_turns_and_share_what_one_of_them_got(tmp_path: Path) -> None:
    used: list[str] = []

    async def strict(request: Request) -> Answer:
        form = parse_qs(request.body.decode())
        token = form["refresh_token"][0]
        if token in used:  # a second use ends the login at a careful issuer
            return Answer(400, {"error": "invalid_grant"})
        used.append(token)
        body = {"access_token": f"access-{len(used)}", "expires_in": 300, "refresh_token": f"refresh-{len(used)}"}
        return Answer(200, {**body, "token_type": "Bearer"}, delay=0.05)

    path = tmp_path / "login.json"
    FileStore(path).save(Login(Secret("refresh-0")))
    async with httpd(strict) as server:
        command = [sys.executable, "-c", PROCESS, server.url + "/token", str(path)]
        processes = [
            await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for _ in range(4)
        ]
        answers = [await process.communicate() for process in processes]
    assert [out.decode().strip() for out, _ in answers] == ["access-1"] * 4, answers
    assert used == ["refresh-0"]


# -- tokens from elsewhere ---------------------------------------------------------------------------------------------


def jwt(seconds: float, name: str = "x") -> str:
    claims = json.dumps({"exp": time.time() + seconds, "sub": name}).encode()
    return "e30." + base64.urlsafe_b64encode(claims).decode().rstrip("=") + ".c2ln"


async def test_a_token_file_is_read_again_after_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(jwt(300, "a") + "\n")
    credential = TokenFile(path)
    first = await credential.access_token()
    path.write_text(jwt(300, "b"))
    assert await credential.access_token() == first
    credential.invalidate(first)
    assert await credential.access_token() != first


async def test_an_expired_or_missing_token_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(errors.ConfigurationError, match="token_file"):
        await TokenFile(path).access_token()
    path.write_text(jwt(-5))
    with pytest.raises(errors.AuthenticationError, match="expired"):
        await TokenFile(path).access_token()


async def test_a_token_command_runs_without_a_shell_and_once(tmp_path: Path) -> None:
    count = tmp_path / "count"
    script = f"import sys; open({str(count)!r}, 'a').write('x'); print('token from a command', sys.argv[1])"
    credential = TokenCommand([sys.executable, "-c", script, "$HOME"])
    answers = await asyncio.gather(*(credential.access_token() for _ in range(5)))
    assert set(answers) == {"token from a command $HOME"}
    assert count.read_text() == "x"
    assert "$HOME" not in credential.identity


async def test_a_failing_command_does_not_quote_what_it_said() -> None:
    credential = TokenCommand([sys.executable, "-c", "import sys; print('s3cr3t-words', file=sys.stderr); sys.exit(3)"])
    with pytest.raises(errors.AuthenticationError, match="ended with 3") as failed:
        await credential.access_token()
    assert "s3cr3t-words" not in str(failed.value)
    with pytest.raises(errors.ConfigurationError, match="cannot be run"):
        await TokenCommand(["/no/such/program"]).access_token()


async def test_a_callable_decides_itself_unless_it_gives_a_jwt() -> None:
    calls = iter(range(100))
    opaque = TokenCallable(lambda: f"opaque-{next(calls)}")
    assert [await opaque.access_token() for _ in range(3)] == ["opaque-0", "opaque-1", "opaque-2"]

    async def signed() -> str:
        next(calls)
        return jwt(300)

    cached = TokenCallable(signed)
    assert len({await cached.access_token() for _ in range(5)}) == 1

    def broken() -> str:
        raise RuntimeError("holding s3cr3t-words")

    with pytest.raises(errors.AuthenticationError, match="RuntimeError") as failed:
        await TokenCallable(broken).access_token()
    assert "s3cr3t-words" not in str(failed.value)


async def test_secrets_by_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("from a file\n")
    monkeypatch.setenv("MY_SECRET", "from a variable")
    assert (await SecretSource("k", file=str(tmp_path / "secret")).read()).reveal() == "from a file"
    assert (await SecretSource("k", env="MY_SECRET").read()).reveal() == "from a variable"
    assert (await SecretSource("k", command=["echo", "from a command"]).read()).reveal() == "from a command"
    monkeypatch.delenv("MY_SECRET")
    with pytest.raises(errors.ConfigurationError, match="MY_SECRET is not set"):
        await SecretSource("k", env="MY_SECRET").read()
    with pytest.raises(errors.ConfigurationError, match="exactly one way"):
        SecretSource("k", env="A", file="b")


async def test_a_fork_may_use_the_parents_credential() -> None:
    async with issuing(Script()) as (issuer, _):
        credential = ClientCredentials(issuer)
        await credential.access_token()
        credential._guard.acquire()  # another thread of the parent holds it at this moment
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(0 if asyncio.run(credential.access_token()) == "access-1" else 1)
            finally:
                os._exit(2)
        credential._guard.release()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
