"""Submit once: one scheduler id and one execution, whatever happens to the answers.

An answer to the POST is one of three things. A definite yes or no ends the matter (a no that may pass is repeated).
429 means: wait, look, then repeat. All else is ambiguous, and the job is looked up by its name; the POST is repeated
only after two successful listings without the name, both begun later than T past the POST's end, where T = the
server's own SSH time-outs + the accounting lag: by then the server has given up on its sbatch, and what sbatch had
accepted shows. Should even that be wrong, the script's own lock lets only one of the two jobs run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import uuid
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from hpcbridge.errors import (
    AmbiguousOutcome,
    AuthenticationError,
    ConfigurationError,
    Conflict,
    HpcBridgeError,
    InvalidRequest,
    InvalidSpec,
    JobNotFound,
    NotFound,
    NotSent,
    PathNotFound,
    PermissionDenied,
    RateLimited,
    ServerError,
    SubmitRejected,
    TooLarge,
    Unavailable,
)
from hpcbridge.jobs.finder import finder, lock_owner, window_for
from hpcbridge.jobs.guard import Places, array_in, directives_in, spec_directives
from hpcbridge.jobs.intents import FileIntentStore, HoldsKeys, Intent, IntentStore
from hpcbridge.jobs.names import job_name, normal_directory
from hpcbridge.jobs.prepare import Prepared, prepare

if TYPE_CHECKING:
    from hpcbridge.firecrest import FirecrestClient
    from hpcbridge.firecrest.models import JobRow
    from hpcbridge.jobs.spec import JobSpec

log = logging.getLogger(__name__)

_T = TypeVar("_T")

DEFINITE = (
    SubmitRejected,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    AuthenticationError,
    ConfigurationError,
    Conflict,
    TooLarge,
)
"""Answers after which no job exists and that the same request will get again."""

TRANSIENT = (Unavailable, AmbiguousOutcome, ServerError)
"""Failures of requests that may simply be repeated: reads, and writes of the same content."""


_LOOK_BACK = timedelta(days=7) - timedelta(hours=1)
"""Age up to which servers list what has ended, with an hour to spare for clocks that differ."""


@dataclass(frozen=True, slots=True)
class SubmitPolicy:
    """Time constants, in seconds; the defaults need no tuning.

    Attributes:
        lag: how late accounting may show a job.
        ssh: for how long the server may still be busy with a POST whose answer was lost; None: the sum of its own SSH
            time-outs from `/status/systems`.
        patience: for how long an outage is waited out, from its first failure on.
        spacing: between two look-ups after T.
        posts: POSTs with an ambiguous answer, each shown to have made no job, before we give up.
        longest_pause: between two attempts.
        timeout: for the answer to a POST; after it the answer counts as lost.
    """

    lag: float = 30.0
    ssh: float | None = None
    patience: float = 3600.0
    spacing: float = 5.0
    posts: int = 5
    longest_pause: float = 10.0
    timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class Submitted:
    """The one job of a key.

    Attributes:
        job_id, name: as the scheduler has them.
        adopted: whether it was there already.
        env_path: remote private directory with the environment, to be removed when the job has ended; None without one.
        array: array expression (from the specification or the script's directives), None for a single job.
    """

    job_id: str
    name: str
    adopted: bool
    env_path: str | None = None
    array: str | None = None


async def submit_once(
    client: FirecrestClient,
    system: str,
    spec: JobSpec,
    key: str | None,
    *,
    store: IntentStore | None = None,
    policy: SubmitPolicy | None = None,
    user: str | None = None,
    look_first: bool = False,
) -> Submitted:
    """Submit `spec` exactly once for `key`; the same call again, after whatever crash, finds the same job.

    Args:
        client: the REST client of the running loop.
        system: name of the cluster.
        spec: `workdir` must be set.
        key: any text; it stands for one job among those of this site, system, user and work directory. None: a new one.
        store: where the intent is recorded; default: files in the state directory, or nowhere when `key` is None.
        policy: time constants.
        user: our name on the system; None asks the server.
        look_first: where nothing is recorded here, look whether another machine has submitted the job: two requests
            instead of a second job that waits in the queue to find the lock of the first.

    Raises:
        KeyConflict: the key was used with another script.
        SubmitRejected, InvalidSpec, PermissionDenied, AuthenticationError, SystemNotFound: a definite no; no job
            exists.
        Unavailable: an outage outlasted the patience before anything was sent; no job exists.
        AmbiguousOutcome: it could not be found out within the patience; call again with the same key.
    """
    if spec.workdir is None:
        raise InvalidSpec("The specification has no workdir", system=system)
    policy = policy or SubmitPolicy()
    array = _array_of(spec)
    user = user or await _user(client, system, policy)
    name = job_name(
        spec.name,
        site=client.session.site.url,
        system=system,
        user=user,
        workdir=spec.workdir,
        key=key or uuid.uuid4().hex,
    )
    store = store or (FileIntentStore() if key is not None else _Nowhere())
    async with _turn(store, name):
        intent = await store.begin(name, spec.fingerprint())
        if intent.job_id is not None:
            places = Places(spec.workdir, name)
            return Submitted(intent.job_id, name, True, places.private if spec.env else None, array)
        if intent.new and look_first:
            there = await _outlast(policy, partial(_seen, client, system, name, spec.workdir))
            if there is not None:
                await store.bind(name, there)
                return Submitted(there, name, True, None, array)
        submit = _Submit(client, system, spec, name, policy, intent, array)
        try:
            done = await submit.run()
        except (*DEFINITE, _ProvenAbsent) as error:
            if not submit.in_doubt:
                # No job exists, so the key is free again: for the same script, or for a corrected one.
                await store.abandon(name)
            raise (error.error if isinstance(error, _ProvenAbsent) else error) from None
        try:
            await store.bind(name, done.job_id)
        except OSError as error:
            # The job is there and findable by its name; losing its id over a full disk would be worse.
            log.warning("job %s (%s) could not be recorded: %s", done.job_id, name, error)
        return done


async def find(client: FirecrestClient, system: str, name: str, workdir: str) -> str | None:
    """The id of the job that an earlier submit made under `name`, None where nothing shows one (yet).

    From this machine's record, else from the job's lock (it has started), else from the scheduler's listing (it waits).
    One answer without it proves nothing: see `submit_once`, which is what decides.
    """
    if (known := await FileIntentStore().known(name)) is not None:
        return known
    return await _seen(client, system, name, workdir)


async def _seen(client: FirecrestClient, system: str, name: str, workdir: str) -> str | None:
    if (owner := await lock_owner(client, system, Places(workdir, name).lock)) is not None:
        return owner
    rows = await finder(client, system).rows(name, window_for(_LOOK_BACK.total_seconds()))
    return min((row.array_job_id or row.job_id for row in rows), key=_age, default=None)


_users: weakref.WeakKeyDictionary[FirecrestClient, dict[str, str]] = weakref.WeakKeyDictionary()


async def _user(client: FirecrestClient, system: str, policy: SubmitPolicy) -> str:
    """Our name on the system, asked for once: it costs the login node three commands."""
    known = _users.setdefault(client, {})
    if system not in known:
        known[system] = (await _outlast(policy, lambda: client.userinfo(system))).name
    return known[system]


class _ProvenAbsent(Exception):
    """Carries the error that ends a submit of which it was shown that no job exists."""

    def __init__(self, error: HpcBridgeError) -> None:
        super().__init__(str(error))
        self.error = error


class _Nowhere:
    """The store for submits without a key: nobody can come back for them."""

    async def begin(self, key: str, spec_hash: str) -> Intent:  # noqa: ARG002
        return Intent(new=True, since=datetime.now(UTC))

    async def bind(self, key: str, job_id: str) -> None:  # noqa: ARG002
        return

    async def abandon(self, key: str) -> None:  # noqa: ARG002
        return


class _Submit:
    """One submit under its name: POST, look up, decide. `in_doubt`: a job may exist that we do not know of."""

    def __init__(
        self,
        client: FirecrestClient,
        system: str,
        spec: JobSpec,
        name: str,
        policy: SubmitPolicy,
        intent: Intent,
        array: str | None,
    ) -> None:
        assert spec.workdir is not None
        self.client, self.system, self.spec, self.name = client, system, spec, name
        self.policy, self.intent = policy, intent
        self.places = Places(spec.workdir, name)
        self.array = array
        self.in_doubt = not intent.new

    async def run(self) -> Submitted:
        """The job, made or found."""
        if not self.intent.new:
            # An earlier process meant this submit and did not say how it ended: its POST may have gone out just now.
            found = await self._settle(time.monotonic())
            if found is not None:
                return self._submitted(found, adopted=True)
        mode = (await _outlast(self.policy, lambda: self.client.system(self.system))).scheduler.mode
        prepared = await _outlast(self.policy, lambda: prepare(self.client, self.system, self.spec, self.name, mode))
        self.array = prepared.array
        job_id, adopted = await self._post(prepared)
        return self._submitted(job_id, adopted=adopted)

    def _submitted(self, job_id: str, *, adopted: bool) -> Submitted:
        return Submitted(job_id, self.name, adopted, self.places.private if self.spec.env else None, self.array)

    async def _post(self, prepared: Prepared) -> tuple[str, bool]:
        """The id, and whether it was found by a look-up rather than told by the POST."""
        pause, ambiguous = _Pause(self.policy), 0
        while True:
            try:
                return await self.client.submit(self.system, prepared.body, timeout=self.policy.timeout), False
            except DEFINITE:
                raise
            except RateLimited as error:
                self.in_doubt = True
                await pause.before_another(error)
                rows = await self._look()
                if rows:
                    return await self._adopt(rows), True
                self.in_doubt = False
            except Unavailable as error:
                await pause.before_another(error)
            except HpcBridgeError as error:
                self.in_doubt, ended = True, time.monotonic()
                log.info("submit of %s: %s; looking for the job", self.name, error.message)
                found = await self._settle(ended)
                if found is not None:
                    return found, True
                ambiguous += 1
                if ambiguous >= self.policy.posts:
                    error.hint = f"Tried {ambiguous} times; each time no job was made. Look at the server's health"
                    raise _ProvenAbsent(error) from None
                pause = _Pause(self.policy)

    async def _settle(self, ended: float) -> str | None:
        """The id of the job that a POST which ended at `ended` may have made.

        Or None once it is certain that it made none.
        """
        pause, absent, delay = _Pause(self.policy), 0, min(0.5, self.policy.spacing)
        horizon: float | None = None
        owner: str | None = None
        forgotten = False
        while absent < 2:
            try:
                if horizon is None:
                    horizon = ended + await self._doubt()
                began = time.monotonic()
                rows = await self._look(patient=False)
                if rows:
                    return await self._adopt(rows)
                if began > horizon:
                    absent += 1
                    if absent == 2:
                        # The lock is evidence that outlives accounting: a job of this name has started.
                        owner = await lock_owner(self.client, self.system, self.places.lock)
                        forgotten = owner is None and await self._is_forgotten()
                        break
                pause = _Pause(self.policy)
            except (*TRANSIENT, TooLarge) as error:
                absent = min(absent, 1)
                # Where it is only the listing that fails, a job that has started is still known by its lock.
                if not isinstance(error, NotSent):
                    with contextlib.suppress(HpcBridgeError):
                        if (owner := await lock_owner(self.client, self.system, self.places.lock)) is not None:
                            return owner
                await pause.before_another(error, ambiguous=True)
                continue
            left = horizon - time.monotonic()
            delay = min(delay * 2, self.policy.spacing) if left > 0 else self.policy.spacing
            await asyncio.sleep(min(delay, left + 0.01) if left > 0 else delay)
        if forgotten:
            raise self._too_old()
        self.in_doubt = owner is not None
        return owner

    async def _is_forgotten(self) -> bool:
        """Whether the scheduler may have forgotten a job of this intent, and the folder of its lock is gone."""
        if datetime.now(UTC) - self.intent.since < _LOOK_BACK:
            return False
        try:
            await self.client.stat(self.system, self.places.folder)
        except PathNotFound:
            return True
        return False

    def _too_old(self) -> AmbiguousOutcome:
        days = (datetime.now(UTC) - self.intent.since).days
        return AmbiguousOutcome(
            f"this key was submitted {days} days ago and its answer was lost; nothing tells any more whether it ran",
            site=self.client.session.site.name,
            system=self.system,
            path=self.places.folder,
            hint="If it did not run, submit under another key, or make that directory and submit again",
        )

    async def _doubt(self) -> float:
        """T: for so long after a POST's end a job of its making may still appear."""
        ssh = self.policy.ssh
        if ssh is None:
            ssh = (await self.client.system(self.system)).ssh.total
        return ssh + self.policy.lag

    async def _look(self, *, patient: bool = True) -> list[JobRow]:
        """Rows of our name and, where they say, of our work directory."""
        window = window_for((datetime.now(UTC) - self.intent.since).total_seconds())

        async def rows() -> list[JobRow]:
            return await finder(self.client, self.system).rows(self.name, window)

        found = await (_outlast(self.policy, rows) if patient else rows())
        mine = normal_directory(self.places.workdir)
        return [row for row in found if not row.working_directory or normal_directory(row.working_directory) == mine]

    async def _adopt(self, rows: list[JobRow]) -> str:
        """The one id among rows of our name.

        The lock's owner if there are several jobs, whose others are then cancelled. A listing may leave the owner out.
        """
        ids = {row.array_job_id or row.job_id for row in rows}
        jobs = ids
        if len(ids) > 1 or self.array is not None or self.spec.script_path is not None:
            ids, jobs = await self._array_ids(ids)
        if len(ids) == 1:
            return ids.pop()
        owner = await _outlast(self.policy, lambda: lock_owner(self.client, self.system, self.places.lock))
        if owner is None:
            # None has started. All of them wait in the queue, and all but the first to start will leave by themselves.
            return min(ids, key=_age)
        for loser in jobs - {owner} if owner in ids else ():
            with contextlib.suppress(HpcBridgeError):  # it leaves by itself at its start
                await self.client.cancel(self.system, loser)
        return owner

    async def _array_ids(self, ids: set[str]) -> tuple[set[str], set[str]]:
        """Listings show running tasks of arrays under raw ids of their own: replace those by the array's id.

        Also returns which of them are certainly jobs of their own: an id of which no answer says so may be that of a
        task, whose array it would be wrong to take apart.
        """
        found: set[str] = set()
        certain: set[str] = set()
        for job_id in ids:
            try:
                rows = await _outlast(self.policy, partial(self.client.job, self.system, job_id))
            except JobNotFound:
                rows = []
            arrays = {row.array_job_id for row in rows if row.array_job_id}
            found |= arrays or {job_id}
            certain |= arrays
            if self.array is None and not arrays and any(not row.is_placeholder for row in rows):
                certain.add(job_id)
        return found, certain


def _array_of(spec: JobSpec) -> str | None:
    """The array expression, as far as the specification tells; that of a `script_path` is known once it is read."""
    own = directives_in(spec.script) if spec.script is not None else ()
    return array_in((*own, *spec_directives(spec)))


def _age(job_id: str) -> tuple[int, str]:
    return (int(job_id) if job_id.isdigit() else 1 << 62, job_id)


class _Pause:
    """Waits between attempts, longer each time, until the patience since the first failure has run out."""

    def __init__(self, policy: SubmitPolicy) -> None:
        self._policy = policy
        self._first: float | None = None
        self._delay = 0.25

    async def before_another(self, error: HpcBridgeError, *, ambiguous: bool = False) -> None:
        """Sleep, or raise `error` when there is no time left; `ambiguous`: as the unknown fate of a POST."""
        now = time.monotonic()
        self._first = now if self._first is None else self._first
        wait = getattr(error, "retry_after", None)
        if wait is None:
            wait = random.uniform(self._delay / 2, self._delay)  # noqa: S311
            self._delay = min(self._delay * 2, self._policy.longest_pause)
        if now + wait > self._first + self._policy.patience:
            if ambiguous:
                raise AmbiguousOutcome(
                    f"the submit's answer was lost, and the job cannot be looked up: {error.message}",
                    site=error.site,
                    system=error.system,
                    request_id=error.request_id,
                    hint="Submit again with the same key: it finds the job if there is one",
                ) from None
            raise error
        await asyncio.sleep(wait)


async def _outlast(policy: SubmitPolicy, request: Callable[[], Awaitable[_T]]) -> _T:
    """Repeat a harmless request through outages."""
    pause, unexplained = _Pause(policy), 0
    while True:
        try:
            return await request()
        except (Unavailable, AmbiguousOutcome) as error:
            await pause.before_another(error)
        except ServerError as error:
            unexplained += 1
            if unexplained >= 5:  # not an outage: the request's own fault
                raise
            await pause.before_another(error)


_turns: weakref.WeakValueDictionary[tuple[int, str], asyncio.Lock] = weakref.WeakValueDictionary()


@contextlib.asynccontextmanager
async def _turn(store: IntentStore, name: str) -> AsyncIterator[None]:
    """One submit per name at a time: in this loop always, between processes where the store can."""
    lock = _turns.setdefault((id(asyncio.get_running_loop()), name), asyncio.Lock())
    async with lock:
        if isinstance(store, HoldsKeys):
            async with store.hold(name):
                yield
        else:
            yield
