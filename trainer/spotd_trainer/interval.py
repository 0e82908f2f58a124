"""How often to save: Young's and Daly's optimum, from what a save really costs. Pure.

Sources: J. W. Young, "A first order approximation to the optimum checkpoint interval" (1974);
J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps" (2006).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What one save cost. Seconds.

    blocked: the loop stood still for it. slowed: the steps beside it took longer, in all.
    writing: from the snapshot until it was on the disk.
    """

    blocked: float
    slowed: float
    writing: float

    @property
    def lost(self) -> float:
        """Training time lost to one save."""
        return self.blocked + max(0.0, self.slowed)

    def mixed_with(self, newer: Cost) -> Cost:
        """The mean of both."""
        return Cost(
            (self.blocked + newer.blocked) / 2,
            (self.slowed + newer.slowed) / 2,
            (self.writing + newer.writing) / 2,
        )


@dataclass(frozen=True, slots=True)
class AutoInterval:
    """The rule. All times in seconds.

    interruptions_per_day: how often the run is cut off without a chance to save. A notice with a
    save in time loses nothing, so this is an upper bound: one a day unless told otherwise.
    budget: the largest share of training time that saving may take.
    first: after a start, when nothing has been measured yet. Early, so that a full disk or a
    state that cannot be saved shows in the first minute and not after the first hour.
    """

    interruptions_per_day: float = 1.0
    budget: float = 0.01
    first: float = 10.0
    shortest: float = 5.0
    longest: float = 3600.0

    def seconds(self, cost: Cost | None) -> float:
        """Training time between two saves."""
        return self._decide(cost)[0]

    def reasoning(self, cost: Cost | None) -> str:
        """One line that says why."""
        return self._decide(cost)[1]

    def _decide(self, cost: Cost | None) -> tuple[float, str]:
        if cost is None:
            return self.first, f"saving first after {self.first:.0f} s, to measure what it costs"
        between = DAY / max(self.interruptions_per_day, 1e-9)
        optimum = _daly(cost.lost, between)
        bounds = {
            f"sqrt(2 x {cost.lost:.3g} s x {between:.0f} s) between losing work and saving it": (
                optimum
            ),
            f"saving may take {self.budget:.0%} of the time": cost.lost / self.budget,
            "the disk rests at least as long as it works": 2 * cost.writing,
            "the shortest there is": self.shortest,
        }
        why, chosen = max(bounds.items(), key=lambda item: item[1])
        if chosen > self.longest:
            why, chosen = "the longest there is", self.longest
        return chosen, (
            f"saving every {chosen:.0f} s: a save costs the loop {cost.lost:.3g} s"
            f" ({cost.blocked:.3g} s standing still) and the disk {cost.writing:.3g} s; {why}"
        )


def _daly(cost: float, between: float) -> float:
    """Daly's second-order form; `between` is the mean time between interruptions."""
    if cost >= 2 * between:
        return between
    ratio = cost / (2 * between)
    return math.sqrt(2 * cost * between) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost
