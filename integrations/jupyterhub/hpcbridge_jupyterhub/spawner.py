"""`FirecRESTSpawner`: a user's server as a batch job behind FirecREST. The hub's contract is here, the job in `job`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyterhub.spawner import Spawner
from traitlets import Bool, Dict, Float, Integer, default

from hpcbridge.errors import ConfigurationError, HpcBridgeError
from hpcbridge_jupyterhub import form, metrics, options
from hpcbridge_jupyterhub.backend import Backend, session_of
from hpcbridge_jupyterhub.failures import explained, late
from hpcbridge_jupyterhub.job import ServerJob, queue_line
from hpcbridge_jupyterhub.liveness import answers
from hpcbridge_jupyterhub.progress import Progress
from hpcbridge_jupyterhub.script import spec_of
from hpcbridge_jupyterhub.state import KEY, ServerState

if TYPE_CHECKING:
    from hpcbridge import JobInfo
    from hpcbridge_jupyterhub.clusters import Cluster

POLL_PATIENCE = 10.0
"""Seconds after which a poll says what it knows: the hub's pages wait for it."""

EARLIER = 1.0
"""Seconds by which the hub may have begun to count the time of a start before we do."""
ROUTED_WITHIN = 1.0
"""Seconds for which the hub waits for its servers, at least, before it looks at the proxy's routes as it starts."""


class FirecRESTSpawner(Spawner):  # type: ignore[misc]  # the hub has no types
    """Runs single-user servers as batch jobs on systems behind FirecREST."""

    systems = Dict(
        config=True,
        help="""
        The systems on offer, in order: a key of your choice -> its settings; see docs/jupyterhub.md.

        Without any, the one that FIRECREST_URL, AUTH_TOKEN_URL and FIRECREST_SYSTEM describe.
        """,
    )
    submit_grace = Integer(
        5,
        config=True,
        help="Seconds that a stop waits for a submit under way to say its job's id before others look for it.",
    )
    stop_timeout = Integer(
        30,
        config=True,
        help="Seconds that a stop waits for the job's end to be confirmed; after them the orphan ledger goes on.",
    )
    accounting_lag = Float(30, config=True, help="Seconds by which the scheduler's accounting may be late.")
    show_form = Bool(True, config=True, help="Whether users choose system, partition, account, time and so on.")

    @default("env_keep")
    def _default_env_keep(self) -> list[str]:
        return ["JUPYTERHUB_SINGLEUSER_APP"]  # PATH and its like are the hub machine's, and mean nothing on a node

    @default("start_timeout")
    def _default_start_timeout(self) -> int:
        return 3600  # most of it is the queue

    @default("http_timeout")
    def _default_http_timeout(self) -> int:
        return 60

    @default("options_form")
    def _default_options_form(self) -> Any:
        return _form_of if self.show_form else ""

    @default("apply_user_options")
    def _default_apply_user_options(self) -> Any:
        return _applied_in_start

    def __init__(self, **kwargs: Any) -> None:
        """As the hub does."""
        super().__init__(**kwargs)
        self._backend: Backend | None = None
        self._state: ServerState | None = None
        self._job: ServerJob | None = None
        self._submitting: asyncio.Task[None] | None = None
        self._resuming: asyncio.Task[None] | None = None
        self._routing: asyncio.Task[None] | None = None
        self._progress = Progress()
        self._stopped = False
        self._gauge: metrics.StateGauge | None = None
        if self.user is not None and self.orm_spawner is not None and session_of(self) is not None:
            self._wake_keeper()

    def _wake_keeper(self) -> None:
        """The user is here, so perhaps a token is that was missing."""
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            try:
                self.backend.keeper.kick()
            except HpcBridgeError as error:
                self.log.error("%s", error)

    @property
    def backend(self) -> Backend:
        """What all servers of this hub share. Raises ConfigurationError."""
        if self._backend is None:
            self._backend = Backend.of(self)
        return self._backend

    # -- options -----------------------------------------------------------------------------------------------------

    def options_from_form(self, form_data: Mapping[str, Any]) -> dict[str, Any]:
        """The form's fields as `user_options`. Raises ValueError, which the page shows."""
        return options.from_form(form_data, self.backend.clusters)

    def wanted(self) -> options.ServerOptions:
        """`user_options` as a checked model, whatever way they came. Raises ValueError."""
        return options.check(self.user_options or {}, self.backend.clusters)

    # -- state -------------------------------------------------------------------------------------------------------

    def load_state(self, state: Mapping[str, Any]) -> None:
        """What an earlier process of the hub knew."""
        super().load_state(state)
        self._state = ServerState.from_json(state.get(KEY))

    def get_state(self) -> dict[str, Any]:
        """What the next process must know."""
        state: dict[str, Any] = super().get_state()
        if self._state is not None:
            state[KEY] = self._state.to_json()
        return state

    def clear_state(self) -> None:
        """The hub is done with this server; jobs that may still live are in the orphan ledger."""
        super().clear_state()
        self._state = None
        self._job = None

    def _save(self, state: ServerState) -> None:
        """Each change is in the hub's database at once: the hub itself saves only after `start` has returned."""
        if self._state is None or self._state.key != state.key:
            # The hub has given this start up meanwhile; what it made must end.
            if state.job_id is not None and state.code is None:
                self.backend.orphans.add(self.user.name, state)
                self.backend.keeper.kick()
            return
        self._state = state
        self.orm_spawner.state = self.get_state()
        session_of(self).commit()

    # -- start -------------------------------------------------------------------------------------------------------

    async def start(self) -> tuple[str, int] | str:
        """Submit the job, wait until its server listens; returns where. Raises SpawnException."""
        self._stopped, began, system = False, time.monotonic(), "unknown"
        if self._progress.closed:
            self._progress = Progress()
        try:
            wanted = self.wanted()
            system = wanted.system
            place = await self._bring_up(wanted)
        except asyncio.CancelledError:
            metrics.STARTS.labels(system, "interrupted").inc()
            if time.monotonic() - began < self.start_timeout - EARLIER:
                raise
            # The hub's own time-out, whose error says nothing to the page.
            raise late(self.start_timeout, self._progress.last) from None
        except (HpcBridgeError, ValueError) as error:
            metrics.STARTS.labels(system, "failed").inc()
            failure = explained(error)
            self._progress.tell(100, str(error))
            raise failure from None
        finally:
            self._progress.close()
        metrics.STARTS.labels(system, "ok").inc()
        metrics.START_SECONDS.labels(system).observe(time.monotonic() - began)
        return place

    async def _bring_up(self, wanted: options.ServerOptions) -> tuple[str, int]:
        cluster = self.backend.clusters[wanted.system]
        # In one account for all users every file and job name also says whose server it is.
        owner = f"{self.user.name}/" if cluster.credential == "site" else ""
        self._state = ServerState.begin(wanted.system, owner + self.name).with_(minutes=wanted.time or cluster.time)
        self._save(self._state)
        job = self._job = self._job_of(self._state)
        self._progress.tell(5, f"Submitting a job to {cluster.title}")
        self._submitting = asyncio.create_task(self._submit(job, cluster, wanted))
        self._submitting.add_done_callback(self._submit_done)
        # Shielded: who interrupts the start must not leave a POST behind of which nobody knows.
        await asyncio.shield(self._submitting)
        self._progress.tell(15, f"The job {job.state.job_id} was submitted to {cluster.title}")
        host, port = await job.place()
        self._progress.tell(90, f"The server listens on {host}, until {self.ends_at:%Y-%m-%d %H:%M} UTC at the latest")
        return host, port

    async def _submit(self, job: ServerJob, cluster: Cluster, wanted: options.ServerOptions) -> None:
        keeper = self.backend.keeper
        keeper.busy.add(job.state.key)
        try:
            await job.prepare()
            options.check_offer(wanted, cluster, self.backend.known_offer(wanted.system))
            command = [*(cluster.command or self.cmd), *self.get_args()]
            await job.submit(spec_of(cluster, wanted, job.state, command, self._job_env(cluster, job.state)))
        finally:
            keeper.busy.discard(job.state.key)

    def _submit_done(self, task: asyncio.Task[None]) -> None:
        """Read the outcome, also when nobody waits for it any more."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.info("submit for %s: %s", self._log_name, error)

    def _job_of(self, state: ServerState) -> ServerJob:
        cluster = self.backend.clusters.get(state.system)
        if cluster is None:
            raise ConfigurationError(
                f"the server runs on {state.system}, which is not configured any more",
                job_id=state.job_id,
                hint="Put it back into FirecRESTSpawner.systems until its servers have ended",
            )
        service = self.backend.service(state.system)
        self._gauge = metrics.StateGauge(state.system)
        return ServerJob(
            cluster,
            self.backend.as_user(self.user, cluster),
            service,
            state,
            self._save,
            lag=self.accounting_lag,
            on_change=self._heard,
            on_lost=self._lost,
            answers=self._answers,
        )

    def _heard(self, info: JobInfo) -> None:
        if self._gauge is not None:
            self._gauge.set(None if info.is_terminal else info.state.value)
        self._progress.tell(30 if info.state.is_queued else 60, queue_line(info))

    def _lost(self, state: ServerState) -> None:
        """Neither queue nor accounting know the job, nor does it answer; should it turn up again, it is ended."""
        self.backend.orphans.add(self.user.name, state)
        self.backend.keeper.kick()
        if self._gauge is not None:
            self._gauge.set(None)

    def _job_env(self, cluster: Cluster, state: ServerState) -> dict[str, str]:
        """The server's environment, and what the node's side needs; all of it travels in the job's private file."""
        env = {name: str(value) for name, value in self.get_env().items() if value is not None}
        env |= {
            "HPCBRIDGE_RENDEZVOUS": state.rendezvous,
            "HPCBRIDGE_KEY": state.key,
            "HPCBRIDGE_NODE_HOST": cluster.node_host,
            "HPCBRIDGE_PORTS": cluster.ports,
        }
        for name, path in (("KEY", "keyfile"), ("CERT", "certfile"), ("CA", "cafile")):
            if self.cert_paths:
                env[f"HPCBRIDGE_SSL_{name}"] = Path(self.cert_paths[path]).read_text()
        return env

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """What happens to the job, for the page that waits; it may be there before `start`, or after a restart."""
        async for event in self._progress.events():
            yield event

    # -- after a restart ---------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        """Take up a server that an earlier process of the hub began."""
        if self._state is None or self._resuming is not None:
            return
        if self._job is None:
            self._job = self._job_of(self._state)
            self._resuming = asyncio.create_task(self._take_up(self._job), name="hpcbridge-take-up")

    async def _take_up(self, job: ServerJob) -> None:
        try:
            if not await job.find():
                job.remember(code=1)
                return
            if job.state.host is None:
                await job.place()
            elif job.service is not None:
                job.watch()
        except HpcBridgeError as error:
            self.log.warning("%s could not be taken up: %s", self._log_name, error)

    async def get_url(self) -> str:
        """Where the server is; after a restart of the hub this waits for a job that is still in the queue.

        It also waits through an outage between hub and node: the hub gives a server up that it cannot reach.
        """
        began = time.monotonic()
        try:
            self._resume()
        except HpcBridgeError as error:
            self.log.error("%s: %s", self._log_name, error)
        while self._state is not None and self._state.code is None:
            if self._state.host is not None and await self._answers():
                if time.monotonic() - began > ROUTED_WITHIN:
                    self._routing = asyncio.create_task(self._route(), name="hpcbridge-route")
                return self._own_url()
            await asyncio.sleep(1 if self._state.host is None else 2)
        if self._stopped:
            # Stopped while the hub waited for it. The hub's check must not go on to stop it once more by its name,
            # which may be another server's by now; so it is left waiting.
            await asyncio.Event().wait()
        self.http_timeout = 1  # the job has ended: the hub need not wait for it
        return self._own_url() if self._state is not None and self._state.host else str(self.server.url)

    async def _route(self) -> None:
        """Tell the proxy of a server that came up late: the hub looks again only when the last one is up, or gone."""
        while self.pending == "check":  # noqa: ASYNC110 (the hub tells nobody when it has checked a server)
            await asyncio.sleep(0.2)
        if self.ready:
            try:
                await self.user.settings["proxy"].add_user(self.user, self.name)
            except Exception:
                self.log.exception("%s has no route in the proxy until the hub's next look", self._log_name)

    def _own_url(self) -> str:
        assert self._state is not None
        scheme = "https" if self.internal_ssl else "http"
        host = self._state.host or ""
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self._state.port}{self.server.base_url}"

    # -- poll --------------------------------------------------------------------------------------------------------

    async def poll(self) -> int | None:
        """None while the server lives, starts, or nobody can tell; else its exit status. Never raises."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(POLL_PATIENCE):
                return await self._poll()
        except TimeoutError:
            metrics.POLLS.labels("nobody").inc()
            return None
        except Exception:
            self.log.exception("polling %s", self._log_name)
            return None
        finally:
            metrics.POLL_SECONDS.observe(time.monotonic() - began)

    async def _poll(self) -> int | None:
        if self._state is None:
            return 0
        self._resume()
        assert self._job is not None
        if self._state.host is None:
            return self._state.code if self._state.code is not None else None
        if await self._answers():
            self._job.answered()
            metrics.POLLS.labels("server").inc()
            return None
        code = await self._job.judge(self._last_activity())
        metrics.POLLS.labels("scheduler").inc()
        return code

    async def _answers(self) -> bool:
        settings = self.user.settings
        names = ("internal_ssl_key", "internal_ssl_cert", "internal_ssl_ca")
        return await answers(self._own_url() + "api", tuple(settings.get(name) for name in names))

    def _last_activity(self) -> datetime | None:
        found: datetime | None = self.orm_spawner.last_activity
        return found.replace(tzinfo=UTC) if found is not None and found.tzinfo is None else found

    @property
    def ends_at(self) -> datetime | None:
        """When the job's time limit ends the server (aware); None before it has started."""
        return datetime.fromisoformat(self._state.ends) if self._state is not None and self._state.ends else None

    @property
    def system_title(self) -> str:
        """Where it runs, in the users' words."""
        cluster = self.backend.clusters.get(self._state.system) if self._state is not None else None
        return cluster.title if cluster is not None else ""

    @property
    def job_id(self) -> str | None:
        """The scheduler's id of the job, for pages and hooks."""
        return self._state.job_id if self._state is not None else None

    # -- stop --------------------------------------------------------------------------------------------------------

    async def stop(self, now: bool = False) -> None:  # noqa: ARG002 (a job is cancelled one way)
        """Cancel the job and wait for its end. What cannot be confirmed now stays in the orphan ledger."""
        if self._state is None:
            return
        self._stopped = True
        if self._submitting is not None and not self._submitting.done():
            await asyncio.wait({self._submitting}, timeout=self.submit_grace)
            self._submitting.cancel()
        if self._resuming is not None:
            self._resuming.cancel()
        state, job = self._state, self._job
        if job is not None:
            job.unwatch()
            state = job.state
        orphan = self.backend.orphans.add(self.user.name, state)
        try:
            async with asyncio.timeout(self.stop_timeout):
                ended = await self.backend.keeper.end(orphan)
        except (HpcBridgeError, TimeoutError) as error:
            self.log.warning("%s: the job %s is still to be ended: %s", self._log_name, state.job_id, error)
            ended = False
        if not ended:
            self.backend.keeper.kick()
        if self._gauge is not None:
            self._gauge.set(None)


async def _form_of(spawner: FirecRESTSpawner) -> str:
    return await form.render(spawner.backend, spawner.user, spawner.user_options or {})


def _applied_in_start(_spawner: FirecRESTSpawner, _options: Mapping[str, Any]) -> None:
    """`start` checks the options and makes the job of them, also in hubs that do not ask for this."""
