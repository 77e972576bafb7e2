"""Submit once: one scheduler id and one execution, whatever happens to the answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpcbridge.firecrest import FirecrestClient
    from hpcbridge.jobs.intents import IntentStore
    from hpcbridge.jobs.spec import JobSpec


@dataclass(frozen=True, slots=True)
class SubmitPolicy:
    """Time constants, in seconds; the defaults need no tuning.

    `lag`: how late accounting may show a job. `ssh`: how long the server may still be busy with a POST whose answer
    was lost; None: its own
    time-outs from `/status/systems`. `patience`: how long a definite no is repeated and a look-up may take.
    `spacing`: between two look-ups
    that count. `posts`: POSTs at most.
    """

    lag: float = 30.0
    ssh: float | None = None
    patience: float = 3600.0
    spacing: float = 5.0
    posts: int = 5


@dataclass(frozen=True, slots=True)
class Submitted:
    """The one job of a key. `adopted`: it was there already. `env_path`: remote private directory to remove when the
    job has ended."""

    job_id: str
    name: str
    adopted: bool
    env_path: str | None = None


async def submit_once(
    client: FirecrestClient,
    system: str,
    spec: JobSpec,
    key: str | None,
    *,
    store: IntentStore | None = None,
    policy: SubmitPolicy | None = None,
    user: str | None = None,
) -> Submitted:
    """Submit `spec` exactly once for `key` (None: a new key).

    `spec.workdir` must be set. `store` defaults to files in the state directory; with `key=None` nothing is recorded.
    `user` saves the
    question who we are on that system.
    """
    raise NotImplementedError
