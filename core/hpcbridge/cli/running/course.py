"""A run in order: files there, submit, follow, results back. Whatever interrupts it leaves no job, or says which."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcbridge.cli import output
from hpcbridge.cli.context import State, choose_system, connect
from hpcbridge.cli.exits import ExitCode, for_error, for_job
from hpcbridge.cli.moving import print_result
from hpcbridge.cli.progress import Display
from hpcbridge.cli.running import moving
from hpcbridge.cli.running.following import PASSING, PAUSE, Follower, QueueTimeout, has_run
from hpcbridge.cli.running.handle import Handle, Phase, Record, record_of
from hpcbridge.cli.running.plan import Plan, require_quiet, workdir_of
from hpcbridge.cli.running.reporting import Reporter
from hpcbridge.cli.running.telling import duration, facts_of, outputs_of, summary_of, why
from hpcbridge.errors import AmbiguousOutcome, ConfigurationError, HpcBridgeError, JobNotFound, JobVanished, ServerError

if TYPE_CHECKING:
    from hpcbridge.job import Job
    from hpcbridge.jobs.spec import JobSpec
    from hpcbridge.jobs.state import JobInfo
    from hpcbridge.system import System


LAG = 60.0
"""Seconds for which accounting may not know a new job, the difference between two machines' clocks included."""


class Course:
    """One run, or the rest of one (`attach`, `collect`)."""

    def __init__(self, state: State, reporter: Reporter, *, as_json: bool = False) -> None:
        """`as_json`: standard output is for one JSON value, and the job's output goes to standard error."""
        self.state = state
        self.reporter = reporter
        self.as_json = as_json
        self.job: Job | None = None
        self._handle: Handle | None = None
        self._record: Record | None = None
        self._submitting: asyncio.Future[Job] | None = None
        self._ended = False

    @property
    def handle(self) -> Handle:
        """What is known of the run so far."""
        assert self._handle is not None
        return self._handle

    def close(self) -> None:
        """Let go of the run's record."""
        if self._record is not None:
            self._record.release()

    # --- run ----------------------------------------------------------------------------------------------------------

    async def run(self, plan: Plan) -> int:
        """From the files to the exit code."""
        from hpcbridge.jobs.spec import JobSpec

        spec = JobSpec(**plan.fields)  # what is wrong with it is told before anything is sent
        async with connect(self.state) as hpc:
            system = choose_system(hpc, self.state, plan.where)
            await system.resolve()
            await system.info()  # a server that is down is told now; later on outages are waited out
            self._record = record_of(plan.identity(hpc.site.url, system.name, spec))
            self._note(await self._begin(system, plan), plan)
            try:
                await self._push(system, plan)
                await self._submit(system, spec, plan)
                return self._detached(plan) if plan.detach else await self._rest(cleanup=plan.cleanup)
            except OSError:  # nobody reads our output any more, or there is no room for it
                await self.stop()
                raise
            except Exception as error:
                self._tell_loss(error)
                raise

    async def _begin(self, system: System, plan: Plan) -> Handle:
        """The handle of a new run, or of one that was interrupted, with what is wanted of it now."""
        assert self._record is not None
        wanted: dict[str, Any] = {
            "pull": plan.pulls,
            "into": str(plan.into.absolute()),
            "allow_missing": plan.allow_missing,
            "queue_timeout": plan.queue_timeout,
        }
        if self._record.left is not None:
            self.reporter.note("An earlier run of this command was interrupted: going on with it.")
            return replace(self._record.left, **wanted)
        nonce = secrets.token_hex(4)
        workdir = await workdir_of(system, plan, nonce)
        identity = "/".join(plan.ci.identity)
        return Handle(
            url=system.hpc.site.url,
            system=system.name,
            site=self.state.site,
            key=plan.key if plan.key is not None else f"run {identity} {nonce}",
            name=str(plan.fields["name"]),
            workdir=workdir.path,
            own_workdir=workdir.own,
            account=plan.account,
            **wanted,
        )

    def _note(self, handle: Handle, plan: Plan) -> None:
        """Write down how far the run has come; the user's file is there before a job can be."""
        self._handle = handle
        try:
            if self._record is not None:
                self._record.save(handle)
            if plan.handle is not None and handle.phase is not Phase.PREPARING:
                handle.save(plan.handle)
        except OSError as error:
            if handle.phase is not Phase.SUBMITTED:
                raise
            # The job is there, and what was written before finds it by its key.
            self.reporter.warning(f"{error.filename}: {error.strerror}")

    async def _push(self, system: System, plan: Plan) -> None:
        handle = self.handle
        if handle.phase is not Phase.PREPARING:
            return  # a job may be there already: its files are left alone
        if plan.key is not None and plan.pushes:
            found = await system.find(plan.key, workdir=handle.workdir, name=handle.name)
            if found is not None:
                self.reporter.note(f"Job {found.id} of the same key is there: its files are left alone.")
                return
        if not plan.pushes:
            if handle.own_workdir or plan.workdir is not None:
                await system.mkdir(handle.workdir)
            return
        if not plan.share and not handle.own_workdir:
            await require_quiet(system, handle.workdir)
        target = f"{system.name}:{handle.workdir}"
        with (
            self.reporter.section("files", f"Files to {target}"),
            Display("files", quiet=self.reporter.quiet, state=self.state) as display,
        ):
            await system.mkdir(handle.workdir)
            done = await moving.push(
                system, plan.pushes, handle.workdir, display.show, account=plan.account, **plan.sync_options()
            )
            display.close()
            for each, result in () if self.reporter.quiet else done:
                print_result(result, str(each.source), each.within(target))

    async def _submit(self, system: System, spec: JobSpec, plan: Plan) -> None:
        assert self._record is not None
        if self.handle.phase is Phase.PREPARING:
            self._note(replace(self.handle, phase=Phase.SUBMITTING, submitted_at=time.time()), plan)
        # An interrupt does not end this: only its own end tells whether there is a job to cancel.
        spec = spec.replace(workdir=self.handle.workdir)
        look = plan.key is not None  # others may say it, too
        self._submitting = asyncio.ensure_future(system.submit(spec, key=self.handle.key, look_first=look))
        try:
            self.job = job = await asyncio.shield(self._submitting)
        except HpcBridgeError as error:
            if not isinstance(error, (AmbiguousOutcome, ServerError)):
                self._record.forget()  # there is no job: the same command again starts from its files
            raise
        self.state.job_id = None
        self._note(replace(self.handle, job_id=job.id, phase=Phase.SUBMITTED), plan)
        self.reporter.note(f"{'Found' if job.adopted else 'Submitted'} job {job.id} on {system.name}.")
        self.reporter.outputs(outputs_of(self.handle))

    def _detached(self, plan: Plan) -> int:
        assert self._record is not None
        self._ended = True
        self._record.forget()
        if self.as_json:
            output.print_json(facts_of(self.handle) | {"handle": str(plan.handle)})
        self.reporter.note(f"It goes on without this command. Back to it: hpcbridge attach {plan.handle}")
        return ExitCode.OK

    def _tell_loss(self, error: Exception) -> None:
        """The run ends here and the job perhaps does not."""
        if isinstance(error, JobVanished) and self._record is not None:
            self._record.forget()
        elif self.job is not None and not self._ended:
            self.reporter.say(
                f"Job {self.job.id} goes on. The same command again goes on with it; end it: "
                f"hpcbridge cancel {self.job.id}"
            )

    # --- attach, collect ----------------------------------------------------------------------------------------------

    async def attach(self, handle: Handle) -> int:
        """Follow the job of a handle to its end, like the run itself."""
        async with connect(self.state) as hpc:
            await self._take(hpc.system(handle.system), handle)
            return await self._rest()

    async def collect(self, handle: Handle, *, wait: bool, logs: bool) -> int:
        """The results of a job that has ended, and its code."""
        async with connect(self.state) as hpc:
            job = await self._take(hpc.system(handle.system), handle)
            info = await job.wait() if wait else await self._now(job)
            if info is None or not info.is_terminal:
                seen = output.describe(info) if info is not None else f"job {job.id} is not listed yet"
                self.reporter.say(f"{seen}: it has not ended yet.")
                return ExitCode.TRY_AGAIN
            return await self._rest(None if logs else info)

    async def _now(self, job: Job) -> JobInfo | None:
        """The job as it is; None while accounting need not know it yet."""
        try:
            return await job.info()
        except JobNotFound:
            if time.time() - self.handle.submitted_at < LAG:
                return None
            raise

    async def _take(self, system: System, handle: Handle) -> Job:
        self._handle = handle
        self.job = await job_of(system, handle)
        self.state.interrupt_note = f"Job {self.job.id} goes on. End it: hpcbridge cancel {self.job.id}"
        return self.job

    # --- what they share ----------------------------------------------------------------------------------------------

    async def _rest(self, info: JobInfo | None = None, *, cleanup: bool = False) -> int:
        """From the submitted job, or from its end, to the exit code."""
        assert self.job is not None
        try:
            info = info or await self._follow(self.job)
        except QueueTimeout as late:
            limit = duration(self.handle.queue_timeout or 0)
            message = f"job {self.job.id} had not started after {limit} and was cancelled"
            self.reporter.failure("Queue time-out", message)
            return self._finish(late.info, ExitCode.TRY_AGAIN, None)
        self._ended = True
        code = for_job(info)
        pulled = await self._pull(self.job.system, info)
        if not info.ok:
            self.reporter.failure("The job failed", why(info))
        failure = pulled and pulled.failure(allow_missing=self.handle.allow_missing or not info.ok)
        if failure:
            self.reporter.failure("Results", str(failure))
            code = code or (for_error(failure) if isinstance(failure, PASSING) else ExitCode.TRANSFER)
        if cleanup and self.handle.own_workdir and code == ExitCode.OK:
            await self.job.system.rm(self.handle.workdir, missing_ok=True, account=self.handle.account)
        return self._finish(info, code, pulled)

    async def _follow(self, job: Job) -> JobInfo:
        waited = max(0.0, time.time() - self.handle.submitted_at)
        follower = Follower(job, self.reporter, queue_timeout=self.handle.queue_timeout, waited=waited)
        out = sys.stderr if self.as_json else sys.stdout
        return await follower.to_the_end(out.buffer, sys.stderr.buffer)

    async def _pull(self, system: System, info: JobInfo) -> moving.Pulled | None:
        handle = self.handle
        if not handle.pull or not has_run(info):
            return None
        with (
            self.reporter.section("results", f"Results from {system.name}:{handle.workdir}"),
            Display("results", quiet=self.reporter.quiet, state=self.state) as display,
        ):
            pulled = await moving.pull(
                system, handle.pull, handle.workdir, Path(handle.into), display.show, account=handle.account
            )
            display.close()
            for name, error in pulled.failures.items():
                self.reporter.note(f"Not fetched: {name}: {error.message}")
            self.reporter.note(f"{pulled.amount} -> {handle.into}")
        return pulled

    def _finish(self, info: JobInfo, code: int, pulled: moving.Pulled | None) -> int:
        """Tell the end to everybody; the same command again is a new run."""
        self._ended = True
        if self._record is not None:
            self._record.forget()
        ran = f" after {duration((info.ended - info.started).total_seconds())}" if info.ended and info.started else ""
        self.reporter.note(f"Job {info.job_id} {info.state}{ran}; exit code {int(code)}.")
        self.reporter.outputs(outputs_of(self.handle, info, code))
        self.reporter.summary(f"Job {info.job_id} ({self.handle.name})", summary_of(self.handle, info, code, pulled))
        if self.as_json:
            adopted = self.job.adopted if self.job is not None else False
            output.print_json(facts_of(self.handle, info, code, pulled) | {"adopted": adopted})
        return int(code)

    async def stop(self) -> None:
        """After an interrupt: end the job, whatever has become of its submit; without one, a job of the transfer."""
        if self._submitting is not None and self.job is None:
            self.state.interrupt_note = (
                "The job may or may not have been submitted. `hpcbridge status` lists your jobs."
            )
            try:
                self.job = await asyncio.shield(self._submitting)
            except (AmbiguousOutcome, ServerError):
                return  # the note is true, and the same command again finds out
            except HpcBridgeError:
                pass
        if self.job is not None and not self._ended:
            self.state.interrupt_note = f"Job {self.job.id} may still run. End it: hpcbridge cancel {self.job.id}"
            try:
                info = await _cancelled(self.job)
            except HpcBridgeError as error:
                self.state.interrupt_note += f"\nIt could not be ended here: {error}"
                return
            self.state.interrupt_note = f"{output.describe(info)}."
        elif self.job is None:
            self.state.interrupt_note = "No job was submitted."
        else:
            self.state.interrupt_note = f"Job {self.job.id} has ended. The same command again fetches its results."
        if self._record is not None and not self._ended:
            self._record.forget()
        if self.state.job_id is not None and self._handle is not None:
            async with connect(self.state) as hpc:
                with suppress(HpcBridgeError):  # it has ended by itself
                    await hpc.system(self._handle.system).job(self.state.job_id).cancel(verify=False)


async def job_of(system: System, handle: Handle) -> Job:
    """The job of a handle, also of one that was written before its submit was answered.

    Raises JobNotFound, and ConfigurationError for a handle of another deployment.
    """
    if system.hpc.site.url != handle.url:
        raise ConfigurationError(
            f"the handle is of {handle.url}, the configuration of another deployment",
            site=system.hpc.site.name,
            hint="Name the right one with --site, or set FIRECREST_URL",
        )
    if handle.job_id is not None:
        return system.job(handle.job_id)
    found = await system.find(handle.key, workdir=handle.workdir, name=handle.name)
    if found is None:
        raise JobNotFound("nothing shows that this run has submitted a job", system=handle.system, path=handle.workdir)
    return found


async def _cancelled(job: Job) -> JobInfo:
    """Cancel until the scheduler says that it has ended; outages are waited out."""
    while True:
        try:
            return await job.cancel()
        except PASSING:
            await asyncio.sleep(PAUSE / 4)
