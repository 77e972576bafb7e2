"""One session per registry entry: every request to a site goes through here, whoever makes it.

In this order: polling rate, a place in the limiter, the circuit breaker, a token, the wire. Then limiter and breaker
hear how it went, and the retry budget decides. Errors are made outside of `except` blocks on purpose: the frames of
httpx and httpcore hold request headers, and a traceback with local variables would show the token.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import httpx
from tenacity import AsyncRetrying, RetryCallState

from hpcbridge import __version__
from hpcbridge.credentials.base import Credential
from hpcbridge.credentials.secret import Secret
from hpcbridge.errors import AmbiguousOutcome, HpcBridgeError, NotSent, RateLimited, Unavailable
from hpcbridge.http import redaction
from hpcbridge.http.answers import About, Explain, explain_failure, explain_status
from hpcbridge.http.breaker import CircuitBreaker
from hpcbridge.http.limiter import AdaptiveLimiter, PollingRate
from hpcbridge.http.policy import HttpPolicy, RetryBudget
from hpcbridge.http.tls import client_options
from hpcbridge.sites import Site

log = logging.getLogger(__name__)

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_GATEWAY_DOWN = frozenset({502, 503, 504})

trace_id: ContextVar[str | None] = ContextVar("hpcbridge_trace_id", default=None)
"""W3C trace id (32 hex digits) for the requests of this context; None makes one per request."""
at_site: ContextVar[float] = ContextVar("hpcbridge_at_site", default=0.0)
"""Seconds for which the last poll of this context was with the site: from its last byte to the answer's first.

Neither the wait for its turn here is in it, nor a busy event loop's time for all else: that is no load of the site's.
"""


class _AtSite:
    """Measures `at_site` of one request, from what httpcore traces."""

    def __init__(self) -> None:
        self._sent = time.monotonic()

    async def note(self, event: str, _info: Any) -> None:
        if event.endswith("send_request_body.complete"):
            self._sent = time.monotonic()
        elif event.endswith("receive_response_headers.complete"):
            at_site.set(time.monotonic() - self._sent)


@dataclass(slots=True)
class Counters:
    """What went over the wire: requests in all, polling ones, repeats, refreshed tokens, connections found dead."""

    requests: int = 0
    polling: int = 0
    retries: int = 0
    refreshes: int = 0
    dead_connections: int = 0
    by_status: Counter[int] = field(default_factory=Counter)


class Quiet:
    """Holds a call's arguments without showing them: request bodies carry scripts and environment files."""

    __slots__ = ("arguments",)

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments

    def __repr__(self) -> str:
        return f"<{', '.join(self.arguments) or 'nothing'}>"


class HttpSession:
    """Authenticated, limited, patient HTTP for one site in one event loop.

    Attributes:
        counters: see `Counters`.
        server_version: text of the header `f7t-appversion`, once seen ("2.x.x" from builds without a version).
    """

    def __init__(
        self, site: Site, credential: Credential, *, adapter: str | None = None, policy: HttpPolicy | None = None
    ) -> None:
        """Nothing is opened before the first request."""
        redaction.install()
        self.site = site
        self.credential = credential
        self.policy = policy or HttpPolicy()
        self.user_agent = f"hpcbridge/{__version__} ({adapter or site.adapter})"
        self.limiter = AdaptiveLimiter(site.max_in_flight, self.policy.limiter)
        self.breaker = CircuitBreaker(site.name, self.policy.breaker)
        self.counters = Counters()
        self.server_version: str | None = None
        self._clients: dict[str, httpx.AsyncClient] = {}
        self._options: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"HttpSession({self.site.name})"

    @property
    def requests(self) -> int:
        """Requests sent so far, repeats included."""
        return self.counters.requests

    async def request(
        self,
        method: str,
        path: str,
        *,
        safe: bool | None = None,
        polling: bool = False,
        patience: float | None = None,
        timeout: float | None = None,
        fresh_connection: bool | None = None,
        explain: Explain = explain_status,
        about: About | None = None,
        payload: Quiet | None = None,
        **content: Any,
    ) -> httpx.Response:
        """One logical request; the answer has a status below 300 and its body is read.

        Args:
            method: HTTP method.
            path: from the site's URL on, with a leading slash.
            safe: repeating it does no harm (default: GET, HEAD). Say so for idempotent writes; others are only made
                again if nothing was sent.
            polling: counts against the site's polling rate.
            patience: seconds of outage to outlast, counted from the first failure; 0 fails at once; None is the
                policy's default.
            timeout: longest silence of the server in seconds.
            fresh_connection: do not use a pooled connection. Default: whatever is not safe gets a fresh one, because
                on a pooled one that the server has closed nobody can tell whether the request arrived.
            explain: makes the error from an answer of 300 or more.
            about: what it is about, for errors: `system`, `path`, `job_id`.
            payload: more of `content`, kept out of tracebacks that show local variables.
            **content: httpx's `params`, `json`, `files`, `data`, `content`, `headers`.

        Raises:
            HpcBridgeError: Unavailable and NotSent after the patience has run out, AmbiguousOutcome if it is not safe
                and the answer was lost, else what `explain` makes of the answer.
        """
        safe = method in SAFE_METHODS if safe is None else safe
        call = _Call(
            method=method,
            path=path,
            content=Quiet(**content, **(payload.arguments if payload else {})),
            about={"site": self.site.name, **(about or {})},
            safe=safe,
            polling=polling,
            timeout=timeout,
            fresh=not safe if fresh_connection is None else fresh_connection,
            explain=explain,
            trace=trace_id.get() or uuid.uuid4().hex,
        )
        budget = RetryBudget(self.policy, safe=safe, patience=patience)
        retrying = AsyncRetrying(
            retry=budget.retry, wait=budget.wait, stop=budget.stop, before_sleep=self._note_retry, reraise=True
        )
        try:
            return await retrying(self._attempt, call)
        except HpcBridgeError as error:
            error.repeated = budget.outcome_unknown or call.outcome_unknown
            raise

    async def send_once(
        self,
        method: str,
        path: str,
        *,
        timeout: float | None = None,
        explain: Explain = explain_status,
        about: About | None = None,
        **content: Any,
    ) -> httpx.Response:
        """Send exactly once, on a connection of its own. For requests that must never happen twice.

        A 401 is the one definite no that is mended here: the token is renewed and the request sent again, once.

        Raises:
            NotSent: nothing left this machine.
            AmbiguousOutcome: sent, and the answer was lost.
            HpcBridgeError: what `explain` makes of the answer; `explain` decides which statuses are ambiguous.
        """
        if self.breaker.is_open:
            await self._look_whether_up()
        return await self._attempt(
            _Call(
                method=method,
                path=path,
                content=Quiet(**content),
                about={"site": self.site.name, **(about or {})},
                safe=False,
                polling=False,
                timeout=timeout,
                fresh=True,
                explain=explain,
                trace=trace_id.get() or uuid.uuid4().hex,
            )
        )

    async def _look_whether_up(self) -> None:
        """What must not happen twice is no probe: its outcome would be ambiguous just when the site is in trouble."""
        try:
            await self.request("GET", "/status/liveness/", patience=0, safe=True)
        except NotSent:
            raise
        except Unavailable as error:
            down = NotSent(f"the site does not answer: {error.message}", site=self.site.name)
        except HpcBridgeError:
            return  # an answer, whatever it says
        else:
            return
        raise down

    @property
    def storage(self) -> httpx.AsyncClient:
        """A plain client for presigned URLs: the site's TLS and proxy, but no token, no limiter and no retries."""
        return self._client("storage")

    def prepare(self) -> None:
        """Make the clients now, in a thread of the caller's.

        Reading the authorities' certificates takes a tenth of a second each time, for which an event loop would stand
        still at its first request.
        """
        for kind in ("pooled", "fresh", "storage"):
            self._client(kind)

    async def aclose(self) -> None:
        """Close every connection; the session can be used again afterwards."""
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.aclose()

    # -- one attempt -------------------------------------------------------------------------------------------------

    async def _attempt(self, call: _Call) -> httpx.Response:
        """One attempt, in which a 401 is mended once with a new token: it is a definite no for every method."""
        for last in (False, True):
            if call.polling:
                await PollingRate.shared(os.getpid(), self.site.url, self.site.polling_rate).wait()
            async with self.limiter.slot(once=not call.safe, poll=call.polling) as slot:
                with self.breaker.admit() as admission:
                    bearer = await self._bearer()
                    outcome: httpx.Response | HpcBridgeError = await self._exchange(call, bearer)
                    if isinstance(outcome, httpx.Response):
                        outcome = self._judge(call, outcome)
                    status = outcome.status_code if isinstance(outcome, httpx.Response) else outcome.status
                    if _site_is_down(outcome):
                        admission.failed()
                    elif status is not None:
                        admission.succeeded()
                    if _is_overload(outcome):
                        slot.overloaded(outcome.retry_after if isinstance(outcome, RateLimited) else None)
                    elif status is not None:
                        slot.succeeded()
            if isinstance(outcome, httpx.Response):
                return outcome
            if status == 401:
                self.credential.invalidate(bearer.reveal())
                self.counters.refreshes += 1
                if not last:
                    continue
            break
        assert isinstance(outcome, HpcBridgeError)
        raise outcome

    async def _bearer(self) -> Secret:
        failure: HpcBridgeError
        try:
            return Secret(await self.credential.access_token())
        except NotSent:
            raise
        except Unavailable as error:
            # Towards the site nothing was sent, so that even a submit may simply be repeated.
            failure = NotSent(
                f"no token: {error.message}", site=self.site.name, retry_after=error.retry_after, hint=error.hint
            )
        except HpcBridgeError as error:
            error.site = error.site or self.site.name
            raise
        raise failure

    async def _exchange(self, call: _Call, bearer: Secret) -> httpx.Response | HpcBridgeError:
        """Request and answer, or the error that stands for the missing answer."""
        request_id = str(uuid.uuid4())
        outcome = await self._send(call, bearer, request_id, "fresh" if call.fresh else "pooled")
        if not call.fresh and call.safe and isinstance(outcome, _Dead):
            # The server closes connections after an unhandled error, and the pool does not know yet.
            self.counters.dead_connections += 1
            call.outcome_unknown = True
            outcome = await self._send(call, bearer, request_id, "fresh")
        if isinstance(outcome, _Dead):
            return outcome.error
        return outcome

    async def _send(
        self, call: _Call, bearer: Secret, request_id: str, kind: str
    ) -> httpx.Response | HpcBridgeError | _Dead:
        client = self._client(kind)
        about = {**call.about, "request_id": request_id}
        request = client.build_request(
            call.method, self.site.url + call.path, timeout=self._timeout(call.timeout), **call.content.arguments
        )
        request.headers["authorization"] = f"Bearer {bearer.reveal()}"
        request.headers["x-request-id"] = request_id
        request.headers["traceparent"] = f"00-{call.trace}-{uuid.uuid4().hex[:16]}-01"
        if call.polling:
            request.extensions["trace"] = _AtSite().note
        self.counters.requests += 1
        self.counters.polling += call.polling
        try:
            async with asyncio.timeout(self.policy.total):
                response = await client.send(request)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
            return _Dead(explain_failure(error, about, safe=call.safe))
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            return explain_failure(error, about, safe=call.safe)
        self._learn(response)
        return response

    def _learn(self, response: httpx.Response) -> None:
        self.counters.by_status[response.status_code] += 1
        self.server_version = response.headers.get("f7t-appversion") or self.server_version
        for name in ("auth-token", "set-cookie"):  # a 401 echoes the bearer token
            response.headers.pop(name, None)

    def _judge(self, call: _Call, response: httpx.Response) -> httpx.Response | HpcBridgeError:
        if response.status_code < 300:
            return response
        sent = response.request.headers.get("x-request-id")
        error = call.explain(response, {**call.about, "request_id": response.headers.get("x-request-id") or sent})
        definite = isinstance(error, NotSent | RateLimited) or call.explain is not explain_status
        if not call.safe and isinstance(error, Unavailable) and not definite:
            # Only who knows the server's words can tell that a 5xx means "not done".
            return AmbiguousOutcome(error.message, **{**call.about, "status": error.status})
        return error

    def _client(self, kind: str) -> httpx.AsyncClient:
        if kind not in self._clients:
            if self._options is None:
                self._options = client_options(self.site)
            options = self._options if kind != "storage" else client_options(self.site, "https:")
            keepalive = 0 if kind == "fresh" else 20
            self._clients[kind] = httpx.AsyncClient(
                **options,
                headers={"user-agent": self.user_agent, "accept-encoding": "gzip, deflate"},
                timeout=self._timeout(None),
                # The limiter counts; the pool must not make anybody wait behind its back.
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=keepalive, keepalive_expiry=4.0),
            )
        return self._clients[kind]

    def _timeout(self, read: float | None) -> httpx.Timeout:
        policy = self.policy
        return httpx.Timeout(connect=policy.connect, read=read or policy.read, write=policy.write, pool=policy.connect)

    def _note_retry(self, state: RetryCallState) -> None:
        self.counters.retries += 1
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, HpcBridgeError):
            log.info("attempt %d at %s failed: %s", state.attempt_number, self.site.name, error.message)


@dataclass(slots=True)
class _Call:
    """One logical request; attempts share it. `outcome_unknown`: a connection broke under it."""

    method: str
    path: str
    content: Quiet
    about: Mapping[str, Any]
    safe: bool
    polling: bool
    timeout: float | None
    fresh: bool
    explain: Explain
    trace: str
    outcome_unknown: bool = False


@dataclass(frozen=True, slots=True)
class _Dead:
    """The connection broke under the request."""

    error: HpcBridgeError


def _site_is_down(outcome: httpx.Response | HpcBridgeError) -> bool:
    """Whether this tells of the site as a whole; an unhealthy system behind it does not."""
    if isinstance(outcome, httpx.Response):
        return False
    if outcome.status is None:
        return isinstance(outcome, Unavailable | AmbiguousOutcome)
    return outcome.status in _GATEWAY_DOWN and "unhealthy" not in outcome.message


def _is_overload(outcome: httpx.Response | HpcBridgeError) -> bool:
    if isinstance(outcome, httpx.Response):
        return False
    return outcome.status in (424, 429, 503) or "SSH channel" in outcome.message
