"""What Prometheus reads at the hub's own `/hub/metrics`."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

STARTS = Counter("hpcbridge_starts", "Servers wanted, by how the start ended", ["system", "outcome"])
START_SECONDS = Histogram(
    "hpcbridge_start_seconds",
    "From the intention to the listening server, waiting in the queue included",
    ["system"],
    buckets=(5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, float("inf")),
)
SERVERS = Gauge("hpcbridge_servers", "Servers by the state of their job", ["system", "state"])
POLL_SECONDS = Histogram(
    "hpcbridge_poll_seconds",
    "Duration of one poll of a server",
    buckets=(0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, float("inf")),
)
POLLS = Counter("hpcbridge_polls", "Polls, by the source that answered", ["source"])
ORPHANS = Gauge("hpcbridge_orphans", "Jobs whose end nobody has confirmed yet")


class StateGauge:
    """Counts one server in `hpcbridge_servers` under its current state."""

    def __init__(self, system: str) -> None:
        """Counted nowhere yet."""
        self._system = system
        self._state: str | None = None

    def set(self, state: str | None) -> None:
        """Move it; None takes it out."""
        if state == self._state:
            return
        if self._state is not None:
            SERVERS.labels(self._system, self._state).dec()
        if state is not None:
            SERVERS.labels(self._system, state).inc()
        self._state = state
