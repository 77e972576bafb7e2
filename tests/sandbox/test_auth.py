"""Who gets in: bearer tokens as the real server checks them."""

from __future__ import annotations

import base64
import hmac
import json
import time
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey

from support.sandbox import SandboxProcess

SYSTEMS = "/status/systems"


def ask(sandbox: SandboxProcess, authorization: str | None) -> httpx.Response:
    headers = {} if authorization is None else {"Authorization": authorization}
    return httpx.get(sandbox.url + SYSTEMS, headers=headers)


def refused(answer: httpx.Response, message: str, token: str | None = None) -> None:
    assert answer.status_code == 401
    assert answer.json() == {"errorType": "error", "message": message, "data": None, "causedBy": None, "user": None}
    assert answer.headers.get("auth-token") == token
    assert answer.headers["f7t-appversion"] == "2.5.7"


def kid(sandbox: SandboxProcess) -> str:
    return str(httpx.get(sandbox.token_url.replace("/token", "/jwks")).json()["keys"][0]["kid"])


def forged(header: dict[str, Any], key: Any, **claims: Any) -> str:
    body = {"preferred_username": "alice", "sub": "alice", "exp": int(time.time()) + 300, **claims}
    return jwt.encode(header, body, key, algorithms=[header["alg"]])


def part(data: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()


def test_a_good_token_gets_in(sandbox: SandboxProcess) -> None:
    answer = ask(sandbox, f"Bearer {sandbox.token()}")
    assert answer.status_code == 200
    assert answer.headers["f7t-appversion"] == "2.5.7"
    assert "f7t-authusername" not in answer.headers


@pytest.mark.parametrize("authorization", [None, "Basic YWxpY2U6eA==", "Bearer"])
def test_no_token(sandbox: SandboxProcess, authorization: str | None) -> None:
    answer = ask(sandbox, authorization)
    refused(answer, "Not authenticated")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_garbage(sandbox: SandboxProcess) -> None:
    refused(ask(sandbox, "Bearer garbage"), "Access token is invalid.", "garbage")


def test_wrong_key(sandbox: SandboxProcess) -> None:
    token = forged({"alg": "RS256", "kid": kid(sandbox)}, RSAKey.generate_key(2048))
    refused(ask(sandbox, f"Bearer {token}"), "Access token is invalid.", token)


def test_unknown_key_id(sandbox: SandboxProcess) -> None:
    token = forged({"alg": "RS256", "kid": "nobody"}, RSAKey.generate_key(2048))
    refused(ask(sandbox, f"Bearer {token}"), "Token's public key not found.", token)


def test_wrong_algorithm_with_the_public_key_as_secret(sandbox: SandboxProcess) -> None:
    public = httpx.get(sandbox.token_url.replace("/token", "/jwks")).json()["keys"][0]
    signed = f"{part({'alg': 'HS256', 'kid': public['kid']})}.{part({'preferred_username': 'alice', 'exp': 2**31})}"
    mac = hmac.digest(RSAKey.import_key(public).as_pem(private=False), signed.encode(), "sha256")
    token = f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    refused(ask(sandbox, f"Bearer {token}"), "Access token is invalid.", token)


def test_algorithm_none(sandbox: SandboxProcess) -> None:
    claims = part({"preferred_username": "alice", "exp": int(time.time()) + 300})
    token = f"{part({'alg': 'none', 'kid': kid(sandbox)})}.{claims}."
    refused(ask(sandbox, f"Bearer {token}"), "Access token is invalid.", token)


def test_a_changed_claim_breaks_the_signature(sandbox: SandboxProcess) -> None:
    header, claims, signature = sandbox.token().split(".")
    body = json.loads(base64.urlsafe_b64decode(claims + "=="))
    token = f"{header}.{part({**body, 'preferred_username': 'bob'})}.{signature}"
    refused(ask(sandbox, f"Bearer {token}"), "Access token is invalid.", token)


def test_expired(sandbox: SandboxProcess) -> None:
    token = sandbox.post("/mint", {"user": "alice", "lifetime": -1})["access_token"]
    refused(ask(sandbox, f"Bearer {token}"), "Access token expired", token)


def test_under_thirty_seconds_left(sandbox: SandboxProcess) -> None:
    token = sandbox.post("/mint", {"user": "alice", "lifetime": 29})["access_token"]
    refused(ask(sandbox, f"Bearer {token}"), "Access token expires too soon (less than 30s remaining).", token)


def test_without_the_users_claim(sandbox: SandboxProcess) -> None:
    token = sandbox.post("/mint", {"user": "alice", "claims": {"preferred_username": None}})["access_token"]
    answer = ask(sandbox, f"Bearer {token}")
    assert answer.status_code == 400
    assert answer.json()["message"] == "Authentication token 'preferred_username' claim is missing"


def test_a_name_without_an_account_on_the_cluster(sandbox: SandboxProcess) -> None:
    token = sandbox.post("/mint", {"user": "nokeys"})["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    answer = httpx.get(f"{sandbox.url}/filesystem/{sandbox.system}/ops/ls?path=/home", headers=headers)
    assert (answer.status_code, answer.json()["message"]) == (500, "('No SSH credentials found for user:nokeys',)")
    assert answer.headers["f7t-authusername"] == "nokeys"
    assert ask(sandbox, f"Bearer {token}").status_code == 200


def test_expire_tokens_refuses_earlier_ones_only(sandbox: SandboxProcess) -> None:
    before = sandbox.token()
    assert ask(sandbox, f"Bearer {before}").status_code == 200
    sandbox.post("/expire-tokens")
    refused(ask(sandbox, f"Bearer {before}"), "Access token expired", before)
    assert ask(sandbox, f"Bearer {sandbox.token()}").status_code == 200
