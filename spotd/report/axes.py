"""Round numbers for axes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_TIMES = (
    10, 30, _MINUTE, 5 * _MINUTE, 15 * _MINUTE, 30 * _MINUTE, _HOUR, 3 * _HOUR, 6 * _HOUR,
    12 * _HOUR, _DAY, 2 * _DAY, 7 * _DAY, 14 * _DAY, 28 * _DAY, 91 * _DAY,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values from `low` to `high` onto pixels from `start` to `end`; `log`: by exponents."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value, one decimal; what lies outside is put on the edge."""
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)


def round_steps(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers between two."""
    if high <= low:
        return [low]
    raw = (high - low) / max(1, most)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def round_powers(low: float, high: float, most: int) -> list[float]:
    """Round numbers on an axis of exponents: 1, 2, 5 of each power, or the powers alone."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [d * 10.0**p for p in powers for d in digits if low <= d * 10.0**p <= high]
        if len(found) <= most:
            break
    return found


def round_times(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Round moments of local time between two (seconds since the epoch), with their labels."""
    step = next((s for s in _TIMES if (high - low) / s <= most), 365 * _DAY)
    offset = time.localtime(low).tm_gmtoff or 0
    first = math.ceil((low + offset) / step) * step - offset
    moments: list[float] = [first + n * step for n in range(int((high - first) // step) + 1)]
    form = "%H:%M:%S" if step < _MINUTE else "%H:%M" if step < _DAY else "%d %b"
    found = []
    day = None
    for moment in moments:
        local = time.localtime(moment)
        label = time.strftime(form, local)
        if step < _DAY and local.tm_yday != day and high - low > _DAY / 2:
            label = time.strftime("%d %b %H:%M" if local.tm_hour else "%d %b", local)
        day = local.tm_yday
        found.append((moment, label))
    return found


def short(value: float) -> str:
    """A number as short as it can be read: 1500, 12k, 0.25, 3e-05."""
    if value == 0:
        return "0"
    if abs(value) >= 1e4:  # noqa: PLR2004 - from here on thousands are shorter
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"  # noqa: PLR2004
    return f"{value:.4g}"
