"""What all servers of one hub share: the clusters, the watching service, what systems offer, the keeper of orphans."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect

from hpcbridge._preload import preload
from hpcbridge.errors import HpcBridgeError
from hpcbridge.jobs.watch import JobWatcher, WatchPolicy
from hpcbridge_jupyterhub.clusters import Cluster, parse_clusters
from hpcbridge_jupyterhub.keeper import Keeper
from hpcbridge_jupyterhub.options import Offer
from hpcbridge_jupyterhub.orphans import Orphans
from hpcbridge_jupyterhub.tokens import credential_of

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from hpcbridge import Hpc, System
    from hpcbridge.firecrest.models import UserInfo

log = logging.getLogger(__name__)

preload()  # while the hub starts, rather than when it serves

OFFER_FRESH = 300.0
"""Seconds for which partitions, reservations and accounts are not asked for again."""
OFFER_REFUSED = 15.0
"""Seconds for which a question that got no answer is not repeated: a form asks it for every system."""


class Backend:
    """The shared room of one hub; `Backend.of(spawner)` finds it."""

    def __init__(self, spawner: Any) -> None:
        """Raises ConfigurationError."""
        self.clusters: dict[str, Cluster] = parse_clusters(spawner.systems)
        self.authenticator = spawner.authenticator
        self._user_class, self._settings = type(spawner.user), spawner.user.settings
        self._session: Session = session_of(spawner)
        self.orphans = Orphans(self._session)
        self._lag = spawner.accounting_lag
        self.keeper = Keeper(self, self._lag)
        self._services: dict[Any, _Service] = {}
        self._sites: dict[Cluster, Hpc] = {}
        self._asking: dict[Any, asyncio.Lock] = {}
        self._unanswered: dict[Any, tuple[float, HpcBridgeError | None]] = {}
        self._kept: dict[Any, tuple[float, Any]] = {}

    @classmethod
    def of(cls, spawner: Any) -> Backend:
        """The one of this hub and this configuration."""
        rooms = _rooms.setdefault(session_of(spawner), {})
        key = json.dumps(spawner.systems, sort_keys=True, default=str)
        if key not in rooms:
            rooms[key] = cls(spawner)
        return rooms[key]

    def as_user(self, user: Any, cluster: Cluster) -> Hpc:
        """The deployment with the credential that submits for this user."""
        if cluster.credential == "site":
            if cluster not in self._sites:
                self._sites[cluster] = cluster.as_site()
            return self._sites[cluster]
        return cluster.as_user(credential_of(user, self.authenticator))

    def user_named(self, name: str) -> Any | None:
        """The hub's user, or None."""
        from jupyterhub import orm

        found = orm.User.find(self._session, name)
        return None if found is None else self._user_class(found, self._settings)

    def service(self, key: str) -> _Service | None:
        """The watching service of a system, where one is configured."""
        cluster = self.clusters[key]
        same = (cluster.machine, cluster.service)
        if same not in self._services:
            hpc = cluster.as_service()
            if hpc is None:
                return None
            self._services[same] = _Service(hpc, cluster, self._lag)
        return self._services[same]

    # -- what a system offers ----------------------------------------------------------------------------------------

    async def offer(self, key: str, user: Any) -> Offer:
        """Partitions, accounts and reservations for this user; what nobody answers stays None. Never raises."""
        cluster = self.clusters[key]
        try:
            hpc = self.as_user(user, cluster)
            async with hpc:
                system = hpc.system(cluster.system)
                await system.resolve()
                partitions, reservations, info = await asyncio.gather(
                    self._partitions(cluster, system),
                    self._reservations(cluster, system),
                    self._userinfo(cluster, system, user.name),
                    return_exceptions=True,
                )
        except HpcBridgeError as error:
            log.info("what %s offers could not be asked: %s", key, error)
            return Offer(stale=True)
        failed = [one for one in (partitions, reservations, info) if isinstance(one, BaseException)]
        for one in failed:
            log.info("what %s offers could not be asked: %s", key, one)
        return Offer(
            partitions=None if isinstance(partitions, BaseException) else partitions,
            reservations=None if isinstance(reservations, BaseException) else reservations,
            accounts=_accounts(info),
            default_account=None if info is None or isinstance(info, BaseException) else info.default_account,
            stale=bool(failed),
        )

    def known_offer(self, key: str) -> Offer:
        """What was heard lately of a system; nothing is asked."""
        lists: dict[str, list[str]] = {}
        for kind in ("partitions", "reservations"):
            asked, rows = self._kept.get((self.clusters[key].machine, kind), (float("-inf"), None))
            if rows is not None and time.monotonic() - asked < OFFER_FRESH:
                lists[kind] = [str(row["name"]) for row in rows if row.get("name")]
        return Offer(partitions=lists.get("partitions"), reservations=lists.get("reservations"))

    async def _partitions(self, cluster: Cluster, system: System) -> list[str] | None:
        if cluster.partitions is not None:
            return list(cluster.partitions)
        rows = await self._fresh((cluster.machine, "partitions"), lambda: system.client.partitions(system.name))
        return [str(row["name"]) for row in rows if row.get("name")]

    async def _reservations(self, cluster: Cluster, system: System) -> list[str] | None:
        if cluster.reservations is not None:
            return list(cluster.reservations)
        rows = await self._fresh((cluster.machine, "reservations"), lambda: system.client.reservations(system.name))
        return [str(row["name"]) for row in rows if row.get("name")]

    async def _userinfo(self, cluster: Cluster, system: System, user: str) -> UserInfo | None:
        if cluster.accounts is not None:
            return None
        found: UserInfo = await self._fresh(
            (cluster.machine, f"user {user}"), lambda: system.client.userinfo(system.name)
        )
        return found

    async def _fresh(self, key: Any, ask: Callable[[], Awaitable[Any]]) -> Any:
        async with self._asking.setdefault(key, asyncio.Lock()):
            now = time.monotonic()
            asked, value = self._kept.get(key, (float("-inf"), None))
            if now - asked < OFFER_FRESH:
                return value
            failed, failure = self._unanswered.get(key, (float("-inf"), None))
            if failure is not None and now - failed < OFFER_REFUSED:
                raise failure
            try:
                async with asyncio.timeout(10):
                    value = await ask()
            except (TimeoutError, HpcBridgeError) as error:
                failure = HpcBridgeError(f"no answer about the {key[1]}: {error}")
                self._unanswered[key] = (time.monotonic(), failure)
                raise failure from None
            self._kept[key] = (time.monotonic(), value)
            return value


class _Service:
    """The credential that watches everybody's jobs on one system, with one listing for all of them."""

    def __init__(self, hpc: Hpc, cluster: Cluster, lag: float) -> None:
        self.hpc = hpc
        self._cluster = cluster
        self._policy = WatchPolicy(lag=lag)
        self._watchers: dict[int, JobWatcher] = {}

    async def system(self) -> System:
        """The system as the service sees it. Raises what `resolve` raises."""
        system = self.hpc.system(self._cluster.system)
        await system.resolve()
        return system

    async def watcher(self) -> JobWatcher:
        """The one watcher; its connections stay open as long as the loop runs."""
        loop = id(asyncio.get_running_loop())
        system = await self.system()
        if loop not in self._watchers:
            await self.hpc.open()
            account = self._cluster.service.account if self._cluster.service else None
            self._watchers[loop] = JobWatcher(
                self.hpc.client, system.name, policy=self._policy, all_users=True, account=account
            )
        return self._watchers[loop]


def _accounts(info: UserInfo | BaseException | None) -> tuple[str, ...] | None:
    """What the server says; servers before 2.6 do not, then any account goes."""
    return info.accounts if info is not None and not isinstance(info, BaseException) and info.accounts else None


def session_of(spawner: Any) -> Session:
    """The hub's session."""
    found: Session = inspect(spawner.orm_spawner).session
    return found


_rooms: weakref.WeakKeyDictionary[Session, dict[str, Backend]] = weakref.WeakKeyDictionary()

__all__ = ["Backend", "session_of"]
