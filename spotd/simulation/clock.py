"""Simulated time: one queue of what happens when."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from spotd.core.state import Now

if TYPE_CHECKING:
    from collections.abc import Callable

EPOCH = 1_750_000_000.0  # wall clock, seconds since 1970, at the beginning of every world


class Clock:
    """Runs what is due in order of time; what is due at once runs in the order it was asked for."""

    __slots__ = ("_asked", "_queue", "mono", "shift")

    def __init__(self) -> None:
        self.mono = 0.0
        self.shift = 0.0  # seconds by which the wall clock has been set
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._asked = 0

    @property
    def wall(self) -> float:
        """Seconds since 1970 as the machines see them."""
        return EPOCH + self.mono + self.shift

    def now(self) -> Now:
        """Returns the moment as the core gets it."""
        mono = self.mono
        return Now(mono, EPOCH + mono + self.shift)

    def at(self, when: float, what: Callable[..., None], *args: Any) -> None:
        """Has `what(*args)` called at `when` seconds, or now if that is past."""
        self._asked += 1
        heappush(self._queue, (max(when, self.mono), self._asked, what, args))

    def after(self, seconds: float, what: Callable[..., None], *args: Any) -> None:
        """Has `what(*args)` called in so many seconds."""
        self._asked += 1
        heappush(self._queue, (self.mono + seconds, self._asked, what, args))

    def run(self, until: float, over: Callable[[], bool] | None = None) -> None:
        """Runs all that is due up to `until`, or until `over()` says that it is enough."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            when, _, what, args = heappop(queue)
            self.mono = when
            what(*args)
            if over is not None and over():
                return
        self.mono = max(self.mono, until)
