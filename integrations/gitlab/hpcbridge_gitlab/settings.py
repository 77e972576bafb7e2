"""The administrator's file: how the driver works on this host, and which project may use what.

    [driver]
    lease = 900
    [[rule]]
    projects = ["climate/*"]
    refs = ["main"]
    site = "cscs"
    system = "daint"
    account = "proj42"
    max_time = "04:00:00"

The first rule that fits a project decides; a project without one is refused.
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hpcbridge_gitlab.verdicts import Cause, Stop

if TYPE_CHECKING:
    from hpcbridge_gitlab.contract import CiJob

VARIABLE = "HPCBRIDGE_GITLAB_CONFIG"
_T = TypeVar("_T")

DEFAULT = "/etc/hpcbridge/gitlab.toml"


@dataclass(frozen=True, slots=True)
class Driver:
    """`[driver]`: this host. Times in seconds.

    Attributes:
        state: directory (0700) of records; default: `gitlab` in hpcbridge's state directory.
        builds: directory of clones and caches on this host; default: `builds` in the state directory.
        sites: hpcbridge's own configuration file; default: as the command line finds it.
        runner: the gitlab-runner program; default: the one in PATH, else the one that called.
        isolate: "bwrap", "none", or "auto": bubblewrap where it works. What of a CI job runs on this host (git, hooks)
            then sees neither credentials nor other jobs.
        allow_hooks: whether `hooks:pre_get_sources_script`, a user's code, may run on this host without isolation.
        hide: further paths that isolated stages do not see.
        lease: an allocation that nobody has asked for so long ends itself.
        grace: before the time limit, the script is stopped so that after_script and artifacts have this long.
        tick: between two looks of the driver at a running stage.
        agent_tick: between two looks of the agent.
        queue_tick: the longest pause between two looks at a queued job.
        stale: after so long without a sign of life the scheduler is asked whether the allocation is still there.
        patience: for how long an outage of the site is waited out.
        kill_after: between SIGTERM and SIGKILL to a cancelled script.
        cleanup: for the whole of cleanup; what is left undone then, `gc` does.
    """

    state: str = ""
    builds: str = ""
    sites: str = ""
    runner: str = ""
    isolate: str = "auto"
    allow_hooks: bool = False
    hide: tuple[str, ...] = ("/etc/gitlab-runner",)
    lease: float = 900.0
    grace: float = 120.0
    tick: float = 1.0
    agent_tick: float = 0.3
    queue_tick: float = 15.0
    stale: float = 20.0
    patience: float = 300.0
    kill_after: float = 4.0
    cleanup: float = 9.0


@dataclass(frozen=True, slots=True)
class IdToken:
    """`[id_token]`: every job must bring a token that its GitLab has signed for it (`id_tokens:`).

    Attributes:
        issuer: GitLab's own URL, as its tokens have it in `iss`.
        audience: for whom they are; what jobs write as `aud`.
        variable: in which a job brings its token.
    """

    issuer: str = ""
    audience: str = ""
    variable: str = "HPCBRIDGE_ID_TOKEN"


@dataclass(frozen=True, slots=True)
class Rule:
    """One `[[rule]]`: whom it is for, where it leads, what is allowed there.

    Attributes:
        projects: patterns of project paths (`group/*` matches sub-groups, too); project_ids: GitLab's numbers.
        refs: patterns of branches and tags; empty: any. Only for what GitLab says, never for a variable.
        protected: only for branches and tags that GitLab protects; users: only for jobs that these have started (their
            logins). Both need `[id_token]`.
        site: a site of hpcbridge's configuration file; empty: the environment, or the file's default.
        system: the cluster.
        root: directory on it for the jobs' files; default: `hpcbridge-ci` in the user's own directory. `{user}` is the
            user's name there.
        account, partition, qos, reservation, constraint: where the job names none.
        accounts, partitions, qoses, reservations: what the job may name besides; empty partitions and qoses: any.
        max_time: longest limit; max_nodes, max_tasks: counts; max_queue: seconds in the queue, 0: as long as the job's
            own time-out.
        options: sbatch options for every job, which no variable overrides.
        allow: further sbatch options that SCHEDULER_PARAMETERS may hold.
    """

    projects: tuple[str, ...] = ()
    project_ids: tuple[int, ...] = ()
    refs: tuple[str, ...] = ()
    protected: bool = False
    users: tuple[str, ...] = ()
    site: str = ""
    system: str = ""
    root: str = ""
    account: str = ""
    accounts: tuple[str, ...] = ()
    partition: str = ""
    partitions: tuple[str, ...] = ()
    qos: str = ""
    qoses: tuple[str, ...] = ()
    reservation: str = ""
    reservations: tuple[str, ...] = ()
    constraint: str = ""
    max_time: str = ""
    max_nodes: int = 0
    max_tasks: int = 0
    max_queue: float = 0.0
    options: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()

    def fits(self, job: CiJob) -> bool:
        """Whether it is for this job."""
        project = job.project_id in self.project_ids or any(fnmatchcase(job.project_path, p) for p in self.projects)
        ref = not self.refs or any(fnmatchcase(job.ref, p) for p in self.refs)
        return project and ref and job.protected >= self.protected and (not self.users or job.user in self.users)


@dataclass(frozen=True)
class Settings:
    """The whole file."""

    path: Path
    driver: Driver
    rules: tuple[Rule, ...]
    id_token: IdToken | None = None

    @cached_property
    def state(self) -> Path:
        """The directory of records."""
        if self.driver.state:
            return Path(self.driver.state).expanduser()
        from hpcbridge.jobs.intents import state_directory

        return state_directory() / "gitlab"

    @cached_property
    def builds(self) -> Path:
        """The directory of clones and caches."""
        return Path(self.driver.builds).expanduser() if self.driver.builds else self.state / "builds"

    def rule_for(self, job: CiJob) -> tuple[int, Rule]:
        """The first rule that fits, and its number. Raises Stop (POLICY)."""
        for number, rule in enumerate(self.rules, 1):
            if rule.fits(job):
                return number, rule
        ref = f"{'protected ' if job.protected else ''}{job.ref_type or 'ref'} {job.ref}"
        raise Stop(
            Cause.POLICY, f"no rule of this runner is for project {job.project_path} (id {job.project_id}), {ref}"
        )


def load(path: str | None = None) -> Settings:
    """Read `path`, else $HPCBRIDGE_GITLAB_CONFIG, else /etc/hpcbridge/gitlab.toml.

    Raises Stop (CONFIGURATION) that names the file and the key.
    """
    where = Path(path or os.environ.get(VARIABLE) or DEFAULT)
    try:
        data = tomllib.loads(where.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Stop(Cause.CONFIGURATION, f"cannot read {where}: {error}") from None
    _known(where, "the file", data, {"driver", "id_token", "rule"})
    driver = _made(where, "[driver]", Driver, data.get("driver") or {})
    rules = tuple(_made(where, f"[[rule]] {n}", Rule, rule) for n, rule in enumerate(data.get("rule") or [], 1))
    id_token = _made(where, "[id_token]", IdToken, data["id_token"]) if "id_token" in data else None
    _check_id_token(where, id_token, rules)
    if driver.isolate not in ("auto", "bwrap", "none"):
        raise Stop(Cause.CONFIGURATION, f'{where}: isolate must be "auto", "bwrap" or "none"')
    if driver.sites:
        os.environ["HPCBRIDGE_CONFIG"] = str(where.parent / Path(driver.sites).expanduser())
    return Settings(where, driver, rules, id_token)


def _check_id_token(path: Path, wanted: IdToken | None, rules: tuple[Rule, ...]) -> None:
    if wanted is None:
        for number, rule in enumerate(rules, 1):
            if rule.protected or rule.users:
                raise Stop(Cause.CONFIGURATION, f"{path}: protected and users in [[rule]] {number} need [id_token]")
        return
    for name in ("issuer", "audience", "variable"):
        if not getattr(wanted, name):
            raise Stop(Cause.CONFIGURATION, f"{path}: {name} in [id_token] must not be empty")
    if not re.match(r"https://|http://(127\.0\.0\.1|localhost)[:/]", wanted.issuer):
        raise Stop(Cause.CONFIGURATION, f"{path}: issuer in [id_token] must be an https URL")


def _known(path: Path, where: str, table: dict[str, Any], known: set[str]) -> None:
    if unknown := sorted(table.keys() - known):
        raise Stop(Cause.CONFIGURATION, f"{path}: unknown key {unknown[0]!r} in {where}; known: {sorted(known)}")


def _made(path: Path, where: str, kind: type[_T], table: dict[str, Any]) -> _T:
    types = {item.name: str(item.type) for item in fields(kind)}  # type: ignore[arg-type]
    _known(path, where, table, set(types))
    values = {}
    for name, value in table.items():
        wanted = types[name]
        if wanted.startswith("tuple") and isinstance(value, list):
            right = all(isinstance(item, int if "int" in wanted else str) for item in value)
            value = tuple(value)
        else:
            right = (wanted, type(value).__name__) in _ACCEPTED
        if not right:
            raise Stop(Cause.CONFIGURATION, f"{path}: {name} in {where} must be {_WORDS[wanted]}")
        values[name] = value
    return kind(**values)


_ACCEPTED = {("str", "str"), ("bool", "bool"), ("int", "int"), ("float", "int"), ("float", "float")}
_WORDS = {
    "str": "a string",
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "tuple[str, ...]": "a list of strings",
    "tuple[int, ...]": "a list of whole numbers",
}
