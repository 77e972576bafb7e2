"""Down in pieces: one job cuts the file into a hidden directory of the user's, direct downloads fetch the pieces.

For systems without an object store, and for files whose name no call of the server can carry. A journal keeps the
directory's name, so that another process fetches the rest of the pieces where one died, without a second job.
"""

from __future__ import annotations

import asyncio
import posixpath
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcbridge.errors import IntegrityError, JobFailed, PathNotFound, TransferError
from hpcbridge.staging import keyed_jobs
from hpcbridge.staging.context import PATIENCE, Transfer, in_thread
from hpcbridge.staging.fetching import Receiver, Write
from hpcbridge.staging.journal import Journal
from hpcbridge.staging.names import RemotePath
from hpcbridge.staging.partfile import PartFile, Source
from hpcbridge.staging.plan import Verify
from hpcbridge.staging.preparing import Prepare, Prepared, parse_prepared
from hpcbridge.staging.progress import Phase

WORKERS = 4
"""Downloads in flight; each holds a piece in memory."""
ATTEMPTS = 2
"""Times the same pieces are fetched when their SHA-256 is not that of the file."""


async def get(t: Transfer, remote: RemotePath, target: Path, *, resume: bool) -> str | None:
    """Receive `remote` as `target`; returns the SHA-256 both sides agree on, None when only the size was compared.

    Raises TransferError when the job failed, PathNotFound when there is no such file, IntegrityError, Conflict when
    another process receives the same.
    """
    t.reporter.phase(Phase.CHECKING, "preparing the file")
    with Journal.of(t, "cut-get", str(remote), str(target)) as journal:
        cut = _Cut(t, remote, journal)
        taken_up = resume and await cut.taken_up()
        for again in (True, False):
            if not taken_up:
                await cut.begin()
            try:
                return await _get(t, cut, target, resume=resume)
            except (IntegrityError, PathNotFound):
                # The pieces are damaged, or somebody has removed them.
                await cut.discard()
                if not (again and cut.was_prepared):
                    raise
                taken_up = False
    raise AssertionError("unreachable")


async def _get(t: Transfer, cut: _Cut, target: Path, *, resume: bool) -> str | None:
    prepared = await cut.prepared()
    t.size = t.reporter.total = prepared.size
    source = Source(t.site, t.name, str(cut.remote), prepared.size, prepared.mtime)
    part = await asyncio.to_thread(PartFile.open, target, source, t.limits.download, resume=resume)
    try:
        await receive_pieces(t, part, cut.path_of, prepared.sha256, what=str(cut.remote))
        await cut.discard()
        part.publish()
    finally:
        part.close()
    return prepared.sha256


async def receive_pieces(
    t: Transfer, part: PartFile, path_of: Callable[[int], str], sha256: str | None, *, what: str
) -> None:
    """Fill `part` from the remote files `path_of(index)`, each of `part.step` bytes, the last one shorter.

    Raises IntegrityError when the whole does not have this `sha256` (None: not compared), PathNotFound when a piece is
    missing.
    """
    for _ in range(ATTEMPTS):
        t.reporter.phase(Phase.DOWNLOADING, "going on where it stopped" if part.done else "", done=part.received())
        receiver = Receiver(t, part, hashing=sha256 is not None)

        async def fetch(index: int, offset: int, length: int, write: Write) -> None:
            path = path_of(index)
            data = await t.client.download(t.name, path, patience=PATIENCE)
            if len(data) != length:
                raise t.error(f"a piece has {len(data)} bytes instead of {length}", kind=IntegrityError, path=path)
            await in_thread(write, offset, data)

        ours = await receiver.fill(fetch, WORKERS)
        t.reporter.phase(Phase.VERIFYING)
        if sha256 in (None, ours):
            return
        part.forget()
    raise t.error(f"{what} arrived damaged {ATTEMPTS} times", kind=IntegrityError, path=what)


class _Cut:
    """The pieces of one file, and what the journal knows of them.

    The first line has their directory, the line `prepared` what the job answered: bytes, modification time, SHA-256.
    """

    def __init__(self, t: Transfer, remote: RemotePath, journal: Journal) -> None:
        self.remote = remote
        self.was_prepared = False
        self._t = t
        self._journal = journal
        self._hashing = t.verify in (Verify.AUTO, Verify.SHA256)
        self._wanted = {"piece": t.limits.download, "hashing": self._hashing, "account": t.account}

    def path_of(self, index: int) -> str:
        """Where piece `index` is."""
        return posixpath.join(self._plan.stage, self._plan.piece_name(index))

    async def taken_up(self) -> bool:
        """Whether the pieces of an earlier attempt are still those of the file."""
        about: dict[str, Any] = {name: self._journal.about.get(name) for name in self._wanted}
        # A name that no call can carry cannot be looked at without a job: then that job may cut it as well.
        if not self._journal.about or about != self._wanted or not self.remote.commands_carry_it:
            return False
        try:
            await keyed_jobs.make_directory(self._t, self._plan.stage)
            prepared = await self.prepared()
        except (TransferError, JobFailed, PathNotFound):
            return False
        found = await self._t.client.stat(self._t.name, str(self.remote), dereference=True, patience=PATIENCE)
        return (found.size, int(found.mtime)) == (prepared.size, prepared.mtime)

    async def begin(self) -> None:
        """Make a directory for the pieces, after noting its name."""
        await self.discard()
        stage = await keyed_jobs.private_path(self._t)
        self._journal.start(**self._wanted, stage=stage, session=secrets.token_hex(4))
        await keyed_jobs.make_directory(self._t, stage)

    async def discard(self) -> None:
        """Remove the pieces."""
        if self._journal.about:
            await keyed_jobs.remove_directory(self._t, self._plan.stage)
            self._journal.remove()

    async def prepared(self) -> Prepared:
        """What the job answered; runs it, once."""
        noted = self._journal.noted("prepared")
        if not noted:
            prepared = await self._prepare()
            self._journal.add(prepared=[prepared.size, prepared.mtime, prepared.sha256])
            noted = self._journal.noted("prepared")
        self.was_prepared = True
        return Prepared(*noted[0]["prepared"])

    async def _prepare(self) -> Prepared:
        t, plan = self._t, self._plan
        job = keyed_jobs.spec(
            t, script=plan.script(), directory=plan.stage, label="hpcbridge-get", session=plan.session
        )
        text = await keyed_jobs.run(t, job, f"get {plan.session}", posixpath.join(plan.stage, plan.answer_name))
        if text is None:
            raise t.error("the job that cuts the file ended without an answer", path=str(self.remote))
        prepared = parse_prepared(text)
        if prepared.reason:
            await self.discard()
            kind = PathNotFound if "No such file" in prepared.reason else TransferError
            raise t.error(f"the job that cuts the file failed: {prepared.reason}", kind=kind, path=str(self.remote))
        return prepared

    @property
    def _plan(self) -> Prepare:
        about = self._journal.about
        return Prepare(about["stage"], about["session"], self.remote, about["piece"], about["hashing"])
