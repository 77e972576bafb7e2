"""What a partition's `sched_options` say about the site, and about how stage directories travel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from reframe.core.exceptions import ConfigError

PREFIX = "firecrest_"
"""How our names begin among `sched_options`; ReFrame's own Slurm options keep theirs."""


@dataclass(frozen=True)
class Options:
    """The options; each is written with `firecrest_` before its name, and all have a default.

    Attributes:
        site: a site of hpcbridge's configuration file; None: the environment (FIRECREST_URL …) or the file's default.
        url, token_url, client_id: the same, said here.
        credential: where the secret is, by reference: `{"client_secret_env": "NAME"}`, `{"client_secret_file": PATH}`,
            `{"token_file": PATH}`, `{"token_command": [...]}` …; see hpcbridge's configuration.
        system: the cluster; None: FIRECREST_SYSTEM or the only one there is.
        account: charged for the jobs that move large files. Tests name theirs as with Slurm (`access`).
        stage_prefix: directory on the cluster; None: `reframe` in the user's own directory there.
        stage_name: the mirror of this machine's stage directory below it; None: one for each machine and directory.
            Name it where every run has another machine's name, as in containers of a CI; runs at the same time need
            different names.
        sync_exclude: patterns (as in .gitignore) of files of stage directories that stay where they are.
        sync_max_file_size: bytes; larger files stay where they are.
        paths: further prefixes of paths that are other ones on the cluster, `{local: remote}`.
        default_partition: Slurm's default partition, for flexible node allocation; the REST interface does not tell.
        outage_budget: seconds for which the site may stay away before the tests in flight fail.
        cleanup: whether stage directories of tests that passed are removed from the cluster at the end.
        resume: whether a run that was killed is gone on with by the next.
    """

    site: str | None = None
    url: str | None = None
    token_url: str | None = None
    client_id: str | None = None
    credential: Mapping[str, Any] = field(default_factory=dict, hash=False)
    system: str | None = None
    account: str | None = None
    stage_prefix: str | None = None
    stage_name: str | None = None
    sync_exclude: tuple[str, ...] = ()
    sync_max_file_size: int | None = None
    paths: Mapping[str, str] = field(default_factory=dict, hash=False)
    default_partition: str | None = None
    outage_budget: float = 900.0
    cleanup: bool = True
    resume: bool = True

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> Options:
        """From `sched_options` as they are configured. Raises ConfigError, naming the option."""
        own = {name.removeprefix(PREFIX): value for name, value in (given or {}).items() if name.startswith(PREFIX)}
        kinds = {each.name: _KINDS.get(str(each.type), (object,)) for each in fields(cls)}
        for name, value in own.items():
            if name not in kinds:
                known = ", ".join(PREFIX + each for each in kinds)
                raise ConfigError(f"there is no scheduler option {PREFIX}{name}; there are {known}")
            if value is not None and (not isinstance(value, kinds[name]) or _is_number_by_chance(value, kinds[name])):
                raise ConfigError(f"the scheduler option {PREFIX}{name} cannot be {value!r}")
        if "client_secret" in own.get("credential", {}):
            raise ConfigError(
                f"{PREFIX}credential holds a client secret; name where it is instead: client_secret_env, "
                "client_secret_file or client_secret_command"
            )
        own = {name: value for name, value in own.items() if value is not None}
        if "sync_exclude" in own:
            own["sync_exclude"] = tuple(own["sync_exclude"])
        return cls(**own)


_KINDS: dict[str, tuple[type, ...]] = {
    "str | None": (str,),
    "int | None": (int,),
    "float": (int, float),
    "bool": (bool,),
    "tuple[str, ...]": (list, tuple),
    "Mapping[str, Any]": (Mapping,),
    "Mapping[str, str]": (Mapping,),
}


def _is_number_by_chance(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, bool) and bool not in kinds
