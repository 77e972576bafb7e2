"""The scheduler backend `firecrest`: ReFrame's Slurm backend whose commands are a site's REST interface.

What a job's script says is Slurm's (`emit_preamble` and node filters are inherited); how it gets there, and how its
output gets back, is in `course`. Nothing here waits for the network but `wait` and the two calls of flexible node
allocation.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import reframe.core.runtime as rt
from reframe.core.backends import register_scheduler
from reframe.core.exceptions import JobBlockedError, JobError, JobSchedulerError
from reframe.core.schedulers.slurm import SlurmJobScheduler, _create_nodes, _SlurmJob
from reframe.utility import nodelist_expand

from hpcbridge import JobInfo, JobState
from hpcbridge._preload import preload
from hpcbridge.errors import HpcBridgeError
from hpcbridge_reframe import nodes
from hpcbridge_reframe.course import Course, Request
from hpcbridge_reframe.options import Options
from hpcbridge_reframe.session import Session

LOOK = 0.25
"""Seconds between two looks of `wait`."""
BEGUN_IN = Path.cwd()
"""Where ReFrame was started: the site configuration imports us there. Tests run in their stage directories."""
NODES_FRESH = 30.0
"""Seconds for which the list of nodes is believed: many flexible tests are set up at the same time."""


class FirecrestJob(_SlurmJob):  # type: ignore[misc]
    """A job behind FirecREST; until the scheduler has given it an id, it has one of ours."""

    course: Course | None = None

    @property
    def nodelist(self) -> list[str]:
        """Names of the nodes that it ran on; empty before its end."""
        return list(self._nodelist)


@register_scheduler("firecrest")
class FirecrestScheduler(SlurmJobScheduler):  # type: ignore[misc]
    """Runs jobs on a cluster behind FirecREST; see `hpcbridge_reframe.options` for its `sched_options`."""

    def __init__(self) -> None:
        super().__init__()
        preload()  # before the first submit, rather than beside it
        self._options = Options.of(rt.runtime().get_option(self._config_prefix))
        self._nodes: tuple[float, list[str]] | None = None

    def make_job(self, *args: Any, **kwargs: Any) -> FirecrestJob:
        """A job that knows nothing of the cluster yet."""
        return FirecrestJob(*args, **kwargs)

    @property
    def _session(self) -> Session:
        return Session.of(self._options, _stage_prefix())

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def submit(self, job: FirecrestJob) -> None:
        """Begin to ship and submit it; returns at once. Raises JobError for a file outside of the job's directory."""
        directory = Path(job.workdir).absolute()
        request = Request(
            job.name,
            str(directory),
            _below(directory, job.script_filename),
            _below(directory, job.stdout),
            _below(directory, job.stderr),
            bool(job.is_array),
            tuple(job.sched_access) if self._sched_access_in_submit else (),
        )
        job._jobid = f"hpcbridge-{uuid.uuid4().hex[:12]}"
        job._submit_time = time.time()
        job.course = Course(self._session, request)

    def poll(self, *jobs: FirecrestJob | None) -> None:
        """Take over what is known of the jobs; no request is sent."""
        for job in jobs:
            if job is not None and job.course is not None:
                self._look(job)

    def _look(self, job: FirecrestJob) -> None:
        course = job.course
        assert course is not None
        over = course.is_over  # before anything else is read: what is read is then the last word
        if course.job_id is not None:
            job._jobid = course.job_id
        if course.info is not None:
            _take(job, course.info, over)
        if not over:
            self._give_up_waiting(job, course)
            return
        if job._exception is None and not job._is_cancelling:
            job._exception, course.error = course.error, None
        job._state = job._state or ("CANCELLED" if course.was_cancelled else "FAILED")

    def _give_up_waiting(self, job: FirecrestJob, course: Course) -> None:
        """End a job that waits in the queue for too long, or for a reason that does not go away by itself."""
        info = course.info
        if info is None or course.queued is None or course.was_cancelled or not _is_queued(job.state):
            return
        reason = info.reason or "unknown"
        if reason.partition(",")[0].strip() in (self._cancel_reasons or ()):
            message = f"job cancelled because it was blocked due to reason: {reason}"
            course.cancel(JobBlockedError(message, job.jobid))
        elif job.max_pending_time and time.time() - course.queued >= job.max_pending_time:
            waited = f"{time.time() - course.queued:.0f} s"
            course.cancel(JobError(f"maximum pending time exceeded after {waited}; it waited for: {reason}", job.jobid))

    def finished(self, job: FirecrestJob) -> bool:
        """Whether its output is in the stage directory, or will never be."""
        if job._is_cancelling:
            return True
        if job.course is None or not job.course.is_over:
            return False
        self._look(job)
        return True

    def wait(self, job: FirecrestJob) -> None:
        """Return when its output is here; a job that ReFrame has cancelled is not waited for."""
        if job._is_cancelling:
            return
        while job.course is not None and not job.course.wait(LOOK):
            self._look(job)
        self._look(job)
        if job.is_array:
            self._merge_files(job)

    def cancel_many(self, jobs: Iterable[FirecrestJob]) -> None:
        """Begin to end them; returns at once. The end of the run waits until the scheduler has been told."""
        for job in jobs:
            if job.course is not None:
                job.course.cancel()
            job._is_cancelling = True
            job._state = job._state or "CANCELLED"

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def allnodes(self) -> set[Any]:
        """Every node of the cluster, as `/status/SYSTEM/nodes` has them."""
        return set(_create_nodes(self._descriptions()))

    def _descriptions(self) -> list[str]:
        now = time.monotonic()
        if self._nodes is None or now - self._nodes[0] > NODES_FRESH:
            self._nodes = now, self._ask(nodes.descriptions)
        return self._nodes[1]

    def _ask(self, question: Any, *arguments: Any) -> Any:
        session = self._session
        try:
            return session.call(question, session, *arguments)
        except HpcBridgeError as error:
            raise JobSchedulerError(f"could not retrieve node information: {error}") from error

    def _get_default_partition(self) -> str | None:
        return self._options.default_partition

    def _get_actual_partition(self, options: list[str]) -> None:  # noqa: ARG002
        self.log("no partition named and firecrest_default_partition not set: nodes of every partition count")

    def _get_reservation_nodes(self, resv: str) -> set[Any]:
        return self._get_nodes_by_name(self._ask(nodes.reserved, resv))

    def _get_nodes_by_name(self, nodespec: str) -> set[Any]:
        names = set(nodelist_expand(nodespec))
        return {node for node in self.allnodes() if node.name in names}


def _stage_prefix() -> str:
    """ReFrame's stage prefix, wherever this is called; its own answer depends on the current directory.

    Source: `RuntimeContext.stage_prefix` of ReFrame 4.10; the default, `./stage`, is relative.
    """
    runtime = rt.runtime()
    given = Path(runtime.stagedir) if runtime.stagedir else Path(runtime.prefix, "stage")
    return os.path.normpath(BEGUN_IN / given / str(runtime.timestamp))


def _is_queued(state: str | None) -> bool:
    """Whether a job, or every task of an array, waits in the queue."""
    return bool(state) and all(JobState.parse(each).is_queued for each in str(state).split(","))


def _below(directory: Path, name: str) -> str:
    """A file's path relative to the job's directory; ReFrame has both kinds. Raises JobError for any elsewhere."""
    relative = os.path.relpath(directory / name, directory)
    if relative == ".." or relative.startswith("../"):
        raise JobError(f"{name} lies outside of the job's directory {directory}: the cluster has nothing but that")
    return relative


def _take(job: FirecrestJob, info: JobInfo, over: bool) -> None:
    """What the scheduler said, in ReFrame's terms. The end counts when the output is here."""
    ends = info.tasks or (info,)
    if info.is_terminal and not over:
        return
    job._state = ",".join(str(end.state) for end in ends)
    if not info.is_terminal:
        return
    job._exitcode = max(end.exit_code or 0 for end in ends)
    if info.ended is not None:
        job._completion_time = info.ended.timestamp()
    job._nodelist = [node for end in ends if end.nodes for node in _expanded(end.nodes)]


def _expanded(nodes: str) -> list[str]:
    """Names of the nodes in Slurm's short form; of each task of an array, as Slurm's backend has them."""
    try:
        return list(nodelist_expand(nodes))
    except ValueError:
        return [nodes]
