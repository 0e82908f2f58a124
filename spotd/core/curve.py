"""A point of the loss curve, as it is kept in files and in the store."""

from __future__ import annotations

from dataclasses import dataclass

_LARGEST = 1e300  # of any number; NaN is not below it either


@dataclass(frozen=True, slots=True)
class Point:
    """`time` in seconds since the epoch; `loss` None when the trainer reported none.

    `boot` tells the attempts of several machines apart; "" where only one is looked at.
    """

    time: float
    attempt: int
    step: int
    loss: float | None
    boot: str = ""


def plain(point: Point) -> list[float | int | None]:
    """Returns it as JSON has it: `[time, attempt, step, loss]`."""
    return [round(point.time, 1), point.attempt, point.step, point.loss]


def point_from(value: object, boot: str = "") -> Point | None:
    """Reads what `plain` has made; None for anything else."""
    if not isinstance(value, list) or len(value) != 4:  # noqa: PLR2004 - of these four
        return None
    numbers = value[:3] if value[3] is None else value
    if not all(isinstance(n, (int, float)) and abs(n) < _LARGEST for n in numbers):
        return None
    loss = None if value[3] is None else float(value[3])
    return Point(float(value[0]), int(value[1]), int(value[2]), loss, boot)
