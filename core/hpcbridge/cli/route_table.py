"""What `hpcbridge doctor` says about moving files: which route, why not another one, and how long it may take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hpcbridge.cli import output
from hpcbridge.staging.estimates import Figures
from hpcbridge.staging.plan import Direction, Limits
from hpcbridge.staging.routes import Option, QueueState, explain, short_time
from hpcbridge.staging.seen import Seen

if TYPE_CHECKING:
    from hpcbridge.hpc import System

SIZES = (1_000_000, 50_000_000, 1_000_000_000, 100_000_000_000)
"""Bytes that the table shows when none are asked for."""


@dataclass(frozen=True)
class Choice:
    """The routes for one size and way, the one that would be taken first."""

    size: int
    direction: Direction
    options: list[Option]

    def summary(self) -> dict[str, Any]:
        """What `--json` prints; sizes in bytes, times in seconds."""
        return {
            "size": self.size,
            "direction": self.direction.value,
            "route": self.options[0].route.value if self.options[0].usable else None,
            "options": [
                {
                    "route": each.route.value,
                    "usable": each.usable,
                    "why_not": each.refusal.message if each.refusal else None,
                    "seconds": round(each.estimate.seconds, 3) if each.usable else None,
                    "requests": each.estimate.requests if each.usable else None,
                    "steps": {s.what: round(s.seconds, 3) for s in each.estimate.steps} if each.usable else {},
                    "note": each.estimate.note or None,
                }
                for each in self.options
            ],
        }


async def figures_of(system: System) -> tuple[Limits, Figures]:
    """What the system lets through, and what was seen of it."""
    info = await system.info()
    limits = Limits.of(info.max_ops_file_size, info.transfer, info.inbound_limit)
    return limits, Seen(system.client.session.site.url, system.name).figures()


def choices(limits: Limits, figures: Figures, sizes: Iterable[int], directions: Iterable[Direction]) -> list[Choice]:
    """One for each size and way."""
    ways = list(directions)
    return [Choice(size, way, explain(size, limits, figures, direction=way)) for size in sizes for way in ways]


def show_overview(found: list[Choice]) -> None:
    """One line for each size and way."""
    rows = [
        (
            output.size(each.size),
            each.direction.value,
            str(each.options[0]),
            "; ".join(str(other) for other in each.options[1:] if other.usable) or "-",
        )
        for each in found
    ]
    output.print_table(("size", "way", "route", "otherwise"), rows)


def show_details(found: list[Choice]) -> None:
    """One line for each route of each size and way."""
    rows = []
    for each in found:
        for option in each.options:
            cost = option.estimate
            steps = ", ".join(f"{step.what} {short_time(step.seconds)}" for step in cost.steps if step.seconds >= 0.05)
            why = option.refusal.message if option.refusal else "; ".join(filter(None, (steps, cost.note)))
            about, requests = (short_time(cost.seconds), str(cost.requests)) if option.usable else ("not possible", "-")
            rows.append((each.direction.value, option.route.value, about, requests, why))
    output.print_table(("way", "route", "about", "requests", "of which"), rows)


def summary(found: list[Choice], figures: Figures, queue: QueueState | None) -> dict[str, Any]:
    """What `--json` prints about routes."""
    return {
        "figures": asdict(figures),
        "queue": asdict(queue) if queue else None,
        "routes": [each.summary() for each in found],
    }
