"""The controller of the local queue: jobs, slots, time limits, dependencies, and what a restart makes of them.

Everything is driven by events (a submit, the end of a process, a timer of the event loop); nothing polls.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from hpcbridge_sandbox.cluster import Cluster, ClusterProcess, User
from hpcbridge_sandbox.scheduling.local import dependencies
from hpcbridge_sandbox.scheduling.local.accounting import Accounting
from hpcbridge_sandbox.scheduling.local.admission import CPUS, pending_reason
from hpcbridge_sandbox.scheduling.local.job import FIRST_PRIORITY, TERMINAL, Job, Request, Simulation
from hpcbridge_sandbox.scheduling.local.ledger import Ledger
from hpcbridge_sandbox.scheduling.local.runner import Runner
from hpcbridge_sandbox.scheduling.local.values import unix_now
from hpcbridge_sandbox.store import Store

log = logging.getLogger(__name__)

KILL_WAIT = 2.0
"""Seconds between SIGTERM and SIGKILL (Slurm's KillWait, which is 30 by default)."""

FLUSH_DELAY = 0.1
"""Seconds for which changed records are collected before one transaction writes them."""


class Queue:
    """Jobs by id, in the order of their ids, and the processes of those that run."""

    def __init__(self, cluster: Cluster, store: Store, accounting: Accounting, *, offline: bool = False) -> None:
        """Make a queue over the cluster; with ``offline`` its jobs have no network."""
        self.accounting = accounting
        self.jobs: dict[int, Job] = {}
        self.by_user: defaultdict[str, dict[int, Job]] = defaultdict(dict)
        self.arrays: defaultdict[int, list[Job]] = defaultdict(list)
        self._cluster = cluster
        self._ledger = Ledger(store)
        self._runner = Runner(cluster, offline=offline)
        self._request_ids: dict[int, int] = {}
        self._waiting: dict[int, Job] = {}
        self._live: defaultdict[str, int] = defaultdict(int)
        self._used = 0
        self._running_tasks: defaultdict[int, int] = defaultdict(int)
        self._processes: dict[int, ClusterProcess] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: defaultdict[int, list[asyncio.TimerHandle]] = defaultdict(list)
        self._dirty: dict[int, Job] = {}
        self._flush_timer: asyncio.TimerHandle | None = None
        self._pass_planned = False
        self._stopping = False
        self._next_id = self._ledger.next_id

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take up what an earlier life of the sandbox left: waiting jobs wait, running ones have lost their node."""
        for job, request_id in self._ledger.load():
            self._next_id = max(self._next_id, job.job_id + 1)
            self._index(job, request_id)
            if job.terminal:
                continue
            if job.request.simulation is not None:
                self._resume_simulation(job, job.request.simulation)
            elif job.state == "PENDING":
                self._waiting[job.job_id] = job
            elif job.request.options.requeue:
                self._requeue(job)
            else:
                self._finish(job, "NODE_FAIL", 0, 0)
        self.plan()

    async def stop(self) -> None:
        """Write everything down and end every running job's processes; the records stay RUNNING, as after a crash."""
        self._stopping = True
        for timers in self._timers.values():
            for timer in timers:
                timer.cancel()
        for process in list(self._processes.values()):
            process.kill()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.flush()

    def _index(self, job: Job, request_id: int) -> None:
        self.jobs[job.job_id] = job
        self.by_user[job.request.user][job.job_id] = job
        if job.array_id is not None:
            self.arrays[job.array_id].append(job)
        self._request_ids[job.job_id] = request_id
        if not job.terminal:
            self._live[job.request.account] += 1

    @property
    def used(self) -> int:
        """CPU slots in use."""
        return self._used

    @property
    def live_by_account(self) -> Mapping[str, int]:
        """How many jobs of each account have not ended."""
        return self._live

    # -- submit -------------------------------------------------------------------------------------------------------

    def add(self, request: Request, name: str, now: float) -> Job:
        """Queue one submit; the ledger knows it before this returns."""
        job_id = self._take_id()
        array = request.options.array
        job = Job(
            job_id=job_id,
            request=request,
            name=name,
            priority=0 if request.options.hold else FIRST_PRIORITY - job_id,
            submitted=now,
            array_id=job_id if array else None,
            pending=list(array.indices) if array else None,
            begin=request.options.begin or 0.0,
        )
        self._ledger.add(job_id, request, [job], self._next_id)
        self._index(job, job_id)
        if request.simulation is not None and array is None:
            self._resume_simulation(job, request.simulation)
        else:
            self._waiting[job_id] = job
            self.plan()
        return job

    def add_simulated(self, request: Request, names: Iterable[str], now: float) -> list[int]:
        """Queue jobs without processes that share a request, in one transaction; they take no slots."""
        assert request.simulation is not None
        jobs = []
        for name in names:
            job_id = self._take_id()
            jobs.append(Job(job_id, request, name, FIRST_PRIORITY - job_id, now))
        if not jobs:
            return []
        request_id = jobs[0].job_id
        self._ledger.add(request_id, request, jobs, self._next_id)
        for job in jobs:
            self._index(job, request_id)
            self._resume_simulation(job, request.simulation)
        return [job.job_id for job in jobs]

    def _take_id(self) -> int:
        job_id = self._next_id
        self._next_id += 1
        return job_id

    # -- scheduling ---------------------------------------------------------------------------------------------------

    def plan(self) -> None:
        """Ask for one pass over the waiting jobs, soon."""
        if not self._pass_planned and not self._stopping:
            self._pass_planned = True
            asyncio.get_running_loop().call_soon(self._pass)

    def _pass(self) -> None:
        self._pass_planned = False
        now = unix_now()
        blocked = False
        for job in list(self._waiting.values()):
            reason = self._reason(job, now)
            if reason is None and self._used + job.request.cpus > CPUS and not self._takes_no_slot(job):
                reason = "Priority" if blocked else "Resources"
                blocked = True
            if reason is None:
                self._launch(job, now)
            elif reason != job.reason:
                job.reason = reason
                self.touch(job)

    @staticmethod
    def _takes_no_slot(job: Job) -> bool:
        return job.request.simulation is not None

    def _reason(self, job: Job, now: float) -> str | None:
        """Return why the job waits for something other than slots, or None."""
        options = job.request.options
        if job.priority == 0:
            return "JobHeldUser"
        never = pending_reason(options, job.request.partition)
        if never is not None:
            return never
        if job.begin > now:
            if job.job_id not in self._timers:
                self._at(job, job.begin - now, self._begin_time)
            return "BeginTime"
        verdict = dependencies.judge(job, self.records, self._earlier_of_same_name)
        if verdict is not dependencies.Verdict.MET:
            return "Dependency" if verdict is dependencies.Verdict.WAITING else "DependencyNeverSatisfied"
        if job.pending and options.array and options.array.limit:
            running = self._running_tasks[job.job_id]
            if running >= options.array.limit:
                return "JobArrayTaskLimit"
        return None

    def _begin_time(self, job: Job) -> None:
        self._timers.pop(job.job_id, None)
        self.plan()

    def _earlier_of_same_name(self, job: Job) -> bool:
        mine = self.by_user[job.request.user].values()
        return any(other.name == job.name and not other.terminal and other.job_id < job.job_id for other in mine)

    def _launch(self, job: Job, now: float) -> None:
        """Start a job, or as many tasks of an array as may start."""
        while job.pending:
            task = self._next_task(job)
            self._begin(task, now)
            if task is job:
                return
            no_slot = self._used + job.request.cpus > CPUS and not self._takes_no_slot(job)
            if no_slot or self._reason(job, now) is not None:
                job.reason = "Resources" if no_slot else self._reason(job, now) or "None"
                self.touch(job)
                return
        self._begin(job, now)

    def _next_task(self, job: Job) -> Job:
        """Split the next task off a waiting array; the last one keeps the array's own record, as in Slurm."""
        assert job.pending
        index = job.pending.pop(0)
        if not job.pending:
            job.pending, job.task = None, index
            return job
        task = Job(
            job_id=self._take_id(),
            request=job.request,
            name=job.name,
            priority=job.priority,
            submitted=job.submitted,
            array_id=job.array_id,
            task=index,
        )
        self._ledger.keep_next_id(self._next_id)
        self._index(task, self._request_ids[job.job_id])
        self.touch(job)
        return task

    def _begin(self, job: Job, now: float) -> None:
        self._waiting.pop(job.job_id, None)
        job.state, job.reason, job.start = "RUNNING", "None", now
        self.touch(job)
        if job.array_id is not None:
            self._running_tasks[job.array_id] += 1
        simulation = job.request.simulation
        if simulation is not None:
            self._at(job, simulation.duration, self._end_simulation)
            return
        self._used += job.request.cpus
        task = asyncio.get_running_loop().create_task(self._run(job), name=f"job {job.job_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- running ------------------------------------------------------------------------------------------------------

    async def _run(self, job: Job) -> None:
        user: User = self._cluster.users[job.request.user]
        exit_code = signal_number = 0
        try:
            process = await self._runner.start(user, job)
            self._processes[job.job_id] = process
            if job.killed:
                process.kill()
            else:
                self._set_limits(job)
            status = await process.wait()
            # Slurm leaves nothing of a job behind: whatever the script put into the background ends with it.
            process.kill()
            exit_code, signal_number = (status, 0) if status >= 0 else (0, -status)
        except OSError as error:
            log.error("job %s could not be started: %s", job.job_id, error)
            exit_code = 1
        finally:
            self._processes.pop(job.job_id, None)
            self._clear_timers(job)
        self._used -= job.request.cpus
        self._runner.clean(job)
        if job.terminal:
            job.batch_signal = job.batch_signal or signal_number
            self.touch(job)
            self.plan()
        else:
            state = "COMPLETED" if not exit_code and not signal_number else "FAILED"
            self._finish(job, state, exit_code, signal_number)

    def _set_limits(self, job: Job) -> None:
        limit, spec = job.request.limit, job.request.options.signal
        if limit is None:
            return
        if spec is not None:
            self._at(job, max(0.0, limit - spec.seconds), self._warn)
        self._at(job, limit, self._time_out)

    def _warn(self, job: Job) -> None:
        """Send ``--signal``: with ``B:`` to the batch shell; without, to the steps, of which this queue has none."""
        spec, process = job.request.options.signal, self._processes.get(job.job_id)
        if spec is not None and spec.batch and process is not None:
            process.send_signal(spec.number)

    def _time_out(self, job: Job) -> None:
        if not job.terminal:
            self._kill(job)
            self._finish(job, "TIMEOUT", 0, 0, batch_signal=signal.SIGTERM)

    def _kill(self, job: Job) -> None:
        """Do as slurmd does: SIGCONT, SIGTERM, and after KillWait SIGKILL."""
        job.killed = True
        process = self._processes.get(job.job_id)
        if process is None:
            return
        process.signal_group(signal.SIGCONT)
        process.signal_group(signal.SIGTERM)
        self._at(job, KILL_WAIT, lambda _: process.kill())

    def signal_batch(self, job: Job, number: int) -> None:
        """Send a signal to the whole process group of a running job."""
        process = self._processes.get(job.job_id)
        if process is not None:
            process.signal_group(number)

    def _at(self, job: Job, seconds: float, action: Callable[[Job], None]) -> None:
        if seconds == float("inf"):
            return
        timer = asyncio.get_running_loop().call_later(max(0.0, seconds), action, job)
        self._timers[job.job_id].append(timer)

    def _clear_timers(self, job: Job) -> None:
        for timer in self._timers.pop(job.job_id, ()):
            timer.cancel()

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _finish(
        self,
        job: Job,
        state: str,
        exit_code: int,
        signal_number: int,
        *,
        batch_signal: int = 0,
        by: int | None = None,
        reason: str = "None",
    ) -> None:
        """Give the job its last state."""
        if job.array_id is not None and job.start is not None and not job.terminal:
            self._running_tasks[job.array_id] -= 1
        if not job.terminal:
            self._live[job.request.account] -= 1
        self._waiting.pop(job.job_id, None)
        job.state, job.exit_code, job.signal = state, exit_code, signal_number
        job.batch_signal, job.cancelled_by = int(batch_signal), by
        job.reason = reason
        job.end = unix_now()
        self.touch(job)
        self.plan()

    def cancel(self, job: Job, by: int) -> None:
        """Cancel one record, whatever it waits for or does."""
        running = job.start is not None
        if running and job.request.simulation is None:
            self._kill(job)
        else:
            self._clear_timers(job)
        self._finish(job, "CANCELLED", 0, 0, batch_signal=signal.SIGTERM if running else 0, by=by)

    def _requeue(self, job: Job) -> None:
        job.restarts += 1
        job.state, job.reason, job.start, job.end = "PENDING", "BeginTime", None, None
        self._waiting[job.job_id] = job
        self.touch(job)

    # -- simulated jobs -----------------------------------------------------------------------------------------------

    def _resume_simulation(self, job: Job, simulation: Simulation) -> None:
        """Set the next timer of a job without a process, also after a restart."""
        now = unix_now()
        if job.pending or job.request.options.hold:
            self._waiting[job.job_id] = job
        elif job.start is None:
            if simulation.state == "PENDING":
                job.reason = simulation.reason
                return
            left = job.submitted + simulation.queued - now
            if left > 0:
                job.reason = "Resources"
                self._at(job, left, self._begin_simulation)
            else:
                self._begin(job, now)
        else:
            self._at(job, job.start + simulation.duration - now, self._end_simulation)

    def _begin_simulation(self, job: Job) -> None:
        self._clear_timers(job)
        self._begin(job, unix_now())

    def _end_simulation(self, job: Job) -> None:
        simulation = job.request.simulation
        self._clear_timers(job)
        if simulation is None or job.terminal:
            return
        if simulation.state in TERMINAL:
            batch = simulation.signal or (signal.SIGTERM if simulation.state == "TIMEOUT" else 0)
            by = job.request.uid if simulation.state == "CANCELLED" else None
            codes = (simulation.exit_code, simulation.signal)
            self._finish(job, simulation.state, *codes, batch_signal=batch, by=by, reason=simulation.reason)
        else:
            job.state, job.reason = simulation.state, simulation.reason
            self.touch(job)

    # -- reading ------------------------------------------------------------------------------------------------------

    def records(self, number: int) -> list[Job]:
        """Return what an id names: a job, every task of an array, or the task with that raw id."""
        found = list(self.arrays.get(number, ()))
        job = self.jobs.get(number)
        if job is not None and job not in found:
            found.append(job)
        return sorted(found, key=lambda record: (record.task is None, record.task or 0))

    def listed(self, user: str | None, oldest_end: float) -> Iterator[Job]:
        """Yield the jobs of a user (or of all), live or ended since `oldest_end` (Unix time)."""
        for job in (self.jobs if user is None else self.by_user[user]).values():
            if job.end is None or job.end >= oldest_end or not job.terminal:
                yield job

    # -- memory -------------------------------------------------------------------------------------------------------

    def touch(self, job: Job) -> None:
        """Mark a record as changed; one transaction writes all that change within a moment."""
        job.rendered = None
        self._dirty[job.job_id] = job
        if self._flush_timer is None:
            self._flush_timer = asyncio.get_running_loop().call_later(FLUSH_DELAY, self.flush)

    def flush(self) -> None:
        """Write every changed record down."""
        self._flush_timer = None
        if self._dirty:
            self._ledger.save((job, self._request_ids[job.job_id]) for job in self._dirty.values())
            self._dirty.clear()


def simulated_request(request: Request, simulation: Simulation) -> Request:
    """Return a request for jobs without processes."""
    return replace(request, simulation=simulation)
