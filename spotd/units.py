"""Durations and sizes as people write them: "1h 30min" and "64MiB".

The spellings are those of systemd.time(7) as far as they are unambiguous: `m` is a
minute, `M` alone is refused as a duration, and sizes tell 1000 (`MB`) from 1024 (`MiB`).
"""

from __future__ import annotations

import math
import re

_SECONDS = {
    "ms": 0.001,
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
}
_BYTES = {
    "": 1,
    "B": 1,
    **{f"{p}B": 1000**n for n, p in enumerate("kMGT", start=1)},
    "KB": 1000,
    **{f"{p}iB": 1024**n for n, p in enumerate("KMGT", start=1)},
    # A bare letter is systemd's and coreutils' binary unit.
    **{p: 1024**n for n, p in enumerate("KMGT", start=1)},
}
_NUMBER = r"\d{1,15}(?:\.\d{1,9})?"
_DURATION_PART = re.compile(rf"\s*({_NUMBER})\s*([a-z]+)", re.ASCII)
_SIZE = re.compile(rf"\s*({_NUMBER})\s*([A-Za-z]*)\s*", re.ASCII)
_LONGEST = 100 * 366 * 86400.0
_LARGEST = 1024**5


def parse_duration(value: object) -> float:
    """Seconds, from a number of seconds or from text like "90s", "2min", "1h 30min".

    Raises:
        ValueError: It is neither, is negative, or is longer than a century.
    """
    seconds = _plain_number(value)
    if seconds is None:
        if not isinstance(value, str):
            raise ValueError("is not a duration")
        seconds = _duration_of_text(value)
    if not 0 <= seconds <= _LONGEST:
        raise ValueError("is not a duration between nothing and a century")
    return seconds


def parse_size(value: object) -> int:
    """Bytes, from a number of bytes or from text like "64MiB", "1.5GB".

    Raises:
        ValueError: It is neither, is negative, or is larger than a pebibyte.
    """
    size = _plain_number(value)
    if size is None:
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError("is not a size")
        factor = _BYTES.get(match[2])
        if factor is None:
            raise ValueError(
                f'has the unit "{match[2]}", which is none of B, kB, KiB, MB, MiB, ...'
            )
        size = float(match[1]) * factor
    if not 0 <= size <= _LARGEST:
        raise ValueError("is not a size between nothing and a pebibyte")
    return round(size)


def format_duration(seconds: float) -> str:
    """The shortest text `parse_duration` reads back as the same number of seconds.

    Exact for whole milliseconds; finer parts are rounded to them.
    """
    left = round(seconds * 1000)
    parts = []
    for unit, length in (("d", 86400000), ("h", 3600000), ("min", 60000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts) or "0s"


def format_size(size: int) -> str:
    """A size for people: "0B", "512B", "1.5GiB"; at most one digit behind the point."""
    amount, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:  # noqa: PLR2004 - what the i in KiB means
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.1f}".removesuffix(".0") + unit


def _plain_number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return math.inf
    return math.inf if math.isnan(number) else number


def _duration_of_text(text: str) -> float:
    try:
        return float(text) if re.fullmatch(rf"\s*{_NUMBER}\s*", text, re.ASCII) else _sum_of(text)
    except KeyError as error:
        raise ValueError(
            f'has the unit "{error.args[0]}", which is none of ms, s, min, h, d'
        ) from None


def _sum_of(text: str) -> float:
    total, at = 0.0, 0
    end = len(text.rstrip())
    while at < end or at == 0:
        match = _DURATION_PART.match(text, at)
        if match is None:
            raise ValueError('is not a duration like "90s" or "1h 30min"')
        total += float(match[1]) * _SECONDS[match[2]]
        at = match.end()
    return total
