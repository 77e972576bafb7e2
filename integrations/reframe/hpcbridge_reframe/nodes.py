"""The cluster's nodes, in the words that ReFrame's Slurm backend reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from reframe.core.exceptions import JobSchedulerError

if TYPE_CHECKING:
    from hpcbridge_reframe.session import Session


async def descriptions(session: Session) -> list[str]:
    """One line per node, as `scontrol show -o nodes` has it."""
    system = await session.system()
    return [describe(row) for row in await session.patiently(lambda: system.client.nodes(system.name))]


def describe(row: Mapping[str, Any]) -> str:
    """A node of the REST interface as a line of scontrol's."""
    states, partitions, features = (_words(row.get(name)) for name in ("state", "partitions", "features"))
    return (
        f"NodeName={row['name']} Partitions={','.join(partitions) or '(null)'} "
        f"ActiveFeatures={','.join(features) or '(null)'} State={'+'.join(states).upper() or 'UNKNOWN'}"
    )


async def reserved(session: Session, name: str) -> str:
    """The nodes of a reservation, in Slurm's short form. Raises JobSchedulerError when there is no such one."""
    system = await session.system()
    rows = await session.patiently(lambda: system.client.reservations(system.name))
    for row in rows:
        if row.get("name") == name:
            return str(row.get("nodeList") or "")
    raise JobSchedulerError(f"could not extract the node names for reservation {name!r}")


def _words(value: Any) -> list[str]:
    """Lists and comma-separated text alike."""
    words = value.split(",") if isinstance(value, str) else list(value or ())
    return [str(word).strip() for word in words if word]
