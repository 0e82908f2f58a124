"""A trainer may report before the thread that started it has said that it runs.

On a busy machine a quick one does: its first steps would stand in the journal before
"attempt 1 started". Nobody waits for anybody here; what comes early is kept for a moment.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from spotd.core import events as on

if TYPE_CHECKING:
    from collections.abc import Callable

EARLY = 16  # reports; of more, the newest


class FirstWord:
    """Passes events on, a start's outcome before what the started trainer says.

    Args:
        post: Takes the events; must not block.
    """

    def __init__(self, post: Callable[[on.Event], None]) -> None:
        self._post = post
        self._lock = threading.Lock()
        self._early: deque[on.Event] | None = None

    def starting(self) -> None:
        """A trainer is about to be started."""
        with self._lock:
            self._early = deque(maxlen=EARLY)

    def of_host(self, event: on.Event) -> None:
        """Passes on what the trainer's host says."""
        with self._lock:
            self._post(event)
            if isinstance(event, (on.TrainerStarted, on.TrainerStartFailed)):
                early, self._early = self._early or (), None
                for each in early:
                    self._post(each)

    def of_trainer(self, event: on.Event) -> None:
        """Passes on what the trainer says."""
        with self._lock:
            if self._early is None:
                self._post(event)
            else:
                self._early.append(event)
