"""When an instance was up: from a file of measured Spot capacity, or made from a rate."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from spotd.errors import SpotdError

if TYPE_CHECKING:
    from pathlib import Path

HINT = 'a trace is {"metadata": {"gap_seconds": 30}, "data": [1, 1, 0, ...]}'


@dataclass(frozen=True, slots=True)
class Trace:
    """`up` are (from, to) in seconds since its beginning; `price` is the mean, dollars per hour."""

    name: str
    seconds: float
    up: tuple[tuple[float, float], ...]
    price: float | None = None

    @property
    def up_seconds(self) -> float:
        """Seconds during which there was an instance."""
        return sum(end - begin for begin, end in self.up)

    @property
    def interruptions(self) -> int:
        """How often it was taken; what lasts to the end of the trace was not."""
        return sum(1 for _, end in self.up if end < self.seconds)

    @property
    def seconds_between(self) -> float:
        """Mean seconds of running between two interruptions (all of them where there was none)."""
        return self.up_seconds / max(1, self.interruptions)


def read_trace(path: Path) -> Trace:
    """Reads a file as github.com/skypilot-org/spot-traces has them.

    Raises:
        SpotdError: There is no such file, or it is something else.
    """
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise SpotdError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise SpotdError(f"{path} is not JSON", hint=HINT) from None
    metadata = found.get("metadata") if isinstance(found, dict) else None
    gap = metadata.get("gap_seconds") if isinstance(metadata, dict) else None
    data = found.get("data") if isinstance(found, dict) else None
    if not isinstance(gap, (int, float)) or isinstance(gap, bool) or gap <= 0:
        raise SpotdError(f"{path} is not a trace of Spot capacity", hint=HINT)
    if not isinstance(data, list) or not data:
        raise SpotdError(f"{path} is not a trace of Spot capacity", hint=HINT)
    if not all(_is_number(n) for n in data):
        raise SpotdError(f"{path} has something in `data` that is no number", hint=HINT)
    prices = found.get("prices")
    paid = [p for p, n in zip(prices, data, strict=False) if n > 0] if _prices(prices) else []
    return Trace(
        path.stem, len(data) * gap, _intervals(data, gap), sum(paid) / len(paid) if paid else None
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _prices(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _intervals(data: list[float], gap: float) -> tuple[tuple[float, float], ...]:
    up = []
    since: int | None = None
    for i, n in enumerate([*data, 0]):
        if n > 0 and since is None:
            since = i
        elif n <= 0 and since is not None:
            up.append((since * gap, i * gap))
            since = None
    return tuple(up)


def trace_from_rate(per_day: float, *, days: float, gap: float = 1440.0, seed: int = 1) -> Trace:
    """Makes a trace: interruptions at random, so many per day of running, `gap` seconds apart.

    Both times are exponential, as where the past says nothing about what comes.
    """
    random = Random(seed)  # noqa: S311 - weather, not secrets
    seconds = days * 86400.0
    up = []
    at = 0.0
    while at < seconds:
        run = random.expovariate(per_day / 86400.0) if per_day > 0 else seconds
        end = min(seconds, at + run)
        up.append((at, end))
        at = end + random.expovariate(1.0 / gap) if gap > 0 else end + 1.0
    return Trace(f"{per_day:g} interruptions a day", seconds, tuple(up))


def repeated(trace: Trace, days: float) -> Trace:
    """Returns the trace over and over, so many days of it."""
    seconds = days * 86400.0
    up: list[tuple[float, float]] = []
    offset = 0.0
    while offset < seconds:
        for begin, end in trace.up:
            if begin + offset < seconds:
                up.append((begin + offset, min(seconds, end + offset)))
        offset += trace.seconds
    joined: list[tuple[float, float]] = []
    for begin, end in up:
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return Trace(trace.name, seconds, tuple(joined), trace.price)
