"""The page on which a user chooses: labelled fields per system, usable without a mouse and without JavaScript.

What it sends is checked by `options` on the hub; nothing here is a limit by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, Template

if TYPE_CHECKING:
    from hpcbridge_jupyterhub.backend import Backend
    from hpcbridge_jupyterhub.clusters import Cluster
    from hpcbridge_jupyterhub.options import Offer


@dataclass(frozen=True, slots=True)
class Field:
    """One field; `choices` None is a free one of `type`, bounded by `least` and `most` where they are numbers."""

    name: str
    label: str
    help: str
    value: Any = None
    choices: tuple[str, ...] | None = None
    empty: str = ""
    type: str = "text"
    least: int = 1
    most: int | None = None


async def render(backend: Backend, user: Any, last: Mapping[str, Any]) -> str:
    """The form's HTML for one user; `last` are the options of their last start, which are chosen again."""
    keys = list(backend.clusters)
    offers = await asyncio.gather(*(backend.offer(key, user) for key in keys))
    systems = []
    for key, offer in zip(keys, offers, strict=True):
        cluster = backend.clusters[key]
        before = last if last.get("system", keys[0]) == key else {}
        fields = _fields(cluster, offer, before)
        systems.append({"key": key, "title": cluster.title, "stale": offer.stale, "fields": fields})
    chosen = last.get("system") if last.get("system") in backend.clusters else keys[0]
    return _template().render(systems=systems, chosen=chosen)


def _fields(cluster: Cluster, offer: Offer, last: Mapping[str, Any]) -> list[Field]:
    lists = (
        ("partition", "Partition", "The queue of the job", "The system's default"),
        ("account", "Account", "The project that is charged", offer.default_account or "Your default"),
        ("reservation", "Reservation", "Only if you were given one", "None"),
    )
    fields = []
    for name, label, text, empty in lists:
        configured, offered = getattr(cluster, f"{name}s"), getattr(offer, f"{name}s")
        known = configured if configured is not None else offered
        if known is not None and not known:
            continue
        choices = tuple(known) if known is not None else None
        fields.append(Field(name, label, text, last.get(name), choices, empty))
    hours = f"Minutes; at most {cluster.max_time}. The server ends when they are over"
    fields.append(
        Field("time", "Time limit", hours, last.get("time", cluster.time), type="number", most=cluster.max_time)
    )
    numbers = (
        ("nodes", "Nodes", "Whole machines", 1),
        ("cpus", "CPUs", "Cores for the server", 1),
        ("memory", "Memory", "GiB", 1),
        ("gpus", "GPUs", "Graphics processors", 0),
    )
    for name, label, text, least in numbers:
        most = getattr(cluster, f"max_{name}")
        if most is not None:
            shown = f"{text}; at most {most}"
            fields.append(Field(name, label, shown, last.get(name), type="number", least=least, most=most))
    return fields


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("hpcbridge_jupyterhub"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("hpcbridge_form.html")
