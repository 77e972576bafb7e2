"""What all endpoint groups share: path components, bodies, and the three ways to send."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx

from hpcbridge.errors import InvalidRequest, ServerError
from hpcbridge.firecrest.answers import explain, explain_once
from hpcbridge.http.answers import Explain
from hpcbridge.http.session import HttpSession


class Endpoints:
    """Base of the endpoint groups: a session and how its requests are sent."""

    session: HttpSession

    async def _get(
        self,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
        patience: float | None = None,
        polling: bool = False,
        timeout: float | None = None,
        explain: Explain = explain,
    ) -> httpx.Response:
        """A read: repeated as long as the patience lasts."""
        given = {name: _query(value) for name, value in (params or {}).items() if value is not None}
        return await self.session.request(
            "GET",
            path,
            params=given,
            about=about,
            patience=patience,
            polling=polling,
            timeout=timeout,
            explain=explain,
        )

    async def _write(
        self,
        method: str,
        path: str,
        *,
        about: Mapping[str, Any],
        patience: float | None = None,
        timeout: float | None = None,
        explain: Explain = explain,
        **content: Any,
    ) -> httpx.Response:
        """An idempotent write: repeated like a read."""
        return await self.session.request(
            method,
            path,
            safe=True,
            about=about,
            patience=patience,
            timeout=timeout,
            explain=explain,
            **content,
        )

    async def _make_job(
        self, method: str, path: str, *, about: Mapping[str, Any], patience: float | None = None, **content: Any
    ) -> httpx.Response:
        """A request that makes a job of the server's own: repeated after a definite no only, else AmbiguousOutcome."""
        return await self.session.request(
            method, path, safe=False, about=about, patience=patience, timeout=60.0, explain=explain_once, **content
        )


def _query(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def part(name: str) -> str:
    """A system's name as a path component on the wire."""
    if not name or name in (".", ".."):
        raise InvalidRequest(f"not a system name: {name!r}")
    return quote(name, safe="")


def job_part(job_id: str) -> str:
    """A job id as a path component: the server takes `^[a-zA-Z0-9]+$`, so a task is asked for by its array's id."""
    bare = job_id.partition("_")[0]
    if not (bare.isascii() and bare.isalnum()):
        raise InvalidRequest(f"not a job id: {job_id!r}", job_id=job_id)
    return bare


def try_json(response: httpx.Response) -> Mapping[str, Any]:
    """The answer's JSON object, or an empty one."""
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def json_object(response: httpx.Response) -> Mapping[str, Any]:
    """The answer's JSON object.

    Raises:
        ServerError: something between us and FirecREST answered in its place.
    """
    body = try_json(response)
    if not body:
        hint = "Check the site's URL; a proxy or a login page may be answering"
        raise ServerError("the answer is not FirecREST's", status=response.status_code, hint=hint)
    return body


def items(response: httpx.Response, key: str) -> list[Mapping[str, Any]]:
    """The objects in the answer's list `key`."""
    return [item for item in json_object(response).get(key) or () if isinstance(item, Mapping)]


def output(response: httpx.Response) -> Any:
    """What `ops` endpoints wrap as `output`."""
    return json_object(response).get("output")
