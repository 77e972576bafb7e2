"""`prepare`: one allocation for the whole CI job, with the agent in it. Returns when the agent answers."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import time
from collections.abc import Awaitable
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from hpcbridge.errors import HpcBridgeError, JobNotFound
from hpcbridge.jobs.names import job_name
from hpcbridge_gitlab import agent, verdicts, wishes
from hpcbridge_gitlab.box import Box
from hpcbridge_gitlab.hosting import check_hooks
from hpcbridge_gitlab.output import say
from hpcbridge_gitlab.patience import PASSING
from hpcbridge_gitlab.records import Records, current
from hpcbridge_gitlab.site import opened
from hpcbridge_gitlab.verdicts import NEVER, Cause, Stop

if TYPE_CHECKING:
    from hpcbridge import JobSpec, System
    from hpcbridge.jobs.state import JobInfo
    from hpcbridge_gitlab.contract import CiJob
    from hpcbridge_gitlab.records import Attempt
    from hpcbridge_gitlab.settings import Rule, Settings

_T = TypeVar("_T")


async def prepare(settings: Settings, job: CiJob) -> int:
    """Obtain the allocation. Raises Stop."""
    records = Records(settings.state)
    attempt = current(records, job)
    if (verdict := records.verdict(job)) is not None:
        raise Stop(verdict.cause, f"as before: {verdict.message}", code=verdict.code, hint=verdict.hint)
    _refuse(settings, job)
    # Signed or said when the attempt began; the rules are those of now.
    number, rule = settings.rule_for(dataclasses.replace(job, **attempt.facts))
    wanted = wishes.of(job, rule)
    async with opened(settings, attempt.site, attempt.system) as system:
        preparing = _Preparing(settings, job, records, attempt, system)
        await preparing.submit(rule, wanted, number)
        await preparing.wait(rule)
    return 0


def _refuse(settings: Settings, job: CiJob) -> None:
    if job.services:
        raise Stop(Cause.SERVICES, f"`services:` ({', '.join(job.services)}) cannot be run on an HPC node")
    check_hooks(settings, job)
    if job.image:
        say(f"image {job.image} is not used: the script runs on the node itself")


class _Preparing:
    """One prepare call."""

    def __init__(self, settings: Settings, job: CiJob, records: Records, attempt: Attempt, system: System) -> None:
        self.settings, self.job, self.records = settings, job, records
        self.attempt, self.system = attempt, system
        self.box = Box(system.client, attempt, settings.driver)

    async def submit(self, rule: Rule, wanted: wishes.Wishes, number: int) -> None:
        """Make the directories and submit the agent, once."""
        attempt, client = self.attempt, self.system.client
        info = await self.box.outlast(lambda: client.system(attempt.system))
        attempt.upload_limit = info.max_ops_file_size
        attempt.limit, source = wishes.time_limit(wanted, rule, self.job.timeout)
        spec = self._spec(rule, wanted, info.scheduler.mode)
        attempt.account = spec.account or self.system.hpc.site.account_for(attempt.system) or ""
        attempt.wide, attempt.queued, attempt.key = wanted.wide, time.time(), attempt.home
        # Known before the job is: whoever cleans up after a crash finds it by its name.
        attempt.name = job_name(
            spec.name,
            site=self.system.hpc.site.url,
            system=attempt.system,
            user=attempt.user,
            workdir=attempt.home,
            key=attempt.key,
        )
        attempt.save()
        # Closed before anything is in it; the agent makes the rest.
        await self.box.outlast(lambda: client.mkdir(attempt.system, attempt.box, parents=True))
        await self.box.outlast(lambda: client.chmod(attempt.system, attempt.home, "700"))
        await self.box.outlast(self.box.touch)
        # The same key finds the same job, however often it is said.
        job = await self.box.outlast(lambda: self.system.submit(spec, attempt.key))
        attempt.job_id = job.id
        attempt.save()
        charged = f", account {attempt.account}" if attempt.account else ""
        say(f"job {job.id} on {attempt.system}{charged}, {attempt.limit} min ({source}), rule {number}")

    def _spec(self, rule: Rule, wanted: wishes.Wishes, mode: str) -> JobSpec:
        from hpcbridge import JobSpec

        options = dict(wanted.options)
        fields = {"account", "partition", "reservation", "constraint"} & options.keys()
        named = {name: options.pop(name) for name in fields}
        rest = wishes.Wishes(options=options)
        directives = (*rest.directives, *rule.options)
        if mode != "rest":
            grace = int(min(self.settings.driver.grace, self.attempt.limit * 40))
            directives = (f"--signal=B:USR1@{grace}", "--no-requeue", *directives)
        return JobSpec(
            script=agent.script(self.attempt.home, self.settings.driver),
            workdir=self.attempt.home,
            name="ci-" + re.sub(r"[^A-Za-z0-9_.-]", "-", self.job.project_path.rpartition("/")[2])[:37],
            time=None if mode == "rest" else self.attempt.limit,
            output=f"{self.attempt.home}/agent.out",
            directives=directives,
            **named,
        )

    async def wait(self, rule: Rule) -> None:
        """Until the agent answers. One line for each change of what the queue says."""
        deadline = time.time() + rule.max_queue if rule.max_queue else None
        pause, shown, hopeless = 0.5, "", 0
        try:
            while True:
                state = await self._ask(self.box.state(patience=0))
                if state is not None:
                    if state.status == "ended":
                        raise Stop(Cause.LOST, f"the agent has left at once ({state.reason})")
                    break
                info = await self._ask(self._info())
                if info is not None:
                    if info.is_terminal:
                        raise await self._ended(info)
                    line = _line(info)
                    hopeless = hopeless + 1 if info.state.is_queued and info.reason in NEVER else 0
                    if line != shown:
                        say(line)
                        shown, pause = line, 0.5
                    if hopeless >= 3:
                        raise Stop(Cause.QOS, f"job {self.attempt.job_id} would stay in the queue: {info.reason}")
                if deadline is not None and time.time() > deadline:
                    raise Stop(Cause.QUEUE_TIMEOUT, f"not started within {rule.max_queue:g} s ({shown or 'no news'})")
                await self.box.renew()
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, self.settings.driver.queue_tick)
        except Stop as stop:
            await self._give_up(stop)
            raise
        self.attempt.started, self.attempt.node = time.time(), state.node
        self.attempt.save()
        waited = self.attempt.started - self.attempt.queued
        say(f"job {self.attempt.job_id} runs on {state.node} after {waited:.0f} s")

    async def _ask(self, question: Awaitable[_T]) -> _T | None:
        """An outage is no answer."""
        try:
            return await question
        except PASSING:
            return None

    async def _info(self) -> JobInfo | None:
        try:
            return await self.box.allocation()
        except JobNotFound:
            return None

    async def _ended(self, info: JobInfo) -> Stop:
        from hpcbridge.jobs.logs import post_mortem

        try:
            failure = await post_mortem(self.system.client, self.attempt.system, info)
        except HpcBridgeError:
            failure = None
        stop = verdicts.of_allocation(info)
        if failure is not None and failure.tail:
            stop.message += f"\n{failure.tail.rstrip()}"
        return stop

    async def _give_up(self, stop: Stop) -> None:
        """Nothing stays in the queue, and the next attempt need not wait again."""
        if stop.cause in (Cause.QUEUE_TIMEOUT, Cause.QOS):
            self.records.remember(self.job, stop)
        try:
            await self.system.client.cancel(self.attempt.system, self.attempt.job_id, patience=5)
        except HpcBridgeError:
            return  # it has ended, or cleanup will do it


def _line(info: JobInfo) -> str:
    if not info.state.is_queued:
        return f"job {info.job_id} is {info.state}, waiting for its agent"
    reason = f" ({info.reason})" if info.reason and info.reason != "None" else ""
    return f"job {info.job_id} is {info.state}{reason}{_expected(info.started)}"


def _expected(start: datetime | None) -> str:
    if start is None or start.timestamp() < time.time() + 30:
        return ""
    return f", expected to start at {start.astimezone():%Y-%m-%d %H:%M}"
