"""What a watcher makes of a server that goes away, refuses for a while, or comes back after hours."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import pytest

import hpcbridge
from hpcbridge.errors import AlreadyExists, NotFound
from hpcbridge.jobs import watch
from hpcbridge.jobs.watch import JobWatcher, WatchPolicy
from support.httpd import Answer, httpd

QUICK = WatchPolicy(first_tick=0.05, max_tick=0.1, lag=5.0, refused_for=1.5)


class Bearer:
    """A credential with a token of its own."""

    identity = "watch-outages"

    async def access_token(self) -> str:
        return "token-of-a-test"

    def invalidate(self, token: str) -> None:
        pass


@asynccontextmanager
async def watching(answer):
    """A watcher at a server whose answers to listings and by-id reads `answer(request)` gives."""

    async def handler(request):
        return answer(request)

    async with (
        httpd(handler) as server,
        hpcbridge.connect(
            url=server.url, token_url=server.url, client_id="x", system="s", credential=Bearer(), polling_rate=200
        ) as hpc,
    ):
        watcher = JobWatcher(hpc.client, "s", policy=QUICK)
        yield watcher, server
        await watcher.aclose()


def job(state: str) -> Answer:
    row = {"jobId": "7", "name": "a", "status": {"state": state, "exitCode": 0}, "workingDirectory": "/w"}
    return Answer(200, {"jobs": [row]})


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_refusal_that_passes_ends_no_wait(status):
    """Gateways say 404 or 403 for a server that is being replaced; servers 401 that cannot reach their issuer."""
    end = time.monotonic() + 0.8
    async with watching(lambda _: Answer(status) if time.monotonic() < end else job("COMPLETED")) as (watcher, _):
        assert (await asyncio.wait_for(watcher.wait("7"), 10)).ok


async def test_a_refusal_that_stands_is_told():
    begun = time.monotonic()
    async with watching(lambda _: Answer(404)) as (watcher, _):
        with pytest.raises(NotFound):
            await asyncio.wait_for(watcher.wait("7"), 10)
    assert time.monotonic() - begun >= QUICK.refused_for


async def test_after_a_long_outage_one_listing_looks_back_as_far(monkeypatch):
    monkeypatch.setattr(watch, "_LONG", 0.4)
    begun = time.monotonic()

    def answer(_):
        since = time.monotonic() - begun
        return job("RUNNING") if since < 0.3 else Answer(503) if since < 1.0 else job("COMPLETED")

    async with watching(answer) as (watcher, server):
        await asyncio.wait_for(watcher.wait("7"), 20)
        windows = [parse_qs(urlsplit(each.path).query).get("time_window") for each in server.requests]
        windows = [window[0] for window in windows if window]
    assert (windows[0], windows[-1]) == ("1h", "8h")


@pytest.mark.parametrize("hangs", [1, 2])
async def test_listings_that_hang_at_the_start_say_nothing_of_what_they_cost(hangs):
    """The rest between listings, ten times what they take, is that of the fastest of three: not of one alone."""
    left = [Answer(**{**vars(job("RUNNING")), "delay": 1.0})] * hangs
    begun = time.monotonic()
    async with watching(lambda _: left.pop() if left else job("COMPLETED")) as (watcher, _):
        assert (await asyncio.wait_for(watcher.wait("7"), 30)).ok
    assert hangs <= time.monotonic() - begun < hangs + 5


async def test_a_late_waiter_whose_callback_fails_leaves_nothing_behind():
    async with watching(lambda _: job("RUNNING")) as (watcher, _):
        first = asyncio.create_task(watcher.wait("7"))
        await asyncio.sleep(0.5)

        def broken(info):
            raise ValueError(info.job_id)

        with pytest.raises(ValueError, match="7"):
            await watcher.wait("7", on_change=broken)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert watcher.watched == 0


@pytest.mark.parametrize(
    "first",
    [Answer(429, headers={"Retry-After": "0"}), Answer(424, {"message": "Unable to establish SSH connection."})],
)
async def test_what_a_refused_first_attempt_cannot_have_done_was_not_done_by_it(first):
    """ "Exists" after a mkdir that was refused is somebody else's directory, not the trace of a lost answer."""
    answers = [first, Answer(400, {"message": "mkdir: cannot create directory '/d': File exists"})]
    async with watching(lambda _: answers.pop(0)) as (watcher, _):
        with pytest.raises(AlreadyExists):
            await watcher.client.mkdir("s", "/d", parents=False)
    answers = [Answer(504), Answer(400, {"message": "mkdir: cannot create directory '/d': File exists"})]
    async with watching(lambda _: answers.pop(0)) as (watcher, _):
        await watcher.client.mkdir("s", "/d", parents=False)
