"""Anything that can be read, brought into a staging directory by whichever route, and the job that takes it there.

Whatever the route, what a job finds is the same: pieces named `<session>.<index>`; through the object store or the
streamer there is one of them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from hpcbridge.errors import HpcBridgeError, IntegrityError
from hpcbridge.staging import keyed_jobs
from hpcbridge.staging.context import Transfer, given_up
from hpcbridge.staging.joining import Answer, Verdict, piece_name
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.pieces import PieceSender, Stage
from hpcbridge.staging.plan import Route, Verify, piece_count

if TYPE_CHECKING:
    from hpcbridge.staging.source import SourceFile

ATTEMPTS = 3
"""Jobs at most: the second and third after pieces were sent again."""

RunJob = Callable[["Delivery"], Awaitable[Answer | None]]
"""Runs the next job over what was delivered; None when it died without an answer."""
Refuse = Callable[[Answer], None]
"""Raises when another job would fail in the same way."""


class Delivery:
    """A source in a staging directory.

    Attributes:
        stage: where it is.
        count: number of pieces there.
        sha256: hex digest of the whole that the job is to compare, None where only the size counts.
    """

    def __init__(self, t: Transfer, source: SourceFile, stage: Stage, route: Route) -> None:
        """Nothing is sent yet; see `deliver`."""
        self.stage = stage
        self.sha256: str | None = None
        self._t = t
        self._source = source
        self._route = route
        self._sender = PieceSender(t, source, stage)

    @property
    def count(self) -> int:
        """Number of pieces."""
        return piece_count(self._source.size, self.stage.piece)

    async def send(self) -> None:
        """Send what is not there yet."""
        checked = self._t.verify not in (None, Verify.SIZE)
        if self._route in (Route.DIRECT, Route.CHUNKED):
            digest: str | None = await self._sender.send()
        else:
            digest = await self._send_whole(hashing=checked)
        self.sha256 = digest if checked else None

    async def repair(self, answer: Answer | None) -> None:
        """Send again what the job did not find, or found damaged."""
        if self._route in (Route.DIRECT, Route.CHUNKED):
            await self._sender.repair(answer)
        else:
            self.stage.present.clear()
            await self._send_whole(hashing=False)

    async def _send_whole(self, *, hashing: bool) -> str | None:
        """As one piece. The server's job is told its path, so an upload that is gone on with keeps its session."""
        if self._route is Route.STREAMER and not self.stage.present:
            sent = await self._by_streamer()
            self.stage.present.add(0)
            return sent
        digest = asyncio.ensure_future(self._source.sha256()) if hashing else None
        try:
            if self._route is Route.S3:
                await self._by_s3()
                self.stage.present.add(0)
            return await digest if digest else None
        finally:
            await given_up(digest)

    async def _by_s3(self) -> None:
        from hpcbridge.staging import s3_upload

        earlier = s3_upload.earlier_target(self._t, self._source, self.stage.directory)
        if earlier is None and self.stage.present:
            return
        self.stage.session = earlier.name.partition(".")[0] if earlier else secrets.token_hex(4)
        await s3_upload.put(self._t, self._source, self._only_piece(), check=False, place=self.stage.directory)

    async def _by_streamer(self) -> str | None:
        """Returns the SHA-256 of what was sent."""
        from hpcbridge.staging import server_jobs, streamer

        self.stage.session = secrets.token_hex(4)
        directory = self.stage.directory
        try:
            return await streamer.put(self._t, self._source, self._only_piece(), check=False, place=directory)
        except BaseException:
            # There is nothing in it that could be gone on with.
            with suppress(HpcBridgeError):
                await self._t.client.rm(self._t.name, directory, patience=server_jobs.ABANDON_PATIENCE)
            raise

    def _only_piece(self) -> RemotePath:
        return RemotePath(self.stage.directory, piece_name(self.stage.session, 0))


def stage_piece(t: Transfer, source: SourceFile, route: Route) -> int:
    """Bytes per piece on a route: what `open_stage` asks for."""
    return t.limits.piece if route in (Route.DIRECT, Route.CHUNKED) else source.size


async def deliver(t: Transfer, source: SourceFile, stage: Stage, route: Route) -> Delivery:
    """Bring `source` into `stage`, whose piece is `stage_piece`; raises what the route raises."""
    delivery = Delivery(t, source, stage, route)
    await delivery.send()
    return delivery


async def take(t: Transfer, delivery: Delivery, run: RunJob, refuse: Refuse, target: RemotePath) -> Answer:
    """Run the job that makes `target` of what was delivered, again after repairs; then the staging directory goes.

    Raises IntegrityError when it arrives damaged again and again; the staging directory is then kept.
    """
    for attempt in range(1, ATTEMPTS + 1):
        delivery.stage.attempts += 1
        answer = await run(delivery)
        if answer is not None and answer.verdict is Verdict.PUBLISHED:
            await keyed_jobs.remove_directory(t, delivery.stage.directory)
            return answer
        if answer is not None and answer.verdict is Verdict.FAILED:
            refuse(answer)
        if attempt < ATTEMPTS:
            await delivery.repair(answer)
    raise t.error(
        f"the pieces of {target} arrived damaged {ATTEMPTS} times",
        kind=IntegrityError,
        path=str(target),
        hint=f"The target was left as it was; the pieces are kept in {delivery.stage.directory}",
    )
