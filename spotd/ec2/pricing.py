"""Spot prices over time: series, a small chart, savings, how often a type is interrupted.

A price holds from one change to the next, so means are weighted by time. Facts: EC2 API
reference, DescribeSpotPriceHistory: up to 90 days, with the last change before the start.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spotd.errors import SpotdError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from spotd.ec2.api import PriceChange

MOST_DAYS = 90
BLOCKS, PLAIN = "▁▂▃▄▅▆▇█", "_.-~=+*#"
_ADVISOR_HINT = (
    "the file behind AWS's Spot Instance Advisor page, spot-advisor-data.json: "
    '{"ranges": [{"index", "label"}], "spot_advisor": {REGION: {"Linux": {TYPE: {"r", "s"}}}}}'
)


@dataclass(frozen=True, slots=True)
class Series:
    """The price of one pool from `start` to `end` (seconds since the epoch)."""

    instance_type: str
    zone: str
    start: float
    end: float
    changes: tuple[tuple[float, float], ...]

    @property
    def now(self) -> float:
        """The price at the end."""
        return self.changes[-1][1]

    @property
    def lowest(self) -> float:
        """Of the whole span."""
        return min(price for _, price in self.changes)

    @property
    def highest(self) -> float:
        """Of the whole span."""
        return max(price for _, price in self.changes)

    def mean(self, start: float, end: float) -> float | None:
        """Dollars an hour on average between two moments; None before the first change."""
        total = weight = 0.0
        for (since, price), until in zip(self.changes, self._untils(), strict=True):
            held = min(until, end) - max(since, start)
            if held > 0:
                total, weight = total + price * held, weight + held
        return total / weight if weight else None

    def _untils(self) -> list[float]:
        return [when for when, _ in self.changes[1:]] + [self.end]


def series(changes: Iterable[PriceChange], start: float, end: float) -> list[Series]:
    """One series for each pool, the cheapest now first."""
    pools: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for c in sorted(changes, key=lambda c: c.when):
        pools.setdefault((c.instance_type, c.zone), []).append((max(c.when, start), c.price))
    found = []
    for (instance_type, zone), points in pools.items():
        # Of several changes before the start, the last one holds there.
        kept = {when: price for when, price in points}  # noqa: C416 - the later one wins
        found.append(Series(instance_type, zone, start, end, tuple(sorted(kept.items()))))
    return sorted(found, key=lambda s: (s.now, s.instance_type, s.zone))


def chart(one: Series, low: float, high: float, width: int, blocks: str = BLOCKS) -> str:
    """The series as `width` characters between two prices; a space where nothing is known."""
    step = (one.end - one.start) / width
    text = ""
    for column in range(width):
        price = one.mean(one.start + column * step, one.start + (column + 1) * step)
        if price is None or not math.isfinite(price):
            text += " "
        elif high <= low:
            text += blocks[0]
        else:
            share = (price - low) / (high - low)
            text += blocks[min(len(blocks) - 1, max(0, int(share * len(blocks))))]
    return text


def scales(found: Sequence[Series]) -> dict[str, tuple[float, float]]:
    """Lowest and highest price of each type over all its zones: zones can be compared."""
    result: dict[str, tuple[float, float]] = {}
    for s in found:
        low, high = result.get(s.instance_type, (math.inf, 0.0))
        result[s.instance_type] = (min(low, s.lowest), max(high, s.highest))
    return result


def saving(spot: float, on_demand: float | None) -> float | None:
    """The share of the on-demand price that is saved; None where that is not known."""
    return None if not on_demand else 1 - spot / on_demand


def advisor(path: Path, region: str) -> dict[str, str]:
    """How often each type is interrupted in a month, in the advisor's words ("<5%").

    Raises:
        SpotdError: The file is not what AWS publishes.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        labels = {int(r["index"]): str(r["label"]) for r in document["ranges"]}
        linux: Mapping[str, Any] = document["spot_advisor"][region]["Linux"]
        return {name: labels[int(entry["r"])] for name, entry in linux.items()}
    except OSError as error:
        raise SpotdError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        told = f"{type(error).__name__}: {error}"
        raise SpotdError(
            f"{path} has no interruption frequencies for {region} ({told[:100]})",
            hint=_ADVISOR_HINT,
        ) from error
