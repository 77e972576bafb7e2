"""One keyed job for many paths: run in a private directory of the user's, which goes when the answer is read."""

from __future__ import annotations

import asyncio
import posixpath
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from hpcbridge.staging.context import PATIENCE, Transfer, TransferSystem
from hpcbridge.staging.progress import Progress, Reporter
from hpcbridge.staging.remote.scripts import Answer, Records, parse_answer

HOUR = "60"
"""Minutes that a job may take where the site sets transfer jobs no limit of its own: sizes are not known before."""


class Script(Protocol):
    """What a job does; `scripts.Changes` and `scripts.Records` are some."""

    def script(self, stage: str, session: str) -> str:
        """The batch script for a private directory `stage`."""


async def context(
    system: TransferSystem, *, account: str | None = None, progress: Callable[[Progress], None] | None = None
) -> Transfer:
    """What the functions of this package need to know of `system`; `account` is the site's default unless given."""
    info = await system.client.system(system.name)
    account = account or system.client.session.site.account_for(system.name)
    return Transfer(system, info, Path(), Reporter(progress), None, account)


async def change(t: Transfer, work: Script, verb: str) -> Answer:
    """Run a job that changes something and return what it says. Raises what `keyed_jobs.run` raises."""
    from hpcbridge.staging import keyed_jobs  # loaded when first used: jobs and their models take a sixth of a second

    answer, stage = await _run(t, work, verb)
    await keyed_jobs.remove_directory(t, stage)
    return answer


async def records(t: Transfer, work: Records, verb: str) -> tuple[list[bytes], str]:
    """Run a job that writes records down; returns them, and what find complained about."""
    from hpcbridge.staging import keyed_jobs

    answer, stage = await _run(t, work, verb)
    data = await _fetch(t, posixpath.join(stage, "records"), answer.records or 0)
    await keyed_jobs.remove_directory(t, stage)
    return data.split(b"\0")[:-1], answer.said


async def _run(t: Transfer, work: Script, verb: str) -> tuple[Answer, str]:
    from hpcbridge.staging import keyed_jobs

    stage, session = await keyed_jobs.private_directory(t), secrets.token_hex(4)
    job = keyed_jobs.spec(
        t, script=work.script(stage, session), directory=stage, label=f"hpcbridge-{verb}", session=session
    )
    if job.time is not None:
        job = job.replace(time=HOUR)
    text = await keyed_jobs.run(t, job, f"{verb} {session}", posixpath.join(stage, "answer"))
    if text is None:
        raise t.error(f"the job that runs {verb} ended without an answer", path=f"{stage}/{session}.log")
    return parse_answer(text), stage


async def _fetch(t: Transfer, path: str, size: int) -> bytes:
    if size <= t.limits.download:
        return await t.client.download(t.name, path, patience=PATIENCE)
    from hpcbridge.staging.files import get_file

    with tempfile.TemporaryDirectory(prefix="hpcbridge-") as folder:
        target = Path(folder, "records")
        await get_file(t.system, path, target, account=t.account)
        return await asyncio.to_thread(target.read_bytes)
