"""Faults of the object store, as a filter in front of Swift's S3 interface.

The rules (`hpcbridge_sandbox.s3.rules`) are one JSON file which the sandbox's control call replaces; it is read again
when it changed. Beside it, the filter keeps a list of the requests for parts and objects (`hpcbridge_sandbox.s3.seen`).
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

from swift.common.concurrency import sleep

from hpcbridge_sandbox.s3.seen import CountedBody, note

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

FOREVER = 3600.0
"""Seconds for which a request hangs; its client gives up long before."""


class _Flipped:
    """A request body whose first byte is changed."""

    def __init__(self, body: Any) -> None:
        self._body = body
        self._pending = True

    def _change(self, data: bytes) -> bytes:
        if data and self._pending:
            self._pending = False
            return bytes([data[0] ^ 0xFF]) + data[1:]
        return data

    def read(self, *size: int) -> bytes:
        return self._change(self._body.read(*size))

    def readline(self, *size: int) -> bytes:
        return self._change(self._body.readline(*size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


class Faults:
    """The filter; see the module's docstring."""

    def __init__(self, app: App, path: str) -> None:
        """Filter in front of *app* with the rules of the file at *path*."""
        self._app = app
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._rules: dict[str, float] = {}
        self._etags: dict[str, str] = {}
        """The ETags that a client was told, and the store's own."""

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        self._reload()
        method, query = environ["REQUEST_METHOD"], parse_qs(environ.get("QUERY_STRING", ""))
        if method == "PUT" and "partNumber" in query:
            body = environ["wsgi.input"] = CountedBody(environ["wsgi.input"])
            try:
                return self._part(environ, start_response)
            finally:
                note(self._path, environ, part=int(query["partNumber"][0]), received=body.count)
        if method == "POST" and "uploadId" in query:
            note(self._path, environ)
            return self._completion(environ, start_response)
        if method == "GET" and environ["PATH_INFO"].count("/") > 1:
            return self._noted(environ, self._get(environ, start_response))
        return self._app(environ, start_response)

    def _reload(self) -> None:
        try:
            status = os.stat(self._path)  # noqa: PTH116  a path object per request is not worth its price
        except FileNotFoundError:
            self._rules, self._stamp = {}, None
            return
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp != self._stamp:
            with open(self._path) as file:  # noqa: PTH123
                self._rules, self._stamp = json.load(file), stamp

    def _hit(self, name: str) -> bool:
        """Draw for the rule *name*, counting the faults that remain."""
        if self._rules.get("count") == 0 or random.random() >= self._rules.get(name, 0):  # noqa: S311
            return False
        if "count" in self._rules:
            self._rules["count"] -= 1
        return True

    def _part(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        sleep(self._rules.get("part_delay", 0))
        if self._hit("part_failure"):
            return _refuse(start_response, 503)
        if self._hit("part_drop"):
            environ["wsgi.input"].read(65536)
            return _hang_up(environ, start_response)
        if self._hit("part_hang"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0) // 2)
            sleep(FOREVER)
            return _hang_up(environ, start_response)
        if self._hit("part_corruption"):
            environ["wsgi.input"] = _Flipped(environ["wsgi.input"])
        kind = int(self._rules.get("opaque_etags", 0))
        return self._app(environ, self._disguised(start_response, kind) if kind else start_response)

    def _disguised(self, start_response: StartResponse, kind: int) -> StartResponse:
        def answer(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            told = secrets.token_hex(16) if kind == 2 else f"{secrets.token_hex(10)}-x"
            for name, value in headers:
                if name.lower() == "etag":
                    self._etags[told] = value.strip('"')
                    headers = [(n, v) for n, v in headers if n.lower() != "etag"] + [("ETag", f'"{told}"')]
            return start_response(status, headers, *rest)

        return answer

    def _completion(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        status = int(self._rules.get("completion_status", 0))
        if status and self._rules.get("count") != 0:
            if "count" in self._rules:
                self._rules["count"] -= 1
            return _refuse(start_response, status)
        if self._hit("completion_error"):
            return _refuse(start_response, 200)
        if self._etags:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            for told, real in self._etags.items():
                body = body.replace(told.encode(), real.encode())
            environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(body), str(len(body))
        for fault in ("completion_lost", "completion_drop"):
            if self._hit(fault):
                for _ in self._app(environ, lambda *_args: None):
                    pass
                return _refuse(start_response, 500) if fault.endswith("lost") else _hang_up(environ, start_response)
        return self._app(environ, start_response)

    def _get(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        sleep(self._rules.get("get_delay", 0))
        if self._hit("get_failure"):
            return _refuse(start_response, 503)
        if "HTTP_RANGE" in environ and self._hit("get_range"):
            environ["HTTP_RANGE"] = re.sub(r"\d+", lambda bound: str(int(bound[0]) + 1), environ["HTTP_RANGE"])
        corrupt, truncate, hang = (self._hit(f"get_{what}") for what in ("corruption", "truncation", "hang"))
        if not (corrupt or truncate or hang):
            return self._app(environ, start_response)
        length = 0

        def note_length(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            nonlocal length
            length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
            return start_response(status, headers, *rest)

        body = self._app(environ, note_length)
        return _spoil(body, lambda: length // 2 if truncate or hang else None, corrupt=corrupt, hang=hang)

    def _noted(self, environ: Environ, body: Iterable[bytes]) -> Iterator[bytes]:
        sent = 0
        try:
            for chunk in body:
                sent += len(chunk)
                yield chunk
        finally:
            note(self._path, environ, sent=sent)
            if hasattr(body, "close"):
                body.close()


def _spoil(body: Iterable[bytes], limit: Callable[[], int | None], *, corrupt: bool, hang: bool) -> Iterator[bytes]:
    sent = 0
    for chunk in body:
        part = chunk
        if corrupt and part:
            part, corrupt = bytes([part[0] ^ 0xFF]) + part[1:], False
        end = limit()
        if end is not None and sent + len(part) > end:
            yield part[: end - sent]
            if hang:
                sleep(FOREVER)
            raise ConnectionResetError("S3 fault: answer truncated")
        sent += len(part)
        yield part


_CODES = {200: "InternalError", 500: "InternalError", 503: "SlowDown"}


def _refuse(start_response: StartResponse, status: int) -> list[bytes]:
    code = _CODES.get(status, "InternalError" if status >= 500 else "BadRequest")
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>Injected.</Message></Error>'
    start_response(
        f"{status} {code}",
        [("Content-Type", "application/xml"), ("Content-Length", str(len(body))), ("Connection", "close")],
    )
    return [body.encode()]


def _hang_up(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """End the connection: the answer that WSGI wants reaches nobody."""
    environ["eventlet.input"].get_socket().shutdown(socket.SHUT_RDWR)
    return _refuse(start_response, 503)


def filter_factory(global_conf: dict[str, str], **local_conf: str) -> Callable[[App], Faults]:
    """PasteDeploy's entry: ``rules`` is the path of the JSON file."""
    path = {**global_conf, **local_conf}["rules"]
    return lambda app: Faults(app, path)
