"""How long a notice leaves, and what can be finished in that time.

Facts (EC2 user guide; two peers' users): a notice's `time` is approximate and no
promise; by the time a notice is seen about 105 to 110 seconds are left; hibernation
starts at once; the two minutes are never more than two minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WINDOW = 120.0  # seconds between notice and stop; EC2 never gives more
PLANNED = 100.0  # seconds to plan with when the notice's time is missing or absurd
ABSURD = 600.0  # seconds ahead from which a time can only be nonsense


@dataclass(frozen=True, slots=True)
class Deadline:
    """`seconds` from now until the instance goes; `history`: it is about an earlier boot."""

    seconds: float
    history: bool = False


def plan_deadline(action: str, time: float | None, wall: float, booted: float) -> Deadline:
    """Turns a notice into a deadline.

    Args:
        action: "stop", "terminate" or "hibernate".
        time: The notice's time, wall clock seconds, or None.
        wall: Now, wall clock seconds.
        booted: When this machine booted, wall clock seconds.
    """
    if time is not None and time < booted:
        return Deadline(0.0, history=True)
    if action == "hibernate":
        return Deadline(0.0)
    left = None if time is None else time - wall
    if left is None or left <= 0 or left > ABSURD:
        # A time just past, on a machine that still runs, is a skewed clock or a late
        # stop: the stop signal goes out at once either way, and only patience is at stake.
        return Deadline(PLANNED)
    return Deadline(min(left, WINDOW))


def first_to_send(waiting: Sequence[int], *, left: float, rate: float | None) -> int:
    """Which of several checkpoints to send first when a deadline is near.

    Args:
        waiting: Bytes that each still has to send, oldest first; at least one.
        left: Seconds until uploads must stop.
        rate: Measured bytes per second, None before the first upload.

    Returns:
        The index of the newest that can be finished; of the newest when none can be, or
        nothing has been measured (what is sent of it is continued after the restart).
    """
    if rate is not None and rate > 0:
        for index in reversed(range(len(waiting))):
            if waiting[index] / rate <= left:
                return index
    return len(waiting) - 1
