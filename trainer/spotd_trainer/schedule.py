"""When the next save is due: every so many steps, or by what saves have cost so far."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Literal

from spotd_trainer.interval import AutoInterval
from spotd_trainer.meter import Meter

if TYPE_CHECKING:
    from spotd_trainer.interval import Cost

log = logging.getLogger("spotd_trainer")


class Schedule:
    """One process's; with several ranks the first one's clock counts for all.

    Args:
        save_every: steps; "auto"; None: never by itself.
        interruptions_per_day: for "auto".

    Raises:
        ValueError: not a positive number of steps.
    """

    def __init__(
        self, save_every: int | Literal["auto"] | None, interruptions_per_day: float
    ) -> None:
        if save_every not in ("auto", None) and (not isinstance(save_every, int) or save_every < 1):
            raise ValueError(
                f"save_every: expected a positive number of steps, 'auto' or None, "
                f"found {save_every!r}"
            )
        self.save_every = save_every
        self.interval = AutoInterval(interruptions_per_day)
        self.cost: Cost | None = None
        self.meter = Meter()
        self.last_save = time.monotonic()

    def by_step(self, step: int) -> bool:
        """Whether a save is due at `step`, the same on every rank."""
        return isinstance(self.save_every, int) and step % self.save_every == 0

    @property
    def by_time(self) -> bool:
        """Whether a save is due now, by this process's clock."""
        if self.save_every != "auto":
            return False
        return time.monotonic() - self.last_save >= self.interval.seconds(self.cost)

    def began(self) -> None:
        """The time to the next save counts from now."""
        self.last_save = time.monotonic()

    def ended(self, writing: float) -> None:
        """A save is on the disk, after this many seconds: take in what it cost, once."""
        cost = self.meter.ended(writing)
        if cost is None or self.save_every != "auto":
            return
        before = self.interval.seconds(self.cost)
        # Half of the old value: one slow disk flush does not double the interval for good.
        self.cost = cost if self.cost is None else self.cost.mixed_with(cost)
        after = self.interval.seconds(self.cost)
        if abs(after - before) > before / 4:
            log.info("%s", self.interval.reasoning(self.cost))
