"""Which route a transfer takes: the quickest, by the estimate, of those that can carry it. One may be insisted on."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

from hpcbridge.errors import HpcBridgeError, InvalidRequest, TooLarge, TransferError
from hpcbridge.staging.context import Transfer, transfer_directives
from hpcbridge.staging.estimates import DISK, JOB, Estimate, Figures, estimate
from hpcbridge.staging.plan import MAX_CUT, MAX_PIECES, Direction, Limits, Route, piece_count
from hpcbridge.staging.progress import Phase, Reporter
from hpcbridge.staging.seen import Seen

if TYPE_CHECKING:
    from hpcbridge.firecrest import FirecrestClient, SystemInfo

log = logging.getLogger(__name__)

LIVE = 256_000_000
"""Bytes from which one request for the live state of the transfer jobs' partition is worth its time."""
TELLING = 16_000_000
"""Bytes from which a transfer tells a rate."""
SHORTEST = 0.1
"""Seconds that a job is taken to wait at least."""
CLOSED = 3600.0
"""Seconds that a job is taken to wait for a partition that starts none."""


@dataclass(frozen=True, slots=True)
class Option:
    """A route, what it would cost, and why it cannot be taken (`refusal`, None: it can)."""

    route: Route
    estimate: Estimate
    refusal: HpcBridgeError | None = None

    @property
    def usable(self) -> bool:
        """Whether it can carry the transfer."""
        return self.refusal is None

    def __str__(self) -> str:
        """A few words: `s3 about 62 s`."""
        if self.refusal is not None:
            return f"{self.route} not possible: {self.refusal.message}"
        return f"{self.route} about {short_time(self.estimate.seconds)}"


def explain(
    size: int, limits: Limits, seen: Figures | None = None, *, direction: Direction, needs_job: bool = False
) -> list[Option]:
    """Every route for `size` bytes, the one that would be taken first: usable ones by time, then the others.

    Args:
        size: bytes.
        limits: of the system.
        seen: figures of the site; None takes the measured defaults.
        direction: up or down.
        needs_job: a name or `atomic=True` asks for a job that publishes the file.
    """
    figures = seen or Figures()
    options = [
        Option(
            route,
            estimate(route, size, limits, figures, direction, needs_job=needs_job),
            _refusal(route, size, limits, direction),
        )
        for route in Route
    ]
    if needs_job:
        options[0] = replace(options[0], refusal=options[0].refusal or _not_direct())
    # One request is taken wherever it is possible: it needs neither queue nor luck.
    return sorted(options, key=lambda o: (not o.usable, o.route is not Route.DIRECT, o.estimate.seconds))


def choose(
    size: int,
    limits: Limits,
    seen: Figures | None = None,
    *,
    direction: Direction,
    wanted: str | None = None,
    needs_job: bool = False,
) -> Option:
    """The quickest route that can carry `size` bytes, or the `wanted` one.

    Raises InvalidRequest for a route that does not exist or cannot take the file, TransferError when the system has no
    object store or streamer, TooLarge when no route is left.
    """
    insisted = _known(wanted)
    options = explain(size, limits, seen, direction=direction, needs_job=needs_job)
    if insisted is None:
        best = options[0]
        if best.refusal is not None:
            why = "; ".join(f"{each.route}: {each.refusal.message}" for each in options if each.refusal is not None)
            hint = "split the file, or ask the site for an object store"
            raise TooLarge(f"no route carries {size} bytes ({why})", hint=hint)
        return best
    option = next(each for each in options if each.route is insisted)
    if option.refusal is not None:
        raise option.refusal
    return option


async def route_for(
    t: Transfer,
    size: int,
    *,
    direction: Direction,
    wanted: str | None = None,
    needs_job: bool = False,
    limits: Limits | None = None,
) -> Route:
    """The route of `size` bytes now: with what was seen of the site, and the state of the queue where it can matter.

    Says what it has chosen in the progress and, with the other routes, in the log (debug). `limits`: where not all of
    the system's routes suit the target. Raises like `choose`.
    """
    allowed = limits or t.limits
    if wanted is None and not needs_job and explain(size, allowed, direction=direction)[0].route is Route.DIRECT:
        return Route.DIRECT
    figures = await figures_of(t)
    if wanted is None and size >= LIVE:
        figures = await _with_queue(t, size, allowed, figures, direction=direction, needs_job=needs_job)
    chosen = choose(size, allowed, figures, direction=direction, wanted=wanted, needs_job=needs_job)
    options = explain(size, allowed, figures, direction=direction, needs_job=needs_job)
    log.debug("%s of %d bytes, %s: %s", direction, size, t.name, "; ".join(map(str, options)))
    t.reporter.phase(Phase.CHECKING, str(chosen))
    return chosen.route


async def figures_of(t: Transfer) -> Figures:
    """What was seen of the system of a transfer."""
    return await asyncio.to_thread(Seen(t.client.session.site.url, t.name).figures)


async def remember(t: Transfer, route: Route, direction: Direction) -> None:
    """Keep what a transfer that went well has shown of its site: rate of its route, wait of its job."""
    found = lessons(t.reporter, route, direction, t.size)
    if found:
        await asyncio.to_thread(partial(Seen(t.client.session.site.url, t.name).learn, **found))


def lessons(reporter: Reporter, route: Route, direction: Direction, size: int) -> dict[str, float]:
    """Figures (fields of `Figures`) that the phases of a transfer of `size` bytes show; few bytes show no rate."""
    spent, found = reporter.spent, {}
    rate = _RATES.get((route, direction))
    moving = spent.get(Phase.UPLOADING if direction is Direction.UP else Phase.DOWNLOADING, 0.0)
    if rate and moving > 0 and reporter.moved >= TELLING:
        found[rate] = reporter.moved / moving
    if route is Route.CHUNKED and Phase.QUEUED in spent:
        # A short job is over before it was seen to run.
        work = 0.0 if Phase.JOINING in spent else JOB + size / DISK
        found["queue"] = max(SHORTEST, spent[Phase.QUEUED] - work)
    if route is Route.S3 and direction is Direction.DOWN and Phase.STAGING in spent:
        found["queue"] = max(SHORTEST, spent.get(Phase.QUEUED, 0.0))
        if size >= TELLING and spent[Phase.STAGING] > JOB:
            found["staging"] = size / (spent[Phase.STAGING] - JOB)
    return found


_RATES = {
    (Route.CHUNKED, Direction.UP): "up",
    (Route.CHUNKED, Direction.DOWN): "down",
    (Route.S3, Direction.UP): "store_up",
    (Route.S3, Direction.DOWN): "store_down",
    (Route.STREAMER, Direction.UP): "streamer",
    (Route.STREAMER, Direction.DOWN): "streamer",
}


async def _with_queue(
    t: Transfer, size: int, limits: Limits, figures: Figures, *, direction: Direction, needs_job: bool
) -> Figures:
    """The figures, with a long wait in them where it would change the choice and the partition starts no jobs."""
    closed = replace(figures, queue=max(figures.queue, CLOSED))
    open_, shut = (
        choose(size, limits, each, direction=direction, needs_job=needs_job).route for each in (figures, closed)
    )
    if open_ is shut:
        return figures
    try:
        state = await queue_state(t.client, t.info)
    except HpcBridgeError as error:
        # The choice is a guess in any case; that the server does not tell is no reason to end the transfer.
        log.debug("the partition of transfer jobs is not known: %s", error)
        return figures
    return figures if state is None or state.starts_jobs else closed


@dataclass(frozen=True, slots=True)
class QueueState:
    """The partition that a site's transfer jobs use, and Slurm's word for it: UP, DOWN, DRAIN, INACTIVE."""

    partition: str
    state: str

    @property
    def starts_jobs(self) -> bool:
        """Whether jobs there are started (DRAIN starts those that wait already, and takes no new ones)."""
        return self.state == "UP"


async def queue_state(client: FirecrestClient, info: SystemInfo) -> QueueState | None:
    """State of the partition that the site's directives name, by one request; None when it names or shows none."""
    name = transfer_directives(info.transfer_directives, "rest", None).get("partition")
    if name is None:
        return None
    for row in await client.partitions(info.name):
        if row.get("name") == name:
            return QueueState(name, str(row.get("partition") or "").upper())
    return None


def short_time(seconds: float) -> str:
    """For people: `0.3 s`, `12 s`, `4 min`, `2.5 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _refusal(route: Route, size: int, limits: Limits, direction: Direction) -> HpcBridgeError | None:
    """Why `route` cannot carry `size` bytes."""
    if route is Route.DIRECT:
        limit = limits.upload if direction is Direction.UP else limits.download
        if size <= limit:
            return None
        return TooLarge(f"{size} bytes are over the server's {limit} for one direct {direction}load", hint=_LEAVE)
    if route is Route.CHUNKED:
        piece = limits.piece if direction is Direction.UP else limits.download
        most = MAX_PIECES if direction is Direction.UP else MAX_CUT
        count = piece_count(size, piece)
        if count <= most:
            return None
        return TooLarge(f"{size} bytes are {count} pieces of {piece}, more than {most}", hint=_LEAVE)
    offered, what = (limits.s3, "object store") if route is Route.S3 else (limits.streamer, "streamer")
    if not offered:
        return TransferError(f"this system has no {what}", hint=_LEAVE)
    if size == 0:
        # Upload: the ingress job polls until its time limit. Download: exit 70, a division by zero.
        return InvalidRequest(f"an empty file cannot go through the {what}", hint=_LEAVE)
    if route is Route.STREAMER and not _has_library():
        return TransferError("the streamer needs the package websockets", hint="pip install 'hpcbridge[streamer]'")
    if route is Route.STREAMER and direction is Direction.UP and size > limits.inbound:
        return TooLarge(f"{size} bytes are over the streamer's {limits.inbound}", hint=_LEAVE)
    return None


@cache
def _has_library() -> bool:
    try:
        return importlib.util.find_spec("websockets.asyncio.client") is not None
    except ModuleNotFoundError:
        return False


_LEAVE = "Leave the route out and the best one is taken"


def _not_direct() -> InvalidRequest:
    return InvalidRequest("a direct upload is not atomic and cannot carry this name", hint="Use route='chunked'")


def _known(wanted: str | None) -> Route | None:
    if wanted is None:
        return None
    try:
        return Route(wanted)
    except ValueError:
        raise InvalidRequest(f"{wanted!r} is no route", hint="one of: " + ", ".join(Route)) from None
