"""The REST interface, one method per endpoint; servers 2.5 and newer.

The hot path is plain HTTP of our own. The rest goes through pyfirecrest (see `rest`), imported when first needed,
over the same session. Methods that only read, and writes that may be repeated without harm, outlast an outage of
`patience` seconds (None: the session's default). What makes a job or cannot be repeated blindly is sent with care:
see `submit`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from hpcbridge.errors import AmbiguousOutcome, InvalidRequest, JobNotFound, SystemNotFound
from hpcbridge.firecrest.answers import explain_once
from hpcbridge.firecrest.files import Files
from hpcbridge.firecrest.models import JobMetadata, JobRow, SystemInfo, UserInfo
from hpcbridge.firecrest.rest import Rest
from hpcbridge.firecrest.transfers import Transfers
from hpcbridge.firecrest.versions import parse_version
from hpcbridge.firecrest.wire import each_item, items, job_part, json_object, part, try_json
from hpcbridge.http.session import HttpSession

TIME_WINDOWS: Final = ("1h", "8h", "24h", "3d", "7d")
LONGEST_NAME_FILTER: Final = 235
"""Characters that the server's name filter takes; it splits at commas."""

_SYSTEMS_FRESH: Final = 300.0


class FirecrestClient(Files, Transfers):
    """FirecREST v2 over one session. Holds no state but the cached answer of `/status/systems`."""

    def __init__(self, session: HttpSession) -> None:
        """Nothing is sent yet."""
        self.session = session
        self._rest = Rest(session)
        self._systems: tuple[float, list[SystemInfo]] | None = None
        self._renewing = False

    def __repr__(self) -> str:
        return f"FirecrestClient({self.session.site.name})"

    # -- what this server can do -------------------------------------------------------------------------------------

    @property
    def server_version(self) -> str | None:
        """The header `f7t-appversion` of the last answer; source builds say "2.x.x"."""
        return self.session.server_version

    @property
    def has_time_window(self) -> bool:
        """Whether listings take `time_window` (2.5.7). Source builds and servers not yet heard of count as new."""
        return parse_version(self.server_version) >= (2, 5, 7)

    @property
    def has_name_filter(self) -> bool:
        """Whether listings take `name` (2.5.7); older servers ignore it, so `jobs` filters again."""
        return parse_version(self.server_version) >= (2, 5, 7)

    # -- status ------------------------------------------------------------------------------------------------------

    async def systems(self, fresh: bool = False, *, patience: float | None = None) -> list[SystemInfo]:
        """Every system of the site with limits and health; cached for five minutes unless `fresh`.

        After these one caller asks again, and others take what was known until the answer is there.
        """
        now = time.monotonic()
        known = self._systems
        if fresh or known is None or (now - known[0] > _SYSTEMS_FRESH and not self._renewing):
            self._renewing = True
            try:
                response = await self._get("/status/systems", patience=patience)
            finally:
                self._renewing = False
            known = self._systems = now, [SystemInfo.from_json(item) for item in items(response, "systems")]
        return list(known[1])

    async def system(self, name: str, fresh: bool = False, *, patience: float | None = None) -> SystemInfo:
        """One system by name; the server takes names in any case, and so do we.

        Raises:
            SystemNotFound: names the systems there are.
        """
        found = await self.systems(fresh, patience=patience)
        for info in found:
            if info.name.lower() == name.lower():
                return info
        known = ", ".join(info.name for info in found) or "none"
        raise SystemNotFound(
            f"no system {name!r}", site=self.session.site.name, system=name, hint=f"Systems there: {known}"
        )

    async def liveness(self, *, patience: float | None = None) -> Mapping[str, Any]:
        """When each system was last probed. Needs no token, but gets one."""
        return json_object(await self._get("/status/liveness/", patience=patience))

    async def nodes(self, system: str) -> list[Mapping[str, Any]]:
        """Nodes as the scheduler reports them."""
        return list(await self._rest.call("nodes", system))

    async def partitions(self, system: str) -> list[Mapping[str, Any]]:
        """Partitions (queues) as the scheduler reports them."""
        return list(await self._rest.call("partitions", system))

    async def reservations(self, system: str) -> list[Mapping[str, Any]]:
        """Reservations as the scheduler reports them."""
        return list(await self._rest.call("reservations", system))

    async def userinfo(self, system: str, *, patience: float | None = None) -> UserInfo:
        """Who we are on `system`; costs its login node three commands. Every submit needs it, hence our own call."""
        response = await self._get(f"/status/{part(system)}/userinfo", about={"system": system}, patience=patience)
        return UserInfo.from_json(json_object(response))

    # -- jobs --------------------------------------------------------------------------------------------------------

    async def submit(self, system: str, body: Mapping[str, Any], *, timeout: float | None = 60.0) -> str:
        """Submit a job description (`job` on the wire); returns its id. One attempt, on a connection of its own.

        Raises:
            NotSent, Unavailable: a definite no that may be repeated (nothing sent, system unhealthy, no SSH
                connection).
            RateLimited: 429; wait, then look before repeating.
            AuthenticationError, PermissionDenied, InvalidRequest, SystemNotFound, SubmitRejected: a definite no.
            AmbiguousOutcome: the job may exist.
        """
        about = {"system": system}
        response = await self.session.send_once(
            "POST",
            f"/compute/{part(system)}/jobs",
            json={"job": body},
            timeout=timeout,
            explain=explain_once,
            about=about,
        )
        job_id = try_json(response).get("jobId")
        if not job_id:
            raise AmbiguousOutcome(
                "the server accepted the job but named no id",
                site=self.session.site.name,
                system=system,
                status=response.status_code,
            )
        return str(job_id)

    async def jobs(
        self,
        system: str,
        *,
        names: Iterable[str] | None = None,
        time_window: str | None = None,
        all_users: bool = False,
        account: str | None = None,
        patience: float | None = None,
    ) -> list[JobRow]:
        """The user's jobs, newer than the server's look-back (24 h from 2.5.7, 7 days before); counts as polling.

        `names` keeps the jobs of exactly these names; the server helps where it can (up to 235 characters, no commas).
        One empty answer proves nothing: listings flicker for seconds after a submit and after a job's end. Where the
        server has `time_window`, live jobs are listed whatever their age.
        """
        if time_window is not None and time_window not in TIME_WINDOWS:
            raise InvalidRequest(f"unknown time window {time_window!r}", hint=f"One of {', '.join(TIME_WINDOWS)}")
        wanted = None if names is None else frozenset(names)
        params: dict[str, str] = {}
        if wanted and self.has_name_filter and not any("," in name for name in wanted):
            joined = ",".join(sorted(wanted))
            if len(joined) <= LONGEST_NAME_FILTER:
                params["name"] = joined
        if time_window is not None and self.has_time_window:
            params["time_window"] = time_window
        if all_users:
            params["allusers"] = "true"
        if account is not None:
            params["account"] = account
        response = await self._get(
            f"/compute/{part(system)}/jobs", params=params, about={"system": system}, patience=patience, polling=True
        )
        rows = []
        async for item in each_item(response, "jobs"):
            rows.append(JobRow.from_json(item))
        return rows if wanted is None else [row for row in rows if row.name in wanted]

    async def job(self, system: str, job_id: str, *, patience: float | None = None) -> list[JobRow]:
        """Rows of one job by id: one for a plain job, several (with duplicates) for an array. Counts as polling.

        Raises:
            JobNotFound: neither the queue nor accounting knows it, now; accounting lags by seconds.
        """
        about = {"system": system, "job_id": job_id}
        path = f"/compute/{part(system)}/jobs/{job_part(job_id)}"
        rows = items(await self._get(path, about=about, patience=patience, polling=True), "jobs")
        if not rows:
            raise JobNotFound(
                "the scheduler does not know the job", site=self.session.site.name, system=system, job_id=job_id
            )
        return [JobRow.from_json(item) for item in rows]

    async def metadata(self, system: str, job_id: str) -> JobMetadata:
        """Script and standard streams; JobNotFound once the controller has forgotten the job."""
        rows = await self._rest.call("job_metadata", system, job_part(job_id), about={"job_id": job_id})
        if not rows:
            raise JobNotFound("the controller has forgotten the job", system=system, job_id=job_id)
        return JobMetadata.from_json(rows[0])

    async def cancel(self, system: str, job_id: str, *, patience: float | None = None) -> None:
        """Ask the scheduler to cancel; repeating it does no harm.

        Raises:
            JobNotFound: no such job. Conflict: it has ended. PermissionDenied: another user's.
        """
        await self._write(
            "DELETE",
            f"/compute/{part(system)}/jobs/{job_part(job_id)}",
            about={"system": system, "job_id": job_id},
            patience=patience,
        )

    async def attach(self, system: str, job_id: str, command: str) -> None:
        """Run a command inside the job's allocation (`srun --overlap`), 5 s at most; its output is dropped."""
        await self._rest.call("attach_to_job", system, job_part(job_id), command, about={"job_id": job_id})
