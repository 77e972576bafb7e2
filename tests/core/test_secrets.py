"""No secret in a log, a repr, a traceback with local variables or a pickle: all of them are searched."""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from rich.traceback import Traceback

from hpcbridge import errors
from hpcbridge.credentials import ClientCredentials, Issuer, Secret, TokenCallable
from hpcbridge.credentials.sources import SecretSource
from hpcbridge.firecrest import FirecrestClient
from hpcbridge.http import HttpPolicy, HttpSession, redact
from hpcbridge.sites import Site, load_site
from support.httpd import Answer, Request, httpd
from support.sandbox import SandboxProcess

TOKEN = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ0b3BzZWNyZXQifQ.c2lnbmF0dXJl"
CLIENT_SECRET = "correct-horse-battery-staple"
SIGNATURE = "0123456789abcdef0123456789abcdef"
PRESIGNED = f"?X-Amz-Credential=AKIAEXAMPLE%2Fx&X-Amz-Signature={SIGNATURE}&partNumber=1"
QUIET = HttpPolicy(connect=1, read=1, patience=0)


@pytest.fixture
def everything() -> Iterator[io.StringIO]:
    """What any logger at all writes at DEBUG."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)
    root.addHandler(handler)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def shown(error: BaseException) -> str:
    """The traceback as Rich prints it, with all local variables, wide and unabridged."""
    console = Console(file=io.StringIO(), width=400)
    console.print(
        Traceback.from_exception(
            type(error), error, error.__traceback__, show_locals=True, locals_max_length=1000, locals_max_string=10000
        )
    )
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


async def test_debug_logs_of_all_libraries_hold_no_secret(everything: io.StringIO) -> None:
    async def server(request: Request) -> Answer:
        if request.path.startswith("/token"):
            body = {"access_token": TOKEN, "token_type": "Bearer", "expires_in": 300}
            return Answer(200, body, {"set-cookie": "session=c00kie-value"})
        # the real server echoes the token of a refused request
        echo = {"auth-token": TOKEN, "set-cookie": "session=c00kie-value", "www-authenticate": "Bearer"}
        return Answer(401, {"message": f"Access token {TOKEN} expired"}, echo)

    async with httpd(server) as running:
        secret = SecretSource("client_secret", value=Secret(CLIENT_SECRET))
        credential = ClientCredentials(Issuer("me", token_url=running.url + "/token", secret=secret))
        session = HttpSession(Site(url=running.url), credential, policy=QUIET)
        with pytest.raises(errors.AuthenticationError) as refused:
            await session.request("GET", "/status/systems")
        await session.storage.put(running.url + "/bucket/part" + PRESIGNED, content=b"x")
        with pytest.raises(errors.AuthenticationError):
            await session.send_once("POST", "/jobs", json={"script": "#!/bin/bash"})
        await session.aclose()
    logged = everything.getvalue()
    assert "receive_response_headers.complete" in logged  # httpcore did write headers
    assert "PUT" in logged
    for text in (logged, str(refused.value), shown(refused.value)):
        for value in (TOKEN, CLIENT_SECRET, SIGNATURE, "c00kie-value", "AKIAEXAMPLE"):
            assert value not in text


async def test_tracebacks_with_local_variables_hold_no_secret() -> None:
    async def hang_up(request: Request) -> Answer | None:
        if request.path.startswith("/token"):
            return Answer(200, {"access_token": TOKEN, "token_type": "Bearer", "expires_in": 300})
        return None

    async with httpd(hang_up) as running:
        secret = SecretSource("client_secret", value=Secret(CLIENT_SECRET))
        credential = ClientCredentials(Issuer("me", token_url=running.url + "/token", secret=secret))
        client = FirecrestClient(HttpSession(Site(url=running.url), credential, policy=QUIET))
        calls = [
            client.systems(),
            client.nodes("x"),
            client.submit("x", {"script": "y"}),
            client.upload("x", "/home/u", "env", b"export API_KEY=" + CLIENT_SECRET.encode()),
            client.transfer_upload("x", "/home/u/f", 10),
        ]
        for call in calls:
            with pytest.raises(errors.HpcBridgeError) as failed:
                await call
            text = shown(failed.value)
            assert "locals" in text
            assert TOKEN not in text
            assert CLIENT_SECRET not in text
            assert failed.value.__context__ is None
        await client.session.aclose()


async def test_a_refused_client_secret_does_not_show_in_the_error() -> None:
    async def refuse(_request: Request) -> Answer:
        return Answer(401, {"error": "invalid_client", "error_description": f"secret {CLIENT_SECRET} is wrong"})

    async with httpd(refuse) as running:
        secret = SecretSource("client_secret", value=Secret(CLIENT_SECRET))
        credential = ClientCredentials(Issuer("me", token_url=running.url + "/token", secret=secret))
        with pytest.raises(errors.AuthenticationError) as refused:
            await credential.access_token()
        assert CLIENT_SECRET not in shown(refused.value) + str(refused.value) + repr(refused.value)


def test_reprs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HPCBRIDGE_CONFIG", str(tmp_path / "none.toml"))
    (tmp_path / "none.toml").write_text("")
    site, credential = load_site(
        url="https://h",
        token_url="https://h/token",
        client_id="me",
        client_secret=CLIENT_SECRET,
        proxy="http://user:pr0xypass@proxy:3128",
    )
    session = HttpSession(site, credential)
    for thing in (site, credential, session, FirecrestClient(session), site.credentials, credential.__dict__):
        assert CLIENT_SECRET not in repr(thing)
        assert "pr0xypass" not in repr(thing)
    secret = Secret(CLIENT_SECRET)
    assert CLIENT_SECRET not in f"{secret} {secret!r} {secret:>20} {[secret]} {vars(errors.NotSent(str(secret)))}"
    assert secret.reveal() == CLIENT_SECRET
    with pytest.raises(TypeError):
        pickle.dumps(secret)


def test_arguments_do_not_show_in_a_traceback() -> None:
    import hpcbridge
    from hpcbridge import blocking

    for connect in (hpcbridge.connect, blocking.connect, load_site):
        with pytest.raises(errors.ConfigurationError) as refused:
            connect(url="ftp://h", client_id="me", client_secret="-".join(["correct", "horse", "battery", "staple"]))
        assert CLIENT_SECRET not in shown(refused.value)


def test_a_credential_of_the_callers_own_needs_no_other_settings() -> None:
    import hpcbridge

    hpc = hpcbridge.connect(url="http://h", credential=TokenCallable(lambda: "x"))
    assert hpc.credential.identity.startswith("token_callable:")


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {TOKEN}",
        f"[(b'auth-token', b'{TOKEN}'), (b'date', b'x')]",
        f"{{'Set-Cookie': 'session={SIGNATURE}'}}",
        f"PUT https://s3/b/k?partNumber=1&X-Amz-Signature={SIGNATURE} 200",
        f"grant_type=refresh_token&refresh_token={SIGNATURE}&client_id=me",
        f'{{"client_secret": "{SIGNATURE}"}}',
        f"GET http://127.0.0.1:4000/callback?code={SIGNATURE}&state=s",
        f"proxy http://user:{SIGNATURE}@proxy:3128",
        f"a bare {TOKEN} somewhere",
    ],
)
def test_what_looks_like_a_secret_is_redacted(text: str) -> None:
    clean = redact(text)
    assert "**********" in clean
    assert TOKEN not in clean
    assert SIGNATURE not in clean


@pytest.mark.parametrize(
    "text",
    ["exit code: 3", "HTTP Request: GET http://h/compute/x/jobs?name=a 200", "token expired", "job 12 COMPLETED"],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text


def test_a_live_secret_is_found_whatever_its_form(everything: io.StringIO) -> None:
    secret = Secret("plain looking words")
    logging.getLogger("hpcbridge.jobs.submit")
    HttpSession(Site(url="http://h"), TokenCallable(lambda: "x"))
    for name in ("hpcbridge", "hpcbridge.http.session", "hpcbridge.jobs.submit"):
        logging.getLogger(name).error("it says %s", "plain looking words")
    try:
        raise ValueError("plain looking words")
    except ValueError:
        logging.getLogger("httpx").exception("failed")
    assert "plain looking words" not in everything.getvalue()
    assert "ValueError" in everything.getvalue()
    del secret
    assert redact("plain looking words") == "plain looking words"


@pytest.mark.needs("curl")
async def test_a_whole_session_with_the_sandbox_leaves_no_secret_behind(
    sandbox: SandboxProcess, everything: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in sandbox.client_env().items():
        monkeypatch.setenv(name, value)
    site, credential = load_site()
    client = FirecrestClient(HttpSession(site, credential, policy=HttpPolicy(patience=1)))
    await client.userinfo(sandbox.system)
    upload = await client.transfer_upload(sandbox.system, "/home/alice/s", 10)
    await client.session.storage.put(upload.part_urls[0].reveal(), content=b"0123456789")
    await client.cancel(sandbox.system, upload.job_id)
    token = await credential.access_token()
    sandbox.post("/expire-tokens")
    await client.systems(fresh=True)
    logged = everything.getvalue()
    assert "receive_response_headers.complete" in logged
    second = await credential.access_token()
    assert second != token
    signature = upload.part_urls[0].reveal().partition("Signature=")[2].partition("&")[0]
    assert len(signature) > 10
    for value in (token, second, sandbox.users["alice"], signature):
        assert value not in logged
    await client.session.aclose()
