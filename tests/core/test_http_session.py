"""One session: patience, retries, tokens, connections, headers; against a real server that does what the test says."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from hpcbridge import errors
from hpcbridge.http import HttpPolicy, HttpSession
from hpcbridge.http.breaker import BreakerPolicy
from hpcbridge.http.limiter import LimiterPolicy
from hpcbridge.sites import Site
from support.httpd import DROP, Answer, Httpd, Request, httpd

POLICY = HttpPolicy(
    connect=0.5,
    read=0.3,
    patience=5.0,
    first_pause=0.01,
    longest_pause=0.05,
    limiter=LimiterPolicy(initial=8, growth_interval=0.0),
    breaker=BreakerPolicy(failures=4, pause=0.05, longest_pause=0.1),
)


class Tokens:
    """A credential that counts; `refused` tokens have been invalidated."""

    identity = "test"

    def __init__(self) -> None:
        self.number = 1
        self.refused: list[str] = []

    async def access_token(self) -> str:
        return f"token-{self.number}"

    def invalidate(self, token: str) -> None:
        self.refused.append(token)
        if token == f"token-{self.number}":
            self.number += 1


Decide = Callable[[Request, int], Answer | None]


@asynccontextmanager
async def serving(decide: Decide, **site: object) -> AsyncIterator[tuple[HttpSession, Httpd]]:
    """A server that answers request n (from 1) with `decide(request, n)`, and a session for it."""
    running: Httpd

    async def handler(request: Request) -> Answer | None:
        return decide(request, len(running.requests))

    async with httpd(handler) as running:
        session = HttpSession(Site(url=running.url, **site), Tokens(), policy=POLICY)  # type: ignore[arg-type]
        try:
            yield session, running
        finally:
            await session.aclose()


def first(n: int, bad: Answer | None, good: Answer | None = None) -> Decide:
    return lambda _request, number: bad if number <= n else (good or Answer(200, {"ok": True}))


@pytest.mark.parametrize("bad", [Answer(503), Answer(502), Answer(504), Answer(424), Answer(429), DROP], ids=str)
async def test_a_safe_request_outlasts_what_passes(bad: Answer | None) -> None:
    async with serving(first(3, bad)) as (session, server):
        assert (await session.request("GET", "/x")).json() == {"ok": True}
        # a dropped connection costs one more: the pooled one is tried again on a new one at once
        assert len(server.requests) == 4
        assert session.counters.requests == 4


@pytest.mark.parametrize("bad", [Answer(503), DROP], ids=["503", "drop"])
async def test_what_is_not_safe_is_sent_once(bad: Answer | None) -> None:
    async with serving(first(1, bad)) as (session, server):
        with pytest.raises(errors.AmbiguousOutcome):
            await session.request("POST", "/x", json={})
        assert len(server.requests) == 1


async def test_an_idempotent_write_is_repeated_when_it_says_so() -> None:
    async with serving(first(2, DROP)) as (session, server):
        await session.request("PUT", "/x", json={"a": 1}, safe=True)
        assert [request.body for request in server.requests] == [b'{"a":1}'] * 3
        assert len({request.connection for request in server.requests}) == 3


async def test_nothing_sent_may_always_be_repeated() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    session = HttpSession(Site(url=f"http://127.0.0.1:{port}"), Tokens(), policy=POLICY)
    began = time.monotonic()
    with pytest.raises(errors.NotSent):
        await session.request("POST", "/x", patience=0.3)
    assert 0.1 < time.monotonic() - began < 2
    waiting = asyncio.create_task(session.request("POST", "/x", patience=5))
    await asyncio.sleep(0.2)

    async def handler(_request: Request) -> Answer:
        return Answer(201)

    async with httpd(handler, port=port) as server:
        assert (await waiting).status_code == 201
        assert len(server.requests) == 1
    await session.aclose()


async def test_patience_of_zero_fails_at_once() -> None:
    async with serving(first(9, Answer(503))) as (session, server):
        with pytest.raises(errors.Unavailable):
            await session.request("GET", "/x", patience=0)
        assert len(server.requests) == 1


async def test_an_answer_that_will_not_change_is_not_asked_for_again() -> None:
    async with serving(first(9, Answer(404, {"message": "no"}))) as (session, server):
        with pytest.raises(errors.NotFound):
            await session.request("GET", "/x")
        assert len(server.requests) == 1


async def test_an_unexplained_500_gets_a_second_chance_only() -> None:
    async with serving(first(9, Answer(500, {"message": "boom"}))) as (session, server):
        with pytest.raises(errors.ServerError, match="boom"):
            await session.request("GET", "/x")
        assert len(server.requests) == 2


async def test_a_hanging_server_is_an_outage() -> None:
    async with serving(first(2, Answer(200, delay=1.0))) as (session, server):
        assert (await session.request("GET", "/x", patience=5)).json() == {"ok": True}
        assert len(server.requests) == 3


async def test_a_time_out_of_a_post_is_ambiguous() -> None:
    async with serving(first(1, Answer(201, delay=1.0))) as (session, server):
        with pytest.raises(errors.AmbiguousOutcome, match="no answer in time"):
            await session.send_once("POST", "/x", json={})
        assert len(server.requests) == 1


async def test_retry_after_is_respected() -> None:
    async with serving(first(1, Answer(429, headers={"retry-after": "0.3"}))) as (session, _):
        began = time.monotonic()
        await session.request("GET", "/x")
        assert time.monotonic() - began >= 0.3


async def test_a_longer_wait_than_the_patience_is_handed_to_the_caller() -> None:
    async with serving(first(9, Answer(429, headers={"ratelimit-reset": "60"}))) as (session, server):
        with pytest.raises(errors.RateLimited) as limited:
            await session.request("GET", "/x", patience=1)
        assert limited.value.retry_after == 60
        assert len(server.requests) == 1


async def test_a_pooled_connection_that_the_server_has_closed_is_replaced_at_once() -> None:
    def decide(_request: Request, number: int) -> Answer:
        return Answer(500, {"message": "Permission denied"}, close=True) if number % 2 else Answer(200)

    async with serving(decide) as (session, server):
        for _ in range(10):
            with pytest.raises(errors.ServerError):
                await session.request("GET", "/a", patience=0)
            assert (await session.request("GET", "/b", patience=0)).status_code == 200
        assert len(server.requests) == 20


async def test_a_connection_lost_under_a_request_costs_no_patience_once() -> None:
    # the server accepts the second request on the old connection and closes without a word
    def decide(request: Request, number: int) -> Answer | None:
        return DROP if number == 2 and request.connection == 1 else Answer(200)

    async with serving(decide) as (session, server):
        await session.request("GET", "/a", patience=0)
        await session.request("GET", "/b", patience=0)
        assert [request.connection for request in server.requests] == [1, 1, 2]
        assert session.counters.dead_connections == 1


async def test_submits_never_share_a_connection() -> None:
    async with serving(lambda _r, _n: Answer(201)) as (session, server):
        await session.request("GET", "/warm")
        for _ in range(3):
            await session.send_once("POST", "/jobs", json={})
        await session.request("GET", "/warm")
        assert [request.connection for request in server.requests] == [1, 2, 3, 4, 1]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_refused_token_is_renewed_once(method: str) -> None:
    def decide(request: Request, _number: int) -> Answer:
        return Answer(200 if request.headers["authorization"] == "Bearer token-2" else 401)

    async with serving(decide) as (session, server):
        send = session.request if method == "GET" else session.send_once
        assert (await send(method, "/x")).status_code == 200
        assert len(server.requests) == 2
        assert session.credential.refused == ["token-1"]  # type: ignore[attr-defined]


async def test_a_token_refused_twice_is_an_error() -> None:
    async with serving(lambda _r, _n: Answer(401, {"message": "expired"}, {"auth-token": "x"})) as (session, server):
        with pytest.raises(errors.AuthenticationError, match="expired"):
            await session.request("GET", "/x")
        assert len(server.requests) == 2


async def test_an_issuer_that_is_down_is_an_outage_and_nothing_was_sent() -> None:
    async with serving(lambda _r, _n: Answer(200)) as (session, server):
        down = time.monotonic() + 0.3

        async def access_token() -> str:
            if time.monotonic() < down:
                raise errors.Unavailable("the issuer does not answer")
            return "late"

        session.credential.access_token = access_token  # type: ignore[method-assign]
        with pytest.raises(errors.NotSent, match="no token"):
            await session.send_once("POST", "/x")
        await session.request("GET", "/x")
        assert [request.headers["authorization"] for request in server.requests] == ["Bearer late"]


async def test_overload_lowers_the_requests_in_flight() -> None:
    server: Httpd

    def decide(_request: Request, _number: int) -> Answer:
        # OpenSSH's MaxSessions, seen through FirecREST; slow enough that a slow client's requests meet, too.
        if server.in_flight > 5:
            return Answer(424, {"message": "Unable to open a new SSH channel."}, delay=0.1)
        return Answer(200, delay=0.1)

    async with serving(decide) as (session, server):
        await asyncio.gather(*(session.request("GET", f"/{n}") for n in range(120)))
        assert session.limiter.limit <= 5
        before = session.counters.by_status[424]
        await asyncio.gather(*(session.request("GET", f"/{n}") for n in range(40)))
        assert session.counters.by_status[424] - before <= 2


async def test_polling_keeps_to_the_sites_rate() -> None:
    async with serving(lambda _r, _n: Answer(200), polling_rate=20.0) as (session, _):
        began = time.monotonic()
        await asyncio.gather(*(session.request("GET", "/jobs", polling=True) for _ in range(5)))
        assert time.monotonic() - began >= 4 / 20
        assert session.counters.polling == 5


async def test_an_outage_is_probed_one_request_at_a_time() -> None:
    up = time.monotonic() + 0.6

    def decide(_request: Request, _number: int) -> Answer:
        return Answer(200) if time.monotonic() > up else Answer(503)

    async with serving(decide) as (session, server):
        waiting = [session.request("GET", f"/{n}", patience=10) for n in range(100)]
        assert len(await asyncio.gather(*waiting)) == 100
        failed = len(server.requests) - 100
        assert failed < 60  # a hundred callers, each trying every 50 ms at most, would have made over a thousand
        assert session.breaker.opened >= 1


async def test_a_submit_is_never_the_probe() -> None:
    up = time.monotonic() + 0.5

    def decide(_request: Request, _number: int) -> Answer:
        return Answer(201) if time.monotonic() > up else Answer(503)

    async with serving(decide) as (session, server):
        for _ in range(5):
            with pytest.raises(errors.Unavailable):
                await session.request("GET", "/x", patience=0)
        refusals = 0
        while True:
            try:
                await session.send_once("POST", "/jobs")
                break
            except errors.NotSent:  # never ambiguous: it was not sent
                refusals += 1
                await asyncio.sleep(0.03)
        assert refusals
        assert [request.method for request in server.requests].count("POST") == 1


async def test_an_unhealthy_system_does_not_close_the_site() -> None:
    message = "The ssh service for the requested system (x) is unhealthy."
    async with serving(first(20, Answer(503, {"message": message}))) as (session, _):
        for _ in range(20):
            with pytest.raises(errors.Unavailable):
                await session.request("GET", "/x", patience=0)
        assert not session.breaker.is_open


async def test_headers_say_who_we_are_and_which_request_it_is() -> None:
    async with serving(first(1, Answer(503))) as (session, server):
        await session.request("GET", "/x")
        for request in server.requests:
            assert re.fullmatch(r"hpcbridge/\d\S* \(core\)", request.headers["user-agent"])
            assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", request.headers["traceparent"])
        traces = {request.headers["traceparent"].split("-")[1] for request in server.requests}
        ids = {request.headers["x-request-id"] for request in server.requests}
        assert (len(traces), len(ids)) == (1, 2)


async def test_an_error_carries_the_id_under_which_the_server_knows_the_request() -> None:
    async with serving(first(9, Answer(404))) as (session, server):
        with pytest.raises(errors.NotFound) as gone:
            await session.request("GET", "/x", about={"system": "daint"})
        assert gone.value.request_id == server.requests[0].headers["x-request-id"]
        assert gone.value.system == "daint"


async def test_a_path_prefix_is_kept() -> None:
    async with serving(lambda _r, _n: Answer(200)) as (session, server):
        session.site = Site(url=session.site.url + "/hpc/firecrest/v2/")
        await session.request("GET", "/status/systems", params={"a": "b c"})
        assert server.requests[0].path == "/hpc/firecrest/v2/status/systems?a=b+c"


async def test_redirects_are_not_followed_with_our_token() -> None:
    async with serving(lambda _r, _n: Answer(307, headers={"location": "http://127.0.0.1:9/"})) as (session, server):
        with pytest.raises(errors.ConfigurationError, match="redirected"):
            await session.request("GET", "/x")
        assert len(server.requests) == 1


async def test_the_storage_client_carries_no_token() -> None:
    async with serving(lambda _r, _n: Answer(200)) as (session, server):
        await session.storage.put(session.site.url + "/bucket/part?X-Amz-Signature=s", content=b"data")
        assert "authorization" not in server.requests[0].headers
        assert "x-request-id" not in server.requests[0].headers


async def test_a_trickle_ends() -> None:
    async def trickle(_request: Request) -> Answer:
        await asyncio.sleep(60)
        return Answer()

    async with httpd(trickle) as server:
        policy = HttpPolicy(read=30, total=0.2, patience=0)
        session = HttpSession(Site(url=server.url), Tokens(), policy=policy)
        with pytest.raises(errors.Unavailable, match="no answer in time"):
            await session.request("GET", "/x", patience=0)
        await session.aclose()


async def test_a_refused_ssh_credential_is_not_waited_out_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcbridge.firecrest.answers import explain
    from hpcbridge.http.policy import RetryBudget

    monkeypatch.setattr(RetryBudget, "LASTING", 0.2)
    refusal = Answer(424, {"message": "Unable to establish SSH connection."})
    async with serving(first(10**6, refusal)) as (session, _):
        began = time.monotonic()
        with pytest.raises(errors.Unavailable, match="SSH"):
            await session.request("GET", "/x", patience=3600, explain=explain)
        assert time.monotonic() - began < 2


async def test_an_untrusted_certificate_says_what_to_set(tmp_path: object) -> None:
    error = httpx.ConnectError("tls")
    import ssl

    error.__cause__ = ssl.SSLCertVerificationError("self-signed certificate")
    from hpcbridge.http.answers import explain_failure

    found = explain_failure(error, {"site": "s"}, safe=True)
    assert isinstance(found, errors.ConfigurationError)
    assert "ca_file" in str(found)


async def test_clients_can_be_made_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose event loop must not stand still makes them beforehand; the first request finds them."""
    async with serving(lambda _request, _n: Answer()) as (session, _):
        await asyncio.to_thread(session.prepare)
        monkeypatch.setattr("hpcbridge.http.session.client_options", pytest.fail)
        await session.request("GET", "/a")
        await session.send_once("POST", "/b")
        assert session.storage
