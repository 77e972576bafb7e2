"""What all endpoint groups share: path components, bodies, and the three ways to send."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final
from urllib.parse import quote

import httpx

from hpcbridge.errors import InvalidRequest, ServerError
from hpcbridge.firecrest.answers import explain, explain_once
from hpcbridge.http.answers import Explain
from hpcbridge.http.session import HttpSession

SLICE: Final = 100
"""Objects of a long list that are read before the event loop gets its turn: some milliseconds."""
_LONG: Final = 100_000
"""Bytes of an answer from which on it is read object by object."""
_BLANK: Final = re.compile(r"\s*")


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


async def each_item(response: httpx.Response, key: str) -> AsyncIterator[Mapping[str, Any]]:
    """The same, one by one, with turns for others: reading a listing of a thousand jobs takes tens of milliseconds.

    Raises ServerError as `json_object` does.
    """
    found = await _in_slices(response.content, key) if len(response.content) > _LONG else None
    for number, item in enumerate(items(response, key) if found is None else found, 1):
        yield item
        if number % SLICE == 0:
            await asyncio.sleep(0)


async def _in_slices(content: bytes, key: str) -> list[Mapping[str, Any]] | None:
    """The objects of `{"key": [...]}`; None for anything that is not exactly that."""
    found: list[Mapping[str, Any]] = []
    try:
        text = content.decode()
        start = re.compile(rf'\s*{{\s*"{re.escape(key)}"\s*:\s*\[\s*').match(text)
        if start is None:
            return None
        decode, at, more = json.JSONDecoder().raw_decode, start.end(), ","
        while more == ",":
            item, at = decode(text, at)
            if isinstance(item, Mapping):
                found.append(item)
            at = _after_blank(text, at)
            more, at = text[at], _after_blank(text, at + 1)
            if len(found) % SLICE == 0:
                await asyncio.sleep(0)
    except (ValueError, IndexError):
        return None
    return found if more == "]" and text[at:].strip() == "}" else None


def _after_blank(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def output(response: httpx.Response) -> Any:
    """What `ops` endpoints wrap as `output`."""
    return json_object(response).get("output")
