"""The choice of a route: from size, limits, what was seen of the site, and what it offers; and how it is explained."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcbridge.errors import HpcBridgeError, InvalidRequest, TooLarge, TransferError
from hpcbridge.staging import estimates, routes
from hpcbridge.staging.estimates import Figures
from hpcbridge.staging.plan import AUTO_SHA256, GIB, MAX_PIECES, PIECE, Direction, Limits, Route
from hpcbridge.staging.progress import Phase, Reporter

S3 = Limits.of(5_242_880, "s3")
STREAMER = Limits.of(5_242_880, "streamer")
NEITHER = Limits.of(5_242_880, None)
MB = 1_000_000
UP, DOWN = Direction.UP, Direction.DOWN


@pytest.mark.parametrize(
    ("size", "limits", "needs_job", "route"),
    [
        (0, S3, False, Route.DIRECT),
        (5_242_880, S3, False, Route.DIRECT),
        (5_242_881, S3, False, Route.CHUNKED),
        (10, S3, True, Route.CHUNKED),
        (200 * MB, S3, False, Route.CHUNKED),
        (200 * MB, STREAMER, False, Route.CHUNKED),
        (4 * GIB, S3, False, Route.CHUNKED),
        (20 * GIB, S3, False, Route.S3),
        (100_000 * MB, NEITHER, False, Route.CHUNKED),
        (900_000 * MB, S3, False, Route.S3),
    ],
)
def test_the_route_up_at_a_site_that_nothing_is_known_of(size, limits, needs_job, route):
    assert routes.choose(size, limits, direction=UP, needs_job=needs_job).route is route


@pytest.mark.parametrize(
    ("size", "limits", "route"),
    [
        (0, S3, Route.DIRECT),
        (3_932_157, S3, Route.DIRECT),
        (3_932_158, STREAMER, Route.CHUNKED),
        (2 * GIB, S3, Route.S3),
        (2 * GIB, STREAMER, Route.CHUNKED),
        (2 * GIB, NEITHER, Route.CHUNKED),
    ],
)
def test_the_route_down_at_a_site_that_nothing_is_known_of(size, limits, route):
    assert routes.choose(size, limits, direction=DOWN).route is route


def test_a_long_queue_favours_the_route_whose_job_waits_while_the_bytes_move():
    """The ingress job of the object store queues during the upload; the joining job afterwards."""
    at_once = routes.choose(1000 * MB, S3, Figures(queue=1), direction=UP)
    waiting = routes.choose(1000 * MB, S3, Figures(queue=300), direction=UP)
    assert (at_once.route, waiting.route) == (Route.CHUNKED, Route.S3)
    assert sum(step.seconds for step in waiting.estimate.steps if step.what == "in the queue") == pytest.approx(
        290, rel=0.01
    )


def test_what_was_seen_of_a_site_changes_the_choice():
    slow_store = Figures(store_down=1e6)
    quick_stream = Figures(streamer=500e6)
    assert routes.choose(1000 * MB, S3, slow_store, direction=DOWN).route is Route.CHUNKED
    assert routes.choose(1000 * MB, STREAMER, quick_stream, direction=DOWN).route is Route.STREAMER


def test_the_measured_deployment_is_estimated_as_it_was_measured():
    """200 MB up: S3 62 s, pieces 4-6 s, streamer 11-14 s; down: S3 3-4 s (backend measurements)."""
    seconds = {
        (route, way): estimates.estimate(route, 200 * MB, S3, Figures(), way).seconds
        for route in Route
        for way in (UP, DOWN)
    }
    assert 55 < seconds[Route.S3, UP] < 75
    assert 4 < seconds[Route.CHUNKED, UP] < 8
    assert 11 < seconds[Route.STREAMER, DOWN] < 15
    assert 3 < seconds[Route.S3, DOWN] < 7


_FIGURES = st.builds(
    Figures,
    trip=st.floats(0.001, 5),
    up=st.floats(1e4, 1e10),
    down=st.floats(1e4, 1e10),
    store_up=st.floats(1e4, 1e10),
    store_down=st.floats(1e4, 1e10),
    staging=st.floats(1e4, 1e10),
    streamer=st.floats(1e4, 1e10),
    queue=st.floats(0.1, 1e5),
)
_LIMITS = st.builds(Limits.of, st.integers(16, 10**9), st.sampled_from(["s3", "streamer", "wormhole", None]))


@given(st.integers(0, 10**13), _LIMITS, _FIGURES, st.sampled_from(Direction), st.booleans())
def test_the_choice_is_the_quickest_that_is_possible_and_explained(size, limits, figures, direction, needs_job):
    options = routes.explain(size, limits, figures, direction=direction, needs_job=needs_job)
    assert sorted(each.route for each in options) == sorted(Route)
    usable = [each for each in options if each.usable]
    try:
        chosen = routes.choose(size, limits, figures, direction=direction, needs_job=needs_job)
    except TooLarge:
        assert not usable
        return
    assert chosen == options[0]
    if chosen.route is not Route.DIRECT:
        assert chosen.estimate.seconds == min(each.estimate.seconds for each in usable)
    for each in options:
        assert all(step.seconds > 0 for step in each.estimate.steps)
        wanted = {"direction": direction, "wanted": str(each.route), "needs_job": needs_job}
        if each.usable:
            assert routes.choose(size, limits, figures, **wanted).route is each.route
        else:
            with pytest.raises(HpcBridgeError):
                routes.choose(size, limits, figures, **wanted)


@given(st.integers(1, 10**12), _FIGURES, st.sampled_from(Direction), st.sampled_from(Route))
def test_more_bytes_never_take_less_time(size, figures, direction, route):
    one, more = (estimates.estimate(route, n, S3, figures, direction).seconds for n in (size, 2 * size))
    hashed = size / estimates.DISK if size <= AUTO_SHA256 < 2 * size else 0  # which larger files are not
    assert more >= (one - hashed) * 0.999999


def test_a_site_with_a_queue_is_not_worth_the_risk_of_a_missed_look():
    """Half a second saved against 60 lost when the job starts early for once."""
    assert routes.choose(50 * MB, S3, Figures(queue=20), direction=UP).route is Route.CHUNKED


def test_a_packed_archive_is_cut_by_its_job_as_long_as_a_second_job_costs_more():
    slow_pieces = Figures(down=10e6, queue=20)
    cut = estimates.cut_up_to(S3, slow_pieces)
    assert cut == pytest.approx(21 / (1 / 10e6 - 2 / 100e6))
    most = estimates.CUT_MOST * S3.download
    assert estimates.cut_up_to(S3, Figures(down=1e9)) == most
    assert estimates.cut_up_to(S3, Figures(down=10e6, queue=7200)) == most
    assert estimates.cut_up_to(NEITHER, slow_pieces) > 1000 * most
    assert 0 < estimates.cut_up_to(STREAMER, Figures(streamer=1e9)) < most


def test_routes_that_cannot_work_are_refused_before_anything_is_sent():
    with pytest.raises(InvalidRequest, match="no route"):
        routes.choose(1, S3, direction=UP, wanted="pigeon")
    for limits, route in ((S3, "s3"), (STREAMER, "streamer")):
        with pytest.raises(InvalidRequest, match="empty"):
            routes.choose(0, limits, direction=UP, wanted=route)
    with pytest.raises(TransferError, match="no object store"):
        routes.choose(1, STREAMER, direction=UP, wanted="s3")
    with pytest.raises(TransferError, match="no streamer"):
        routes.choose(1, S3, direction=DOWN, wanted="streamer")
    with pytest.raises(TooLarge, match="direct upload"):
        routes.choose(6 * MB, S3, direction=UP, wanted="direct")
    with pytest.raises(InvalidRequest, match="atomic"):
        routes.choose(1, S3, direction=UP, wanted="direct", needs_job=True)
    with pytest.raises(TooLarge, match="direct download"):
        routes.choose(3_932_158, S3, direction=DOWN, wanted="direct")
    with pytest.raises(TooLarge, match="pieces"):
        routes.choose(MAX_PIECES * PIECE + 1, S3, direction=UP, wanted="chunked")
    with pytest.raises(TooLarge, match="streamer's"):
        routes.choose(6 * GIB, STREAMER, direction=UP, wanted="streamer")


def test_when_no_route_is_left_every_reason_is_given():
    with pytest.raises(TooLarge) as refused:
        routes.choose(900_000 * MB, STREAMER, direction=UP)
    for word in ("direct", "pieces", "object store", "streamer"):
        assert word in str(refused.value)


def _reported(*phases: tuple[Phase, float, int]) -> Reporter:
    """A reporter that has been through phases of so many seconds, with so many bytes."""
    reporter = Reporter(None)
    for phase, seconds, count in phases:
        reporter.spent[phase] = seconds
        reporter.moved += count
    return reporter


def test_a_transfer_teaches_its_rate_and_its_wait():
    up = _reported((Phase.UPLOADING, 4.0, 200 * MB), (Phase.QUEUED, 30.0, 0), (Phase.JOINING, 2.0, 0))
    assert routes.lessons(up, Route.CHUNKED, UP, 200 * MB) == {"up": 50e6, "queue": 30.0}
    down = _reported((Phase.QUEUED, 9.0, 0), (Phase.STAGING, 3.0, 0), (Phase.DOWNLOADING, 2.0, 200 * MB))
    assert routes.lessons(down, Route.S3, DOWN, 200 * MB) == {"store_down": 100e6, "queue": 9.0, "staging": 100e6}


def test_a_short_job_is_not_taken_for_a_wait():
    """Its answer is there before the listing has shown that it runs."""
    quick = _reported((Phase.UPLOADING, 1.0, 50 * MB), (Phase.QUEUED, 0.4, 0))
    assert routes.lessons(quick, Route.CHUNKED, UP, 50 * MB)["queue"] == routes.SHORTEST


def test_few_bytes_and_direct_transfers_teach_no_rate():
    small = _reported((Phase.UPLOADING, 1.0, MB))
    assert routes.lessons(small, Route.CHUNKED, UP, MB) == {}
    assert routes.lessons(replace_bytes(small, 100 * MB), Route.DIRECT, UP, 100 * MB) == {}


def replace_bytes(reporter: Reporter, count: int) -> Reporter:
    """The same with so many bytes."""
    reporter.moved = count
    return reporter


def test_times_are_short():
    spoken = [routes.short_time(seconds) for seconds in (0.04, 5.51, 61.7, 300, 9000)]
    assert spoken == ["0.0 s", "5.5 s", "62 s", "5 min", "2.5 h"]
