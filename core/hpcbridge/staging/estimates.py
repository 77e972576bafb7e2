"""How long each route takes: plain arithmetic over figures, no I/O.

The figures that a client starts with were measured on one deployment (200 MB on loopback, server 2.5.7-dev, Slurm
22.05): up, S3 62 s of which 2 s staging, because the ingress job looks for the object once and then every 60 s; pieces
by direct upload and one joining job 4-6 s; streamer 11-14 s; down, S3 3-4 s, streamer 11-14 s. `seen` replaces them by
what this client has met at a site.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpcbridge.staging.plan import AUTO_SHA256, MAX_CUT, Direction, Limits, Route, piece_count

LOOK = 60.0
"""Seconds between two looks of the ingress job for the object; nothing announces them."""
OPENING = 2.0
"""Seconds in which an upload is opened and completed, while its job may already look."""
JOB = 1.0
"""Seconds of a small job beside its wait in the queue: submit, start, and the look for its answer."""
STREAMER_START = 5.0
"""Seconds from the start of a streamer's job until it listens."""
DISK = 300_000_000.0
"""Bytes per second that a job on the system reads, hashes and writes."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What transfers cost at a site: rates in bytes per second, times in seconds.

    Attributes:
        trip: one small request.
        up, down: direct uploads and downloads, several at a time.
        store_up, store_down: parts into the object store, ranged reads out of it.
        staging: the server's own job, between object store and file system.
        streamer: the streamer, either way.
        queue: how long a transfer job waits for its start.
    """

    trip: float = 0.05
    up: float = 50e6
    down: float = 50e6
    store_up: float = 100e6
    store_down: float = 100e6
    staging: float = 100e6
    streamer: float = 30e6
    queue: float = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """One stretch of a transfer, in seconds."""

    what: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a route would cost: its steps, the requests to FirecREST besides polling, and what else to know."""

    steps: tuple[Step, ...]
    requests: int
    note: str = ""

    @property
    def seconds(self) -> float:
        """Of the whole transfer."""
        return sum(step.seconds for step in self.steps)


def estimate(
    route: Route, size: int, limits: Limits, figures: Figures, direction: Direction, *, needs_job: bool = False
) -> Estimate:
    """What `size` bytes by `route` would cost, whether or not the route can carry them.

    `needs_job`: a job of ours publishes what has arrived, on every route; what comes by the streamer always needs one.
    """
    steps, requests, note = _ROUTES[route, direction](size, limits, figures)
    if direction is Direction.UP and (route is Route.STREAMER or (needs_job and route is Route.S3)):
        steps, requests = [*steps, ("publishing", figures.queue + JOB + size / DISK)], requests + 4
    trips = Step("requests", min(requests, _IN_LINE) * figures.trip)
    return Estimate((*(Step(what, seconds) for what, seconds in steps if seconds > 0), trips), requests, note)


def cut_up_to(limits: Limits, figures: Figures) -> int:
    """Bytes up to which a job that packs an archive had better cut it, too; by another route it takes a second job.

    At most `CUT_MOST` pieces, where there is another route.
    """
    most = CUT_MOST * limits.download
    if limits.s3:
        start, others = figures.queue + JOB, 1 / figures.staging + 1 / figures.store_down
    elif limits.streamer:
        start, others = figures.queue + STREAMER_START, 1 / figures.streamer
    else:
        return MAX_CUT * limits.download
    saved = 1 / figures.down - others
    return most if saved <= 0 else min(most, int(start / saved))


CUT_MOST = 512
"""Pieces that are fetched at most where there is another route: each is a command on the login node."""
_IN_LINE = 8
"""Requests of a transfer that wait for each other; those that carry pieces are in the rates."""
_Steps = tuple[list[tuple[str, float]], int, str]


def _direct_up(size: int, _: Limits, f: Figures) -> _Steps:
    return [("sending", size / f.up)], 2, ""


def _direct_down(size: int, _: Limits, f: Figures) -> _Steps:
    return [("receiving", size / f.down)], 3, ""


def _chunked_up(size: int, limits: Limits, f: Figures) -> _Steps:
    pieces = piece_count(size, limits.piece)
    steps = [("sending", size / f.up), ("in the queue", f.queue), ("joining", JOB + size / DISK)]
    return steps, pieces + 4, _TWICE if pieces > 1 else ""


def _chunked_down(size: int, limits: Limits, f: Figures) -> _Steps:
    # Cut, and hashed: two readings.
    steps = [("in the queue", f.queue), ("cutting", JOB + 2 * size / DISK), ("receiving", size / f.down)]
    return steps, piece_count(size, limits.download) + 5, _TWICE


def _s3_up(size: int, _: Limits, f: Figures) -> _Steps:
    # The job waits in the queue while the parts are sent.
    sent = size / f.store_up
    steps = [("sending", sent), *_found(sent, f.queue), ("staging", JOB + size / f.staging)]
    if size <= AUTO_SHA256:
        steps.append(("checking", size / DISK))
    return steps, 5, ""


def _found(sent: float, queue: float) -> list[tuple[str, float]]:
    """The wait from the last byte in the store until the ingress job sees it: it looks at its start, then each LOOK.

    The time in the queue is taken as exponentially distributed: a wait that is usually long may be short this time, and
    a first look that comes too early costs another one.
    """
    early = -math.expm1(-(sent + OPENING) / queue)
    # Where in its rhythm a long upload ends nobody knows: half of it, on average.
    missed = early * max(LOOK - sent / 2, LOOK / 2)
    return [("in the queue", queue * math.exp(-sent / queue)), ("until the server looks", missed)]


def _s3_down(size: int, _: Limits, f: Figures) -> _Steps:
    steps = [("in the queue", f.queue), ("staging", JOB + size / f.staging), ("receiving", size / f.store_down)]
    return steps, 5, ""


def _streamer_up(size: int, _: Limits, f: Figures) -> _Steps:
    steps = [("in the queue", f.queue), ("starting", STREAMER_START), ("sending", size / f.streamer)]
    return steps, 6, _STREAM


def _streamer_down(size: int, _: Limits, f: Figures) -> _Steps:
    steps = [("in the queue", f.queue), ("starting", STREAMER_START), ("receiving", size / f.streamer)]
    return steps, 6, _STREAM


_TWICE = "needs room for the file twice on the system for a moment"
_STREAM = "needs a connection to a port of the cluster"
_ROUTES = {
    (Route.DIRECT, Direction.UP): _direct_up,
    (Route.DIRECT, Direction.DOWN): _direct_down,
    (Route.CHUNKED, Direction.UP): _chunked_up,
    (Route.CHUNKED, Direction.DOWN): _chunked_down,
    (Route.S3, Direction.UP): _s3_up,
    (Route.S3, Direction.DOWN): _s3_down,
    (Route.STREAMER, Direction.UP): _streamer_up,
    (Route.STREAMER, Direction.DOWN): _streamer_down,
}
