"""The OIDC issuer: every grant, by the book."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import firecrest
import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from support.sandbox import SandboxProcess

CLI = "hpcbridge-cli"
REDIRECT = "http://127.0.0.1:45000/callback"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


@pytest.fixture
def discovered(sandbox: SandboxProcess) -> dict[str, Any]:
    issuer = sandbox.token_url.removesuffix("/token")
    document: dict[str, Any] = httpx.get(f"{issuer}/.well-known/openid-configuration").json()
    assert document["issuer"] == issuer
    return document


def works(sandbox: SandboxProcess, access_token: str) -> bool:
    headers = {"Authorization": f"Bearer {access_token}"}
    return httpx.get(f"{sandbox.url}/status/systems", headers=headers).status_code == 200


def claims(discovered: dict[str, Any], token: str) -> dict[str, Any]:
    """Verify as any relying party does: by the published keys."""
    keys = KeySet.import_key_set(httpx.get(discovered["jwks_uri"]).json())
    decoded = jwt.decode(token, keys, algorithms=["RS256"])
    assert decoded.header["alg"] == "RS256"
    return dict(decoded.claims)


def fields(page: str) -> dict[str, str]:
    """Return the hidden fields of a form."""
    found = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', page)
    return {name: html.unescape(value) for name, value in found}


def sent_to(page: httpx.Response) -> str:
    """Return where a browser sends the page's form: without an `action` that is the page with its query."""
    action = re.search(r'<form method="post"(?: action="([^"]*)")?', page.text)
    assert action is not None
    return urljoin(str(page.url), html.unescape(action[1] or ""))


def log_in(sandbox: SandboxProcess, discovered: dict[str, Any], **changes: str) -> tuple[dict[str, str], str]:
    """Walk through the login page; return the redirect's parameters and the PKCE verifier."""
    verifier = secrets.token_urlsafe(48)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    request = {
        "response_type": "code",
        "client_id": CLI,
        "redirect_uri": REDIRECT,
        "scope": "openid offline_access",
        "state": "st & te",
        "nonce": "n1",
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    page = httpx.get(discovered["authorization_endpoint"], params=request)
    assert page.status_code == 200, page.text
    form = {
        **fields(page.text),
        "username": "alice",
        "password": sandbox.users["alice"],
        "decision": "allow",
        **changes,
    }
    answer = httpx.post(sent_to(page), data=form)
    assert answer.status_code == 303, answer.text
    location = urlsplit(answer.headers["location"])
    assert f"{location.scheme}://{location.netloc}{location.path}" == REDIRECT
    return {name: values[0] for name, values in parse_qs(location.query).items()}, verifier


def redeem(discovered: dict[str, Any], code: str, verifier: str) -> httpx.Response:
    data = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT, "client_id": CLI}
    return httpx.post(discovered["token_endpoint"], data={**data, "code_verifier": verifier})


@pytest.mark.parametrize("way", ["basic", "post"])
def test_client_credentials(sandbox: SandboxProcess, discovered: dict[str, Any], way: str) -> None:
    secret = sandbox.users["bob"]
    data = {"grant_type": "client_credentials"}
    if way == "basic":
        answer = httpx.post(sandbox.token_url, data=data, auth=("bob", secret))
    else:
        answer = httpx.post(sandbox.token_url, data={**data, "client_id": "bob", "client_secret": secret})
    body = answer.json()
    assert (answer.status_code, body["token_type"], body["expires_in"]) == (200, "Bearer", 300)
    assert "refresh_token" not in body
    assert answer.headers["cache-control"] == "no-store"
    token = claims(discovered, body["access_token"])
    assert (token["preferred_username"], token["sub"], token["iss"]) == ("bob", "bob", discovered["issuer"])
    assert token["exp"] - token["iat"] == 300


def test_wrong_secret_and_unknown_client(sandbox: SandboxProcess) -> None:
    for client in (("alice", "wrong"), ("nobody", "x"), ("bob", sandbox.users["alice"]), (CLI, "")):
        answer = httpx.post(sandbox.token_url, data={"grant_type": "client_credentials"}, auth=client)
        assert answer.status_code in {400, 401}
        assert answer.json()["error"] in {"invalid_client", "unauthorized_client"}
    answer = httpx.post(sandbox.token_url, data={"grant_type": "password"}, auth=("alice", sandbox.users["alice"]))
    assert (answer.status_code, answer.json()["error"]) == (400, "unsupported_grant_type")


def test_pyfirecrests_own_client_credentials(sandbox: SandboxProcess) -> None:
    auth = firecrest.ClientCredentialsAuth("alice", sandbox.users["alice"], sandbox.token_url)
    client = firecrest.v2.Firecrest(firecrest_url=sandbox.url, authorization=auth)
    assert [system["name"] for system in client.systems()] == [sandbox.system]


def test_token_lifetime_from_the_control_url(sandbox: SandboxProcess) -> None:
    sandbox.post("/token", {"lifetime": 77})
    try:
        answer = httpx.post(
            sandbox.token_url, data={"grant_type": "client_credentials"}, auth=("alice", sandbox.users["alice"])
        )
        assert answer.json()["expires_in"] == 77
    finally:
        sandbox.post("/token", {"lifetime": 300})


def test_authorization_code_with_pkce(sandbox: SandboxProcess, discovered: dict[str, Any]) -> None:
    back, verifier = log_in(sandbox, discovered)
    assert back["state"] == "st & te"
    body = redeem(discovered, back["code"], verifier).json()
    assert works(sandbox, body["access_token"])
    identity = claims(discovered, body["id_token"])
    assert (identity["sub"], identity["aud"], identity["nonce"]) == ("alice", CLI, "n1")
    answer = httpx.get(discovered["userinfo_endpoint"], headers={"Authorization": f"Bearer {body['access_token']}"})
    assert answer.json() == {"sub": "alice", "preferred_username": "alice"}
    again = redeem(discovered, back["code"], verifier)
    assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")


def test_a_code_needs_its_verifier(sandbox: SandboxProcess, discovered: dict[str, Any]) -> None:
    back, _ = log_in(sandbox, discovered)
    answer = redeem(discovered, back["code"], secrets.token_urlsafe(48))
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")


def test_no_login_without_pkce_or_to_foreign_hosts(discovered: dict[str, Any]) -> None:
    request = {"response_type": "code", "client_id": CLI, "redirect_uri": REDIRECT}
    assert httpx.get(discovered["authorization_endpoint"], params=request).status_code == 400
    foreign = {**request, "redirect_uri": "https://example.org/", "code_challenge": "x" * 43}
    assert httpx.get(discovered["authorization_endpoint"], params=foreign).status_code == 400


def test_a_wrong_password_shows_the_page_again(sandbox: SandboxProcess, discovered: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="do not fit"):
        log_in(sandbox, discovered, password="wrong", username='<script>"')


def test_cancelling_a_login_goes_back_with_access_denied(sandbox: SandboxProcess, discovered: dict[str, Any]) -> None:
    back, _ = log_in(sandbox, discovered, decision="deny", password="")
    assert back["error"] == "access_denied"


def test_refresh_rotates_and_reuse_ends_the_login(sandbox: SandboxProcess, discovered: dict[str, Any]) -> None:
    back, verifier = log_in(sandbox, discovered)
    first = redeem(discovered, back["code"], verifier).json()["refresh_token"]

    def refresh(token: str) -> httpx.Response:
        data = {"grant_type": "refresh_token", "refresh_token": token, "client_id": CLI}
        return httpx.post(discovered["token_endpoint"], data=data)

    second = refresh(first).json()
    assert works(sandbox, second["access_token"])
    assert second["refresh_token"] != first
    third = refresh(second["refresh_token"]).json()["refresh_token"]
    reused = refresh(first)
    assert (reused.status_code, reused.json()["error"]) == (400, "invalid_grant")
    assert refresh(third).json()["error"] == "invalid_grant"


def test_a_refresh_token_belongs_to_its_client(sandbox: SandboxProcess, discovered: dict[str, Any]) -> None:
    back, verifier = log_in(sandbox, discovered)
    token = redeem(discovered, back["code"], verifier).json()["refresh_token"]
    data = {"grant_type": "refresh_token", "refresh_token": token}
    answer = httpx.post(discovered["token_endpoint"], data=data, auth=("bob", sandbox.users["bob"]))
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")


def test_device_code(sandbox: SandboxProcess, discovered: dict[str, Any]) -> None:
    begin = httpx.post(discovered["device_authorization_endpoint"], data={"client_id": CLI, "scope": "openid"}).json()
    assert begin["interval"] == 1

    def poll() -> httpx.Response:
        data = {"grant_type": DEVICE_GRANT, "device_code": begin["device_code"], "client_id": CLI}
        return httpx.post(discovered["token_endpoint"], data=data)

    assert poll().json()["error"] == "authorization_pending"
    with ThreadPoolExecutor(4) as pool:  # sooner than once in a second, on any machine
        assert "slow_down" in [answer.json()["error"] for answer in pool.map(lambda _: poll(), range(4))]
    page = httpx.get(begin["verification_uri_complete"])
    assert begin["user_code"] in page.text
    form = {"user_code": begin["user_code"].lower(), "username": "bob", "password": "wrong"}
    assert httpx.post(begin["verification_uri"], data=form).status_code == 401
    form["password"] = sandbox.users["bob"]
    assert httpx.post(begin["verification_uri"], data=form).status_code == 200
    body = poll().json()
    assert claims(discovered, body["access_token"])["preferred_username"] == "bob"
    assert "refresh_token" in body
    assert poll().status_code == 400


def test_a_refused_device(sandbox: SandboxProcess, discovered: dict[str, Any]) -> None:
    begin = httpx.post(discovered["device_authorization_endpoint"], data={"client_id": CLI}).json()
    form = {"user_code": begin["user_code"], "username": "bob", "password": sandbox.users["bob"], "decision": "deny"}
    assert httpx.post(begin["verification_uri"], data=form).status_code == 200
    data = {"grant_type": DEVICE_GRANT, "device_code": begin["device_code"], "client_id": CLI}
    assert httpx.post(discovered["token_endpoint"], data=data).json()["error"] == "access_denied"
    assert httpx.post(begin["verification_uri"], data={**form, "user_code": "AAAA-BBBB"}).status_code == 400


@pytest.mark.parametrize("page", ["login", "device"])
def test_the_pages_can_be_used_by_everyone(discovered: dict[str, Any], page: str) -> None:
    if page == "device":
        text = httpx.get(discovered["issuer"] + "/device").text
    else:
        request = {"response_type": "code", "client_id": CLI, "redirect_uri": REDIRECT, "code_challenge": "x" * 43}
        text = httpx.get(discovered["authorization_endpoint"], params={**request, "code_challenge_method": "S256"}).text
    assert '<html lang="en">' in text
    assert "<script" not in text
    assert text.count("<h1>") == 1
    labels = set(re.findall(r'<label for="([^"]+)"', text))
    shown = set(re.findall(r'<input id="([^"]+)"', text))
    assert labels == shown
    assert 'autocomplete="current-password"' in text
