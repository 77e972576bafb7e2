"""The object store behind presigned URLs: parts up, ranges down. Knows S3's words and nothing of FirecREST's.

A presigned URL carries its own authority, so no token is sent, and no URL ever goes into an error, nor into the local
variables that a traceback may show.
"""

from __future__ import annotations

import re
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar
from xml.sax.saxutils import escape

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from hpcbridge.credentials.secret import Secret
from hpcbridge.errors import HpcBridgeError, IntegrityError, NotFound, TransferError, Unavailable

T = TypeVar("T")

PATIENCE = 300.0
"""Seconds without a byte after which a part or range is given up."""
_TIMEOUT = httpx.Timeout(60.0, connect=10.0, pool=None)
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_TRANSIENT_CODES = frozenset({"InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout"})


class ObjectMissing(NotFound):
    """The store has no such object (yet)."""


class ObjectStore:
    """Presigned URLs over a plain HTTP client (`HttpSession.storage`: the site's TLS and proxy, no token)."""

    def __init__(self, http: httpx.AsyncClient, *, patience: float = PATIENCE) -> None:
        """The client stays the caller's; `patience` is in seconds."""
        self._http = http
        self._patience = patience

    async def put_part(
        self, url: Secret, length: int, content: Callable[[], AsyncIterator[bytes]], *, md5: bytes | None = None
    ) -> str:
        """Send one part of `length` bytes and return its ETag, quotes included; `content` is called for each attempt.

        `md5` is for the store to compare. Raises IntegrityError when it finds another one, TransferError, Unavailable
        when the store stays away.
        """
        headers = {"Content-Length": str(length)}
        if md5 is not None:
            headers["Content-MD5"] = b64encode(md5).decode()

        async def attempt() -> str:
            response = await self._http.put(url.reveal(), content=content(), headers=headers, timeout=_TIMEOUT)
            _check(response, "a part was not taken")
            return str(response.headers.get("etag", ""))

        return await persist(attempt, Patience(self._patience))

    async def complete(self, url: Secret, etags: list[str], *, again: bool = False) -> None:
        """Make the object of its parts, in order; again after a lost answer (also another process's) does no harm.

        The store may say 200 and put the error into the body. Raises like `put_part`.
        """
        body = completion_body(etags)
        attempts = int(again)

        async def attempt() -> None:
            nonlocal attempts
            attempts += 1
            headers = {"Content-Type": "application/xml"}
            response = await self._http.post(url.reveal(), content=body, headers=headers, timeout=_TIMEOUT)
            # An earlier attempt whose answer was lost has used the upload up.
            if attempts > 1 and response.status_code == 404:
                return
            _check(response, "the upload was not completed")
            if (code := error_code(response.text)) is not None:
                kind = Unavailable if code in _TRANSIENT_CODES else TransferError
                raise kind(f"the object store did not complete the upload: {code}")

        await persist(attempt, Patience(self._patience))

    async def size(self, url: Secret) -> int:
        """Bytes in the object; one attempt. Raises ObjectMissing, Unavailable, TransferError.

        A presigned URL is signed for GET only, so this asks for the first byte.
        """
        try:
            async with self._http.stream(
                "GET", url.reveal(), headers={"Range": "bytes=0-0"}, timeout=_TIMEOUT
            ) as response:
                if response.status_code >= 400:
                    await response.aread()
                _check(response, "the object cannot be read")
                first, size = content_range(response.headers)
                if first != 0:
                    raise Unavailable("the object store sent another range than it was asked for")
                return size
        except httpx.TransportError as error:
            raise _lost(error) from None


class Patience:
    """Tenacity's `stop`: so many seconds after the last sign of life."""

    def __init__(self, seconds: float) -> None:
        """`seconds` from now on, unless renewed."""
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """There was a sign of life."""
        self._last = time.monotonic()

    def __call__(self, state: RetryCallState) -> bool:
        """Whether the next attempt would begin too late."""
        return time.monotonic() + state.upcoming_sleep > self._last + self._seconds


async def persist(attempt: Callable[[], Awaitable[T]], patience: Patience) -> T:
    """Repeat what the store was unavailable for, until it works or the patience has run out."""

    async def translated() -> T:
        try:
            return await attempt()
        except httpx.TransportError as error:
            # Not chained: the frames of httpx hold the URL.
            raise _lost(error) from None

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(Unavailable),
        wait=wait_random_exponential(multiplier=0.3, max=10),
        stop=patience,
        reraise=True,
    )
    return await retrying(translated)


def completion_body(etags: list[str]) -> bytes:
    """The XML that names the parts of a multipart upload, in order."""
    rows = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
        for number, etag in enumerate(etags, 1)
    )
    return f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode()


def error_code(body: str) -> str | None:
    """The `<Code>` of an S3 error document, None when the body is none."""
    if "<Error" not in body:
        return None
    match = re.search(r"<Code>([^<]{1,80})</Code>", body)
    return match[1] if match else "unknown"


def total_size(headers: Mapping[str, str]) -> int:
    """Bytes in the whole object, from the answer to a ranged read. Raises TransferError."""
    return content_range(headers)[1]


def content_range(headers: Mapping[str, str]) -> tuple[int, int]:
    """Offset of the first byte that was sent, and bytes in the whole object. Raises TransferError."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("content-range", ""))
    if match is None:
        raise TransferError("the object store does not serve ranges")
    return int(match[1]), int(match[2])


def _check(response: httpx.Response, what: str) -> None:
    if response.status_code >= 300:
        check_answer(response.status_code, response.text, response.reason_phrase, what)


def check_answer(status: int, body: str, phrase: str, what: str) -> None:
    """Raise the error for an answer of 300 or more: ObjectMissing, IntegrityError, Unavailable, TransferError."""
    if status < 300:
        return
    code = error_code(body) or phrase
    kind: type[HpcBridgeError] = TransferError
    if status == 404:
        kind = ObjectMissing
    elif code == "BadDigest":
        kind = IntegrityError
    elif status in _TRANSIENT or code in _TRANSIENT_CODES:
        kind = Unavailable
    raise kind(f"object store: {what}: {code}", status=status)


def _lost(error: httpx.TransportError) -> Unavailable:
    return Unavailable(f"object store: {type(error).__name__}: {error}")
