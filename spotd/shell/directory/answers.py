"""Keeps the answer to an inspection from being mistaken for trouble nobody asked about.

`DirectoryTrouble` is both: an answer to `Inspect`, and a remark. While an inspection is
under way, remarks wait until it is answered.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from spotd.core.events import DirectoryTrouble, Event, LocalInventory

if TYPE_CHECKING:
    from collections.abc import Callable


class Answers:
    """Passes events on, in order; remarks wait for answers. Any thread."""

    def __init__(self, post: Callable[[Event], None]) -> None:
        self._post = post
        self._lock = threading.Lock()
        self._asked = 0
        self._waiting: list[DirectoryTrouble] = []

    def asked(self) -> None:
        """An inspection has been asked for."""
        with self._lock:
            self._asked += 1

    def answer(self, event: LocalInventory | DirectoryTrouble) -> None:
        """Posts the answer to an inspection."""
        with self._lock:
            self._post(event)
            self._asked -= 1
            if self._asked == 0:
                for trouble in self._waiting:
                    self._post(trouble)
                self._waiting.clear()

    def post(self, event: Event) -> None:
        """Posts anything else."""
        with self._lock:
            if self._asked and isinstance(event, DirectoryTrouble):
                self._waiting.append(event)
            else:
                self._post(event)
