"""The REST interface as one ASGI application."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser

from hpcbridge_sandbox import compute, filesystem, status, transfer
from hpcbridge_sandbox.context import Sandbox
from hpcbridge_sandbox.errors import ApiError, UnhandledError
from hpcbridge_sandbox.frame import Frame
from hpcbridge_sandbox.interface import document
from hpcbridge_sandbox.issuer.router import router as issuer_router

logger = logging.getLogger("hpcbridge.sandbox")

# Uploads up to the limit stay in memory: spooling them to disk would take a thread for every piece.
MultiPartParser.spool_max_size = 8 * 1024 * 1024


def create_app(sandbox: Sandbox) -> Frame:
    """Return the application that serves ``sandbox``."""
    app = FastAPI(
        title="FirecREST",
        version=sandbox.settings.server_version,
        description="A FirecREST v2 sandbox on one machine: for trying and testing, not a production service.",
        root_path=sandbox.settings.root_path,
    )
    app.state.sandbox = sandbox
    app.openapi = lambda: document(  # type: ignore[method-assign]
        sandbox.settings, sandbox.base_url, f"{sandbox.issuer.url}/token"
    )
    for router in (status.router, compute.router, filesystem.router, transfer.router, issuer_router):
        app.include_router(router)
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(Exception, _on_bug)
    return Frame(app, sandbox)


def error_response(request: Request, error: ApiError) -> JSONResponse:
    """Return the answer for an error: the real server's body, and the user's name in a header where it is known."""
    user: str | None = getattr(request.state, "username", None)
    headers = dict(error.headers)
    if user is not None and not error.anonymous:
        headers["f7t-authusername"] = user
    return JSONResponse(_printable(error.body(user)), error.status, headers)


def _printable(value: Any) -> Any:
    """Replace lone surrogates, which JSON can carry in but UTF-8 cannot carry out."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value


async def on_api_error(request: Request, error: Exception) -> JSONResponse:
    """Answer with the real server's body."""
    assert isinstance(error, ApiError)
    if isinstance(error, UnhandledError):
        request.state.close_connection = True
    return error_response(request, error)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return error_response(request, ApiError(error.status_code, str(error.detail), headers=error.headers))


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    """400, not 422; the fields name only the first two parts of the location, and the message is all lower case."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    fields = [
        {"location": str(one["loc"][0]), "message": one["msg"], "name": one["loc"][1] if len(one["loc"]) > 1 else ""}
        for one in found
    ]
    lines = "".join(f"\n  {one}" for one in found)
    message = f"{len(found)} validation error{'s' if len(found) != 1 else ''}:{lines}".lower()
    return error_response(request, ApiError(400, message, data={"fields": fields}, error_type="validation"))


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    """An exception nobody meant: answered as the real server answers its own, and logged with a traceback."""
    logger.error("unexpected error in %s %s", request.method, request.url.path, exc_info=error)
    return error_response(request, UnhandledError(str(error.args)))
