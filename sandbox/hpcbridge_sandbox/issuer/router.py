"""The issuer's HTTP endpoints."""

from __future__ import annotations

from typing import Annotated, Any

from authlib.oauth2 import OAuth2Error
from authlib.oauth2.rfc8628 import DEVICE_CODE_GRANT_TYPE
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from hpcbridge_sandbox.context import Sandbox, get_sandbox
from hpcbridge_sandbox.issuer import PATH, Issuer, pages
from hpcbridge_sandbox.issuer.models import SCOPES
from hpcbridge_sandbox.issuer.server import Request as OAuthRequest

router = APIRouter(prefix=PATH, include_in_schema=False)


async def get_issuer(sandbox: Annotated[Sandbox, Depends(get_sandbox)]) -> Issuer:
    """Dependency: the issuer."""
    return sandbox.issuer


IssuerDep = Annotated[Issuer, Depends(get_issuer)]


async def oauth_request(request: Request) -> OAuthRequest:
    """Dependency: the request as Authlib reads it."""
    form = await request.form() if request.method == "POST" else None
    pairs = [(name, value) for name, value in form.multi_items() if isinstance(value, str)] if form else []
    return OAuthRequest(request.method, str(request.url), request.headers, request.query_params.multi_items(), pairs)


OAuthDep = Annotated[OAuthRequest, Depends(oauth_request)]


def _respond(answer: tuple[int, Any, list[tuple[str, str]]]) -> Response:
    status, body, headers = answer
    response = JSONResponse(body, status) if isinstance(body, dict) else Response(body, status)
    for name, value in headers:
        if name.lower() != "content-type":
            response.headers[name] = value
    return response


@router.get("/.well-known/openid-configuration")
async def discovery(issuer: IssuerDep) -> dict[str, Any]:
    """OpenID Connect discovery."""
    return {
        "issuer": issuer.url,
        "authorization_endpoint": f"{issuer.url}/authorize",
        "token_endpoint": f"{issuer.url}/token",
        "device_authorization_endpoint": f"{issuer.url}/device_authorization",
        "userinfo_endpoint": f"{issuer.url}/userinfo",
        "jwks_uri": f"{issuer.url}/jwks",
        "scopes_supported": list(SCOPES),
        "response_types_supported": ["code"],
        "grant_types_supported": ["client_credentials", "authorization_code", "refresh_token", DEVICE_CODE_GRANT_TYPE],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "none"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "subject_types_supported": ["public"],
        "claims_supported": ["iss", "sub", "aud", "exp", "iat", "preferred_username"],
    }


@router.get("/jwks")
async def jwks(issuer: IssuerDep) -> dict[str, Any]:
    """The public keys."""
    return issuer.jwks()


@router.post("/token")
async def token(issuer: IssuerDep, request: OAuthDep) -> Response:
    """Every grant's token endpoint."""
    return _respond(issuer.server.create_token_response(request))


@router.post("/device_authorization")
async def device_authorization(issuer: IssuerDep, request: OAuthDep) -> Response:
    """Begin a device login."""
    return _respond(issuer.server.create_endpoint_response("device_authorization", request))


@router.get("/userinfo")
async def userinfo(request: Request, sandbox: Annotated[Sandbox, Depends(get_sandbox)]) -> dict[str, str]:
    """OpenID Connect's user information."""
    name = sandbox.verifier.username(request.headers.get("authorization"))
    return {"sub": name, "preferred_username": name}


@router.get("/authorize")
async def authorize(issuer: IssuerDep, request: OAuthDep) -> Response:
    """Show the login page."""
    try:
        issuer.server.get_consent_grant(request, end_user=None)
    except OAuth2Error as error:
        return _refuse(error)
    return HTMLResponse(pages.login(request.payload.data))


@router.post("/authorize")
async def login(issuer: IssuerDep, request: OAuthDep) -> Response:
    """Check name and password; go back to the client with a code."""
    data = request.payload.data
    name, password = data.get("username", ""), data.get("password", "")
    if data.get("decision") != "deny" and not issuer.check_password(name, password):
        return HTMLResponse(pages.login(data, error="Name and password do not fit."), 401)
    try:
        grant = issuer.server.get_consent_grant(request, end_user=name)
    except OAuth2Error as error:
        return _refuse(error)
    user = None if data.get("decision") == "deny" else name
    status, _, headers = issuer.server.create_authorization_response(request, grant_user=user, grant=grant)
    return RedirectResponse(dict(headers)["Location"], 303 if status == 302 else status)


def _refuse(error: OAuth2Error) -> Response:
    return HTMLResponse(pages.message("Login refused", f"{error.error}: {error.description or ''}"), 400)


@router.get("/device")
async def device_page(user_code: str = "") -> Response:
    """Show the verification page of a device login."""
    return HTMLResponse(pages.device(user_code))


@router.post("/device")
async def device_answer(issuer: IssuerDep, request: OAuthDep) -> Response:
    """Take the user's code, name, password and decision."""
    data = request.payload.data
    code = data.get("user_code", "").strip().upper()
    pending = issuer.records.device(user_code=code)
    if pending is None or pending.is_expired() or pending.approved is not None:
        return HTMLResponse(pages.device(code, error="There is no pending login with this code."), 400)
    if not issuer.check_password(data.get("username", ""), data.get("password", "")):
        return HTMLResponse(pages.device(code, error="Name and password do not fit."), 401)
    approved = data.get("decision") != "deny"
    issuer.records.answer_device(code, data["username"], approved)
    text = "You may close this page: the device is logged in." if approved else "The device was not logged in."
    return HTMLResponse(pages.message("Login finished" if approved else "Login refused", text))
