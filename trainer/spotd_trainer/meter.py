"""What saving costs the loop, measured while it runs."""

from __future__ import annotations

import time

from spotd_trainer.interval import Cost


class Meter:
    """Tells apart the time of steps beside a save, of other steps, and of standing still."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._quiet: float | None = None
        self._waited = 0.0
        self._blocked = 0.0
        self._slowed = 0.0
        self._open = False

    def stepped(self, *, saving: bool) -> None:
        """The loop came to a step boundary; `saving`: a save was being written beside it."""
        now = time.perf_counter()
        if self._last is not None:
            seconds = now - self._last - self._waited
            if saving and self._quiet is not None:
                self._slowed += seconds - self._quiet
            elif not saving:
                quiet = self._quiet
                self._quiet = seconds if quiet is None else 0.9 * quiet + 0.1 * seconds
        self._blocked += self._waited
        self._waited = 0.0

    def left(self) -> None:
        """The loop leaves the boundary."""
        self._last = time.perf_counter()

    def waited(self, seconds: float) -> None:
        """The optimizer was held back for the snapshot."""
        self._waited += seconds

    def began(self, blocked: float) -> None:
        """A save began, for which the loop stood still this long."""
        self._blocked, self._slowed, self._open = blocked, 0.0, True

    def ended(self, writing: float) -> Cost | None:
        """A save is on the disk: what it cost, once."""
        if not self._open:
            return None
        self._open = False
        return Cost(self._blocked, min(max(0.0, self._slowed), writing), writing)
