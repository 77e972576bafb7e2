"""One part of an upload through the object store: sent until the store has it whole."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from hpcbridge.errors import IntegrityError
from hpcbridge.staging.context import Transfer
from hpcbridge.staging.object_store import ObjectStore

if TYPE_CHECKING:
    from hpcbridge.credentials.secret import Secret
    from hpcbridge.staging.source import SourceFile

ATTEMPTS = 4
"""Times a part is sent that arrives damaged."""


class PartSender:
    """Sends parts of one source; at most two blocks of each are in memory, and it is read again for each attempt.

    A part is whole when its ETag is its MD5. Stores that encrypt have other ETags, so where one differs the part is
    sent again with a Content-MD5, which the store itself compares; later parts have it at once.
    """

    def __init__(self, t: Transfer, source: SourceFile, store: ObjectStore) -> None:
        """Nothing is read yet."""
        self._t = t
        self._source = source
        self._store = store
        self._tags_are_sums: bool | None = None

    async def send(self, url: Secret, offset: int, length: int) -> str:
        """Send a span to its presigned URL; returns its ETag. Raises IntegrityError, and what the store raises."""
        part = _Part(self._t, self._source, offset, length)
        for attempt in range(ATTEMPTS):
            compared = attempt > 0 or self._tags_are_sums is False
            try:
                etag = await self._store.put_part(url, length, part.content, md5=await part.md5() if compared else None)
            except IntegrityError:
                continue
            if etag.strip('"') == part.sent.hexdigest():
                self._tags_are_sums = True
                return etag
            if compared and not self._tags_are_sums:
                self._tags_are_sums = False
                return etag
        raise self._t.error(f"a part of {length} bytes arrived damaged {ATTEMPTS} times", kind=IntegrityError)


class _Part:
    def __init__(self, t: Transfer, source: SourceFile, offset: int, length: int) -> None:
        self._t = t
        self._source = source
        self._span = offset, length
        self._counted = 0
        self._md5: bytes | None = None
        self.sent = hashlib.md5(usedforsecurity=False)

    async def content(self) -> AsyncIterator[bytes]:
        """The bytes; called anew for each attempt: what an attempt before has counted is taken back."""
        self._t.reporter.add(-self._counted)
        self._counted = 0
        self.sent = hashlib.md5(usedforsecurity=False)
        async for block in self._source.blocks(*self._span, self.sent):
            yield block
            self._counted += len(block)
            self._t.reporter.add(len(block))

    async def md5(self) -> bytes:
        """MD5 of the span, before it is sent."""
        if self._md5 is None:
            digest = hashlib.md5(usedforsecurity=False)
            async for _ in self._source.blocks(*self._span, digest):
                pass
            self._md5 = digest.digest()
        return self._md5
