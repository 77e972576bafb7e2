"""What a user may ask for: `ServerOptions`, checked on the hub whether it comes from the form, a query or the API."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hpcbridge_jupyterhub.clusters import Cluster, Minutes, explain

_WORD = r"^[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}$"


def _blank(value: Any) -> Any:
    """An empty field of a form is one that was left out."""
    return None if isinstance(value, str) and not value.strip() else value


Word = Annotated[str | None, BeforeValidator(_blank), Field(pattern=_WORD)]
Count = Annotated[int | None, BeforeValidator(_blank), Field(ge=1)]
Zero = Annotated[int | None, BeforeValidator(_blank), Field(ge=0)]


class ServerOptions(BaseModel):
    """One server as wished for: `memory` in GiB, `time` in minutes; None is the system's default."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    system: str
    partition: Word = None
    account: Word = None
    reservation: Word = None
    time: Annotated[Minutes | None, BeforeValidator(_blank)] = None
    nodes: Count = None
    cpus: Count = None
    memory: Count = None
    gpus: Zero = None

    def directives(self, cluster: Cluster) -> tuple[str, ...]:
        """Sbatch options for what JobSpec has no field for."""
        wanted = []
        if self.cpus:
            wanted.append(f"--cpus-per-task={self.cpus}")
        if self.memory:
            wanted.append(f"--mem={self.memory}G")
        if self.gpus:
            wanted.append(cluster.gpu_directive.format(gpus=self.gpus))
        return (*cluster.directives, *wanted)


FIELDS = tuple(ServerOptions.model_fields)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a system has to offer a user now; None: nobody could tell, so anything goes (the scheduler will say)."""

    partitions: Sequence[str] | None = None
    accounts: Sequence[str] | None = None
    reservations: Sequence[str] | None = None
    default_account: str | None = None
    stale: bool = False


class OptionsError(ValueError):
    """The options do not pass; the message is for the user."""


def from_form(data: Mapping[str, Any], clusters: Mapping[str, Cluster]) -> dict[str, Any]:
    """A form's or a query's lists of strings as options: the fields of the chosen system, `daint:partition` or plain.

    Raises OptionsError for a system that is not there.
    """
    first = {key: (value[0] if isinstance(value, list | tuple) and value else value) for key, value in data.items()}
    system = str(first.get("system") or next(iter(clusters)))
    own = {key.partition(":")[2]: value for key, value in first.items() if key.startswith(f"{system}:")}
    plain = {key: value for key, value in first.items() if ":" not in key}
    fields = {key: value for key, value in {**plain, **own}.items() if _blank(value) is not None}
    return check({**fields, "system": system}, clusters).model_dump(exclude_none=True)


def check(options: Mapping[str, Any], clusters: Mapping[str, Cluster]) -> ServerOptions:
    """The options as a model, within the bounds of the configuration; `{}` is the first system's default.

    Raises OptionsError naming the field and what it may be.
    """
    try:
        wanted = ServerOptions.model_validate({"system": next(iter(clusters)), **options})
    except ValidationError as error:
        raise OptionsError(explain(error)) from None
    cluster = clusters.get(wanted.system)
    if cluster is None:
        raise OptionsError(f"system: {_shown(wanted.system)} is not one of {', '.join(clusters)}")
    if wanted.time is not None and wanted.time > cluster.max_time:
        raise OptionsError(f"time: at most {cluster.max_time} minutes on {cluster.title}")
    for field in ("nodes", "cpus", "memory", "gpus"):
        value, most = getattr(wanted, field), getattr(cluster, f"max_{field}")
        if value is not None and most is None and not (field == "nodes" and value == 1):
            raise OptionsError(f"{field}: cannot be chosen on {cluster.title}")
        if value is not None and most is not None and value > most:
            raise OptionsError(f"{field}: at most {most} on {cluster.title}")
    for field in ("partition", "account", "reservation"):
        _one_of(field, getattr(wanted, field), getattr(cluster, f"{field}s"), cluster)
    return wanted


def check_offer(wanted: ServerOptions, cluster: Cluster, offer: Offer) -> None:
    """Compare with what the system says it has. Raises OptionsError."""
    for field in ("partition", "account", "reservation"):
        _one_of(field, getattr(wanted, field), getattr(offer, f"{field}s"), cluster)


def _one_of(field: str, value: str | None, known: Sequence[str] | None, cluster: Cluster) -> None:
    if value is not None and known is not None and value not in known:
        there = ", ".join(known) if known else "none to choose from"
        raise OptionsError(f"{field}: {_shown(value)} is not there on {cluster.title} ({there})")


def _shown(value: str) -> str:
    return repr(re.sub(r"[^\x20-\x7e]", "?", value[:64]))
